"""What all defenses have in common."""

from typing import TYPE_CHECKING

import torch

from defenses import DefenseSpec

if TYPE_CHECKING:
    from torch import nn


class Defense:
    """No defense. A subclass changes the output, or how the model computes it.

    `one_hot` says that the posteriors are one-hot afterwards, as under Argmax.
    """

    one_hot = False

    def __init__(self, spec: DefenseSpec):
        self.spec = spec

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        """The defended output, of the same shape (C, h, w); random draws depend on (seed, `key`) alone."""
        return output

    def prepare(self, model: "nn.Module") -> "nn.Module":
        """The model as it is queried, in eval mode."""
        return model

    def query_seed(self, key: str) -> int | None:
        """The seed of what the model draws when it is queried for the image `key`; None where it draws nothing."""
        return None


NO_DEFENSE = Defense(DefenseSpec())
