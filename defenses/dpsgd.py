"""DPSGD: clip the gradient of each image, and add noise to the sum of the gradients (section 3.1).

The method of Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, with Opacus and one clipping bound per
tensor. We take the "noise variance" of the paper as the square of the noise multiplier sigma.
"""

import math
import statistics
import warnings
from collections.abc import Iterable

import torch
from opacus.accountants import RDPAccountant
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.utils import register_grad_sampler
from opacus.optimizers import DPOptimizer, DPPerLayerOptimizer, SimpleDistributedPerLayerOptimizer
from torch import nn

from models.depthwise import Depthwise, split_phases
from utils.cli import UserError
from utils.distributed import gather, world_size
from utils.randomness import stream

DELTA = 1e-5
ASSUMPTION = ("for data sets that differ by one image, with Poisson sampling as in training; epsilon does not account "
              "for the clipping bounds, which are medians over the training images")


def gradient_bounds(model: nn.Module, losses: Iterable[torch.Tensor]) -> dict[str, float]:
    """Return the clipping bound of each trainable tensor, by name: the median norm of its gradient over the images.

    `losses`: the scalar loss of each image in the share of this process, at the present weights of `model`. Raises
    `UserError` if the median norm of a tensor is 0 or not finite.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = []
    for loss in losses:
        model.zero_grad(set_to_none=True)
        loss.backward()
        norms.append([parameter.grad.norm().item() for parameter in trainable.values()])
    bounds = dict(zip(trainable, map(statistics.median, zip(*gather(norms), strict=True)), strict=True))
    model.zero_grad(set_to_none=True)
    invalid = [name for name, bound in bounds.items() if not 0 < bound < math.inf]
    if invalid:
        raise UserError(f"the median gradient norm of {invalid[0]} is {bounds[invalid[0]]}, but a clipping bound must "
                        "be positive and finite; train with another --seed or --model")
    return bounds


def privatise(model: nn.Module, optimizer: torch.optim.Optimizer, bounds: dict[str, float], variance: float,
              batch: int) -> tuple[nn.Module, DPOptimizer]:
    """Wrap `model` and `optimizer` for DPSGD. `batch`: expected number of images in a step, over all processes.

    The loss must be a sum over images. The modules, names and state of `model` do not change. Raises `UserError` if
    `bounds` do not belong to this model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    trainable = {name for parameter, name in names.items() if parameter.requires_grad}
    if bounds.keys() != trainable or not all(isinstance(b, float) and 0 < b < math.inf for b in bounds.values()):
        raise UserError("the clipping bounds in the checkpoint do not belong to its model; start a new run")
    order = [bounds[names[p]] for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    # PyTorch warns because the input of the first layer has no gradient.
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    GradSampleHooks(model, loss_reduction="sum")
    wrapper = SimpleDistributedPerLayerOptimizer if world_size() > 1 else DPPerLayerOptimizer
    generator = torch.Generator(next(model.parameters()).device)
    # Opacus divides by the batch size of one process, then by the number of processes.
    private = wrapper(optimizer, noise_multiplier=math.sqrt(variance), max_grad_norm=order,
                      expected_batch_size=batch / world_size(), generator=generator)
    return DifferentiallyPrivateDistributedDataParallel(model) if world_size() > 1 else model, private


def reseed(optimizer: DPOptimizer, seed: int, epoch: int, step: int) -> None:
    """Make the noise of a step depend only on seed, epoch and step."""
    optimizer.generator.manual_seed(int(stream(seed, "dpsgd noise", epoch, step).integers(2**62)))


def account(bounds: dict[str, float], variance: float, batch: int, images: int, steps: int) -> dict:
    """Return the privacy guarantee of a training and its amount of noise, for results.json.

    `noise_std`: standard deviation of the noise in each coordinate of the averaged gradient, sigma ||bounds|| / batch.
    `epsilon`: computed with the RDP accountant; None if there is no noise.
    """
    norm, delta, epsilon = math.hypot(*bounds.values()), min(DELTA, 1 / images), None
    if variance:
        accountant = RDPAccountant()
        accountant.history = [(math.sqrt(variance), min(1, batch / images), steps)]
        with warnings.catch_warnings():  # Opacus warns that the best order is the smallest
            warnings.filterwarnings("ignore", "Optimal order")
            epsilon = float(accountant.get_epsilon(delta))
    return {"noise_variance": variance, "noise_std": math.sqrt(variance) * norm / batch, "epsilon": epsilon,
            "delta": delta, "accountant": "RDP", "assumption": ASSUMPTION, "steps": steps,
            "sampling_rate": min(1, batch / images),
            "bounds": {"tensors": len(bounds), "smallest": min(bounds.values()),
                       "median": statistics.median(bounds.values()), "largest": max(bounds.values()), "norm": norm}}


def describe(result: dict) -> str:
    """Describe the result of `account` in one line."""
    line = (f"DPSGD: noise variance {result['noise_variance']:g}, standard deviation {result['noise_std']:.3g} in each "
            "coordinate of the averaged gradient; ")
    if result["epsilon"] is None:
        return line + "clipping without noise gives no privacy guarantee"
    line += f"epsilon {result['epsilon']:.3g} at delta {result['delta']:g} (RDP; {result['assumption']})"
    return line + (", which guarantees nothing" if result["epsilon"] > 20 else "")


@register_grad_sampler(nn.Conv2d)
def _convolution(layer: nn.Conv2d, activations: list[torch.Tensor],
                 backprops: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
    """Return the gradients (N, *weight.shape) of a convolution for each image, with the usual backward kernels.

    The function of Opacus unfolds the input and multiplies all pairs of channels, even in grouped convolutions. It is
    several times slower for depthwise convolutions.
    """
    inputs, weight = activations[0].to(backprops.dtype), layer.weight
    gradients = [torch.ops.aten.convolution_backward(
        backprops[i : i + 1], inputs[i : i + 1], weight.detach().to(backprops.dtype), None, layer.stride, layer.padding,
        layer.dilation, False, [0, 0], layer.groups, (False, True, False))[1] for i in range(len(inputs))]
    result = {weight: torch.stack(gradients).to(weight.dtype)}
    if layer.bias is not None:
        result[layer.bias] = backprops.sum(dim=(2, 3), dtype=layer.bias.dtype)
    return result


@register_grad_sampler(Depthwise)
def _depthwise(layer: Depthwise, activations: list[torch.Tensor],
               backprops: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
    """Like `_convolution`, with the fast kernels of `Depthwise`."""
    inputs = layer.padded(activations[0].to(backprops.dtype))
    how = layer.phased(inputs)
    gradients = [how.gradient(split_phases(backprops[i : i + 1], how.phases),
                              split_phases(inputs[i : i + 1], how.phases), layer.weight.detach(), "weight")
                 for i in range(len(inputs))]
    return {layer.weight: torch.stack(gradients)}
