"""Difficulty calibration: compare the loss of the target model with the loss of reference models on the same image.

Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022
(arXiv 2111.08440). Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024 (RMIA,
arXiv 2312.03262). Here each position is calibrated, and the score of an image is the mean over its positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from attacks.representation import loss_map, true_class
from attacks.sample import AttackSettings, Sample
from attacks.thresholds import MapAttack, best_weight, mean_known
from utils.cli import UserError
from utils.randomness import stream

WEIGHTS = tuple(step / 20 for step in range(21))  # of the references, among which `fit` chooses


class ReferenceAttack(MapAttack):
    """The base class of attacks that use the references that were not trained on an image.

    Raises `UserError` for an image that all references were trained on.
    """

    needs = frozenset({"truth", "references"})

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        check_unseen(names, seen)


class CalibratedScore(ReferenceAttack):
    """Score d = log p_V - c log(mean_k p_k) of each position; p_k: posteriors of the labelled class of K references.

    References that were trained on an image are left out of its mean. Raises `UserError` if none is left.
    """

    reads = frozenset({"floor", "c"})

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if not 0 <= settings.c < float("inf"):
            raise UserError(f"--c {settings.c}: the weight of the references must be 0 or more, and finite")

    def losses(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss maps (h, w) of the target model, and of the mean of the references."""
        target, reference = (loss_map(output, sample.truth, self.settings.floor).squeeze(-3)
                             for output in (sample.output, unseen_outputs(sample).mean(dim=0)))
        return target, reference

    def evidence(self, sample: Sample) -> torch.Tensor:
        target, reference = self.losses(sample)
        return self.settings.c * reference - target


class ReferencesAlone(CalibratedScore):
    """A control: minus the mean loss of the references alone, which must find nothing: they saw neither side.

    It is above chance if the members are easier than the non-members for models that were trained on neither.
    """

    reads = frozenset({"floor"})

    def evidence(self, sample: Sample) -> torch.Tensor:
        return -self.losses(sample)[1]


class Base(CalibratedScore):
    """BASE (Lassila et al., NeurIPS 2025, arXiv 2505.24089): the calibrated score with c = 1."""

    reads = frozenset({"floor"})

    def __init__(self, settings: AttackSettings):
        super().__init__(replace(settings, c=1.0))


class WeightedCalibratedScore(CalibratedScore):
    """The calibrated score with a weight c that is chosen on the population, such as a shadow attacked with references.

    It is the one of `WEIGHTS` with the highest AUC there and, of several, the one closest to 0.75. Images that every
    reference was trained on are left out. The AUC of the references alone must be near 0.5: what it finds there is no
    membership.
    """

    needs = CalibratedScore.needs | {"population"}
    reads = CalibratedScore.reads - {"c"}

    def fit(self, population: Iterable[Sample]) -> None:
        rows = []
        for sample in usable(population):
            target, reference = (mean_known(losses, sample.known) for losses in self.losses(sample))
            rows.append((sample.member, -target, reference))
        best, auc = best_weight(rows, WEIGHTS, usual=AttackSettings.c)
        self.settings = replace(self.settings, c=best)
        _, alone = best_weight([(member, 0.0, -reference) for member, _, reference in rows], [1.0], usual=1.0)
        self.chosen = {"c": best, "auc": auc, "auc of the references alone": alone}


class RMIA(ReferenceAttack):
    """The relative score of RMIA, offline: log p_V - log P at each position, with P = ((1 + a) mean_k p_k + 1 - a) / 2.

    P estimates the mean over models that were and were not trained on the image. RMIA counts the images z of a
    population whose ratio is smaller by a factor; on one target model the count grows with the ratio, so the ratio
    itself ranks the images equally, without ties. With a = 1 it is the calibrated score with c = 1.
    """

    reads = frozenset({"floor", "offline-a"})

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if not 0 <= settings.offline_a <= 1:
            raise UserError(f"--offline-a {settings.offline_a}: must be between 0 and 1")

    def evidence(self, sample: Sample) -> torch.Tensor:
        floor, a = self.settings.floor, self.settings.offline_a
        target, reference = (true_class(outputs.double(), sample.truth)
                             for outputs in (sample.output, unseen_outputs(sample).double().mean(dim=0)))
        mean = ((1 + a) * reference + 1 - a) / 2
        return target.clamp_min(floor).log() - mean.clamp_min(floor).log()


def references_of(sample: Sample, seen: bool) -> list[torch.Tensor]:
    """The outputs of the references that were, or were not, trained on the image."""
    return [output for output, own in zip(sample.references, sample.in_reference, strict=True) if own is seen]


def unseen_outputs(sample: Sample) -> torch.Tensor:
    """Outputs (K, C, h, w) of the references that were not trained on the image. Raises `UserError` if K is 0."""
    outputs = references_of(sample, False)
    if not outputs:
        check_unseen([sample.name], np.ones((1, 1), bool))
    return torch.stack(outputs)


def draw_references(sample: Sample, count: int, seed: int) -> Sample:
    """The sample with `count` of the references that were not trained on its image, and no others.

    Which ones depends on `seed` and on the image. Raises `UserError` if there are fewer.
    """
    outputs = references_of(sample, False)
    if len(outputs) < count:
        check_enough([sample.name], np.zeros((1, len(outputs)), bool), count)
    chosen = sorted(stream(seed, "references", sample.id).permutation(len(outputs))[:count].tolist())
    return replace(sample, references=tuple(outputs[index] for index in chosen), in_reference=(False,) * count)


def check_enough(names: Sequence[str], seen: np.ndarray, count: int) -> None:
    """Raise `UserError` if fewer than `count` references were not trained on an image. `seen`: as in `check_unseen`."""
    unseen = (~seen).sum(axis=1)
    for index in np.flatnonzero(unseen < count)[:1]:
        raise UserError(f"{names[index]}: {unseen[index]} of the references were not trained on this image, and the "
                        f"attacker was trained with {count}; give more --references, or an attacker that was trained "
                        "with fewer")


def check_unseen(names: Sequence[str], seen: np.ndarray) -> None:
    """Raise `UserError` if every reference was trained on an image. `seen`: bool (images, references)."""
    for index in np.flatnonzero(seen.all(axis=1))[:1]:
        raise UserError(f"{names[index]}: every reference model was trained on this image; give --references at least "
                        "one model that was not")


def usable(population: Iterable[Sample]) -> Iterable[Sample]:
    """Yield the samples that some reference was not trained on. Raises `UserError` if a side has none of them."""
    sides = set()
    for sample in population:
        if not sample.references or not all(sample.in_reference):
            sides.add(sample.member)
            yield sample
    if len(sides) < 2:
        raise UserError("--population: every reference model was trained on all of its members, or on all of its "
                        "non-members; give --references at least one model that was not")
