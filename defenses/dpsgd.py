"""DPSGD: the gradient of each image is clipped, and noise is added to their sum (section 3.1).

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, by Opacus, one clipping bound per layer. The paper's
"noise variance" is read as the square of the noise multiplier sigma.
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

from utils.cli import UserError
from utils.distributed import gather, world_size
from utils.randomness import stream

DELTA = 1e-5
ASSUMPTION = ("one image more or less, Poisson sampling, as trained; the clipping bounds are medians over the "
              "training images and not accounted for")


def gradient_bounds(model: nn.Module, losses: Iterable[torch.Tensor]) -> dict[str, float]:
    """The clipping bound of each trainable tensor, by name: the median norm of its gradient.

    `losses` (scalars) are those of this process's share of the training images, one at a time, at the weights that
    the model has. Raises `UserError` for a tensor that most images give no gradient.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = []
    for loss in losses:
        model.zero_grad(set_to_none=True)
        loss.backward()
        norms.append([parameter.grad.norm().item() for parameter in trained.values()])
    bounds = dict(zip(trained, map(statistics.median, zip(*gather(norms), strict=True)), strict=True))
    model.zero_grad(set_to_none=True)
    dead = [name for name, bound in bounds.items() if not 0 < bound < math.inf]
    if dead:
        raise UserError(f"the median gradient of {dead[0]} is {bounds[dead[0]]}, which is no clipping bound")
    return bounds


def privatise(model: nn.Module, optimizer: torch.optim.Optimizer, bounds: dict[str, float], variance: float,
              batch: int) -> tuple[nn.Module, DPOptimizer]:
    """`model` as it is called in DPSGD, and `optimizer` as it steps then; `batch` images are expected in a step.

    The model itself, its names and its state stay what they are. Gradients must come from a sum over images. Raises
    `UserError` for bounds that are not of this model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    trained = {name for parameter, name in names.items() if parameter.requires_grad}
    if bounds.keys() != trained or not all(isinstance(b, float) and 0 < b < math.inf for b in bounds.values()):
        raise UserError("the clipping bounds in the checkpoint are not those of its model; start the run anew")
    order = [bounds[names[p]] for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # the first layer's input has no gradient
    GradSampleHooks(model, loss_reduction="sum")
    wrapper = SimpleDistributedPerLayerOptimizer if world_size() > 1 else DPPerLayerOptimizer
    generator = torch.Generator(next(model.parameters()).device)
    # Opacus divides by the images of one process, then by the processes.
    private = wrapper(optimizer, noise_multiplier=math.sqrt(variance), max_grad_norm=order,
                      expected_batch_size=batch / world_size(), generator=generator)
    return DifferentiallyPrivateDistributedDataParallel(model) if world_size() > 1 else model, private


def reseed(optimizer: DPOptimizer, seed: int, epoch: int, step: int) -> None:
    """Let the noise of a step depend on (seed, epoch, step) only."""
    optimizer.generator.manual_seed(int(stream(seed, "dpsgd noise", epoch, step).integers(2**62)))


def account(bounds: dict[str, float], variance: float, batch: int, images: int, steps: int) -> dict:
    """What the training guarantees and how much noise that is, for results.json.

    `noise_std` is that of a coordinate of the averaged gradient: sigma ||bounds|| / batch. `epsilon` is None without
    noise.
    """
    whole, delta, epsilon = math.hypot(*bounds.values()), min(DELTA, 1 / images), None
    if variance:
        accountant = RDPAccountant()
        accountant.history = [(math.sqrt(variance), min(1, batch / images), steps)]
        with warnings.catch_warnings():  # at the paper's noise the best order is the smallest; nothing to mend
            warnings.filterwarnings("ignore", "Optimal order")
            epsilon = float(accountant.get_epsilon(delta))
    return {"noise_variance": variance, "noise_std": math.sqrt(variance) * whole / batch, "epsilon": epsilon,
            "delta": delta, "accountant": "RDP", "assumption": ASSUMPTION, "steps": steps,
            "sampling_rate": min(1, batch / images),
            "bounds": {"tensors": len(bounds), "smallest": min(bounds.values()),
                       "median": statistics.median(bounds.values()), "largest": max(bounds.values()), "norm": whole}}


def describe(found: dict) -> str:
    """One line on what `account` returned."""
    line = (f"DPSGD: noise variance {found['noise_variance']:g}, standard deviation {found['noise_std']:.3g} in each "
            "coordinate of the averaged gradient; ")
    if found["epsilon"] is None:
        return line + "clipping alone gives no privacy guarantee"
    line += f"epsilon {found['epsilon']:.3g} at delta {found['delta']:g} (RDP; {found['assumption']})"
    return line + (", which guarantees nothing" if found["epsilon"] > 20 else "")


@register_grad_sampler(nn.Conv2d)
def _convolution(layer: nn.Conv2d, activations: list[torch.Tensor],
                 backprops: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
    """Gradients (N, *weight.shape) of a convolution, image by image, with the kernels that train it otherwise.

    Opacus' own unfolds the input and multiplies all channels by all others, also where they are grouped, which makes
    depthwise convolutions several times as slow.
    """
    inputs, weight = activations[0].to(backprops.dtype), layer.weight
    each = [torch.ops.aten.convolution_backward(
        backprops[i : i + 1], inputs[i : i + 1], weight.detach().to(backprops.dtype), None, layer.stride, layer.padding,
        layer.dilation, False, [0, 0], layer.groups, (False, True, False))[1] for i in range(len(inputs))]
    found = {weight: torch.stack(each).to(weight.dtype)}
    if layer.bias is not None:
        found[layer.bias] = backprops.sum(dim=(2, 3), dtype=layer.bias.dtype)
    return found
