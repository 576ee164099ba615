"""Save and load checkpoints: one plain dict in a `.pth.tar` file. Loading runs no code from the file.

A file may be hostile. It is checked before anything is allocated for it (`utils.checkpoint_checks`), and a model is
built only if the file contains the tensors that the model needs.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import nn

from utils.checkpoint_checks import FORMAT, check_contents, check_file
from utils.cli import UserError
from utils.distributed import is_main
from utils.files import atomic_open
from utils.untrusted import reading

T = TypeVar("T")


def save_checkpoint(path: str | Path, model: dict, state_dict: dict, **entries: object) -> None:
    """Write a checkpoint atomically, in the main process only.

    `model`: name and arguments that rebuild the model. `state_dict`: its weights. `entries`: further plain values.
    """
    if is_main():
        with atomic_open(path) as file:
            recorder = _ErrorRecorder(file)
            try:
                torch.save({"format": FORMAT, "model": model, "state_dict": state_dict, **entries}, recorder)
            except RuntimeError:
                if recorder.error:  # PyTorch reports a full disk only as "unexpected pos"
                    raise recorder.error from None
                raise


class _ErrorRecorder:
    """A file that writes to `file`, and stores the `OSError` of a failed write in `error`."""

    def __init__(self, file: BinaryIO):
        self._file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(path: str | Path) -> dict:
    """Load a checkpoint of this project, or of the authors' release (only `state_dict`), onto the CPU.

    Raises `UserError` for any other file. Nothing in the file is executed (`weights_only=True`).
    """
    path = Path(path)
    with reading(path, "checkpoint", missing="`make weights` trains those of the demo, `python -m utils.download` "
                                             "downloads those of the authors"):
        checkpoint = _load(path)
        check_contents(checkpoint, path)
    return checkpoint


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a file of another program: .safetensors, or a state_dict of torch.save, onto the CPU.

    The state_dict may be the entry "state_dict" or "model" of a dict. Raises `UserError` as `load_checkpoint` does.
    """
    path = Path(path)
    with reading(path, "file of weights"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(path)
        else:
            loaded = _load(path)
        for key in ("state_dict", "model"):
            if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
                loaded = loaded[key]
        check_contents({"state_dict": loaded}, path)
    return _without_wrapper(loaded)


def _load(path: Path) -> object:
    """The content of a file of torch.save. Raises `UserError` if it is more than tensors and plain values."""
    check_file(path)
    try:
        # PyTorch warns about tensors that `check_contents` refuses.
        with warnings.catch_warnings(action="ignore"), _short_storage_text():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        requested = re.search(r"GLOBAL (\S+) was not", str(error))
        raise UserError(f"{path} is damaged, or contains more than tensors and plain values"
                        f"{f' ({requested[1][:60]})' if requested else ''}; it was not opened") from None


@contextmanager
def _short_storage_text() -> Iterator[None]:
    """Shorten the text of a storage: for a wrong pickle, PyTorch writes all its numbers into the error, for minutes."""
    storage = torch.storage.TypedStorage
    original, storage.__str__ = storage.__str__, object.__repr__
    try:
        yield
    finally:
        storage.__str__ = original


def require(checkpoint: dict, name: str, kind: type[T], path: str | Path) -> T:
    """Return `checkpoint[name]`. Raises `UserError` if it is missing or not of type `kind`."""
    value = checkpoint.get(name)
    if not isinstance(value, kind):
        raise UserError(f"{path} is not a complete checkpoint: its {name} is missing or has the wrong type")
    return value


def rebuild(build: Callable[[], nn.Module], state_dict: dict, path: str | Path) -> nn.Module:
    """Return the model that `build` creates, on the CPU, with the weights of `state_dict` (float16 becomes float32).

    Raises `UserError` if the weights do not fit the model. This is checked before the model is allocated.
    """
    try:
        with torch.device("meta"):
            shapes = build()
    except UserError:
        raise
    except Exception as error:  # a wrong description in a file can raise any exception
        raise UserError(f"{path} describes a model that cannot be built: {_first_line(error)}") from None
    _check_fit(shapes, state_dict, path)
    model = build()
    load_weights(model, state_dict, path)
    return model


def load_weights(model: nn.Module, state_dict: dict, path: str | Path) -> None:
    """Load `state_dict` strictly (float16 becomes float32). Raises `UserError` with the first difference."""
    _check_fit(model, state_dict, path)
    model.load_state_dict(_without_wrapper(state_dict))


def _without_wrapper(state_dict: dict) -> dict:
    """Remove the prefix that `DataParallel` adds to the names of tensors."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def _check_fit(model: nn.Module, state_dict: dict, path: str | Path) -> None:
    stored, expected = _without_wrapper(state_dict), model.state_dict()
    for name in [*expected, *stored]:
        if name not in stored:
            difference = f"{name} is missing"
        elif name not in expected:
            difference = f"the model has no {name[:80]}"
        elif stored[name].shape != expected[name].shape:
            shape, wanted = tuple(stored[name].shape), tuple(expected[name].shape)
            difference = f"the shape of {name} is {shape} and should be {wanted}"
        elif stored[name].is_complex() or stored[name].is_floating_point() != expected[name].is_floating_point():
            difference = f"{name} has the wrong type {stored[name].dtype}"
        else:
            continue
        raise UserError(f"{path} contains the weights of another model: {difference}")
    if broken := next((name for name, value in stored.items() if not value.isfinite().all()), None):
        raise UserError(f"{path} contains weights that are NaN or infinite, in {broken}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: object, path: str | Path) -> None:
    """Load the state that an optimizer keeps for each weight; its settings do not change.

    Raises `UserError` if the state does not fit the optimizer.
    """
    try:
        optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, values in optimizer.state.items():
            if any(isinstance(v, torch.Tensor) and v.ndim and v.shape != parameter.shape for v in values.values()):
                raise ValueError("shapes differ")
    except Exception as error:  # PyTorch does not check the state before it copies it, so any exception is possible
        raise UserError(f"{path} contains the state of another optimizer: {_first_line(error)}") from None


def to_half(state_dict: dict) -> dict:
    """Return the weights with floating-point tensors as float16, which halves the size of a file."""
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
