"""The record of a run: a progress bar to watch, log.jsonl to keep, TensorBoard events to plot."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.distributed import is_main


class Laps:
    """What a run spent its seconds on; prints as `5.1 s: starting 2.9, ...`."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._laps: list[str] = []

    def lap(self, name: str) -> None:
        """All since the last lap was `name`."""
        now = time.monotonic()
        self._laps.append(f"{name} {now - self._last:.1f}")
        self._last = now

    def __str__(self) -> str:
        return f"{self._last - self._begun:.1f} s: {', '.join(self._laps)}"


class RunLog:
    """Appends figures of a run to DIR/log.jsonl and to TensorBoard; a context manager."""

    def __init__(self, folder: Path):
        self._path, self._board = folder / "log.jsonl", None
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "events"))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def add(self, step: int, **figures: float) -> None:
        """Record `figures` at `step` (an epoch, counted from 1)."""
        if not self._board:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            print(json.dumps({"step": step, **figures}), file=file)
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)


def progress(items: Iterable, what: str, total: int | None = None, **options: object) -> tqdm:
    """A progress bar on stderr, silent where nobody watches."""
    watched = is_main() and sys.stderr.isatty()
    return tqdm(items, desc=what, total=total, file=sys.stderr, disable=not watched, leave=False, dynamic_ncols=True,
                **options)
