"""Argmax: only the predicted label leaves the model (section 3.1)."""

import torch
import torch.nn.functional as F


def argmax(posterior: torch.Tensor) -> torch.Tensor:
    """One-hot of the most probable class (ties: the first), (..., C, H, W) -> the same shape and dtype."""
    classes = posterior.shape[-3]
    return F.one_hot(posterior.argmax(dim=-3), classes).movedim(-1, -3).to(posterior.dtype)
