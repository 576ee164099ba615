"""What a process does with files, counted, and one of these doings made to go wrong."""

import builtins
import errno
import io
import mmap
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

STAY = (errno.ENOSPC, errno.EROFS)  # a full disk stays full; another fault may be gone at the next try


@dataclass
class Fault:
    """At the `at`-th write (or, with `read`, opening of a file to read) below `place`, this happens.

    `do` is an errno, which a write meets after half of its bytes, "kill" (SIGKILL to the process and all that it
    started), or a number of seconds that every write takes longer. A write is a call of the system: of write, fsync,
    replace, or an opening. What was counted stays readable when the process is gone.
    """

    place: Path
    do: int | float | str | None = None
    at: int = 0
    read: bool = False
    _shared: memoryview = field(default_factory=lambda: memoryview(mmap.mmap(-1, 32)).cast("q"))

    @property
    def writes(self) -> int:
        return self._shared[0]

    @property
    def reads(self) -> int:
        return self._shared[1]

    @property
    def labels(self) -> int:
        """How many of the reads were of a label: once for each image that is asked about or attacked."""
        return self._shared[2]

    @property
    def struck(self) -> bool:
        return bool(self._shared[3])

    def install(self) -> None:
        """Let everything in this process that opens a file for itself go through here."""
        self._open, self._place = builtins.open, f"{self.place.resolve()}{os.sep}"
        builtins.open = io.open = self.open
        for name in ("fsync", "replace"):
            setattr(os, name, self._watched(getattr(os, name)))

    def open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        """As the builtin; a file to be written is one that neither numpy nor another writes to behind our back."""
        path = os.path.abspath(os.fsdecode(file)) if not isinstance(file, int) else ""
        if not path.startswith(self._place):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not set(mode) & set("wax+"):
            self._shared[2] += f"{os.sep}label{os.sep}" in path
            self._meet(path, read=True)
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self._meet(path)
        plain = mode.replace("b", "").replace("t", "").replace("+", "") + "+"
        # numpy writes arrays through the descriptor of a BufferedWriter, but not of a BufferedRandom.
        buffered = io.BufferedRandom(_Raw(self, path, plain))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    def _watched(self, call):
        def watched(first, *rest, **more):
            self._meet(str(first))
            return call(first, *rest, **more)

        return watched

    def _meet(self, path: str, half=lambda: None, read: bool = False) -> None:
        self._shared[int(read)] += 1
        if read is not self.read or self.do is None:
            return
        if isinstance(self.do, float):
            time.sleep(self.do)
        elif self._shared[int(read)] == self.at or (self.struck and self.do in STAY):
            self._shared[3] = 1
            half()
            if self.do == "kill":
                os.killpg(0, signal.SIGKILL)
            raise OSError(self.do, os.strerror(self.do), path)


class _Raw(io.FileIO):
    def __init__(self, fault: Fault, path: str, mode: str):
        super().__init__(path, mode)
        self._fault = fault

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        self._fault._meet(self.name, lambda: super(_Raw, self).write(data[: len(data) // 2]))
        return super().write(data)
