"""Checkpoints: one plain dict in a `.pth.tar` file, read without running any code.

A file may come from anywhere. Its form and the sizes that it claims are looked at before anything is allocated for it,
and a model is built only once the file is seen to hold the tensors that it needs.
"""

import argparse
import io
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import nn

from utils.cli import UserError
from utils.distributed import is_main, run_on_main, sum_over_processes
from utils.files import atomic_open, lock_run
from utils.untrusted import reading

T = TypeVar("T")
FORMAT = 1
FILE_LIMIT = 8 * 2**30  # bytes
PICKLE_LIMIT = 8 * 2**20  # bytes of the part that says what the tensors are: 0.2 MB for a thousand
DIRECTORY_LIMIT = 8 * 2**20  # bytes of the list of a zip's entries
STREAM = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)  # how a checkpoint of PyTorch 0.4 to 1.5 begins
AGAIN_LIMIT = 16  # tuples that occur again
LEAVES_LIMIT = 2**20  # numbers, texts and tensors
RENAMED = {"pictures": "images"}  # arguments of scripts in checkpoints of earlier versions
DESCRIPTION_LIMIT = 2**16  # the largest number, and the longest list or text, in the description of a model


def save_checkpoint(path: str | Path, model: dict, state_dict: dict, **rest: object) -> None:
    """Write `model` (name and arguments that rebuild it), its weights and `rest`, on the main process only.

    The file is whole or absent.
    """
    if is_main():
        with atomic_open(path) as file:
            watched = _Watched(file)
            try:
                torch.save({"format": FORMAT, "model": model, "state_dict": state_dict, **rest}, watched)
            except RuntimeError:
                if watched.fault:  # a full disk, say, of which PyTorch tells only that a position is unexpected
                    raise watched.fault from None
                raise


