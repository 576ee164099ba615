"""Algorithm 2: from an image's posterior and label to its patches, their scores, and the score of the image."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy.special import expit

from attacks.patches import cut, patch_means, random_corners, rejection_corners, sliding_corners
from attacks.representation import REPRESENTATIONS, represent, true_class
from attacks.thresholds import THRESHOLDS, mean_known
from utils import VOID
from utils.cli import UserError
from utils.device import autocast
from utils.randomness import stream

TOGETHER = 16  # patches go through the attacker on a CPU; a full map alone


@dataclass(frozen=True)
class View:
    """How an attacker looks at a posterior; stored in its checkpoint.

    `input`: representation; `size`: side of a patch in positions; `floor`: clamp of the loss; `void`: "zero" or "mask";
    `stride`: pixels per position of the posteriors it was trained on (0 = not known); `argmax`: the posteriors are
    one-hot; `tau`: rejection threshold chosen on the held-out part of D^S.
    """

    input: str
    size: int
    floor: float
    void: str = "zero"
    stride: int = 0
    argmax: bool = False
    tau: float = 0.95

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, path: object) -> "View":
        """The view in a checkpoint; `UserError` where it has none that an attack can use."""
        try:
            view = cls(**checkpoint["view"])
            usable = (view.input in REPRESENTATIONS and view.void in ("zero", "mask")
                      and isinstance(view.argmax, bool)
                      and isinstance(view.size, int) and 1 <= view.size < 2**16 and isinstance(view.stride, int)
                      and 0 <= view.stride < 2**16 and 0 < view.floor < 1 and 0 <= view.tau < 2)
        except Exception:  # what a file holds may be of any kind, a tensor for one, and compare in any way
            usable = False
        if not usable:
            raise UserError(f"{path} does not say how its attacker looks at posteriors in a way that can be used")
        return view


@dataclass(frozen=True)
class Selection:
    """Which patches of an image are scored: scheme, number, rejection threshold, and the seed of the locations."""

    scheme: str = "random"
    count: int = 10
    tau: float = 0.95
    seed: int = 0

    def images(self, batch: int) -> int:
        """How many images have about `batch` patches between them, none of them a filler on a CPU where that fits."""
        if self.scheme == "full":
            return max(1, batch)
        wanted, fit = batch // self.count, TOGETHER // math.gcd(TOGETHER, self.count)
        return max(1, wanted // fit * fit or wanted)

    def corners(self, posterior: torch.Tensor, label: torch.Tensor, size: int, key: str) -> np.ndarray:
        """Corners (N, 2) on the map of one image; posterior (C, H, W), label (H, W)."""
        shape, rng = tuple(label.shape), stream(self.seed, "patches", key)
        if min(shape) < size:
            raise UserError(f"{key}: its {shape[0]} x {shape[1]} posterior is smaller than the attacker's "
                            f"{size} x {size} patch; use --select full, or an attacker of smaller patches")
        if self.scheme == "sliding":
            return sliding_corners(shape, size, self.count)
        if self.scheme == "random":
            return random_corners(shape, size, self.count, rng)
        return rejection_corners(true_class(posterior, label), label != VOID, size, self.count, self.tau, rng)


@dataclass
class Scored:
    """One image after the attack: corners (N, 2) and the member score of each patch and of the image.

    Lists, since an array an image lies between the large ones that come and go, and the heap would grow by 20 kB a
    image.
    """

    name: str
    member: bool
    group: str
    corners: list[list[int]]
    patch_scores: list[float]
    score: float


@dataclass
class Example:
    """An image as an attack meets it: posterior float32 (C, H, W), sums 1, and label (H, W) with 255 = void.

    `before` is the posterior before the defense, where someone wants to compare.
    """

    name: str
    key: str
    member: bool
    group: str
    posterior: torch.Tensor
    label: torch.Tensor
    before: torch.Tensor | None = None


class Item(Protocol):
    """An image whose posterior is stored or can be asked for: from `files`, `load` gives (C, H, W) and (H, W)."""

    name: str
    key: str
    member: bool
    group: str
    files: Sequence[Path]

    def load(self) -> tuple[np.ndarray, np.ndarray]: ...


def meet(items: Iterable[Item], defense: Callable[[torch.Tensor, str], torch.Tensor],
         undefended: Callable[[torch.Tensor, str], torch.Tensor] | None = None) -> Iterator[Example]:
    """Load posteriors one by one, under `defense` (which normalises them) and, beside it, as `undefended` gives them.

    Raises `UserError` when a label is all void or a posterior is not finite.
    """
    for item in items:
        posterior, label = item.load()
        if (label == VOID).all():
            raise UserError(f"{item.name}: its label is void everywhere, so there is nothing to compare; leave it out")
        label = torch.from_numpy(np.ascontiguousarray(label))
        given = torch.from_numpy(np.ascontiguousarray(posterior))
        posterior = defense(given, item.key)
        if not posterior.isfinite().all():
            raise UserError(f"{item.name}: the model's posterior is not finite")
        yield Example(item.name, item.key, item.member, item.group, posterior, label,
                      undefended(given, item.key) if undefended else None)


@torch.inference_mode()
def member_logits(model: torch.nn.Module, patches: torch.Tensor, device: torch.device, precision: str,
                  together: int) -> np.ndarray:
    """Logits float64 (N, 2) of patches (N, K, h, w), `together` at a time; column 1 is the member's.

    On a CPU the last ones are filled up with copies: kernels for another number round otherwise, and a score would
    depend on what else is scored.
    """
    count, found = len(patches), []
    if device.type == "cpu":
        patches = torch.cat([patches, patches[-1:].expand(-count % together, *patches.shape[1:])])
    for part in patches.split(together):
        with autocast(device, precision):
            found.append(model(part.to(device, memory_format=torch.channels_last))[0].double().cpu())
    return torch.cat(found)[:count].numpy()


def member_probability(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits float64 (N, 2) at the member; of each alone, where PyTorch rounds by the place in the array."""
    return expit(logits[:, 1] - logits[:, 0])


