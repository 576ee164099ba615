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
    return _of_label(posterior, label).masked_fill_(label == VOID, 0)


def loss_map(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Structured loss map, SLM(i, j) = -log P(Y(i, j), i, j): (..., C, H, W) and (..., H, W) -> (..., 1, H, W).

    Posteriors are clamped at `floor` from below; void positions hold 0.
    """
    loss = _of_label(posterior, label).clamp_min_(floor).log_().neg_()
    return loss.masked_fill_(label == VOID, 0).unsqueeze(-3)


def _of_label(posterior: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Posterior at the label, anything where void, in a tensor of its own."""
    return posterior.gather(-3, _index(label, posterior.shape[-3])).squeeze(-3)


def _index(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels, 0 to `classes` - 1 or void, as an index of dimension -3; void points anywhere."""
    return label.clamp_max(classes - 1).long().unsqueeze(-3)


def concatenation(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Posterior and one-hot label (void = all zero): (..., C, H, W) and (..., H, W) -> (..., 2C, H, W)."""
    *batch, classes, height, width = posterior.shape
    out = posterior.new_zeros(*batch, 2 * classes, height, width)
    out[..., :classes, :, :] = posterior
    known = (label != VOID).to(posterior.dtype).unsqueeze(-3)
    out[..., classes:, :, :].scatter_(-3, _index(label, classes), known)
    return out


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
