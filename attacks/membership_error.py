"""Reconstruction error and membership error (Shafran, Peleg and Hoshen, ICCV 2021, sections 3.1 to 3.3)."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from attacks.representation import loss_map
from attacks.sample import Sample
from attacks.thresholds import MapAttack, best_weight, mean_known

WEIGHTS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4)  # of the predictability error, among which `fit` chooses


class ReconstructionError(MapAttack):
    """Minus the error of the output at each position.

    For translated images it is the mean over the channels of the absolute difference in 0..1, after the output was
    rounded to 8 bits, as in the released code. For posteriors, of which the paper names no error, it is the
    cross-entropy; so the attack is `LossThreshold`.
    """

    reads = frozenset({"floor"})
    kinds = frozenset({"posterior", "image"})

    def evidence(self, sample: Sample) -> torch.Tensor:
        if sample.truth.ndim == sample.output.ndim:
            rounded = sample.output.mul(255).round().div(255)
            return -(rounded - sample.truth).abs().mean(dim=-3)
        return -loss_map(sample.output, sample.truth, self.settings.floor).squeeze(-3)


class MembershipError(ReconstructionError):
    """Minus the membership error: reconstruction error minus `weight` times the predictability error of the image."""

    needs = frozenset({"truth", "predictability"})
    reads = frozenset({"floor", "weight", "features"})
    method = "sound"

    def evidence(self, sample: Sample) -> torch.Tensor:
        return super().evidence(sample) + self.settings.weight * sample.predictability


class ReleasedMembershipError(MembershipError):
    """The membership error with the predictability error of the released code."""

    method = "released"


class WeightedMembershipError(MembershipError):
    """The membership error with a weight that is chosen on the population, such as a shadow's members and non-members.

    It is the one of `WEIGHTS` with the highest AUC there and, of several, the one closest to 1. The paper has none.
    """

    needs = MembershipError.needs | {"population"}
    reads = MembershipError.reads - {"weight"}

    def fit(self, population: Iterable[Sample]) -> None:
        rows = [(sample.member, mean_known(ReconstructionError.evidence(self, sample), sample.known),
                 sample.predictability) for sample in population]
        best, auc = best_weight(rows, WEIGHTS, usual=1)
        self.settings = replace(self.settings, weight=best)
        self.chosen = {"weight": best, "auc": auc}
