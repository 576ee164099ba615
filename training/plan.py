"""Predict the cost of a training (`--plan`). No data and no GPU are needed.

A step is run on tensors that have a shape but no contents. For each operation, the FLOPs (only convolutions and matrix
products have any) and the bytes that it reads and writes are counted. Both give a time on a device, and the longer one
is the predicted time of the operation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from datasets import find_dataset
from models import build_segmenter
from models.attacker import build_attacker
from models.layers import OwnLoss
from training.held_out import HELD_OUT
from training.options import AttackerTraining, SegmenterTraining

GIB = 2**30
STATE = {"SGD": 1, "AdamW": 2}  # floats that an optimizer stores for each parameter


@dataclass(frozen=True)
class Cost:
    """The cost of one step.

    `parameters`: their number; `activations`: bytes that are kept for the backward pass; `operations`: (FLOPs, bytes
    read and written) of each operation.
    """

    parameters: int
    activations: int
    operations: tuple[tuple[int, int], ...]

    @property
    def flops(self) -> int:
        return sum(flops for flops, _ in self.operations)

    @property
    def traffic(self) -> int:
        return sum(moved for _, moved in self.operations)

    def updated_by(self, optimizer: str) -> "Cost":
        """This cost plus that of the update, which reads weights, gradients and state, and writes weights and state."""
        update = (0, (3 + 2 * STATE[optimizer]) * 4 * self.parameters)
        return replace(self, operations=(*self.operations, update))

    def memory(self, optimizer: str) -> dict[str, int]:
        """Memory of a step in bytes: of weights, gradients, state of the optimizer, and activations."""
        weights = 4 * self.parameters
        return {"weights": weights, "gradients": weights, optimizer: STATE[optimizer] * weights,
                "activations": self.activations}

    def seconds(self, tflops: float, gb_per_s: float, utilisation: float) -> float:
        """Time of a step on a device that reaches the share `utilisation` of `tflops` and of `gb_per_s`."""
        return sum(max(flops / (tflops * 1e12), moved / (gb_per_s * 1e9))
                   for flops, moved in self.operations) / utilisation


class _Operations(TorchDispatchMode):
    """Lists the FLOPs and bytes of all operations except views, which move no data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
            self.found.append((_flops(func.overloadpacket, args, kwargs or {}, out),
                               sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        return out


def _flops(operation: Callable, args: tuple, kwargs: dict, out: object) -> int:
    """FLOPs as PyTorch counts them, except for grouped convolutions, whose backward pass it counts as ungrouped."""
    if operation is torch.ops.aten.convolution_backward:
        gradient, inputs, weight = args[:3]
        # The gradient of the inputs and that of the weights each cost as much as the forward pass. args[7]: transposed.
        return 2 * (inputs if args[7] else gradient).numel() * weight[0].numel() * sum(args[-1][:2])
    return flop_registry[operation](*args, **kwargs, out_val=out) if operation in flop_registry else 0


def cost_of_step(build: Callable[[], nn.Module], inputs: tuple[int, ...], loss: Callable[[object], torch.Tensor],
                 bf16: bool) -> Cost:
    """Cost of one forward and backward pass of the model that `build` returns.

    `inputs`: shape of the float32 inputs; `loss`: computes a scalar from the output of the model.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build().train()
        batch = torch.empty(inputs).contiguous(memory_format=torch.channels_last)
        weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage
            return tensor

        with _Operations() as operations:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
                    torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss(model(batch))
            value.backward()
        return Cost(sum(p.numel() for p in model.parameters()), sum(storage.nbytes() for storage in kept.values()),
                    tuple(operations.found))


@dataclass(frozen=True)
class PlanOptions:
    """The devices of a planned training: their number, peak rates, share of these that is reached, and precision."""

    devices: int = 1
    tflops: float = 989.0
    gb_per_s: float = 3350.0
    utilisation: float = 0.4
    bf16: bool = True


def plan_segmenter(options: SegmenterTraining, plan: PlanOptions, images: int) -> str:
    """The predicted cost, as text, of train_victim.py or train_shadow.py with `images` training images."""
    steps = max(1, images // options.batch)
    read = options.batch * options.crop[0] * options.crop[1] * 4  # RGB and label, uint8
    return _report(options.describe(), segmenter_step(options, plan), "SGD", (steps, options.epochs * steps), plan,
                   images, read)


def segmenter_step(options: SegmenterTraining, plan: PlanOptions) -> Cost:
    """Cost of a step of train_victim.py or train_shadow.py on one of the devices."""
    spec = options.spec(len(find_dataset(options.dataset).CLASSES))

    def loss(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | OwnLoss) -> torch.Tensor:
        if isinstance(outputs, OwnLoss):
            return outputs.image_losses(torch.zeros(shape[0], *options.crop, dtype=torch.long)).sum()
        return sum(_cross_entropy(logits) for logits in (outputs if isinstance(outputs, tuple) else (outputs,)))

    shape = (math.ceil(options.batch / plan.devices), 3, *options.crop)
    return cost_of_step(lambda: build_segmenter(spec), shape, loss, plan.bf16).updated_by("SGD")


def plan_attacker(options: AttackerTraining, plan: PlanOptions, images: int, classes: int) -> str:
    """The predicted cost, as text, of train_attacker.py with `images` images in D^S."""
    patches = round(images * (1 - HELD_OUT)) * options.patches_per_epoch
    read = options.batch * options.patch_size**2 * (2 * classes + 1)  # posterior float16 and label uint8
    return _report(f"attacker ({options.arch}, width {options.width:g}), {classes} classes",
                   attacker_step(options, plan, classes), "AdamW", options.schedule(patches), plan, images, read)


def attacker_step(options: AttackerTraining, plan: PlanOptions, classes: int) -> Cost:
    """Cost of a step of train_attacker.py on one of the devices."""
    arguments, side = options.spec(classes)["arguments"], options.patch_size
    shape = (math.ceil(options.batch / plan.devices), arguments["channels"], side, side)
    return cost_of_step(lambda: build_attacker(**arguments), shape, lambda outputs: _cross_entropy(outputs[0]),
                        plan.bf16).updated_by("AdamW")


def _cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long))


def _report(what: str, cost: Cost, optimizer: str, schedule: tuple[int, int], plan: PlanOptions, images: int,
            read: int) -> str:
    """The plan as text.

    `cost`: of a step on one device; `schedule`: steps of an epoch, and of the training; `read`: bytes that a step
    reads.
    """
    steps, total = schedule
    parts = cost.memory(optimizer)
    seconds = cost.seconds(plan.tflops, plan.gb_per_s, plan.utilisation)
    each = "" if plan.devices == 1 else f" on each of {plan.devices} devices"
    return "\n".join([
        f"{what}: {cost.parameters:,} parameters",
        f"a step{each}: {cost.flops / 1e12:.3g} TFLOP, {cost.traffic / 1e9:.3g} GB read and written",
        f"memory{each}: " + ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
        + f"; in all {sum(parts.values()) / GIB:.3g} GiB, without workspace",
        f"{images:,} images, {steps:,} steps an epoch, {math.ceil(total / steps)} epochs: {total:,} steps, each reads "
        f"{read / 2**20:.3g} MiB, decoded",
        f"computed, not measured: {seconds:.3g} s a step, {seconds * total / 3600:.3g} h at "
        f"{plan.utilisation:.0%} of {plan.tflops:g} TFLOP/s and {plan.gb_per_s:g} GB/s{each}"])
