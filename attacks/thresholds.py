"""Learning-free attacks: a threshold on the confidence (Salem et al.) or on the loss (Sablayrolles et al.)."""

import torch

from attacks.representation import FLOOR, loss_map
from utils import VOID


def confidence(posterior: torch.Tensor, label: torch.Tensor | None = None, floor: float = FLOOR) -> torch.Tensor:
    """Largest posterior of each position, (C, H, W) and (H, W) -> (H, W); higher speaks for a member."""
    return posterior.amax(dim=-3)


def negative_loss(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Minus the cross-entropy of each position, (C, H, W) and (H, W) -> (H, W); higher speaks for a member."""
    return -loss_map(posterior, label, floor).squeeze(-3)


THRESHOLDS = {"confidence": confidence, "loss": negative_loss}


def mean_known(values: torch.Tensor, label: torch.Tensor) -> float:
    """Mean of `values` (H, W) over the positions that are not void; NaN when all are."""
    known = label != VOID
    return float(values[known].double().mean())
