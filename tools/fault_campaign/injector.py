"""Count the file accesses of a process and make one of them fail."""

import builtins
import ctypes
import errno
import io
import mmap
import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

PERSISTENT = (errno.ENOSPC, errno.EROFS)  # on a full or read-only disk all later writes fail, too


class Counters(ctypes.Structure):
    """Numbers of accesses, and whether the action has run. Each image that is queried reads one label file."""

    _fields_ = [("writes", ctypes.c_int64), ("reads", ctypes.c_int64), ("label_reads", ctypes.c_int64),
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
        """Replace `open`, `os.fsync` and `os.replace` in this process."""
        self._open, self._prefix = builtins.open, f"{self.folder.resolve()}{os.sep}"
        builtins.open = io.open = self.open
        os.fsync, os.replace = partial(self._call, os.fsync), partial(self._call, os.replace)

    def open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        """Like the builtin `open`, but counts. Every write to the returned file is counted, too."""
        path = os.path.abspath(os.fsdecode(file)) if not isinstance(file, int) else ""
        inside, writing = path.startswith(self._prefix), set(mode) & set("wax+")
        if inside and not writing:
            self.counters.label_reads += f"{os.sep}label{os.sep}" in path
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
