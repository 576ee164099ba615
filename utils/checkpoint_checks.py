"""Check checkpoint files that may be broken or hostile.

`check_file` checks the form of a file and the sizes that it claims, before `torch.load` allocates anything for it.
`check_contents` checks the value that `torch.load` returned. Both raise `UserError`.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from utils.cli import UserError

FORMAT = 1
FILE_LIMIT = 8 * 2**30  # bytes
PICKLE_LIMIT = 8 * 2**20  # bytes of the pickle, which describes the tensors: a thousand tensors take 0.2 MB
DIRECTORY_LIMIT = 8 * 2**20  # bytes of the central directory of a zip
REUSE_LIMIT = 16  # how often a pickle may refer to a tuple that it has already written
VALUES_LIMIT = 2**20  # numbers, texts and tensors in a checkpoint
DESCRIPTION_LIMIT = 2**16  # largest number, and largest length of a list or text, in the description of a model
OLD_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)  # first bytes of a checkpoint of PyTorch 0.4 to 1.5
TOO_LARGE = "describes more data than any checkpoint of these models; it was not loaded"


def check_file(path: Path) -> None:
    """Raise `UserError` if a file does not have the form of a checkpoint, or would grow when it is read."""
    size = path.stat().st_size
    if size > FILE_LIMIT:
        raise UserError(f"{path} is larger than {FILE_LIMIT >> 30} GiB; no checkpoint of these models is")
    with open(path, "rb") as file:
        head = file.read(512)
        if head[257:262] == b"ustar":
            raise UserError(f"{path} is a real tar archive; extract the checkpoint with `tar -xf {path.name}` and give "
                            "that (if PyTorch before 0.2 wrote the archive and you trust it, load it with that version "
                            "and save it again as {'state_dict': ...})")
        if head.startswith(b"PK\3\4"):
            _check_zip(file, path, size)
        elif head.startswith(OLD_MAGIC):
            _check_old_stream(file, path)
        else:
            raise UserError(f"{path} is not a checkpoint: it is neither the zip file nor the pickle stream that "
                            "torch.save writes")


def _check_zip(file: BinaryIO, path: Path, size: int) -> None:
    """Check the zip file of PyTorch 1.6 and later: no compression, no overlap, and one central directory at the end."""
    file.seek(max(0, size - 98))
    tail = file.read()
    end, length, start = size - 22, *struct.unpack("<II", tail[-10:-2])
    if tail[-42:-38] == b"PK\6\7":  # torch.save also writes the 64-bit record, which comes before the usual one
        end, length, start = end - 76, *struct.unpack("<QQ", tail[-58:-42])
    if tail[-22:-18] != b"PK\5\6" or start + length != end or length > DIRECTORY_LIMIT:
        raise UserError(f"{path} is damaged or incomplete: its list of entries is not at the end of the file")
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript archive, which contains code; it was not opened")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise UserError(f"{path} is not a checkpoint: it would grow when unpacked, but torch.save does not compress")
    for entry in entries:
        if entry.filename.endswith(".pkl"):
            if entry.file_size > PICKLE_LIMIT:
                raise UserError(f"{path} {TOO_LARGE}")
            _check_pickle(io.BytesIO(archive.read(entry)), path)


def _check_old_stream(file: BinaryIO, path: Path) -> None:
    """Check the stream of PyTorch 0.4 to 1.5: pickles of magic number, version, system and contents, then tensors."""
    file.seek(0)
    for _ in range(4):
        _check_pickle(file, path)


def _check_pickle(file: BinaryIO, path: Path) -> None:
    """Check that a pickle is short and rarely uses a tuple again that it has already written.

    Python hashes the keys of a dict. A key that contains the same tuple twice, at each of thirty levels, takes minutes
    to hash; with forty levels it takes days.
    """
    tuples, reused, tuple_on_top = set(), 0, False
    for operation, argument, _ in pickletools.genops(file):
        if "PUT" not in operation.name:
            tuple_on_top = operation.name.startswith("TUPLE") or ("GET" in operation.name and argument in tuples)
            reused += tuple_on_top and "GET" in operation.name
        elif tuple_on_top:
            tuples.add(argument)
        if file.tell() > PICKLE_LIMIT or reused > REUSE_LIMIT:
            raise UserError(f"{path} {TOO_LARGE}")


def check_contents(checkpoint: object, path: Path) -> None:
    """Raise `UserError` if a loaded value is not a checkpoint, or claims much more data than its file has.

    A file can describe a large tensor with a small storage, and can refer to the same value many times.
    """
    tensors = [value for value in _flatten(checkpoint, path) if isinstance(value, torch.Tensor)]
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint: it has no state_dict")
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f"{path} is not a checkpoint: its state_dict contains more than tensors with names")
    version = checkpoint.get("format", FORMAT)
    if type(version) is not int or version != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, the only format that this version reads")
    if any(t.layout != torch.strided or t.is_quantized or t.device.type != "cpu" for t in tensors):
        raise UserError(f"{path} is not a checkpoint: one of its tensors is sparse, quantized or without values")
    if sum(t.numel() * t.element_size() for t in tensors) > 4 * path.stat().st_size:
        raise UserError(f"{path} claims larger tensors than its size allows; it was not loaded")
    model = checkpoint.get("model")
    if model is not None and not (isinstance(model, dict) and isinstance(model.get("name"), str) and _is_plain(model)):
        raise UserError(f"{path} has no description of its model that this version understands")


def _flatten(value: object, path: Path) -> list:
    """List the values in nested dicts, lists and tuples. Raises `UserError` for more than `VALUES_LIMIT` values."""
    waiting, values = [value], []
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        else:
            values.append(item)
        if len(waiting) + len(values) > VALUES_LIMIT:
            raise UserError(f"{path} {TOO_LARGE}")
    return values


def _is_plain(value: object, depth: int = 0) -> bool:
    """Return whether a description contains only names and moderate numbers, so that it is safe to build the model."""
    if isinstance(value, (dict, list, tuple)):
        keys_are_names = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
        items = value.values() if isinstance(value, dict) else value
        return (keys_are_names and depth < 4 and len(value) <= DESCRIPTION_LIMIT
                and all(_is_plain(item, depth + 1) for item in items))
    if isinstance(value, (int, float)):
        return abs(value) <= DESCRIPTION_LIMIT
    return value is None or (isinstance(value, str) and len(value) <= DESCRIPTION_LIMIT)
