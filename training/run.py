"""A training that can be stopped between any two steps, and resumed to the same weights."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

from utils.checkpoints import load_checkpoint, require, save_checkpoint
from utils.cli import UserError
from utils.log import RunLog, progress
from utils.pause import Pause

SAVE_EVERY = 600.0  # seconds, within an epoch


@dataclass
class Progress:
    """Finished epochs, finished steps of the current epoch, the sum of their losses, and minutes in all."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    minutes: float = 0.0

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, path: Path) -> "Progress":
        """Read the progress in a checkpoint; one that was written at the end of an epoch may lack fields that are 0."""
        found = cls(**{field.name: require({field.name: field.default} | checkpoint, field.name, type(field.default),
                                           path) for field in fields(cls)})
        if found.epoch < 0 or found.step < 0:
            raise UserError(f"{path} is damaged: it has epoch {found.epoch} and step {found.step}")
        return found


class TrainingRun:
    """The folder of a training: its checkpoint, progress and log, and the pauses in which it is saved.

    `arguments` are stored in each checkpoint, for --continue. Used as a context manager around the epochs: a signal
    that asks to stop waits until the next save.
    """

    def __init__(self, folder: Path, arguments: dict):
        self.folder, self.last, self._arguments = folder, folder / "last.pth.tar", arguments
        self.checkpoint = load_checkpoint(self.last) if self.last.exists() else None
        self.progress = Progress.from_checkpoint(self.checkpoint, self.last) if self.checkpoint else Progress()
        self._started = time.monotonic() - 60 * self.progress.minutes
        self._log = RunLog(folder, self.progress.epoch)
        self._pause = Pause(SAVE_EVERY, f"resume with --continue {folder}")

    def __enter__(self) -> "TrainingRun":
        self._pause.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pause.__exit__(*error)

    def save(self, path: Path, spec: dict, state_dict: dict, **rest: object) -> None:
        """Write a checkpoint with the progress so far."""
        self.progress.minutes = (time.monotonic() - self._started) / 60
        save_checkpoint(path, spec, state_dict, **asdict(self.progress), args=self._arguments, **rest)

    def steps(self, batches: Iterable, total: int, save: Callable[[], None], what: str = "") -> Iterator:
        """The remaining batches of an epoch of `total` steps. Counts each step, and calls `save` when a save is due."""
        remaining = islice(batches, max(0, total - self.progress.step))
        for batch in progress(remaining, what, total, initial=self.progress.step, hidden=not what):
            yield batch
            self.progress.step += 1
            if self.progress.step < total and self._pause.due():
                save()
                self._pause.saved()

    def finish_epoch(self, **metrics: float) -> None:
        """Log the metrics of the epoch and begin the next one; `save_epoch` follows."""
        done = self.progress
        self._log.add(done.epoch + 1, **metrics)
        done.epoch, done.step, done.loss = done.epoch + 1, 0, 0.0

    def save_epoch(self, save: Callable[[], None]) -> None:
        """Call `save`, and stop where a signal has asked for it."""
        self._pause.due()
        save()
        self._pause.saved()
