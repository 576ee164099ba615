"""Combine posterior and label into the input of an attacker (section 2.1, "Data representation")."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attacks import REPRESENTATIONS
from models.attacker import RELEASE_FLOOR as FLOOR
from utils import VOID

ARGMAX_LOSS = -math.log(FLOOR) / 50  # loss of a wrong position in the release, which divides loss maps of Argmax by 50

LOG_RANGE = 24 * math.log(2)  # minus the logarithm of the smallest positive float16, as which posteriors are stored


@dataclass(frozen=True)
class Representation:
    """A way to combine posterior and label.

    `compute(posterior, label, floor)` gives a map (..., K, H, W); `channels(classes)` is K. If the posterior is
    one-hot, the map is multiplied by `argmax_scale(floor)`.
    """

    compute: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    channels: Callable[[int], int]
    argmax_scale: Callable[[float], float] = lambda floor: 1.0


def true_class(posterior: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Posterior of the labelled class, (..., C, H, W) and (..., H, W) -> (..., H, W); 0 where void."""
    return _of_label(posterior, label).masked_fill_(label == VOID, 0)


def loss_map(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Structured loss map, SLM(i, j) = -log P(Y(i, j), i, j): (..., C, H, W) and (..., H, W) -> (..., 1, H, W).

    Posteriors below `floor` are replaced by `floor`. Void positions get 0.
    """
    loss = _of_label(posterior, label).clamp_min_(floor).log_().neg_()
    return loss.masked_fill_(label == VOID, 0).unsqueeze(-3)


def logit_map(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """phi = log p - log(1 - p) of the labelled class, float64: (..., C, H, W) and (..., H, W) -> (..., H, W).

    1 - p is the sum of the other classes, because a difference loses all digits where p is near 1 (Carlini et al.,
    S&P 2022, section IV.C). p and 1 - p below `floor` are replaced by `floor`. Void positions get 0.
    """
    posterior, index = posterior.double(), _index(label, posterior.shape[-3]).expand(*posterior.shape[:-3], -1, -1, -1)
    own = posterior.gather(-3, index).squeeze(-3)
    others = posterior.scatter(-3, index, 0).sum(dim=-3)
    return (own.clamp_min(floor).log() - others.clamp_min(floor).log()).masked_fill_(label == VOID, 0)


def _of_label(posterior: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Posterior of the labelled class, in a new tensor. The values of void positions have no meaning."""
    return posterior.gather(-3, _index(label, posterior.shape[-3])).squeeze(-3)


def _index(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels (0 to `classes` - 1, or void) as an index of dimension -3. Void gets the last class."""
    return label.clamp_max(classes - 1).long().unsqueeze(-3)


def concatenation(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Posterior and one-hot label (void = all zero): (..., C, H, W) and (..., H, W) -> (..., 2C, H, W)."""
    *batch, classes, height, width = posterior.shape
    out = posterior.new_zeros(*batch, 2 * classes, height, width)
    out[..., :classes, :, :] = posterior
    known = (label != VOID).to(posterior.dtype).unsqueeze(-3)
    out[..., classes:, :, :].scatter_(-3, _index(label, classes), known)
    return out


def log_concatenation(posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Log-posterior and one-hot label (void = all zero): (..., C, H, W) and (..., H, W) -> (..., 2C, H, W).

    Posteriors below `floor` are replaced by `floor`, and the logarithm is divided by 16.6: it is between -1 and 0 if
    `floor` is 2**-24, that of the attackers which are trained here. Void positions keep their log-posterior. Not in the
    paper, whose C+GT has posteriors.
    """
    out = concatenation(posterior, label)
    out[..., : posterior.shape[-3], :, :].clamp_min_(floor).log_().div_(LOG_RANGE)
    return out


LOSS_MAP = Representation(loss_map, lambda classes: 1, lambda floor: ARGMAX_LOSS / -math.log(floor))
CONCATENATION = Representation(concatenation, lambda classes: 2 * classes)
LOG_CONCATENATION = Representation(log_concatenation, lambda classes: 2 * classes)


def channels(kind: str, classes: int, void: str = "zero") -> int:
    """Number of channels of the representation `kind` for posteriors of `classes` classes."""
    return REPRESENTATIONS.load(kind).channels(classes) + (void == "mask")


def represent(kind: str, posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR, void: str = "zero",
              argmax: bool = False) -> torch.Tensor:
    """The map that an attacker with `-input kind` reads: (..., C, H, W) and (..., H, W) -> (..., K, H, W), same dtype.

    `void` = "mask" appends a channel that is 1 where the label is void. `argmax`: the posterior is one-hot. In the loss
    map of the release a wrong position then has 69.1 / 50 = 1.38; here it has 1.38 for every `floor`.
    """
    representation = REPRESENTATIONS.load(kind)
    out = representation.compute(posterior, label, floor)
    if argmax and (scale := representation.argmax_scale(floor)) != 1:
        out = out * scale
    if void == "mask":
        out = torch.cat([out, (label == VOID).to(out.dtype).unsqueeze(-3)], dim=-3)
    return out
