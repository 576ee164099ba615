"""Gauss: noise on the posterior (section 3.1)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from defenses.base import Defense
from utils.cli import UserError
from utils.randomness import stream

if TYPE_CHECKING:
    from defenses import DefenseSpec

RELEASE_FLOOR = 1e-6


class Gauss(Defense):
    """Add N(0, STD²) to each posterior, or to each channel of an image. The noise depends only on (seed, query)."""

    kinds = frozenset({"posterior", "image"})

    def __init__(self, spec: "DefenseSpec"):
        super().__init__(spec)
        if not 0 <= spec.strength < float("inf"):
            raise UserError(f"-gauss {spec.strength}: a standard deviation must be 0 or more, and finite")
        self.draws_noise = spec.strength > 0

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        if not self.spec.strength:
            return output
        return gauss(output, self.spec.strength, stream(self.spec.seed, "gauss", key), self.spec.floor)

    def apply_to_image(self, image: torch.Tensor, key: str) -> torch.Tensor:
        return (image + self.spec.strength * draw_noise(image, stream(self.spec.seed, "gauss", key))).clamp(0, 1)


def draw_noise(output: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Standard normal noise of the shape and type of `output`."""
    return torch.from_numpy(rng.standard_normal(tuple(output.shape), dtype=np.float32)).to(output)


def normalise(posterior: torch.Tensor) -> torch.Tensor:
    """Divide posteriors (..., C, H, W) by their sum over classes, as the release does before every attack."""
    return posterior / posterior.sum(dim=-3, keepdim=True)


def gauss(posterior: torch.Tensor, std: float, rng: np.random.Generator, floor: float = RELEASE_FLOOR) -> torch.Tensor:
    """Add N(0, std²) to posteriors (..., C, H, W), raise values below `floor` to `floor`, and normalise over classes.

    The paper gives the variance, std², and has `floor` 0; a position where all classes become 0 gets the uniform
    distribution. The release has `floor` 1e-6.
    """
    return normalise_or_uniform((posterior + std * draw_noise(posterior, rng)).clamp_min(floor))


def normalise_or_uniform(posterior: torch.Tensor) -> torch.Tensor:
    """Normalise (..., C, H, W) over classes; a position where all are 0 gets the uniform distribution."""
    lost = posterior.sum(dim=-3, keepdim=True) == 0
    return normalise(torch.where(lost, torch.ones_like(posterior), posterior))
