"""What both loops do at every step."""

import math

import torch

from utils.cli import UserError


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, epoch: int) -> float:
    """One step down the gradient of `loss` (a scalar), which is returned; `UserError` when it is no number."""
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(f"the loss became {value} in epoch {epoch + 1}; try a smaller --lr")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value
