"""Difficulty calibration: how much better does the target know this image than reference models do?

Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022, for dense
outputs: each position is calibrated in log space, then averaged.
"""

import torch

from attacks.representation import loss_map
from attacks.sample import AttackSettings, Sample
from attacks.thresholds import MapAttack
from utils.cli import UserError


class CalibratedScore(MapAttack):
    """d = log p_V - c log(mean_k p_k) of the labelled class; p_k are the posteriors of K reference models.

    References that were trained on a sample are left out of its mean.
    """

    needs = frozenset({"truth", "references"})

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if not 0 <= settings.c < float("inf"):
            raise UserError(f"--c {settings.c}: the weight of the references is 0 or more")

    def evidence(self, sample: Sample) -> torch.Tensor:
        used = [output for output, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
        if not used:
            raise UserError(f"{sample.name}: every reference model was trained on this image; give --references that "
                            "were not")
        target, reference = (loss_map(output, sample.truth, self.settings.floor).squeeze(-3)
                             for output in (sample.output, torch.stack(used).mean(dim=0)))
        return self.settings.c * reference - target
