"""Top-k: the target model returns only its K most probable classes (Shokri et al., IEEE S&P 2017, section VIII)."""

from typing import TYPE_CHECKING

import torch

from defenses.base import Defense
from defenses.gauss import normalise
from utils.cli import UserError

if TYPE_CHECKING:
    from defenses import DefenseSpec


class TopK(Defense):
    """Keep the K largest posteriors of each position, and normalise them; the others become 0.

    Of equal posteriors the class with the lower number is kept. With K at or above the number of classes nothing
    changes.
    """

    def __init__(self, spec: "DefenseSpec"):
        super().__init__(spec)
        if not (spec.strength >= 1 and float(spec.strength).is_integer()):
            raise UserError(f"-top-k {spec.strength:g}: the number of classes must be a whole number, 1 or more")
        self.one_hot = spec.strength == 1

    def apply(self, output: torch.Tensor, key: str) -> torch.Tensor:
        order = output.argsort(dim=-3, descending=True, stable=True)
        kept = torch.zeros_like(output, dtype=torch.bool).scatter(
            -3, order.narrow(-3, 0, min(int(self.spec.strength), output.shape[-3])), True)
        return normalise(output * kept)
