"""Gauss: noise on the posterior (section 3.1)."""

import numpy as np
import torch

RELEASE_FLOOR = 1e-6


def normalise(posterior: torch.Tensor) -> torch.Tensor:
    """Divide posteriors (..., C, H, W) by their sum over classes, as the release does before anything else."""
    return posterior / posterior.sum(dim=-3, keepdim=True)


def gauss(posterior: torch.Tensor, std: float, rng: np.random.Generator, floor: float = RELEASE_FLOOR) -> torch.Tensor:
    """Add N(0, std) to posteriors (..., C, H, W), clamp at `floor` from below, normalise over classes.

    The paper quotes the variance, std ** 2, and clamps at 0 (`floor=0`), where a position that falls to 0 in every
    class becomes uniform; the release clamps at 1e-6.
    """
    noise = torch.from_numpy(rng.standard_normal(tuple(posterior.shape), dtype=np.float32)).to(posterior)
    noisy = (posterior + std * noise).clamp_min(floor)
    lost = noisy.sum(dim=-3, keepdim=True) == 0
    return normalise(torch.where(lost, torch.ones_like(noisy), noisy))
