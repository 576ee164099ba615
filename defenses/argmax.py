"""Argmax: the target model returns only the predicted label (section 3.1)."""

import torch
import torch.nn.functional as F

from defenses.base import Defense


class Argmax(Defense):
    """Replaces each posterior by the one-hot vector of its most probable class."""

    one_hot = True

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        return argmax(output)


def argmax(posterior: torch.Tensor) -> torch.Tensor:
    """One-hot vector of the most probable class, or of the first of several: (..., C, H, W) -> same shape and dtype."""
    classes = posterior.shape[-3]
    return F.one_hot(posterior.argmax(dim=-3), classes).movedim(-1, -3).to(posterior.dtype)
