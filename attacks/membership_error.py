"""Reconstruction error and membership error (Shafran, Peleg and Hoshen, ICCV 2021, sections 3.1 to 3.3)."""

import torch

from attacks.representation import loss_map
from attacks.sample import Sample
from attacks.thresholds import MapAttack


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
