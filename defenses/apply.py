"""One defense, chosen by flags, as a function of a posterior."""

from dataclasses import dataclass

import torch

from defenses.argmax import argmax
from defenses.gauss import RELEASE_FLOOR, gauss, normalise
from utils.cli import UserError
from utils.randomness import stream


@dataclass(frozen=True)
class Defense:
    """Divides a posterior (C, H, W) by its sum over classes, then defends it; one noise draw per (seed, image)."""

    argmax: bool = False
    gauss: float | None = None
    seed: int = 0
    floor: float = RELEASE_FLOOR

    def __post_init__(self) -> None:
        if self.gauss is not None and not 0 <= self.gauss < float("inf"):
            raise UserError(f"-gauss {self.gauss}: a standard deviation is 0 or more")
        if not 0 <= self.floor < 1:
            raise UserError(f"--gauss-floor {self.floor}: a posterior lies between 0 and 1")

    def __call__(self, posterior: torch.Tensor, key: str) -> torch.Tensor:
        posterior = normalise(posterior)
        if self.argmax:
            return argmax(posterior)
        if self.gauss:
            return gauss(posterior, self.gauss, stream(self.seed, "gauss", key), self.floor)
        return posterior
