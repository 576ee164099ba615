"""Read arrays from .npy and .npz files.

The files may be hostile: only plain arrays are read, never a pickle, and each header is checked against the file size.
"""

import math
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from utils.untrusted import reading, zip_entries

LIMIT = 4 * 2**30  # largest total size in bytes of the arrays that are read from one .npz file
HEAD = 2**14  # bytes read at the start of an array; the header of a plain array is shorter
MAGIC = re.compile(rb"\x93NUMPY(?:\x01\x00(?P<short>..)|\x02\x00(?P<long>....))", re.DOTALL)
HEADER = re.compile(rb"\{'descr': '([<>|=]?[biufU]\d{1,9})', 'fortran_order': (True|False), "
                    rb"'shape': \(((?:\d+L?, ?)*(?:\d+L?)?)\),? *\} *\n?")


def read_npy(path: str | Path) -> np.ndarray:
    """Map the array of a .npy file into memory, read-only: bools, numbers or text of any shape.

    Raises `UserError` if the file is missing or broken, contains objects or records, or if its size differs from the
    size in its header.
    """
    path = Path(path)
    with reading(path, ".npy array"):
        with open(path, "rb") as file:
            shape, dtype, order, start = _parse_header(file.read(HEAD), path.stat().st_size)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape, order)


def parse_npy(content: bytes) -> np.ndarray:
    """The array of the bytes of a .npy file, as `read_npy` reads it, but writable only by a copy.

    Raises `ValueError` in the cases of `read_npy`.
    """
    shape, dtype, order, start = _parse_header(content[:HEAD], len(content))
    return np.ndarray(shape, dtype, content, start, order=order)


def read_npz(path: str | Path, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays of a .npz file into a dict by name: all of them, or those of `wanted` that the file has.

    Raises `UserError` in the cases of `read_npy`, and if the arrays take more than `LIMIT` bytes.
    """
    with reading(path, ".npz file"), zipfile.ZipFile(path) as archive:
        names = None if wanted is None else {f"{name}.npy" for name in wanted}
        entries = zip_entries(archive, LIMIT, names)
        return {entry.filename.removesuffix(".npy"): _read_entry(archive, entry) for entry in entries}


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        head = file.read(HEAD)
        shape, dtype, order, start = _parse_header(head, entry.file_size)
        array = np.ndarray(shape, dtype, head[start:] + file.read(entry.file_size), order=order)
    if dtype.kind == "U":
        array.tolist()  # raises ValueError if the bytes are not valid text
    return array


def _parse_header(head: bytes, size: int) -> tuple[tuple[int, ...], np.dtype, str, int]:
    """Return shape, dtype, order ("C" or "F") and data offset of an array of `size` bytes that starts with `head`.

    The sizes are Python integers, which cannot overflow. Raises `ValueError` if the array is not plain or if `size`
    does not match the header.
    """
    magic = MAGIC.match(head)
    if not magic:
        raise ValueError("it does not start like a .npy array")
    start = magic.end() + int.from_bytes(magic["short"] or magic["long"], "little")
    header = HEADER.fullmatch(head[magic.end() : start])
    if not header or start > len(head):
        raise ValueError("its header does not describe a plain array of numbers or text")
    kind, fortran, sizes = (group.decode() for group in header.groups())
    shape, dtype = tuple(int(n) for n in re.findall(r"\d+", sizes)), np.dtype(kind)
    claimed = start + math.prod(shape) * dtype.itemsize
    if claimed != size or not dtype.itemsize:
        raise ValueError(f"its header describes {claimed} bytes, but it has {size}")
    return shape, dtype, "F" if fortran == "True" else "C", start
