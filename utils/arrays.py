"""Arrays from .npy and .npz files: plain ones, never a pickle, their headers held against the file's size first."""

import math
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from utils.untrusted import reading, zip_entries

LIMIT = 4 * 2**30  # bytes that the arrays which are read of one .npz may take
HEAD = 2**14  # bytes at the start of an array, more than any header of a plain one
MAGIC = re.compile(rb"\x93NUMPY(?:\x01\x00(?P<short>..)|\x02\x00(?P<long>....))", re.DOTALL)
HEADER = re.compile(rb"\{'descr': '([<>|=]?[biufU]\d{1,9})', 'fortran_order': (True|False), "
                    rb"'shape': \(((?:\d+L?, ?)*(?:\d+L?)?)\),? *\} *\n?")


def read_npy(path: str | Path) -> np.ndarray:
    """Map the array of a .npy file into memory, read-only: bools, numbers or text of any shape.

    Raises `UserError` when the file is missing or broken, when it holds anything else (objects, records), or is not
    exactly as long as its header says.
    """
    path = Path(path)
    with reading(path, ".npy array"):
        with open(path, "rb") as file:
            shape, dtype, order, start = _layout(file.read(HEAD), path.stat().st_size)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape, order)


def read_npz(path: str | Path, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by name: those `wanted` that it has, or all.

    Raises `UserError` as `read_npy` does, also when they would take more than `LIMIT` bytes.
    """
    with reading(path, ".npz file"), zipfile.ZipFile(path) as zipped:
        names = None if wanted is None else {f"{name}.npy" for name in wanted}
        entries = zip_entries(zipped, LIMIT, names)
        return {entry.filename.removesuffix(".npy"): _read_entry(zipped, entry) for entry in entries}


def _read_entry(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with zipped.open(entry) as file:
        head = file.read(HEAD)
        shape, dtype, order, start = _layout(head, entry.file_size)
        array = np.ndarray(shape, dtype, head[start:] + file.read(entry.file_size), order=order)
    if dtype.kind == "U":
        array.tolist()  # raises where it is no text
    return array


def _layout(head: bytes, size: int) -> tuple[tuple[int, ...], np.dtype, str, int]:
    """Shape, dtype, order ("C" or "F") and offset of the data, of an array of `size` bytes that starts with `head`.

    In Python's integers, which do not overflow. Raises `ValueError` when it is not plain, or not of that size.
    """
    magic = MAGIC.match(head)
    if not magic:
        raise ValueError("it does not start like one")
    start = magic.end() + int.from_bytes(magic["short"] or magic["long"], "little")
    header = HEADER.fullmatch(head[magic.end() : start])
    if not header or start > len(head):
        raise ValueError("its header is not that of a plain array of numbers or text")
    kind, fortran, sizes = (group.decode() for group in header.groups())
    shape, dtype = tuple(int(n) for n in re.findall(r"\d+", sizes)), np.dtype(kind)
    claimed = start + math.prod(shape) * dtype.itemsize
    if claimed != size or not dtype.itemsize:
        raise ValueError(f"its header tells of {claimed} bytes where there are {size}")
    return shape, dtype, "F" if fortran == "True" else "C", start
