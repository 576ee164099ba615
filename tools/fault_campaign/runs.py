"""Run scripts, and other work, in forked processes. Count the file accesses of a script and make one of them fail.

The parent process has imported all modules and has started no threads, so a forked script starts quickly.
"""

import atexit
import builtins
import ctypes
import errno
import importlib
import io
import mmap
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from predictors.samples import Source
from utils.files import ROOT
from utils.log import progress

TIME_LIMIT = 30.0  # seconds for a run that takes about two
MORE_MEMORY = 8 * 2**30  # bytes of address space that a child process may add
PERSISTENT = (errno.ENOSPC, errno.EROFS)  # on a full or read-only disk all later writes fail, too
FORK = get_context("fork")


def preload() -> None:
    """Import the modules that the scripts import, once, before any fork."""
    for name in ("defenses.dpsgd", "defenses.dropout", "evaluation.attack_setup", "models.pspnet",
                 "multiprocessing.popen_fork", "torch.utils.tensorboard", "training.setup"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    Image.init()


class Counters(ctypes.Structure):
    """Numbers of accesses and of samples that were made, and whether the action has run."""

    _fields_ = [("writes", ctypes.c_int64), ("reads", ctypes.c_int64), ("samples", ctypes.c_int64),
                ("triggered", ctypes.c_bool)]


@dataclass
class FaultInjector:
    """Count the reads and writes of files in `folder`, and run `action` at one of them.

    A write is one system call: write, fsync, rename, or the opening of a file for writing. A read is the opening of a
    file for reading. `action` runs at write number `at` (with `on_read`: at read number `at`), counted from 1. An errno
    makes the call fail; a call of write has then written half of its bytes. "kill" sends SIGKILL to the process and
    its children. A float delays every write by this number of seconds. None: accesses are only counted. The counters
    are in shared memory, so the parent can read them after the process has ended.
    """

    folder: Path
    action: int | float | str | None = None
    at: int = 0
    on_read: bool = False
    counters: Counters = field(default_factory=lambda: Counters.from_buffer(mmap.mmap(-1, ctypes.sizeof(Counters))))

    def install(self) -> None:
        """Replace `open`, `os.fsync`, `os.replace` and the function that makes a sample, in this process."""
        make_sample = Source._sample

        def counted(source, *args):
            self.counters.samples += 1
            return make_sample(source, *args)

        Source._sample = counted
        self._open, self._prefix = builtins.open, f"{self.folder.resolve()}{os.sep}"
        builtins.open = io.open = self.open
        os.fsync, os.replace = partial(self._call, os.fsync), partial(self._call, os.replace)

    def open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        """Like the builtin `open`, but counts. Every write to the returned file is counted, too."""
        path = os.path.abspath(os.fsdecode(file)) if not isinstance(file, int) else ""
        inside, writing = path.startswith(self._prefix), set(mode) & set("wax+")
        if inside and not writing:
            self.count(path, read=True)
        if not inside or not writing:
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self.count(path)
        raw_mode = mode.replace("b", "").replace("t", "").replace("+", "") + "+"
        # Not a BufferedWriter: numpy would write to its file descriptor, and the write would not be counted.
        buffered = io.BufferedRandom(_CountedFile(self, path, raw_mode))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    def _call(self, function, first, *rest, **options):
        self.count(str(first))
        return function(first, *rest, **options)

    def count(self, path: str, write_half=lambda: None, read: bool = False) -> None:
        """Count one access, and run the action if it is due. `write_half` is called before a failure."""
        name = "reads" if read else "writes"
        number = getattr(self.counters, name) + 1
        setattr(self.counters, name, number)
        if read is not self.on_read or self.action is None:
            return
        if isinstance(self.action, float):
            time.sleep(self.action)
        elif number == self.at or (self.counters.triggered and self.action in PERSISTENT):
            self.counters.triggered = True
            write_half()
            if self.action == "kill":
                os.killpg(0, signal.SIGKILL)
            raise OSError(self.action, os.strerror(self.action), path)


class _CountedFile(io.FileIO):
    """An unbuffered file whose writes are counted."""

    def __init__(self, injector: FaultInjector, path: str, mode: str):
        super().__init__(path, mode)
        self._injector = injector

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        self._injector.count(self.name, lambda: super(_CountedFile, self).write(data[: len(data) // 2]))
        return super().write(data)


@dataclass
class RunResult:
    """Result of a run: exit code (-N: killed by signal N), seconds, stderr, file accesses, peak memory in bytes."""

    code: int
    seconds: float
    stderr: str
    counters: Counters
    peak: int

    def problems(self, *expected: int) -> list[str]:
        """One message if the exit code is not expected, or if stderr does not have exactly one line for an error.

        Lines with warnings are not counted.
        """
        problems, lines = [], [line for line in self.stderr.splitlines() if not line.startswith("warning: ")]
        if self.code not in expected:
            problems.append(f"exit code {self.code} instead of {' or '.join(map(str, expected))}")
        if "Traceback" in self.stderr:
            problems.append("a traceback")
        elif self.code > 0 and len(lines) != 1:
            problems.append(f"{len(lines)} lines on stderr instead of one")
        return [f"{', '.join(problems)}: {self.stderr[-500:]}"] if problems else []


class ScriptProcess:
    """A script that runs in a forked process, with a new process group.

    `folder` is its working directory, and that of a `FaultInjector` whose other fields are `fault`. `setup` is called
    in the process before the script.
    """

    def __init__(self, command: Sequence[str], folder: Path, setup: Callable = lambda: None, **fault: object):
        self._injector, self._started = FaultInjector(folder, **fault), time.monotonic()
        self._stderr = os.memfd_create("stderr")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_in_child(command, self._injector, self._stderr, setup)

    def ended_within(self, seconds: float) -> bool:
        """Wait for the end of the process, but not longer than `seconds`. Returns whether it has ended."""
        deadline = time.monotonic() + seconds
        while not (status := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return status is not None

    def result(self) -> RunResult:
        """Wait for the end, and kill the rest of the process group. A process that takes too long is killed."""
        timed_out = not self.ended_within(TIME_LIMIT)
        seconds = time.monotonic() - self._started
        os.killpg(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        with open(self._stderr, "rb") as file:
            file.seek(0)
            text = file.read().decode(errors="replace") + f"killed after {TIME_LIMIT:g} seconds" * timed_out
        code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        return RunResult(code, seconds, text, self._injector.counters, peak)


def _run_in_child(command: Sequence[str], injector: FaultInjector, stderr: int, setup: Callable) -> None:
    """Run the script in this process as `python NAME ARGS` would, and exit."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        limit_memory()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [str(ROOT / command[0]), *map(str, command[1:])]
        os.chdir(injector.folder)
        setup()
        injector.install()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)


def limit_memory() -> None:
    """Make allocations fail in this process once it has added `MORE_MEMORY` bytes."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY,) * 2)


def in_child(work: Callable, *args: object) -> object:
    """`work(*args)`, computed in a forked process."""
    with ProcessPoolExecutor(1, FORK) as pool:
        return pool.submit(work, *args).result()


def run_all(work: Callable[[int], dict], count: int, jobs: int, description: str) -> list[dict]:
    """`work(0)` to `work(count - 1)` in order, computed by `jobs` processes at a time."""
    with ProcessPoolExecutor(jobs, FORK) as pool:
        return list(progress(pool.map(work, range(count)), description, total=count))
