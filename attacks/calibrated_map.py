"""The calibrated map: the loss map of the target model beside what reference models say about the same image.

Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022 (arXiv
2111.08440), calibrate the loss by that of reference models. He et al., "Is Difficulty Calibration All We Need?" (RAPID,
CCS 2024), give the attacker the raw loss beside the calibrated one. Here both are maps.
"""

import torch

from attacks.calibrated import unseen_outputs
from attacks.representation import Representation, class_distance, loss_map
from attacks.sample import Sample
from utils import VOID

FAR = 16  # largest distance to another class, in positions
CHANNELS = 7


def context(sample: Sample, floor: float) -> torch.Tensor:
    """What does not depend on the target model, float32 (4, h, w).

    Minus the logarithm of the mean reference posterior of the labelled class; mean and standard deviation of the loss
    maps of the references; distance to another class (`class_distance`), divided by `FAR`. Void positions hold 0.
    """
    outputs = unseen_outputs(sample)
    losses = torch.cat([loss_map(output, sample.truth, floor) for output in outputs])
    middle = loss_map(outputs.mean(dim=0), sample.truth, floor)
    distance = class_distance(sample.truth, FAR) / FAR
    return torch.cat([middle, torch.stack([losses.mean(dim=0), losses.std(dim=0, correction=0), distance])])


def calibrated_map(posterior: torch.Tensor, label: torch.Tensor, floor: float, context: torch.Tensor) -> torch.Tensor:
    """(..., C, H, W), (..., H, W) and the `context` (..., 4, H, W) -> (..., 7, H, W); void positions hold 0.

    The loss map -log p_V; the calibrated map log p_V - log mean_k p_k; mean and standard deviation of the losses of the
    references (the latter is 0 with one reference); the largest posterior; the entropy in nats; the distance to another
    class, above 0 and at most 1. Posteriors below `floor` are replaced by `floor` in the logarithms of p_V and p_k.
    """
    loss = loss_map(posterior, label, floor)
    middle, mean, deviation, distance = context.split(1, dim=-3)
    largest = posterior.amax(dim=-3, keepdim=True)
    entropy = -torch.special.xlogy(posterior, posterior).sum(dim=-3, keepdim=True)
    maps = torch.cat([loss, middle - loss, mean, deviation, largest, entropy, distance], dim=-3)
    return maps.masked_fill((label == VOID).unsqueeze(-3), 0)


CALIBRATED_MAP = Representation(calibrated_map, lambda classes: CHANNELS, context=context,
                                needs=frozenset({"references"}), labelled=lambda classes: (CHANNELS - 1, CHANNELS))
