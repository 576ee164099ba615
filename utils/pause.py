"""Save long work at regular intervals, and before the process stops because of a signal."""

import os
import signal
import threading
import time

from utils.cli import Stopped
from utils.distributed import sum_over_processes, world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Pause:
    """Delay SIGINT and SIGTERM in a `with` block until the work is saved. A second signal stops the work immediately.

    After each step the work calls `due`. If `due` returns true, the work saves its state and then calls `saved`.
    `every`: seconds between regular saves. `hint`: tells the user how to continue after a stop.
    """

    def __init__(self, every: float, hint: str):
        self._every, self._hint, self._last_save = every, hint, time.monotonic()
        self._received = 0  # the signal that this process received, 0 before one arrives
        self._stopping = 0  # not 0 as soon as all processes know that one of them received a signal

    def __enter__(self) -> "Pause":
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self._received:
            raise Stopped(number, self._hint)
        self._received = number

    def due(self) -> bool:
        """Return whether to save now. All processes get the same answer."""
        self._stopping, late = self._received, int(time.monotonic() - self._last_save >= self._every)
        if world_size() > 1:
            import torch

            self._stopping, late = sum_over_processes(torch.tensor([self._stopping, late])).tolist()
        return bool(self._stopping or late)

    def saved(self) -> None:
        """Note that the state is saved. Raises `Stopped` if one of the processes has received a signal."""
        self._last_save = time.monotonic()
        if self._stopping:
            raise Stopped(self._received or signal.SIGTERM, self._hint)


def leave_signals_to_parent() -> None:
    """Ignore SIGINT in a worker process, and obey SIGTERM only if the parent process sent it.

    A signal often reaches all processes of a job. The parent saves its work first and then stops its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def exit_when_parent_asks() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=exit_when_parent_asks, daemon=True).start()
