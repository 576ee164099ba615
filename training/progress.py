"""How far a training is, so that it can be stopped between any two steps and go on to the same weights."""

from dataclasses import dataclass, fields
from pathlib import Path

from utils.checkpoints import require
from utils.cli import UserError
from utils.pause import Pause

SAVE_EVERY = 600.0  # seconds, within an epoch


@dataclass
class Progress:
    """Epochs that are done, steps of the one that is running, the sum of their losses, and minutes in all."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    minutes: float = 0.0

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, path: Path) -> "Progress":
        """As a checkpoint has it; one that was written at the end of an epoch may leave out what is 0 there."""
        found = cls(**{field.name: require({field.name: field.default} | checkpoint, field.name, type(field.default),
                                          path) for field in fields(cls)})
        if found.epoch < 0 or found.step < 0:
            raise UserError(f"{path} is no whole checkpoint: it has epoch {found.epoch} and step {found.step}")
        return found

    def next_epoch(self) -> None:
        """The running epoch is done."""
        self.epoch, self.step, self.loss = self.epoch + 1, 0, 0.0


def pausing(folder: Path) -> Pause:
    """For the loop of the run in `folder`."""
    return Pause(SAVE_EVERY, f"go on with --continue {folder}")
