"""The base class of all defenses."""

from typing import TYPE_CHECKING

import torch

from defenses import DefenseSpec
from utils.cli import UserError

if TYPE_CHECKING:
    from torch import nn


class Defense:
    """No defense. A subclass changes the output, or how the model computes the output.

    It defines `apply` for posteriors, `apply_to_image` for translated images, or both.
    `one_hot`: whether the defended posteriors are one-hot, as under Argmax.
    """

    one_hot = False

    def __init__(self, spec: DefenseSpec):
        self.spec = spec

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        """The defended posterior, of the same shape (C, h, w). Random numbers depend only on (seed, `key`)."""
        return output

    def apply_to_image(self, image: torch.Tensor, key: str) -> torch.Tensor:
        """The defended output of a translator, an image (3, h, w) in 0..1. Raises `UserError` if there is no such one.
        """
        if self.spec.name is None:
            return image
        raise UserError(f"-{self.spec.name} changes posteriors, and no translated images; leave it out")

    def prepare(self, model: "nn.Module") -> "nn.Module":
        """Change `model` for queries, for example activate its dropout layers. The base class changes nothing."""
        return model

    def query_seed(self, key: str) -> int | None:
        """Seed of the random numbers that a query of the image `key` draws; None if it draws none."""
        return None


NO_DEFENSE = Defense(DefenseSpec())
