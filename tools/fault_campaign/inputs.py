"""Malformed split files, posteriors, images and archives."""

import io
import struct
import zipfile
from functools import cache

import numpy as np
from PIL import Image

from tools.fault_campaign.mutators import NAMES, NUMBERS, mutate, mutate_png, mutate_zip, pack

SPLITS = (b"# comment\na.png b.png\nc.png b.png group\n", "ä.png b.png \u2028 g\n".encode(), b"a.png\0 b.png\n",
          b"/BS/a.png ../b.png\n" + b"\n".join(b"%d.png b.png g" % number for number in range(50)),
          b"a" * 5000 + b".png b.png\n", b"a.png b.png\r\n", b"\xef\xbb\xbfa.png b.png\n")
GROUPS = (b"train/a g1\nval/a g2\n", b"train/a\n", b"train/a g h\n", "val/ä g\n".encode("latin-1"))
TYPES = ("<f4", "<f2", "<f8", ">f4", "<i4", "|O", "<c8", "|b1", "<U3", "|V8", "<f16")
HEADERS = ("(" * 5000, "-" * 9000 + "1", f"{{'shape': {'[' * 90}{']' * 90}}}", "9" * 9000,
           "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 8, 16)}")
MODES = {"PNG": ("L", "P", "RGB", "RGBA", "1", "I;16", "LA"), "JPEG": ("L", "RGB", "CMYK"), "BMP": ("RGB", "P"),
         "TIFF": ("L", "RGB", "F"), "WEBP": ("RGB",), "GIF": ("P",), "PPM": ("RGB",), "TGA": ("RGB",)}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n(out) (w) file closefile\n%%EOF\n"


def split(rng: np.random.Generator) -> bytes:
    """A malformed split file."""
    return mutate(SPLITS[rng.integers(len(SPLITS))], rng, SPLITS[rng.integers(len(SPLITS))])


def groups(rng: np.random.Generator) -> bytes:
    """A malformed groups.txt of a tree of posteriors."""
    return mutate(GROUPS[rng.integers(len(GROUPS))], rng, GROUPS[0])


def posterior(rng: np.random.Generator) -> bytes:
    """A damaged .npy or .npz file, or a .npy file whose header does not fit its data."""
    file, values = io.BytesIO(), np.random.default_rng(0).dirichlet(np.ones(5), (8, 16)).transpose(2, 0, 1)
    way, kind = rng.random(), TYPES[rng.integers(len(TYPES))]
    if way < 0.1:
        np.savez_compressed(file, a=values)
        return (mutate_zip if way < 0.05 else mutate)(file.getvalue(), rng, b"PK")
    if way < 0.6:
        np.save(file, values.astype("<f4" if kind in ("|O", "|V8") else kind))
        return mutate(file.getvalue(), rng, file.getvalue())
    shape = tuple(int(rng.choice([*NUMBERS, 5, 8, 16, 10**7])) for _ in range(rng.choice([0, 1, 3, 3, 3, 33])))
    order = rng.choice(["True", "False", "3"])
    header = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}" if way < 0.95 else HEADERS[
        rng.integers(len(HEADERS))]
    length, version = len(header) + 1 if rng.random() < 0.9 else int(rng.integers(2**16)), int(rng.choice([1, 2, 3, 9]))
    start = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", length)
    return start + header.encode() + b"\n" + values.astype("<f4").tobytes()


@cache
def images() -> list[bytes]:
    """Small images of many modes and formats, PNG four times, and a PostScript file, which needs another program."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 19, (16, 24, 3), np.uint8))
    out = [POSTSCRIPT]
    for kind, modes in MODES.items():
        for mode in modes:
            file = io.BytesIO()
            image.convert("L" if mode in ("I;16", "F", "1") else mode).convert(mode).save(file, kind)
            out += [file.getvalue()] * (4 if kind == "PNG" else 1)
    return out


def image(rng: np.random.Generator) -> bytes:
    """A malformed image or label file."""
    data, other = (images()[rng.integers(len(images()))] for _ in range(2))
    return (mutate_png if rng.random() < 0.6 else mutate)(data, rng, other)


def large_png() -> bytes:
    """A PNG of 180 million pixels in 200 kB. Pillow only gives a warning for this size."""
    file = io.BytesIO()
    Image.new("L", (15000, 12000)).save(file, "PNG")
    return file.getvalue()


def archive(rng: np.random.Generator) -> bytes:
    """A malformed zip: damaged, with unusual names, file modes, duplicates or sizes, or inside another zip."""
    plain = pack([(f"e/{number}.txt", b"text" * number) for number in range(5)], zipfile.ZIP_DEFLATED)
    way = rng.random()
    if way < 0.4:
        return (mutate_zip if way < 0.15 else mutate)(plain, rng, plain)
    count = int(rng.choice([1, 3, 50, 3000], p=[0.4, 0.4, 0.19, 0.01]))
    entries = [(NAMES[rng.integers(len(NAMES))] if rng.random() < 0.5 else f"e/{number}", rng.bytes(20))
               for number in range(count)]
    modes = {number: int(rng.choice([0o120777, 0o010644, 0o060644, 0o040755, 0])) for number in range(count)
             if rng.random() < 0.2}
    data = bytearray(pack(entries, int(rng.choice([0, 8, 12, 14])), modes))
    if rng.random() < 0.3:  # a wrong size or offset in the list of entries
        at = data.rfind(b"PK\1\2") + int(rng.choice([16, 20, 24, 42]))
        data[at : at + 4] = struct.pack("<I", int(rng.choice(NUMBERS[:10])) % 2**32)
    return pack([("inner.zip", bytes(data))]) if rng.random() < 0.1 else bytes(data)
