"""The record of a run: a progress bar to watch, log.jsonl to keep, TensorBoard events to plot."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.distributed import is_main


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
