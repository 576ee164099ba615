"""Where the attacker finds evidence: class activation maps beside structured loss maps (section 3.2, figure 5).

The paper claims that the attacker finds "regions with specific objects or intersections between two classes", that
Argmax only changes the intensities of a map and "hold[s] the major layout" of it, and that under Gauss "all the
examples have a similar CAM". It shows a few images. Here two correlations are computed for every image: of its CAM with
its loss map, and of its CAM under a defense with its CAM without the defense.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from attacks.representation import represent
from attacks.sample import Sample
from models.attacker import InputSpec
from utils import VOID
from utils.device import Compute

CONSTANT = 1e-6  # a map with a smaller relative range counts as constant: resizing rounds


@dataclass
class CamMaps:
    """The two maps of one posterior, float32 (H, W), and their correlations over the positions that are not void.

    `loss`: in nats, NaN where void; under Argmax in the scale of the release, where a wrong position has 1.38. `cam`:
    in logits. A correlation is None if one of the maps is constant.
    """

    loss: np.ndarray
    cam: np.ndarray
    pearson: float | None
    spearman: float | None


@dataclass
class CamResult:
    """The correlations of one image, and its maps if they are drawn.

    `pearson` and `spearman` are correlations of CAM and loss map. Each has two values: under the defense and before it.
    `cam_correlation` is the Pearson correlation of the CAM before the defense with the CAM under it. Without a defense
    each has one value, and `cam_correlation` is None. `maps` has the same order; it is empty if nothing is drawn.
    """

    name: str
    member: bool
    group: str
    pearson: tuple[float | None, ...]
    spearman: tuple[float | None, ...]
    cam_correlation: float | None
    maps: list[CamMaps]


@torch.inference_mode()
def activation_map(model: torch.nn.Module, image: torch.Tensor, compute: Compute) -> torch.Tensor:
    """CAM of membership, float32 (h, w), of a representation (K, H, W): the evidence for "member" at each feature.

    The weights are the row of the last layer for "member" minus the row for "non-member", because the probability
    depends only on the difference of the logits. The features are averaged before that layer. Therefore the mean of the
    map plus the difference of the biases equals the difference of the logits.
    """
    with compute.autocast():
        _, features = model(image[None].to(compute.device, memory_format=torch.channels_last))
    weight = model.fc.weight[1] - model.fc.weight[0]
    return torch.einsum("k,khw->hw", weight, features[0].float()).cpu()


def resize(cam: torch.Tensor, shape: tuple[int, int], stride: int) -> torch.Tensor:
    """Resize a CAM (h, w) bilinearly to the positions `shape` = (H, W) of the patch.

    Each strided layer is centred on every second position, starting with the first, so feature i belongs to position
    `stride` * i. Positions beyond the last feature get the value of the last feature.
    """
    height, width = (stride * (n - 1) + 1 for n in cam.shape)
    fine = F.interpolate(cam[None, None], (height, width), mode="bilinear", align_corners=True)
    return F.pad(fine, (0, shape[1] - width, 0, shape[0] - height), mode="replicate")[0, 0]


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson correlation of two arrays (n,); None if one of them is constant."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    if any(np.ptp(values) <= CONSTANT * np.abs(values).max() for values in (first, second)):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def compute_maps(model: torch.nn.Module, posterior: torch.Tensor, label: torch.Tensor, spec: InputSpec,
                 compute: Compute, context: torch.Tensor | None = None) -> CamMaps:
    """CAM and loss map of one posterior (C, H, W) with its label (H, W), and their correlations.

    `context`: that of the sample, for a representation that has one.
    """
    image = represent(spec.input, posterior, label, spec.floor, spec.void, spec.argmax, context)
    cam = resize(activation_map(model, image, compute), tuple(label.shape), model.stride).numpy()
    loss = represent("loss", posterior, label, spec.floor, argmax=spec.argmax)[0].numpy()
    known = (label != VOID).numpy()
    pearson = correlation(cam[known], loss[known])
    spearman = None if pearson is None else correlation(rankdata(cam[known]), rankdata(loss[known]))
    return CamMaps(np.where(known, loss, np.nan), cam, pearson, spearman)


def record_cams(samples: Iterable[Sample], model: torch.nn.Module, spec: InputSpec, compute: Compute,
                drawn: Container[str], results: list[CamResult]) -> Iterator[Sample]:
    """Pass `samples` on, and append a `CamResult` of each to `results`, with maps for the names in `drawn`."""
    for sample in samples:
        maps = [compute_maps(model, sample.output, sample.truth, spec, compute, sample.context)]
        cam_correlation = None
        if sample.undefended is not None:
            maps.append(compute_maps(model, sample.undefended, sample.truth, replace(spec, argmax=False), compute,
                                     sample.context))
            known = sample.known.numpy()
            cam_correlation = correlation(*(m.cam[known] for m in maps))
        results.append(CamResult(sample.name, sample.member, sample.group, tuple(m.pearson for m in maps),
                                 tuple(m.spearman for m in maps), cam_correlation,
                                 maps if sample.name in drawn else []))
        yield replace(sample, undefended=None)  # frees memory: an attack collects a batch of samples
