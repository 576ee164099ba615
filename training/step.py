"""One optimization step, which both training loops use, in one process or in several."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.cli import UserError
from utils.distributed import sum_over_processes, world_size


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `model` for training. Under torchrun, its gradients are averaged over the processes.

    On GPUs BatchNorm becomes SyncBatchNorm, which uses the statistics of the complete batch. PyTorch has no
    SyncBatchNorm for CPUs, so there each process normalises with the statistics of its share.
    """
    if world_size() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Before every step of `optimizer`, average the gradients over the processes.

    This is for models that `parallel` cannot wrap, because a training calls more than their `forward`.
    """
    def average(*_: object) -> None:
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()

    if world_size() > 1:
        optimizer.register_step_pre_hook(average)


def agree_on_buffers(model: nn.Module) -> None:
    """Copy the buffers of the main process to all processes, because its checkpoint stores these."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def check_weights(model: nn.Module, epoch: int) -> None:
    """Raises `UserError` if a weight is NaN or infinite. Call it after the last step of `epoch`, counted from 0.

    The loss of a step is that before the step, so it does not show what the last step did.
    """
    if broken := next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None):
        raise UserError(f"weights became NaN or infinite in epoch {epoch + 1} ({broken}); try a smaller --lr")


def freeze_norms(model: nn.Module) -> None:
    """Freeze the statistics and scales of BatchNorm. Call it after every `model.train()`."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, epoch: int) -> float:
    """One step of gradient descent on the loss of the complete batch. Returns that loss.

    `loss`: a scalar, the part of this process. Raises `UserError` if the sum over all processes is not finite.
    """
    value = _finite(loss, epoch)
    optimizer.zero_grad(set_to_none=True)
    (loss * world_size()).backward()  # gradients are averaged over processes, not summed
    optimizer.step()
    return value


def descend_privately(optimizer: torch.optim.Optimizer, losses: torch.Tensor, epoch: int) -> float:
    """One step of DPSGD. Returns the mean loss over the images of all processes.

    `losses`: float (n,), the loss of each image of this process. Raises `UserError` if the mean is not finite.
    """
    drawn = sum_over_processes(torch.tensor(len(losses), device=losses.device)).clamp_min(1)
    value = _finite(losses.sum() / drawn, epoch)
    optimizer.zero_grad(set_to_none=True)
    if len(losses):
        losses.sum().backward()  # Opacus averages the gradients of the images
    else:  # Poisson sampling drew no image, so the step consists of noise only
        for parameter in optimizer.params:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
    optimizer.step()
    return value


def _finite(loss: torch.Tensor, epoch: int) -> float:
    value = sum_over_processes(loss.detach()).item()
    if not math.isfinite(value):
        raise UserError(f"the loss became {value} in epoch {epoch + 1}; try a smaller --lr")
    return value
