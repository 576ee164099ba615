"""Long work that can be stopped: what was computed is saved first, now and then and when a signal asks to end."""

import os
import signal
import threading
import time

from utils.cli import Stopped
from utils.distributed import sum_over_processes, world_size

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Pause:
    """While its `with` block runs, SIGINT and SIGTERM wait until the work is saved; a second one ends it at once.

    The work asks `due` after every step, saves when told so, and then calls `saved`. `every`: seconds between saves
    that nobody asks for; `hint`: how to go on, for whoever stops it.
    """

    def __init__(self, every: float, hint: str):
        self._every, self._hint, self._last = every, hint, time.monotonic()
        self._asked = self._ending = 0  # the signal that came here, and whether all have agreed to end

    def __enter__(self) -> "Pause":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self._asked:
            raise Stopped(number, self._hint)
        self._asked = number

    def due(self) -> bool:
        """Whether to save now; all processes get the same answer."""
        self._ending, late = self._asked, int(time.monotonic() - self._last >= self._every)
        if world_size() > 1:
            import torch

            self._ending, late = sum_over_processes(torch.tensor([self._ending, late])).tolist()
        return bool(self._ending or late)

    def saved(self) -> None:
        """All is on disk: go on, or end where that was asked for."""
        self._last = time.monotonic()
        if self._ending:
            raise Stopped(self._asked or signal.SIGTERM, self._hint)


def leave_signals_to_parent() -> None:
    """In a helper process: let the main one end it, since a signal may reach all processes of a job at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
