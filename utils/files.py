"""Files that are whole or absent, and the folder of a run."""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from utils.cli import UserError
from utils.untrusted import reading

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def atomic_open(path: str | Path, mode: str = "wb") -> Iterator:
    """Open a file that appears under `path` only once it is written, synced and closed.

    Raises `UserError` when it cannot be written; what was there before stays then.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}; what was there before is "
                        "untouched") from None


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON; NaN and infinity raise `ValueError`."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_open(path, "w") as file:
        file.write(text)


def read_json(path: str | Path) -> dict:
    """The contents of a JSON file; `UserError` when it is missing or none."""
    with reading(path, "JSON file"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def fingerprint(paths: list[Path], *rest: object) -> str:
    """SHA-256, in hex, of the contents of files and of `rest`."""
    digest = hashlib.sha256(repr(rest).encode())
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def start_run(stage: str, args: dict, out: str | None = None) -> Path:
    """Make the folder of a run, keep others out of it, and record there the effective arguments, versions and commit.

    Without `out` it is the next free `runs/STAGE-N`. Raises `UserError` when the place is a file, holds the checkpoint
    of another run, or another process is at work there.
    """
    folder = Path(out) if out else _next_free(Path("runs"), stage)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give --out a folder")
    if (folder / "last.pth.tar").exists():
        raise UserError(f"{folder} holds a run already; go on with it by --continue {folder}, or give another --out")
    lock_run(folder)
    packages = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "scikit-learn", "opacus")
    write_json(folder / "args.json", {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "args": args,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": commit(),
    })
    return folder


def _next_free(parent: Path, stage: str) -> Path:
    """The folder of the next number, which is made, so that two that begin at once get two."""
    taken = [int(p.name.rpartition("-")[2]) for p in parent.glob(f"{stage}-*") if p.name.rpartition("-")[2].isdigit()]
    number = max(taken, default=0) + 1
    while True:
        try:
            (parent / f"{stage}-{number}").mkdir(parents=True)
            return parent / f"{stage}-{number}"
        except FileExistsError:
            number += 1


def lock_run(folder: Path) -> None:
    """Make `folder` if need be and keep other processes out of it until this one ends, however it ends.

    What a killed process had begun to write there is cleared away. Raises `UserError` when another one is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)  # stays open for as long as this process lives
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: its children do not keep it
    except BlockingIOError:
        raise UserError(f"another process is at work in {folder}; wait for it, or give another folder") from None
    except OSError:  # some network file systems lock nothing
        print(f"{folder} cannot be locked: take care that no other process works there", file=sys.stderr)
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)


def commit() -> str:
    """Short hash of the checkout, `+` when it has changes, `unknown` outside one."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout else "")
