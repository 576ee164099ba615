"""The record of a run: a progress bar to watch, log.jsonl to keep, TensorBoard events to plot."""

import contextlib
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.distributed import is_main
from utils.files import whole


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
    """Figures of a run in DIR/log.jsonl and in TensorBoard; a context manager.

    `done` steps are behind it when it begins: what an earlier process noted of later ones is dropped.
    """

    def __init__(self, folder: Path, done: int = 0):
        self._path, self._board = folder / "log.jsonl", None
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            self._lines = [line for line in _lines(self._path) if line["step"] <= done]
            self._board = SummaryWriter(str(folder / "events"), purge_step=done + 1 if done else None)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def add(self, step: int, **figures: float) -> None:
        """Record `figures` at `step` (an epoch, counted from 1)."""
        if not self._board:
            return
        self._lines.append({"step": step, **figures})
        with whole(self._path, "w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in self._lines)
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)


def _lines(path: Path) -> list[dict]:
    """What a log holds; lines of another form are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def progress(items: Iterable, what: str, total: int | None = None, **options: object) -> tqdm:
    """A progress bar on stderr, silent where nobody watches."""
    watched = is_main() and sys.stderr.isatty()
    return tqdm(items, desc=what, total=total, file=sys.stderr, disable=not watched, leave=False, dynamic_ncols=True,
                **options)
