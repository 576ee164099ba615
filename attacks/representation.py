"""Combine posterior and label into the input of an attacker (section 2.1, "Data representation")."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from attacks import REPRESENTATIONS
from models.attacker import RELEASE_FLOOR as FLOOR
from utils import VOID

if TYPE_CHECKING:
    from attacks.sample import Sample

ARGMAX_LOSS = -math.log(FLOOR) / 50  # loss of a wrong position in the release, which divides loss maps of Argmax by 50

LOG_RANGE = 24 * math.log(2)  # minus the logarithm of the smallest positive float16, as which posteriors are stored


@dataclass(frozen=True)
class Representation:
    """A way to combine posterior and label, and perhaps more, into a map.

    `compute(posterior, label, floor)` gives a map (..., K, H, W); `channels(classes)` is K. If the posterior is
    one-hot, the map is multiplied by `argmax_scale(floor)`.

    `context(sample, floor)`: maps float32 (E, H, W) of a complete image, made of something else than its posterior,
    such as its references. They are computed before patches are cut, and are cut with them; then `compute` gets them
    as a fourth argument (..., E, H, W). `needs`: what else than the label `context` reads, of "references" (always as
    many for each image) and "image".

    `labelled(classes)`: first and last + 1 of the channels whose sum is above 0 where a position has a label, and 0
    elsewhere. The pixelwise attacker needs them.
    """

    compute: Callable[..., torch.Tensor]
    channels: Callable[[int], int]
    argmax_scale: Callable[[float], float] = lambda floor: 1.0
    context: "Callable[[Sample, float], torch.Tensor] | None" = None
    needs: frozenset[str] = frozenset()
    labelled: Callable[[int], tuple[int, int]] | None = None


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
    out = posterior.new_empty(*batch, 2 * classes, height, width)
    out[..., :classes, :, :] = posterior
    numbers = torch.arange(classes, dtype=label.dtype, device=label.device)[:, None, None]
    torch.eq(label.unsqueeze(-3), numbers, out=out[..., classes:, :, :])
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
CONCATENATION = Representation(concatenation, lambda classes: 2 * classes,
                               labelled=lambda classes: (classes, 2 * classes))
LOG_CONCATENATION = Representation(log_concatenation, lambda classes: 2 * classes,
                                   labelled=lambda classes: (classes, 2 * classes))


def channels(kind: str, classes: int, void: str = "zero") -> int:
    """Number of channels of the representation `kind` for posteriors of `classes` classes."""
    return REPRESENTATIONS.load(kind).channels(classes) + (void == "mask")


def boundary(label: torch.Tensor, distance: int = 1) -> torch.Tensor:
    """bool (h, w): whether a position at most `distance` rows and columns away has another class. Void is no class.

    `label`: uint8 (h, w). With the default these are the eight neighbours. No void position is at a boundary.
    """
    square, following = np.ones((2 * distance + 1,) * 2, np.uint8), label.numpy() + np.uint8(1)
    highest = cv2.dilate(following, square)  # void, 255, has become 0
    lowest = cv2.erode(label.numpy(), square) + np.uint8(1)
    return torch.from_numpy((highest > lowest) & (following > 0))


def class_distance(label: torch.Tensor, far: int) -> torch.Tensor:
    """Distance to the nearest position of another class, in steps to one of eight neighbours: float32 (h, w), 1 to far.

    Void is no class, and void positions get 0. Positions that are farther away than `far`, or have no other class in
    the image, get `far`.
    """
    steps = torch.full(label.shape, float(far))
    for distance in range(1, far):
        steps -= boundary(label, distance).float()
    return steps.masked_fill(label == VOID, 0)


def add_context(sample: "Sample", kind: str, floor: float) -> "Sample":
    """The sample with the maps that the representation `kind` makes of a complete image, and without references.

    A sample that has these maps, and one of a representation that makes none, is returned as it is.
    """
    context = REPRESENTATIONS.load(kind).context
    if context is None or sample.context is not None:
        return sample
    return replace(sample, context=context(sample, floor), references=(), in_reference=())


def represent(kind: str, posterior: torch.Tensor, label: torch.Tensor, floor: float = FLOOR, void: str = "zero",
              argmax: bool = False, context: torch.Tensor | None = None) -> torch.Tensor:
    """The map that an attacker with `-input kind` reads: (..., C, H, W) and (..., H, W) -> (..., K, H, W), same dtype.

    `void` = "mask" appends a channel that is 1 where the label is void. `argmax`: the posterior is one-hot. In the loss
    map of the release a wrong position then has 69.1 / 50 = 1.38; here it has 1.38 for every `floor`. `context`:
    `Sample.context`, (..., E, H, W), for a representation that has one.
    """
    representation = REPRESENTATIONS.load(kind)
    out = representation.compute(posterior, label, floor, *([] if context is None else [context]))
    if argmax and (scale := representation.argmax_scale(floor)) != 1:
        out = out * scale
    if void == "mask":
        out = torch.cat([out, (label == VOID).to(out.dtype).unsqueeze(-3)], dim=-3)
    return out
