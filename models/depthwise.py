"""Depthwise convolutions that are fast on processors.

oneDNN, which PyTorch calls there, has fast kernels for the forward pass, and for the backward pass of some shapes.
For the others it is slow: with dilation, and in bfloat16 with a stride or with kernels larger than 3 x 3. Here a
dilated convolution becomes one without dilation on every d-th row and column, and the two others use float32. The
results are the same, up to rounding. `python -m tools.benchmarks --stage "training EfficientNet"` measures the gain.
"""

from operator import floordiv
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import nn


class Depthwise(nn.Conv2d):
    """A depthwise convolution (N, C, H, W) -> (N, C, H', W') with the weight, and the shape, of `conv`.

    `conv` has no bias. If it is a Conv2dSame of timm, inputs get the padding that depends on their size.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                         conv.dilation, conv.groups, bias=False, device="meta")
        self.weight, self.same = conv.weight, isinstance(conv, Conv2dSame)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = self.padded(inputs)
        if inputs.device.type != "cpu":
            return self._conv_forward(inputs, self.weight, None)
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.to(torch.get_autocast_dtype("cpu"))
        return _Convolve.apply(inputs, self.weight, self.phased(inputs))

    def padded(self, inputs: torch.Tensor) -> torch.Tensor:
        return pad_same(inputs, self.kernel_size, self.stride, self.dilation) if self.same else inputs

    def phased(self, inputs: torch.Tensor) -> "Phased":
        """How the convolution of `inputs`, which are padded, is computed."""
        keeps = max(self.stride) == 1 and all(
            size == rate * (kernel // 2) and 2 * rate <= side for size, rate, kernel, side in
            zip(self.padding, self.dilation, self.kernel_size, inputs.shape[2:], strict=True))
        phases = self.dilation if keeps else (1, 1)
        return Phased(phases, self.stride, tuple(map(floordiv, self.padding, phases)),
                      tuple(map(floordiv, self.dilation, phases)))


def replace_depthwise(model: nn.Module) -> None:
    """Replace each depthwise convolution of `model` by a `Depthwise`. Names and weights stay."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels:
            model.set_submodule(name, Depthwise(module))


class Phased(NamedTuple):
    """A convolution with `stride`, `padding` and `dilation` on the phases of its inputs (`split_phases`)."""

    phases: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def gradient(self, gradient: torch.Tensor, parts: torch.Tensor, weight: torch.Tensor, of: str) -> torch.Tensor:
        """The gradient of the inputs or of the weight (`of`), from that of the outputs; all in the phases.

        In float32 where this is faster. The result has the dtype of `parts`, or of `weight`.
        """
        strided, large = max(self.stride) > 1, max(weight.shape[2:]) > 3
        dtype = torch.float32 if strided or (large and of == "weight") else parts.dtype
        of_inputs, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient.to(dtype), parts.to(dtype), weight.to(dtype), None, self.stride, self.padding, self.dilation,
            False, [0, 0], len(weight), (of == "inputs", of == "weight", False))
        return of_inputs.to(parts.dtype) if of == "inputs" else of_weight.to(weight.dtype)


class _Convolve(torch.autograd.Function):
    """Depthwise convolution of inputs (N, C, H, W) with a weight (C, 1, h, w), as a `Phased` says."""

    @staticmethod
    def forward(ctx, inputs, weight, how):
        parts = split_phases(inputs, how.phases)
        ctx.save_for_backward(parts, weight)
        ctx.how = how
        out = F.conv2d(parts, weight.to(parts.dtype), None, *how[1:], len(weight))
        return merge_phases(out, how.phases, inputs.shape)

    @staticmethod
    def backward(ctx, gradient):
        parts, weight = ctx.saved_tensors
        split, of_inputs, of_weight = split_phases(gradient, ctx.how.phases), None, None
        if ctx.needs_input_grad[0]:
            of_inputs = merge_phases(ctx.how.gradient(split, parts, weight, "inputs"), ctx.how.phases, gradient.shape)
        if ctx.needs_input_grad[1]:
            of_weight = ctx.how.gradient(split, parts, weight, "weight")
        return of_inputs, of_weight, None


def split_phases(images: torch.Tensor, phases: tuple[int, int]) -> torch.Tensor:
    """Images of every a-th row and b-th column: (N, C, H, W) -> (N a b, C, ⌈H / a⌉, ⌈W / b⌉) for `phases` = (a, b).

    Rows and columns that are missing at the end are 0.
    """
    if phases == (1, 1):
        return images
    (down, across), (count, channels, height, width) = phases, images.shape
    images = F.pad(images, (0, -width % across, 0, -height % down))
    rows, columns = images.shape[2] // down, images.shape[3] // across
    parts = images.reshape(count, channels, rows, down, columns, across).permute(0, 3, 5, 2, 4, 1)
    return parts.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)


def merge_phases(parts: torch.Tensor, phases: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """The reverse of `split_phases`: images of `shape`. With one phase, the images as they are."""
    if phases == (1, 1):
        return parts
    (down, across), (_, channels, rows, columns) = phases, parts.shape
    images = parts.permute(0, 2, 3, 1).reshape(-1, down, across, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    images = images.reshape(-1, rows * down, columns * across, channels).permute(0, 3, 1, 2)
    return images[:, :, : shape[2], : shape[3]]
