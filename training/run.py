"""The run of a training. It can be stopped after any step; after it is resumed, it ends with the same weights."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from utils.checkpoints import load_checkpoint, require, save_checkpoint
from utils.cli import UserError
from utils.distributed import own_share
from utils.log import RunLog, progress
from utils.pause import Pause
from utils.randomness import stream

SAVE_EVERY = 600.0  # seconds between saves within an epoch


@dataclass
class Progress:
    """Finished epochs, finished steps of the current epoch, the sum of the losses of these steps, and total minutes."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    minutes: float = 0.0

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, path: Path) -> "Progress":
        """Read the progress from a checkpoint. A missing field is 0. Raises `UserError` for an invalid value."""
        loaded = cls(**{field.name: require({field.name: field.default} | checkpoint, field.name, type(field.default),
                                           path) for field in fields(cls)})
        if loaded.epoch < 0 or loaded.step < 0:
            raise UserError(f"{path} is damaged: it has epoch {loaded.epoch} and step {loaded.step}")
        return loaded


class Schedule(Protocol):
    """What determines the batches of a training: number of epochs, images per step, and the seed of their order."""

    epochs: int
    batch: int
    seed: int


def draw_batches(images: int, schedule: Schedule, done: Progress,
                 poisson: bool = False) -> Iterator[list[tuple[int, int]]]:
    """Yield this process's share of each remaining batch, as pairs (epoch, image).

    The order of the images depends on (seed, epoch). `poisson`: each batch is a Poisson sample, as the computation of
    epsilon under DPSGD assumes.
    """
    first_epoch, first_step, batch = done.epoch, done.step, schedule.batch
    for epoch in range(first_epoch, schedule.epochs):
        rng = stream(schedule.seed, "order", epoch)
        order = [] if poisson else rng.permutation(images).tolist()
        for step in range(max(1, images // batch)):
            drawn = (np.flatnonzero(rng.random(images) < batch / images).tolist() if poisson else
                     order[step * batch : (step + 1) * batch])
            if epoch > first_epoch or step >= first_step:
                yield own_share([(epoch, index) for index in drawn])


class TrainingRun:
    """The folder of a training: its checkpoint, progress and log, and the regular saves.

    `arguments`: stored in each checkpoint, for --continue. In a `with` block around the epochs, SIGINT and SIGTERM take
    effect only after the next save.
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
        """Write a checkpoint that also has the progress so far. `rest`: further entries of the checkpoint."""
        self.progress.minutes = (time.monotonic() - self._started) / 60
        save_checkpoint(path, spec, state_dict, **asdict(self.progress), args=self._arguments, **rest)

    def steps(self, batches: Iterable, total: int, save: Callable[[], None], what: str = "") -> Iterator:
        """Yield the remaining batches of an epoch of `total` steps. Count each step, and call `save` when it is due."""
        remaining = islice(batches, max(0, total - self.progress.step))
        for batch in progress(remaining, what, total, initial=self.progress.step, hidden=not what):
            yield batch
            self.progress.step += 1
            if self.progress.step < total and self._pause.due():
                save()
                self._pause.saved()

    def finish_epoch(self, **metrics: float) -> None:
        """Log the metrics of the epoch, and set the progress to the start of the next. Call `save_epoch` afterwards."""
        done = self.progress
        self._log.add(done.epoch + 1, **metrics)
        done.epoch, done.step, done.loss = done.epoch + 1, 0, 0.0

    def save_epoch(self, save: Callable[[], None]) -> None:
        """Call `save`, and raise `Stopped` if a signal has asked to stop."""
        self._pause.due()
        save()
        self._pause.saved()
