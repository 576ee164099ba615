"""Write files atomically, and create and lock the folder of a run."""

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
from typing import TYPE_CHECKING

from utils.cli import UserError
from utils.distributed import warn_once
from utils.untrusted import reading

if TYPE_CHECKING:
    from utils.device import Compute

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def atomic_open(path: str | Path, mode: str = "wb", private: bool = False) -> Iterator:
    """Open a file for writing. It appears at `path` only after it is complete, synced and closed.

    `private`: only the owner of the file can read it, from its first byte on. Raises `UserError` if the file cannot be
    written. A previous file at `path` then stays unchanged.
    """
    path = Path(path)
    partial = path.parent / f"{path.name}.{os.getpid()}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            options = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
            if private:
                options["opener"] = lambda name, flags: os.open(name, flags, 0o600)
            with open(partial, mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}; a previous file there is "
                        "unchanged") from None


def write_json(path: str | Path, value: object, private: bool = False) -> None:
    """Write `value` as indented JSON; `private` as in `atomic_open`. Raises `ValueError` for NaN and infinity."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_open(path, "w", private) as file:
        file.write(text)


def read_json(path: str | Path) -> dict:
    """Read a JSON file. Raises `UserError` if it is missing or not valid JSON."""
    with reading(path, "JSON file"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def walk_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted; links to folders are followed.

    Hidden folders are left out, and hidden and unfinished files, of which a warning gives the number. Raises
    `UserError` if two paths lead to the same folder, or if a folder has the name of an array.
    """
    found, seen, unread = [], {}, []
    for place, folders, files in os.walk(folder, followlinks=True):
        first = seen.setdefault(os.path.realpath(place), place)
        if first != place:
            raise UserError(f"{place} and {first} are the same folder; remove the link, so that no image counts twice")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if arrays := [name for name in folders if name.endswith(".npy")]:
            raise UserError(f"{place}/{arrays[0]} is a folder with the name of an array; rename it, or move it away")
        left_out = {file for file in files if file.startswith(".") or file.endswith(".partial")}
        found += [Path(place, file) for file in files if file not in left_out]
        unread += [Path(place, file) for file in left_out if Path(file).suffix]  # .DS_Store is of no interest
    if unread:
        warn_once(f"{len(unread)} hidden or unfinished files in {folder}, such as {min(unread).name}, are left out")
    return sorted(found)


def files_by_name(folder: Path) -> dict[str, Path]:
    """Map the path of each file of `walk_files`, relative to `folder` and without its suffix, to the file.

    Raises `UserError` if two files differ only in the suffix.
    """
    found: dict[str, Path] = {}
    for file in walk_files(folder):
        first = found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        if first is not file:
            raise UserError(f"{first} and {file} have one name; keep one of them")
    return found


def fingerprint(paths: list[Path], *values: object) -> str:
    """Return the SHA-256, in hex, of the contents of files and of the `repr` of other values."""
    digest = hashlib.sha256(repr(values).encode())
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def start_run(stage: str, args: dict, out: str | None, compute: "Compute", queries: str | None = None) -> Path:
    """Create and lock the folder of a run, and write its args.json: effective arguments, versions and commit.

    The folder is `out`, by default `runs/STAGE-N` with the next free N. args.json also gets the device and the
    precision of `compute`, because `args` may have `--precision auto`, and `queries`, the precision in which other
    models are queried, if there are any. Raises `UserError` if `out` is a file, contains the checkpoint of a run, or is
    locked by another process.
    """
    folder = Path(out) if out else _next_free(Path("runs"), stage)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give --out a folder")
    if (folder / "last.pth.tar").exists():
        raise UserError(f"{folder} holds a run already; resume it with --continue {folder}, or give another --out")
    lock_run(folder)
    packages = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "scikit-learn", "opacus")
    write_json(folder / "args.json", {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "args": args,
        "device": compute.device.type,
        "precision": compute.precision,
        **({"query_precision": queries} if queries else {}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "commit": commit(),
    })
    return folder


def _next_free(parent: Path, stage: str) -> Path:
    """Create the folder with the next free number. Two processes that start together get different folders."""
    taken = [int(p.name.rpartition("-")[2]) for p in parent.glob(f"{stage}-*") if p.name.rpartition("-")[2].isdigit()]
    number = max(taken, default=0) + 1
    while True:
        try:
            (parent / f"{stage}-{number}").mkdir(parents=True)
            return parent / f"{stage}-{number}"
        except FileExistsError:
            number += 1


def lock_run(folder: Path) -> None:
    """Create `folder` if it does not exist, and lock it until this process ends, even if it is killed.

    Deletes incomplete files that a killed process left. Raises `UserError` if another process has locked the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)  # open until this process ends
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # child processes do not inherit the lock
    except BlockingIOError:
        raise UserError(f"another process is at work in {folder}; wait until it ends, or give another folder") from None
    except OSError:  # some network file systems have no locks
        print(f"{folder} cannot be locked; make sure that no other process uses it", file=sys.stderr)
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)


def commit() -> str:
    """Return the short hash of the current commit, with `+` after it for uncommitted changes, or `unknown`."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout else "")
