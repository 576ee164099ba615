"""What the attacker sees: the posterior laid against the label (section 2.1, "Data representation").

A new representation is a function with the signature of `loss_map` and a line in `REPRESENTATIONS`.
"""

import math

import torch

from utils import VOID

FLOOR = 1e-30  # of the release, below which a posterior is not let before the logarithm
ARGMAX_LOSS = -math.log(FLOOR) / 50  # of a wrong position under Argmax: the release divides its loss map by 50


def true_class(posterior: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Posterior of the labelled class, (..., C, H, W) and (..., H, W) -> (..., H, W); 0 where void."""
    known = label != VOID
    index = torch.where(known, label, 0).long().unsqueeze(-3)
    return posterior.gather(-3, index).squeeze(-3) * known


def loss_map(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Structured loss map, SLM(i, j) = -log P(Y(i, j), i, j): (..., C, H, W) and (..., H, W) -> (..., 1, H, W).

    Posteriors are clamped at `floor` from below; void positions hold 0.
    """
    loss = -true_class(posterior, label).clamp_min(floor).log()
    return (loss * (label != VOID)).unsqueeze(-3)


def concatenation(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Posterior and one-hot label (void = all zero): (..., C, H, W) and (..., H, W) -> (..., 2C, H, W)."""
    classes = torch.arange(posterior.shape[-3], dtype=label.dtype, device=label.device)
    one_hot = label.unsqueeze(-3) == classes[:, None, None]
    return torch.cat([posterior, one_hot.to(posterior.dtype)], dim=-3)


REPRESENTATIONS = {"loss": loss_map, "concate": concatenation}


def channels(kind: str, classes: int, void: str = "zero") -> int:
    """Number of channels of a representation of `classes` classes."""
    return {"loss": 1, "concate": 2 * classes}[kind] + (void == "mask")


def represent(kind: str, posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR, void: str = "zero",
              argmax: bool = False) -> torch.Tensor:
    """The map an attacker of input `kind` sees: (C, H, W) and (H, W) -> (K, H, W) float32.

    `void` = "mask" appends a channel that is 1 where the label is void; `argmax` says that the posterior is one-hot,
    whose loss map the release divides by 50: a wrong position is 1.38 then, here for any `floor`.
    """
    out = REPRESENTATIONS[kind](posterior, label, floor)
    if argmax and kind == "loss":
        out = out * (ARGMAX_LOSS / -math.log(floor))
    if void == "mask":
        out = torch.cat([out, (label == VOID).to(out.dtype).unsqueeze(-3)], dim=-3)
    return out
