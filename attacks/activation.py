"""Where the attacker looks: class activation maps beside structured loss maps (section 3.2, figure 5).

The paper's claims: the attacker finds "regions with specific objects or intersections between two classes"; Argmax only
changes the intensities of a map and "hold[s] the major layout" of it; under Gauss "all the examples have a similar
CAM". It shows images. The correlations here say of every image how far its two maps go together, and how much of
the layout a defense leaves.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from attacks.representation import represent
from attacks.scoring import Example, View
from utils import VOID
from utils.device import autocast

FLAT = 1e-6  # relative range below which a map counts as constant, since resizing rounds


@dataclass
class Sight:
    """The two maps of one posterior, float32 (H, W), and their correlations over the positions that are not void.

    `loss` in nats (under Argmax in the release's scale, a wrong position 1.38), NaN where void; `cam` in logits. A
    correlation is None where a map has no variance.
    """

    loss: np.ndarray
    cam: np.ndarray
    pearson: float | None
    spearman: float | None


@dataclass
class Look:
    """One image: its correlations, and its maps where they are to be drawn.

    `pearson` and `spearman` are of CAM and loss map, as pairs (under the defense, before it); `kept` is Pearson's of
    the CAM before the defense and under it. Without a defense the pairs are of length 1 and `kept` is None.
    `sights` has the same order, and is empty where nothing is drawn.
    """

    name: str
    member: bool
    group: str
    pearson: tuple[float | None, ...]
    spearman: tuple[float | None, ...]
    kept: float | None
    sights: list[Sight]


@torch.inference_mode()
def activation_map(model: torch.nn.Module, image: torch.Tensor, device: torch.device,
                   precision: str = "auto") -> torch.Tensor:
    """CAM of membership, float32 (h, w), of a whole representation (K, H, W): evidence for "member" of each feature.

    The weights are the member's row of the last layer less the non-member's: a probability depends on the difference of
    the logits alone, and either row by itself holds what the softmax cancels. Because the features are averaged
    before that layer, the mean of the map and the difference of the biases are the difference of the logits.
    """
    with autocast(device, precision):
        _, features = model(image[None].to(device, memory_format=torch.channels_last))
    weight = model.fc.weight[1] - model.fc.weight[0]
    return torch.einsum("k,khw->hw", weight, features[0].float()).cpu()


def resize(cam: torch.Tensor, shape: tuple[int, int], stride: int) -> torch.Tensor:
    """Bilinear, from the attacker's features (h, w) to the positions (H, W) that they were computed from.

    Each of its strided layers is centred on every second position, the first included, so feature i lies at position
    `stride` i. What is past the last feature has its value.
    """
    height, width = (stride * (n - 1) + 1 for n in cam.shape)
    fine = F.interpolate(cam[None, None], (height, width), mode="bilinear", align_corners=True)
    return F.pad(fine, (0, shape[1] - width, 0, shape[0] - height), mode="replicate")[0, 0]


def correlation(one: np.ndarray, two: np.ndarray) -> float | None:
    """Pearson's, of two arrays (n,); None where one of them is constant."""
    one, two = one.astype(np.float64), two.astype(np.float64)
    if any(np.ptp(values) <= FLAT * np.abs(values).max() for values in (one, two)):
        return None
    return float(np.corrcoef(one, two)[0, 1])


def see(model: torch.nn.Module, posterior: torch.Tensor, label: torch.Tensor, view: View, device: torch.device,
        precision: str) -> Sight:
    """CAM and loss map of one posterior (C, H, W) with its label (H, W), and how they correlate."""
    image = represent(view.input, posterior, label, view.floor, view.void, view.argmax)
    cam = resize(activation_map(model, image, device, precision), tuple(label.shape), model.stride).numpy()
    loss = represent("loss", posterior, label, view.floor, argmax=view.argmax)[0].numpy()
    known = (label != VOID).numpy()
    pearson = correlation(cam[known], loss[known])
    spearman = None if pearson is None else correlation(rankdata(cam[known]), rankdata(loss[known]))
    return Sight(np.where(known, loss, np.nan), cam, pearson, spearman)


def watch(examples: Iterable[Example], model: torch.nn.Module, view: View, device: torch.device, precision: str,
          drawn: Container[str], looks: list[Look]) -> Iterator[Example]:
    """Pass `examples` on, and append to `looks` what the attacker sees of each; maps only of those named in `drawn`."""
    for example in examples:
        sights = [see(model, example.posterior, example.label, view, device, precision)]
        kept = None
        if example.before is not None:
            sights.append(see(model, example.before, example.label, replace(view, argmax=False), device, precision))
            known = (example.label != VOID).numpy()
            kept = correlation(*(sight.cam[known] for sight in sights))
            example.before = None  # the images of a batch wait together: no second posterior of each
        looks.append(Look(example.name, example.member, example.group, tuple(s.pearson for s in sights),
                          tuple(s.spearman for s in sights), kept, sights if example.name in drawn else []))
        yield example
