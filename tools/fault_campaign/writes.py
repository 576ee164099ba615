"""Disks that are full, fail or vanish, workers that are killed, losses that explode: one line, and nothing lost."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from reliability.faults import Fault
from reliability.runs import (
    Ended,
    Known,
    Run,
    again,
    apart,
    attacks,
    command_of,
    differences,
    furnish,
    run,
    spread,
    torn,
)
from utils.randomness import stream

ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES")
# The first kinds are failures of a write, by hand or by the kernel; the others something else that goes wrong.
KINDS = (*ERRORS, "full disk", *ERRORS, "too large", "vanished", "EIO at reading", "not ours", "slow disk",
         "worker killed", "NaN")
WORKER = "victim, a worker"


def writes(world: Path, known: dict[str, Known], trials: int, seed: int, jobs: int) -> dict:
    """`trials` faults, one kind after the other; what was found, with every failure."""
    missing = {"full disk: no file system can be mounted here": not can_mount(world / "mounted"),
               "not ours: only root can become someone else": os.geteuid() != 0,
               "worker killed: no command that has workers was asked for": WORKER not in known,
               "NaN: no training was asked for": all(map(attacks, known))}
    skipped = [line for line, true in missing.items() if true]
    kinds = [kind for kind in KINDS if not any(kind in line for line in skipped)]
    found = spread(partial(trial, world, known, seed, kinds), trials, jobs, "writes")
    return {
        "trials": trials,
        "skipped": skipped,
        "by": {kind: {"trials": len(own := [one for one in found if one["kind"] == kind]),
                      "met": sum(one["met"] for one in own), "failed": sum(bool(one["wrong"]) for one in own)}
               for kind in dict.fromkeys(kinds)},
        "failed writes": sum(one["met"] for one in found if one["kind"] in (*ERRORS, "full disk", "too large")),
        "by state": Counter(one["state"] for one in found),
        "seconds a trial": round(sum(one["seconds"] for one in found) / trials, 2),
        "failures": [one for one in found if one["wrong"]],
    }


def trial(world: Path, known: dict[str, Known], seed: int, kinds: list[str], number: int) -> dict:
    """Let one thing go wrong in a run that is new, half done or done, and call it again.

    Afterwards everything must be as if nothing had happened; what was done already stays so even before.
    """
    kind, rng, begun = kinds[number % len(kinds)], stream(seed, "writes", number), time.monotonic()
    able = {"worker killed": [WORKER], "NaN": [name for name in known if not attacks(name)]}.get(kind, list(known))
    name = able[rng.integers(len(able))]
    here, state = world / "trials" / f"write {number}", "new"
    # What is copied there before the run begins has room.
    brought = sum(4096 + path.stat().st_size for path in known[name].folder.glob("shadow/*") if path.is_file())
    room = brought + rng.uniform(0.02, 0.9) * (known[name].size - brought)
    with mounted(here, room if kind == "full disk" else 0) as grow:
        furnish(name, world, here)
        command = command_of(name, world, here)
        if kind not in ("full disk", "NaN", "worker killed"):
            state = str(rng.choice(["new", "half done", "done"]))
            if state != "new":
                run(command, world, do="kill", at=known[name].writes // 2 if state == "half done" else -1)
        ended, codes = suffer(kind, again(command, here), here, world, known[name], rng)
        wrong = ended.fault(*codes) + apart(torn, here)
        if state == "done":
            wrong += apart(differences, known[name].folder, here)
        grow()
        if kind != "NaN":
            last = run(again(command, here), world)
            wrong += last.fault(0) or apart(differences, known[name].folder, here)
    if not wrong:
        shutil.rmtree(here)
    return {"trial": number, "kind": kind, "command": name, "state": state, "met": bool(ended.code) or ended.did.struck,
            "stderr": ended.err[-300:], "wrong": wrong, "seconds": time.monotonic() - begun}


def suffer(kind: str, command: list[str], here: Path, world: Path, known: Known,
           rng: np.random.Generator) -> tuple[Ended, tuple[int, ...]]:
    """Run a command under a fault: how it ended, and the exit codes that are right."""
    if kind in ERRORS:
        ended = run(command, world, do=getattr(errno, kind), at=int(rng.integers(1, known.writes + 1)))
        return ended, (2,) if ended.did.struck else (0,)
    if kind in ("vanished", "EIO at reading"):
        number = errno.ENOENT if kind == "vanished" else errno.EIO
        ended = run(command, world, do=number, at=int(rng.integers(1, known.reads + 1)), read=True)
        return ended, (2,) if ended.did.struck else (0,)
    if kind == "slow disk":
        return run(command, world, do=1.0 / known.writes), (0,)
    if kind == "NaN":
        return run([*command, "--lr", "1e30"], world), (2,)
    if kind == "not ours":
        return Run(command, Fault(world), nobody=True).end(), (2,)
    if kind == "too large":
        with largest_file(int(rng.uniform(0.05, 1) * max(path.stat().st_size for path in known.folder.rglob("*.*")))):
            return run(command, world), (0, 2)
    running = Run(command, Fault(world))
    if kind == "worker killed":
        kill_a_child(running, rng.uniform(0, 0.3) * known.seconds)
    return running.end(), (0, 2)


def kill_a_child(running: Run, moment: float) -> None:
    """SIGKILL to the first process that a run started, some time after it did, as by a machine short of memory."""
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not running.over(0.002):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone meanwhile
            for child in children.read_text().split():
                if (Path("/proc") / child / "cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():
                    running.over(moment)
                    os.kill(int(child), signal.SIGKILL)
                    return


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes in what is started meanwhile: the kernel refuses to write more."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@contextlib.contextmanager
def mounted(here: Path, size: float) -> Iterator:
    """With `size`, `here` is a file system of so many bytes; yields what makes room on it."""
    if not size:
        yield lambda: None
        return
    here.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size) + 4096}", "reliability", str(here)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", str(here)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(here)], check=True)


def can_mount(here: Path) -> bool:
    """Whether this process may mount a file system."""
    try:
        with mounted(here, 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