def attack_patches(examples: Iterable[Example], model: torch.nn.Module, view: View, selection: Selection,
                   device: torch.device, precision: str = "auto", score: str = "paper",
                   batch: int = 64) -> Iterator[Scored]:
    """Score images with a trained attacker, in order, with patches of many images in a batch.

    `score` is "paper" (equation 1: mean member probability) or "release" (sum of the member logits). Images are taken
    in groups of `selection.images(batch)`, so memory holds one group. On a CPU scores do not depend on `batch`.
    """
    together = batch if device.type != "cpu" else 1 if selection.scheme == "full" else TOGETHER
    examples = iter(examples)
    while group := list(islice(examples, selection.images(batch))):
        cuts = [_patches_of(example, view, selection) for example in group]
        for _, run in groupby(zip(group, cuts, strict=True), key=lambda item: item[1][1].shape[1:]):
            alike = list(run)
            patches = torch.cat([patches for _, (_, patches) in alike])
            logits = member_logits(model, patches, device, precision, together)
            values = member_probability(logits) if score == "paper" else logits[:, 1]
            for example, (corners, _) in alike:
                own, values = values[: len(corners)], values[len(corners) :]
                total = float(own.mean() if score == "paper" else own.sum())
                if not math.isfinite(total):
                    raise UserError(f"{example.name}: the attacker's score is {total}; its weights cannot be right")
                yield Scored(example.name, example.member, example.group, corners.tolist(), own.tolist(), total)


def _patches_of(example: Example, view: View, selection: Selection) -> tuple[np.ndarray, torch.Tensor]:
    """Corners (N, 2) and patches (N, K, h, w) of one image."""
    image = represent(view.input, example.posterior, example.label, view.floor, view.void, view.argmax)
    if selection.scheme == "full":
        return np.zeros((1, 2), np.int64), image[None]
    corners = selection.corners(example.posterior, example.label, view.size, example.key)
    return corners, cut(image, corners, view.size)


def attack_threshold(examples: Iterable[Example], kind: str, size: int, selection: Selection,
                     floor: float) -> Iterator[Scored]:
    """Score images by the mean confidence or minus the mean loss over non-void positions, and patches alike.

    The score of an image is over all its positions, whatever the patches; those are only for the per-patch figures.
    """
    for example in examples:
        values = THRESHOLDS[kind](example.posterior, example.label, floor)
        known = example.label != VOID
        corners = selection.corners(example.posterior, example.label, size, example.key)
        means = patch_means(values, known, corners, size)
        score = mean_known(values, example.label)
        means = np.where(np.isfinite(means), means, score)  # a patch that is all void tells no more than its image
        yield Scored(example.name, example.member, example.group, corners.tolist(), means.tolist(), score)
