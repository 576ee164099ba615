"""Label only: an attack that reads no probability, but the class that the target model predicts at each position.

Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021 (arXiv 2007.14321): the gap attack, which
calls an image a member if its label is predicted correctly (Yeom et al., CSF 2018). Here it is a share of positions.
"""

import torch

from attacks.calibrated import ReferenceAttack, unseen_outputs
from attacks.sample import Sample


class Correctness(ReferenceAttack):
    """Whether the argmax of each position is the label, 1 or 0; with references, minus the mean of the same over them.

    The references calibrate the difficulty (Watson et al., ICLR 2022). Those that were trained on an image are left
    out. `-argmax` does not change the scores.
    """

    needs = frozenset({"truth"})
    optional = frozenset({"references"})
    label_only = True

    def evidence(self, sample: Sample) -> torch.Tensor:
        target = correct(sample.output, sample.truth)
        return target - correct(unseen_outputs(sample), sample.truth).mean(dim=0) if sample.references else target


def correct(outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Whether the largest posterior is that of the label: (..., C, h, w) and (h, w) -> float64 (..., h, w); void: 0."""
    return (outputs.argmax(dim=-3) == truth).double()
