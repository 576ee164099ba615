"""White box: the gradient of the loss of an image in the weights of the model is smaller for members.

Nasr, Shokri and Houmansadr, "Comprehensive Privacy Analysis of Deep Learning", IEEE S&P 2019 (arXiv 1812.00910),
give gradients to an attacker. Here it is their norm, calibrated by reference models as Watson et al. (ICLR 2022) do for
losses.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from attacks.calibrated import check_unseen
from attacks.sample import Attack, Sample, Scored
from utils.cli import UserError

SMALLEST = 1e-30  # a smaller norm is raised to it before the logarithm


class GradientNorm(Attack):
    """Score - log |g_V| + mean_k log |g_k|: g is the gradient of the mean cross-entropy over the known positions.

    Without references the second term is 0. References that were trained on an image are left out of its mean; raises
    `UserError` if none is left.
    """

    needs = frozenset({"truth", "image", "weights"})
    optional = frozenset({"references"})
    patches = False

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        check_unseen(names, seen)

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            target, *references = np.log(np.maximum(list(sample.gradients()), SMALLEST))
            unseen = [one for one, saw in zip(references, sample.in_reference, strict=True) if not saw]
            if references and not unseen:
                raise UserError(f"{sample.name}: every reference was trained on it; give others")
            yield Scored(sample.name, sample.member, sample.group, float((np.mean(unseen) if unseen else 0) - target))
