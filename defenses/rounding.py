"""Rounding of the output, one of the defenses that Shafran et al. call ineffective (ICCV 2021)."""

from typing import TYPE_CHECKING

import torch

from defenses.base import Defense
from defenses.gauss import normalise_or_uniform
from utils.cli import UserError

if TYPE_CHECKING:
    from defenses import DefenseSpec


class Rounding(Defense):
    """Round each value to a multiple of STEP. Posteriors are normalised afterwards."""

    kinds = frozenset({"posterior", "image"})

    def __init__(self, spec: "DefenseSpec"):
        super().__init__(spec)
        if not 0 < spec.strength <= 1:
            raise UserError(f"--rounding {spec.strength}: the step must be above 0, and 1 or less")

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        return normalise_or_uniform(self._round(output))

    def apply_to_image(self, image: torch.Tensor, key: str) -> torch.Tensor:
        return self._round(image).clamp(0, 1)

    def _round(self, output: torch.Tensor) -> torch.Tensor:
        return (output / self.spec.strength).round() * self.spec.strength