class _Watched:
    """Passes what is written on to `file`, and remembers why that failed."""

    def __init__(self, file: BinaryIO):
        self._file, self.fault = file, None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of this project or of the authors' release (only `state_dict`) onto the CPU.

    Raises `UserError` for anything else; nothing stored in the file is executed (`weights_only=True`).
    """
    path = Path(path)
    with reading(path, "checkpoint", missing="`make weights` trains the demo's, `python -m utils.download` fetches the "
                                             "authors'"):
        _check_form(path)
        try:
            with warnings.catch_warnings(action="ignore"), _short_storages():  # it remarks on what is refused below
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+) was not", str(error))
            raise UserError(f"{path} is damaged, or holds more than tensors and plain values"
                            f"{f' ({asked[1][:60]})' if asked else ''}; it was not opened") from None
        _check_contents(checkpoint, path)
    return checkpoint


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


@contextmanager
def _short_storages() -> Iterator[None]:
    """Let no error quote a storage: PyTorch writes out every number, for minutes, when a pickle misuses a large one."""
    storage = torch.storage.TypedStorage
    before, storage.__str__ = storage.__str__, object.__repr__
    try:
        yield
    finally:
        storage.__str__ = before


def _check_form(path: Path) -> None:
    """Raise `UserError` for what is no checkpoint by its form, or grows when it is read."""
    size = path.stat().st_size
    if size > FILE_LIMIT:
        raise UserError(f"{path} is larger than {FILE_LIMIT >> 30} GiB, which no checkpoint of these models is")
    with open(path, "rb") as file:
        head = file.read(512)
        if head[257:262] == b"ustar":
            raise UserError(f"{path} is a real tar archive; give the checkpoint inside it: tar -xf {path.name} (one of "
                            "PyTorch before 0.2 has to be saved anew, as {'state_dict': ...}, where you trust it)")
        if head.startswith(b"PK\3\4"):
            _check_zip(file, path, size)
        elif head.startswith(STREAM):
            _check_stream(file, path)
        else:
            raise UserError(f"{path} is no checkpoint: neither the zip nor the pickle stream that torch.save writes")


def _check_zip(file: BinaryIO, path: Path, size: int) -> None:
    """The zip of today: nothing compressed, nothing that overlaps, one list of entries and that where it should be."""
    file.seek(max(0, size - 98))
    tail = file.read()
    end, length, start = size - 22, *struct.unpack("<II", tail[-10:-2])
    if tail[-42:-38] == b"PK\6\7":  # as torch.save writes it, with the 64-bit record before
        end, length, start = end - 76, *struct.unpack("<QQ", tail[-58:-42])
    if tail[-22:-18] != b"PK\5\6" or start + length != end or length > DIRECTORY_LIMIT:
        raise UserError(f"{path} is damaged or cut short: its list of entries is not where it should be")
    zipped = zipfile.ZipFile(file)
    entries = zipped.infolist()
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript archive, which holds code; it was not opened")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise UserError(f"{path} is no checkpoint: it would grow when unpacked, and torch.save compresses nothing")
    for entry in entries:
        if entry.filename.endswith(".pkl"):
            if entry.file_size > PICKLE_LIMIT:
                raise UserError(f"{path} describes more than any checkpoint of these models holds; it was not opened")
            _check_pickle(io.BytesIO(zipped.read(entry)), path)


def _check_stream(file: BinaryIO, path: Path) -> None:
    """The stream of PyTorch 0.4 to 1.5: magic number, version, system and contents, each a pickle; then tensors."""
    file.seek(0)
    for _ in range(4):
        _check_pickle(file, path)


def _check_pickle(file: BinaryIO, path: Path) -> None:
    """One pickle: not too long, and with few tuples that occur in another one again.

    A key that nests such tuples thirty times is hashed for minutes, forty times for days.
    """
    tuples, again, on_top = set(), 0, False
    for operation, argument, _ in pickletools.genops(file):
        if "PUT" not in operation.name:
            on_top = operation.name.startswith("TUPLE") or ("GET" in operation.name and argument in tuples)
            again += on_top and "GET" in operation.name
        elif on_top:
            tuples.add(argument)
        if file.tell() > PICKLE_LIMIT or again > AGAIN_LIMIT:
            raise UserError(f"{path} describes more than any checkpoint of these models holds; it was not opened")


def _check_contents(checkpoint: object, path: Path) -> None:
    """Raise `UserError` unless these are the contents of a checkpoint, and no larger than the file they were read from.

    A file can describe a large tensor by a small storage, and one thing many times over.
    """
    tensors = [leaf for leaf in _leaves(checkpoint, path) if isinstance(leaf, torch.Tensor)]
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint: it has no state_dict")
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f"{path} is no checkpoint: its state_dict holds more than tensors with names")
    version = checkpoint.get("format", FORMAT)
    if type(version) is not int or version != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this version reads")
    if any(t.layout != torch.strided or t.is_quantized or t.device.type != "cpu" for t in tensors):
        raise UserError(f"{path} is no checkpoint: a tensor of it is sparse, quantized or without values")
    if sum(t.numel() * t.element_size() for t in tensors) > 4 * path.stat().st_size:
        raise UserError(f"{path} claims larger tensors than the file holds; they were not used")
    model = checkpoint.get("model")
    if model is not None and not (isinstance(model, dict) and isinstance(model.get("name"), str) and _plain(model)):
        raise UserError(f"{path} does not say which model it holds in a way that this version understands")


def _leaves(value: object, path: Path) -> list:
    """What nested dicts, lists and tuples hold; `UserError` for more than any model needs, once written out."""
    waiting, leaves = [value], []
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
        else:
            leaves.append(one)
        if len(waiting) + len(leaves) > LEAVES_LIMIT:
            raise UserError(f"{path} describes more than any checkpoint of these models holds; it was not used")
    return leaves


def _plain(value: object, depth: int = 0) -> bool:
    """Whether a description holds nothing but names and moderate numbers, so that building from it is no risk."""
    if isinstance(value, (dict, list, tuple)):
        named = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
        inner = value.values() if isinstance(value, dict) else value
        return named and depth < 4 and len(value) <= DESCRIPTION_LIMIT and all(_plain(v, depth + 1) for v in inner)
    if isinstance(value, (int, float)):
        return abs(value) <= DESCRIPTION_LIMIT
    return value is None or (isinstance(value, str) and len(value) <= DESCRIPTION_LIMIT)


def require(checkpoint: dict, name: str, kind: type[T], path: str | Path) -> T:
    """`checkpoint[name]`, which has to be of type `kind`; `UserError` otherwise."""
    value = checkpoint.get(name)
    if not isinstance(value, kind):
        raise UserError(f"{path} is no whole checkpoint: its {name} is missing or of the wrong kind")
    return value


def rebuild(build: Callable[[], nn.Module], state_dict: dict, path: str | Path) -> nn.Module:
    """The model that `build` makes, with the weights of `state_dict` (float16 is widened), on the CPU.

    Raises `UserError` where the two do not fit, which is found out before the model is allocated.
    """
    try:
        with torch.device("meta"):
            shapes = build()
    except UserError:
        raise
    except Exception as error:  # a description from a file can be wrong in any way
        raise UserError(f"{path} describes a model that cannot be built: {_line(error)}") from None
    _check_fit(shapes, state_dict, path)
    model = build()
    load_weights(model, state_dict, path)
    return model


def load_weights(model: nn.Module, state_dict: dict, path: str | Path) -> None:
    """Load `state_dict` strictly (float16 weights are widened); `UserError` says the first thing that differs."""
    _check_fit(model, state_dict, path)
    model.load_state_dict(_unwrapped(state_dict))


def _unwrapped(state_dict: dict) -> dict:
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def _check_fit(model: nn.Module, state_dict: dict, path: str | Path) -> None:
    given, wanted = _unwrapped(state_dict), model.state_dict()
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            fault = f"{name[:80]} is {'missing' if name in wanted else 'too much'}"
        elif given[name].shape != wanted[name].shape:
            fault = f"{name} is {tuple(given[name].shape)} and should be {tuple(wanted[name].shape)}"
        elif (given[name].is_floating_point(), False) != (wanted[name].is_floating_point(), given[name].is_complex()):
            fault = f"{name} has numbers of type {given[name].dtype}"
        else:
            continue
        raise UserError(f"{path} holds the weights of another model: {fault}")
    if broken := next((name for name, value in given.items() if not value.isfinite().all()), None):
        raise UserError(f"{path} holds weights that are no numbers, in {broken}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: object, path: str | Path) -> None:
    """Load what an optimizer remembers of each weight; its settings stay. `UserError` where that does not fit."""
    try:
        optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, known in optimizer.state.items():
            if any(isinstance(v, torch.Tensor) and v.ndim and v.shape != parameter.shape for v in known.values()):
                raise ValueError("shapes differ")
    except Exception as error:  # the state is as the file has it, and PyTorch looks at it only while it copies
        raise UserError(f"{path} holds the state of another optimizer: {_line(error)}") from None


def to_half(state_dict: dict) -> dict:
    """The weights with floating-point tensors in float16: half the size, for files that ship."""
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}


def resume_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[argparse.Namespace,
                                                                                          Path | None]:
    """The arguments that the run in `--continue DIR` was started with, with today's -gpu and --workers, and DIR.

    For a new run, `args` and None. When torchrun starts its processes again, the run in `--out DIR` goes on. Raises
    `UserError` where another process is at work there, and for stored arguments that `parser` would refuse.
    """
    # A node that only saw others go counts no restart of its own, so the counts of all processes are summed.
    restarts = sum_over_processes(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))).item()
    again = run_on_main(lambda: bool(restarts and args.out and (Path(args.out) / "last.pth.tar").is_file()))
    if not args.continue_ and not again:
        return args, None
    folder = Path(args.continue_ or args.out)
    checkpoint = folder / "last.pth.tar"
    if not checkpoint.is_file():
        raise UserError(f"{folder} holds no last.pth.tar to continue from; start the run anew with --out {folder}")
    stored = require(load_checkpoint(checkpoint), "args", dict, checkpoint)
    given = _accepted(parser, {RENAMED.get(name, name): value for name, value in stored.items()}, checkpoint)
    run_on_main(lambda: lock_run(folder))
    today = {name: getattr(args, name) for name in ("gpu", "workers") if getattr(args, name, None) is not None}
    return argparse.Namespace(**{**vars(args), **given, **today}), folder


def _accepted(parser: argparse.ArgumentParser, given: dict, path: Path) -> dict:
    """Stored arguments, once each is seen to be what the command line could have given."""
    flags = {action.dest: action for action in parser._actions}
    for name, value in given.items():
        if not isinstance(name, str) or name not in flags or not _fits(flags[name], value):
            raise UserError(f"{path} was started with a {str(name)[:40]} that this version does not take; start the "
                            "run anew")
    return given


def _fits(flag: argparse.Action, value: object) -> bool:
    if value is flag.default or flag.nargs == 0:
        return value is flag.default or isinstance(value, bool)
    words = value if isinstance(value, (list, tuple)) else [value]
    if (words is value) != (flag.nargs is not None) or flag.nargs not in (None, "+", len(words)):
        return False
    try:
        same = all((flag.type or str)(str(word)) == word for word in words)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return same and (not flag.choices or all(word in flag.choices for word in words))
