"""What a training will cost, found without data, device or memory for it: `--plan`.

The step is run on tensors that have a shape and no contents. Each operation has its FLOPs (those of convolutions and
matrix products) and the bytes that it reads and writes; on a device it takes the longer of the two times.
"""

import argparse
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
from training.attacker import HELD_OUT
from training.segmentation import spec_of
from utils.cli import UserError

GIB = 2**30
STATE = {"SGD": 1, "AdamW": 2}  # floats that an optimizer keeps for each parameter


@dataclass(frozen=True)
class Cost:
    """One step: `parameters` (count), `activations` (bytes kept for the backward pass), `operations` ((FLOPs, bytes) of
    each)."""

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
        """This and the optimizer's update: it reads weights, gradients and its state, and writes weights and state."""
        update = (0, (3 + 2 * STATE[optimizer]) * 4 * self.parameters)
        return replace(self, operations=(*self.operations, update))

    def memory(self, optimizer: str) -> dict[str, int]:
        """Bytes by part."""
        weights = 4 * self.parameters
        return {"weights": weights, "gradients": weights, optimizer: STATE[optimizer] * weights,
                "activations": self.activations}

    def seconds(self, tflops: float, gb_per_s: float, utilisation: float) -> float:
        """Time of a step on a device that reaches `utilisation` of `tflops` and of `gb_per_s`."""
        return sum(max(flops / (tflops * 1e12), moved / (gb_per_s * 1e9))
                   for flops, moved in self.operations) / utilisation


class _Operations(TorchDispatchMode):
    """Lists the FLOPs and bytes of all operations but views, which move nothing."""

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
    """FLOPs as PyTorch counts them, but of grouped convolutions, whose backward pass it takes for a full one."""
    if operation is torch.ops.aten.convolution_backward:
        gradient, inputs, weight = args[:3]
        # As much as forward for the gradient of the inputs, and as much for that of the weights; args[7]: transposed.
        return 2 * (inputs if args[7] else gradient).numel() * weight[0].numel() * sum(args[-1][:2])
    return flop_registry[operation](*args, **kwargs, out_val=out) if operation in flop_registry else 0


def cost_of_step(build: Callable[[], nn.Module], inputs: tuple[int, ...], loss: Callable[[object], torch.Tensor],
                 bf16: bool) -> Cost:
    """Cost of a step, forward and backward, of the model that `build` gives on float32 inputs of a shape.

    `loss` makes a scalar of what the model returns.
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


def plan_segmenter(args: argparse.Namespace, images: int) -> str:
    """What the flags of train_victim.py or train_shadow.py ask for, on `images` images."""
    read = args.batch * args.crop[0] * args.crop[1] * 4  # RGB and label, uint8
    return _report(args, f"{args.model} ({args.backbone})", segmenter_step(args), "SGD", images,
                   max(1, images // args.batch), read)


def segmenter_step(args: argparse.Namespace) -> Cost:
    """One device's share of a step of train_victim.py."""
    spec = spec_of(args, len(find_dataset(args.dataset).CLASSES))

    def loss(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return sum(_cross_entropy(logits) for logits in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return cost_of_step(lambda: build_segmenter(spec), (_share(args), 3, *args.crop), loss,
                        args.precision != "fp32").updated_by("SGD")


def plan_attacker(args: argparse.Namespace, spec: dict, images: int) -> str:
    """What the flags of train_attacker.py ask for; `spec` is the attacker's, `images` what D^S has."""
    patches = round(images * (1 - HELD_OUT)) * args.patches_per_epoch
    read = args.batch * args.patch_size**2 * (2 * spec["classes"] + 1)  # posterior float16 and label uint8
    return _report(args, f"attacker ({args.arch}, width {args.width:g}), {spec['classes']} classes",
                   attacker_step(args, spec), "AdamW", images, max(1, patches // args.batch), read)


def attacker_step(args: argparse.Namespace, spec: dict) -> Cost:
    """One device's share of a step of train_attacker.py."""
    arguments = spec["arguments"]
    shape = (_share(args), arguments["channels"], args.patch_size, args.patch_size)
    return cost_of_step(lambda: build_attacker(**arguments), shape, lambda outputs: _cross_entropy(outputs[0]),
                        args.precision != "fp32").updated_by("AdamW")


def _share(args: argparse.Namespace) -> int:
    return math.ceil(args.batch / args.devices)


def _cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long))


def _report(args: argparse.Namespace, what: str, cost: Cost, optimizer: str, images: int, steps: int,
            read: int) -> str:
    """The plan as text; `cost` is that of one device's share of a step, `steps` are those of an epoch.

    Raises `UserError` beside --continue, whose flags are not known here.
    """
    if args.continue_:
        raise UserError("--plan goes by the flags on the command line; leave --continue out")
    parts = cost.memory(optimizer)
    seconds = cost.seconds(args.tflops, args.gb_per_s, args.utilisation)
    each = "" if args.devices == 1 else f" on each of {args.devices} devices"
    return "\n".join([
        f"{what}: {cost.parameters:,} parameters",
        f"a step{each}: {cost.flops / 1e12:.3g} TFLOP, {cost.traffic / 1e9:.3g} GB read and written",
        f"memory{each}: " + ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
        + f"; in all {sum(parts.values()) / GIB:.3g} GiB, without workspace",
        f"{images:,} images, {steps:,} steps an epoch, {args.epochs} epochs: {steps * args.epochs:,} steps, each "
        f"reads {read / 2**20:.3g} MiB, decoded",
        f"computed, not measured: {seconds:.3g} s a step, {seconds * steps * args.epochs / 3600:.3g} h at "
        f"{args.utilisation:.0%} of {args.tflops:g} TFLOP/s and {args.gb_per_s:g} GB/s{each}"])
