"""Random small changes to files. They depend only on the random generator."""

import io
import struct
import warnings
import zipfile
import zlib
from itertools import pairwise
from pickletools import genops

import numpy as np

NUMBERS = (0, 1, -1, 127, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
NAMES = ["../out", "/out", "a/../../out", "..\\out", "c:\\out", "nul\0.txt", "x" * 300, "d/" * 200 + "x", "a", "a/b",
         "A", "./a", "a/", "", ".", "..", "~/out", "a\nb", "-rf", "a//b", "archive/data.pkl", "data.pkl"]


def mutate(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Change a few positions: flip bits, replace bytes or numbers, insert, delete, repeat, cut, append from `other`."""
    data = bytearray(data)
    for _ in range(rng.geometric(0.4)):
        at = int(len(data) * rng.random() ** rng.integers(1, 6))  # mostly near the start, where headers are
        length, way = int(min(rng.geometric(0.1), 200)), rng.integers(9)
        if way == 0 and at < len(data):
            data[at] ^= 1 << rng.integers(8)
        elif way == 1:
            data[at : at + length] = bytes([rng.choice([0, 32, 127, 128, 255])]) * length
        elif way == 2:
            number, width = int(rng.choice(NUMBERS)), int(rng.choice([1, 2, 4, 8]))
            data[at : at + width] = (number % 256**width).to_bytes(width, str(rng.choice(["little", "big"])))
        elif way == 3:
            data[at:at] = rng.bytes(length)
        elif way == 4:
            del data[at : at + length]
        elif way == 5:
            data[at:at] = data[at : at + length] * int(rng.geometric(0.2))
        elif way == 6:
            data[at:] = other[int(len(other) * rng.random()) :]
        elif way == 7:
            del data[at:]
        else:
            data[at : at + length] = rng.bytes(length)
    return bytes(data)


def mutate_png(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Change one chunk of a PNG and write correct checksums. Other files are changed by `mutate`."""
    if not data.startswith(b"\x89PNG"):
        return mutate(data, rng, other)
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number, way = int(rng.integers(len(chunks))), rng.integers(6)
    kind, content = chunks[number]
    if way == 0:
        chunks.insert(int(rng.integers(len(chunks))), chunks[number])
    elif way == 1:
        del chunks[number]
    elif way == 2 and kind == b"IDAT":
        chunks[number] = kind, zlib.compress(mutate(zlib.decompress(content), rng, other))
    elif way == 3:
        kind, content = chunks[0]
        sides = [int(rng.choice([*NUMBERS[:-2], 5000, 13000])) % 2**32 for _ in range(2)]
        chunks[0] = kind, struct.pack(">II", *sides) + content[8:]
    else:
        chunks[number] = kind, mutate(content, rng, other)
    return data[:8] + b"".join(struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)) for kind, content in chunks)


def mutate_zip(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Change the content or name of one entry of a zip, most often of the pickle, and write correct checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        entries = [(entry.filename, zipped.read(entry)) for entry in zipped.infolist()]
    pickles = [index for index, (name, _) in enumerate(entries) if name.endswith("data.pkl")]
    number = pickles[0] if pickles and rng.random() < 0.8 else int(rng.integers(len(entries)))
    name, content = entries[number]
    way = rng.integers(4)
    if way == 0:
        name = NAMES[rng.integers(len(NAMES))]
    elif way == 1 and number in pickles:
        content = shuffle_operations(content, rng)
    elif way == 2:
        entries.append(entries[rng.integers(len(entries))])
    else:
        content = mutate(content, rng, other)
    entries[number] = name, content
    return pack(entries, zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED)


def shuffle_operations(pickled: bytes, rng: np.random.Generator) -> bytes:
    """Delete, repeat or swap operations of a pickle."""
    starts = [at for _, _, at in genops(pickled)] + [len(pickled)]
    parts = [pickled[start:end] for start, end in pairwise(starts)]
    for _ in range(rng.geometric(0.4)):
        first, second = rng.integers(len(parts), size=2)
        way = rng.integers(3)
        if way == 0:
            parts[first], parts[second] = parts[second], parts[first]
        elif way == 1:
            parts.insert(first, parts[second])
        elif len(parts) > 1:
            del parts[first]
    return b"".join(parts)


def pack(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, modes: dict | None = None) -> bytes:
    """A zip with these (name, content) entries. `modes` maps entry numbers to file modes (default: 0o100644)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")
        for number, (name, content) in enumerate(entries):
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, compression  # unchanged; the constructor would correct the name
            info.external_attr = (modes or {}).get(number, 0o100644) << 16
            zipped.writestr(info, content)
    return file.getvalue()
