"""Make writes, reads, workers and the loss fail. The run must exit with one line, and no result may be damaged."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from tools.fault_campaign.runs import RunResult, ScriptProcess, run_all
from tools.fault_campaign.workspace import Baseline, Trial, is_attack
from utils.randomness import stream

ERRORS = ("ENOSPC", "EIO", "EROFS", "EACCES")  # a write fails with this error
READ_ERRORS = {"missing file": errno.ENOENT, "EIO on read": errno.EIO}  # a read fails with this error
NOBODY = 65534  # a user id that owns none of the files
KINDS = (*ERRORS, "full disk", *ERRORS, "file size limit", *READ_ERRORS, "folder of another user",
         "slow disk", "worker killed", "NaN loss")
FAILED_WRITES = (*ERRORS, "full disk", "file size limit")
WORKER = "victim, 1 worker"


def run_writes(workspace: Path, baselines: dict[str, Baseline], count: int, seed: int, jobs: int) -> dict:
    """Run `count` trials, with the kinds of faults in turn. Returns the counts and every failure."""
    impossible = {
        "full disk": ("no file system can be mounted here", not can_mount(workspace / "mounted")),
        "folder of another user": ("only root can change its user", os.geteuid() != 0),
        "worker killed": (f"--command excludes {WORKER!r}", WORKER not in baselines),
        "NaN loss": ("--command excludes all trainings", all(map(is_attack, baselines)))}
    skipped = {kind: reason for kind, (reason, true) in impossible.items() if true}
    kinds = [kind for kind in KINDS if kind not in skipped]
    trials = run_all(partial(write_trial, workspace, baselines, seed, kinds), count, jobs, "writes")
    by_kind = {kind: [trial for trial in trials if trial["kind"] == kind] for kind in dict.fromkeys(kinds)}
    return {
        "trials": count,
        "skipped": [f"{kind}: {reason}" for kind, reason in skipped.items()],
        "rows": {kind: {"trials": len(rows), "fault occurred": sum(trial["fault occurred"] for trial in rows),
                        "failed": sum(bool(trial["problems"]) for trial in rows)} for kind, rows in by_kind.items()},
        "failed writes": sum(trial["fault occurred"] for trial in trials if trial["kind"] in FAILED_WRITES),
        "states": Counter(trial["state"] for trial in trials),
        "seconds per trial": round(sum(trial["seconds"] for trial in trials) / count, 2),
        "failures": [trial for trial in trials if trial["problems"]],
    }


def write_trial(workspace: Path, baselines: dict[str, Baseline], seed: int, kinds: list[str], number: int) -> dict:
    """Make one fault happen in a run that is new, half complete or complete, and run its command again.

    Then the results must equal those of the baseline. Results that were complete before must never change.
    """
    kind, rng = kinds[number % len(kinds)], stream(seed, "writes", number)
    possible = {"worker killed": [WORKER], "NaN loss": [name for name in baselines if not is_attack(name)]}
    names = possible.get(kind, list(baselines))
    name = names[rng.integers(len(names))]
    baseline, state = baselines[name], "new"
    trial = Trial(name, workspace, workspace / "trials" / f"write {number}", baseline)
    # The files that are copied into the folder before the run must fit on the disk.
    copied = sum(4096 + path.stat().st_size for path in baseline.folder.glob("shadow/*") if path.is_file())
    size = copied + rng.uniform(0.02, 0.9) * (baseline.size - copied)
    with small_disk(trial.folder, size if kind == "full disk" else 0) as enlarge_disk:
        trial.prepare()
        if kind not in ("full disk", "NaN loss", "worker killed"):
            state = str(rng.choice(["new", "half complete", "complete"]))
            if state != "new":
                stop_at = baseline.counters.writes // 2 if state == "half complete" else -1
                trial.start(action="kill", at=stop_at).result()
        result, codes = run_with_fault(kind, trial, rng)
        trial.check(result, *codes)
        if state == "complete":
            trial.problems += trial.differences()
        enlarge_disk()
        if kind != "NaN loss":
            trial.finish()
    return trial.report(trial=number, kind=kind, state=state, stderr=result.stderr[-300:],
                        **{"fault occurred": bool(result.code) or result.counters.triggered})


def run_with_fault(kind: str, trial: Trial, rng: np.random.Generator) -> tuple[RunResult, tuple[int, ...]]:
    """Run the command of a trial with a fault. Returns the result and the exit codes that are correct."""
    baseline = trial.baseline
    if kind in (*ERRORS, *READ_ERRORS):
        on_read = kind in READ_ERRORS
        action = READ_ERRORS[kind] if on_read else getattr(errno, kind)
        at = int(rng.integers(1, (baseline.counters.reads if on_read else baseline.counters.writes) + 1))
        result = trial.start(action=action, at=at, on_read=on_read).result()
        return result, (2,) if result.counters.triggered else (0,)
    if kind == "slow disk":
        return trial.start(action=1.0 / baseline.counters.writes).result(), (0,)
    if kind == "NaN loss":
        return trial.start("--lr", "1e30").result(), (2,)
    if kind == "folder of another user":
        return trial.start(setup=partial(os.seteuid, NOBODY)).result(), (2,)
    if kind == "file size limit":
        size = int(rng.uniform(0.05, 1) * max(path.stat().st_size for path in baseline.folder.rglob("*.*")))
        set_limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        return trial.start(setup=set_limit).result(), (0, 2)
    process = trial.start()
    if kind == "worker killed":
        kill_first_child(process, rng.uniform(0, 0.3) * baseline.seconds)
    return process.result(), (0, 2)


def kill_first_child(process: ScriptProcess, delay: float) -> None:
    """Send SIGKILL to the first child of a run, `delay` seconds after it appears, as a lack of memory would."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not process.ended_within(0.002):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the child has ended already
            for child in children.read_text().split():
                if (Path("/proc") / child / "cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():
                    process.ended_within(delay)
                    os.kill(int(child), signal.SIGKILL)
                    return


@contextlib.contextmanager
def small_disk(folder: Path, size: float) -> Iterator:
    """Mount a file system of `size` bytes at `folder` (0: none). Yields a function that enlarges it."""
    if not size:
        yield lambda: None
        return
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size) + 4096}", "fault-campaign", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    try:
        with small_disk(folder, 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
