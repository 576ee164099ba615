"""Checkpoints: one plain dict in a `.pth.tar` file, read without running any code."""

import argparse
import os
import pickle
import tarfile
from pathlib import Path

import torch

from utils.cli import UserError
from utils.distributed import is_main, on_main, total
from utils.files import whole

FORMAT = 1


def save_checkpoint(path: str | Path, model: dict, state_dict: dict, **rest: object) -> None:
    """Write `model` (name and arguments that rebuild it), its weights and `rest`, on the main process only.

    The file is whole or absent.
    """
    if is_main():
        with whole(path) as file:
            torch.save({"format": FORMAT, "model": model, "state_dict": state_dict, **rest}, file)


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of this project or of the authors' release (only `state_dict`) onto the CPU.

    Raises `UserError` for anything else; nothing stored in the file is executed (`weights_only=True`).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; `make weights` trains the demo's, "
                        "`python -m utils.download` fetches the authors'")
    if tarfile.is_tarfile(path):
        raise UserError(f"{path} is a real tar archive; give the checkpoint inside it: tar -xf {path.name}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} is damaged, or holds more than tensors and plain values; it was not opened") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is no checkpoint: it has no state_dict")
    if checkpoint.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has format {checkpoint['format']}; this version reads format {FORMAT}")
    return checkpoint


def load_weights(model: torch.nn.Module, state_dict: dict, path: str | Path) -> None:
    """Load `state_dict` strictly (float16 weights are widened); `UserError` says the first thing that differs."""
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError) as error:
        detail = [line.strip() for line in str(error).splitlines()[1:2]] or [str(error)]
        raise UserError(f"{path} holds the weights of another model: {detail[0][:200]}") from None


def half(state_dict: dict) -> dict:
    """The weights with floating-point tensors in float16: half the size, for files that ship."""
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}


def resume_arguments(args: argparse.Namespace) -> tuple[argparse.Namespace, Path | None]:
    """The arguments that the run in `--continue DIR` was started with, with today's -gpu, and DIR.

    For a new run, `args` and None. When torchrun starts its processes again, the run in `--out DIR` goes on.
    """
    # A node that only saw others go counts no restart of its own, so the counts of all processes are summed.
    restarts = total(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))).item()
    again = on_main(lambda: bool(restarts and args.out and (Path(args.out) / "last.pth.tar").is_file()))
    if not args.continue_ and not again:
        return args, None
    folder = Path(args.continue_ or args.out)
    checkpoint = folder / "last.pth.tar"
    if not checkpoint.is_file():
        raise UserError(f"{folder} holds no last.pth.tar to continue from; start the run anew with --out {folder}")
    stored = load_checkpoint(checkpoint).get("args", {})
    return argparse.Namespace(**{**vars(args), **stored, "gpu": args.gpu}), folder
