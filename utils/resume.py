"""Resume a training: find its folder and the arguments that it was started with."""

import argparse
import os
from pathlib import Path

import torch

from utils.checkpoints import load_checkpoint, require
from utils.cli import UserError
from utils.distributed import run_on_main, sum_over_processes
from utils.files import lock_run

CURRENT = ("gpu", "workers")  # arguments that a resumed run takes from the command line
LENGTH = {"epochs": "epoch", "steps": "step"}  # arguments that end a training -> their unit
RENAMED = {"pictures": "images"}  # arguments in checkpoints of earlier versions: old name -> new name


def resume_arguments(args: argparse.Namespace,
                     parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Path | None]:
    """Return the arguments of a training and, if it is resumed, its folder, which is then locked.

    A training is resumed with `--continue DIR`, or when torchrun restarts its processes and `--out DIR` has a
    last.pth.tar. All arguments except -gpu and --workers then come from the checkpoint. A new run gets `args` and None.
    Raises `UserError` if the folder has no checkpoint or is locked, if the checkpoint stores an argument that `parser`
    does not accept, and if the command line gives another value than the checkpoint.
    """
    # On a node where no process failed, the count does not rise. The sum over all processes shows every restart.
    restarts = sum_over_processes(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))).item()
    restarted = run_on_main(lambda: bool(restarts and args.out and (Path(args.out) / "last.pth.tar").is_file()))
    if not args.continue_ and not restarted:
        return args, None
    folder = Path(args.continue_ or args.out)
    path = folder / "last.pth.tar"
    if not path.is_file():
        raise UserError(f"{folder} contains no last.pth.tar to resume from; start a new run with --out {folder}")
    stored = {RENAMED.get(name, name): value
              for name, value in require(load_checkpoint(path), "args", dict, path).items()}
    _check_arguments(parser, stored, path)
    _check_flags(parser, stored, folder)
    run_on_main(lambda: lock_run(folder))
    current = {name: getattr(args, name) for name in CURRENT if getattr(args, name, None) is not None}
    return argparse.Namespace(**{**vars(args), **stored, **current}), folder


def _check_arguments(parser: argparse.ArgumentParser, stored: dict, path: Path) -> None:
    """Raise `UserError` if the command line could not have given one of the stored arguments."""
    flags = {action.dest: action for action in parser._actions}
    for name, value in stored.items():
        if not isinstance(name, str) or name not in flags or not _accepts(flags[name], value):
            raise UserError(f"{path} stores an argument {str(name)[:40]} that this version does not take; start a new "
                            "run")


def _check_flags(parser: argparse.ArgumentParser, stored: dict, folder: Path) -> None:
    """Raise `UserError` if a flag of the command line has another value than the run that is resumed.

    A run of an earlier version has the default value of a flag that this version did not have.
    """
    defaults = {action.dest: action.default for action in parser._actions}
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # so that only the flags that were given are parsed
    given = vars(parser.parse_args())
    if given.get("out") and Path(given["out"]).resolve() != folder.resolve():
        raise UserError(f"--out {given['out']} has no effect with --continue, which writes into {folder}; leave it out")
    for name, value in given.items():
        before = stored.get(name, defaults[name])
        if name not in (*CURRENT, "continue_", "out") and _as_list(before) != _as_list(value):
            why = f", because the learning rate falls to 0 at the last {LENGTH[name]}" if name in LENGTH else ""
            raise UserError(f"{folder} was started with {name.replace('_', '-')} {before}, not {value}, which cannot "
                            f"be changed{why}; leave the flag out to resume, or start a new run")


def _as_list(value: object) -> object:
    """A tuple as a list; other values unchanged."""
    return list(value) if isinstance(value, tuple) else value


def _accepts(flag: argparse.Action, value: object) -> bool:
    if value is flag.default or flag.nargs == 0 or (flag.nargs == "*" and isinstance(value, bool)):
        return value is flag.default or isinstance(value, bool)
    words = value if isinstance(value, (list, tuple)) else [value]
    if (words is value) != (flag.nargs is not None) or flag.nargs not in (None, "+", "*", len(words)):
        return False
    try:
        unchanged = all((flag.type or str)(str(word)) == word for word in words)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return unchanged and (not flag.choices or all(word in flag.choices for word in words))
