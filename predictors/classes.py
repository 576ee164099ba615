"""Restrict labels and posteriors to the classes that models of different label spaces share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datasets.classes import places_of
from defenses.gauss import normalise_or_uniform
from utils import VOID


@dataclass(frozen=True)
class ClassView:
    """How a label space `space` of C classes is restricted to the classes `names`, of which there are K.

    `places`: for each train id of `space` the index of its class in `names`, or 255 if the class is left out.
    """

    space: tuple[str, ...]
    names: tuple[str, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, space: Sequence[str], names: Sequence[str]) -> "ClassView":
        """The view of a label space on the classes `names`, by `datasets.classes.places_of`."""
        return cls(tuple(space), tuple(names), places_of(space, names))

    def label(self, label: np.ndarray) -> np.ndarray:
        """Train ids of `space` -> indices of `names`, uint8 of the same shape; 255 = void or left out."""
        table = np.full(256, VOID, np.uint8)
        table[: len(self.places)] = self.places
        return table[label]

    def posterior(self, posterior: torch.Tensor) -> torch.Tensor:
        """(C, h, w) -> (K, h, w): channels of one class are added, others dropped, and the sum over K becomes 1.

        A position where all that is kept is 0 gets the uniform distribution. If all classes are kept in their order,
        the posterior is returned unchanged.
        """
        return merge_channels(posterior, self.places, len(self.names))

    def __str__(self) -> str:
        void = [name for name, place in zip(self.space, self.places, strict=True) if place == VOID]
        return f"{len(self.names)} classes are kept ({', '.join(self.names)}); void: {', '.join(void) or 'none'}"


def merge_channels(posterior: torch.Tensor, places: Sequence[int], count: int) -> torch.Tensor:
    """(C, h, w) -> (K, h, w): channel c is added to class `places[c]` of `count` K classes, or dropped if that is 255.

    The sum over K becomes 1; a position where all that is kept is 0 gets the uniform distribution. If `places` is
    0, 1, ..., K - 1, the posterior is returned unchanged.
    """
    if tuple(places) == tuple(range(count)):
        return posterior
    where = torch.tensor(places)
    merged = posterior.new_zeros(count, *posterior.shape[1:])
    kept = (where != VOID).to(posterior.device)
    return normalise_or_uniform(merged.index_add_(0, where[where != VOID].to(posterior.device), posterior[kept]))
