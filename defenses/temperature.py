"""Temperature: the softmax of the target model has a temperature (Shokri et al., IEEE S&P 2017, section VIII)."""

from typing import TYPE_CHECKING

import torch

from defenses.base import Defense
from utils.cli import UserError

if TYPE_CHECKING:
    from defenses import DefenseSpec


class Temperature(Defense):
    """Divide the logits by T: above 1 posteriors become flatter, below 1 closer to one-hot.

    A posterior of 0 stays 0. An attacker who knows T can undo the division, up to rounding.
    """

    def __init__(self, spec: "DefenseSpec"):
        super().__init__(spec)
        if not 0 < spec.strength < float("inf"):
            raise UserError(f"-temperature {spec.strength:g}: a temperature must be above 0, and finite")

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        return (output.log() / self.spec.strength).softmax(dim=-3)
