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

    `one_hot`: whether the defended posteriors are one-hot, as under Argmax. `kinds`: the kinds of predictors whose
    outputs it can change, "posterior" and "image". `draws_noise`: whether the output depends on random numbers.
    """

    one_hot = False
    draws_noise = False
    kinds = frozenset({"posterior"})

    def __init__(self, spec: DefenseSpec):
        self.spec = spec

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        """The defended posterior, of the same shape (C, h, w). Random numbers depend only on (seed, `key`).

        `key` identifies the image, or one of several queries about it (`predictors.base.Query.key`).
        """
        return output

    def apply_to_image(self, image: torch.Tensor, key: str) -> torch.Tensor:
        """The defended output of a translator, an image float32 (3, h, w) in 0..1."""
        return image

    def check_kind(self, kind: str) -> None:
        """Raise `UserError` if the defense does not change the outputs of a predictor of this kind."""
        if self.spec.name and kind not in self.kinds:
            own, other = ("posteriors", "translated images") if kind == "image" else ("translated images", "posteriors")
            raise UserError(f"-{self.spec.name} changes {own}, and no {other}; leave it out")

    def prepare(self, model: "nn.Module") -> "nn.Module":
        """Change `model` for queries, for example activate its dropout layers. The base class changes nothing."""
        return model

    def query_seed(self, key: str) -> int | None:
        """Seed of the random numbers that the query `key` draws; None if it draws none."""
        return None


NO_DEFENSE = Defense(DefenseSpec())
