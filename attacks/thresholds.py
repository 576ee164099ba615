"""Attacks without training: the score of an image is the mean of a map over its positions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from attacks.patches import patch_means
from attacks.representation import loss_map, true_class
from attacks.sample import Attack, AttackSettings, Sample, Scored
from utils.cli import UserError


class MapAttack(Attack):
    """Score an image, and each of its patches, by the mean of `evidence` over the known positions.

    The patches are used only for the per-patch metrics; the score of the image does not depend on them. A patch that is
    all void gets the score of its image. A patch that is larger than the map is reduced to the shorter side of the map.
    Raises `UserError` for the selection "full".
    """

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if settings.selection.scheme == "full":
            raise UserError("a threshold attack always reads the full image; --select chooses the patches of its "
                            "per-patch metrics: random, sliding or rejection")

    def evidence(self, sample: Sample) -> torch.Tensor:
        """Map (h, w) of a sample; higher values are evidence for a member."""
        raise NotImplementedError

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            yield self.score_map(sample, self.evidence(sample))

    def score_map(self, sample: Sample, values: torch.Tensor) -> Scored:
        """Score a sample by its evidence `values` (h, w)."""
        known = sample.known
        selection = replace(self.settings.selection, size=min(self.settings.selection.size, *values.shape))
        corners = selection.corners(tuple(values.shape), sample.id, lambda: true_posterior(sample), known)
        score = mean_known(values, known)
        means = patch_means(values, known, corners, selection.size)
        means = np.where(np.isfinite(means), means, score)
        return Scored(sample.name, sample.member, sample.group, score, corners.tolist(), means.tolist())


class ConfidenceThreshold(MapAttack):
    """The largest posterior of each position (Salem et al., ML-Leaks, adversary 3). Needs no ground truth."""

    needs = frozenset()

    def evidence(self, sample: Sample) -> torch.Tensor:
        return sample.output.amax(dim=-3)


class LossThreshold(MapAttack):
    """Minus the cross-entropy of each position (Sablayrolles et al.)."""

    reads = frozenset({"floor"})

    def evidence(self, sample: Sample) -> torch.Tensor:
        return -loss_map(sample.output, sample.truth, self.settings.floor).squeeze(-3)


def best_weight(rows: Iterable[tuple[bool, float, float]], weights: Sequence[float],
                usual: float) -> tuple[float, float]:
    """The weight w for which score + w * correction has the highest AUC, and that AUC; of several, the closest to
    `usual`. `rows`: (member, score, correction) of images of known membership.
    """
    from sklearn.metrics import roc_auc_score

    member, score, correction = map(np.array, zip(*rows, strict=True))
    aucs = {weight: round(float(roc_auc_score(member, score + weight * correction)), 9) for weight in weights}
    best = max(weights, key=lambda weight: (aucs[weight], -abs(weight - usual)))
    return best, aucs[best]


def mean_known(values: torch.Tensor, known: torch.Tensor) -> float:
    """Mean of `values` (H, W) over the positions where `known` (H, W) is true; NaN if there are no such positions."""
    return float(values[known].double().mean())


def true_posterior(sample: Sample) -> torch.Tensor:
    """Posterior of the labelled class (h, w), for rejection. Raises `UserError` if there is no ground truth."""
    if sample.truth is None:
        raise UserError(f"{sample.name}: --select rejection needs the ground truth; give --select random")
    if sample.truth.ndim == sample.output.ndim:
        raise UserError("--select rejection reads posteriors, and no translated images; give --select random")
    return true_class(sample.output, sample.truth)
