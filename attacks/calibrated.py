"""Difficulty calibration: compare the loss of the target model with the loss of reference models on the same image.

Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022. Here each
position is calibrated, and the score of an image is the mean over its positions.
"""

import torch

from attacks.representation import loss_map
from attacks.sample import AttackSettings, Sample
from attacks.thresholds import MapAttack
from utils.cli import UserError


class CalibratedScore(MapAttack):
    """Score d = log p_V - c log(mean_k p_k) of each position; p_k: posteriors of the labelled class of K references.

    References that were trained on an image are left out of its mean. Raises `UserError` if none is left.
    """

    needs = frozenset({"truth", "references"})
    reads = frozenset({"floor", "c"})

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if not 0 <= settings.c < float("inf"):
            raise UserError(f"--c {settings.c}: the weight of the references must be 0 or more, and finite")

    def evidence(self, sample: Sample) -> torch.Tensor:
        used = [output for output, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
        if not used:
            raise UserError(f"{sample.name}: every reference model was trained on this image; give --references at "
                            "least one model that was not")
        target, reference = (loss_map(output, sample.truth, self.settings.floor).squeeze(-3)
                             for output in (sample.output, torch.stack(used).mean(dim=0)))
        return self.settings.c * reference - target
