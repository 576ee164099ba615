"""Depthwise convolutions against those of PyTorch: outputs, gradients, and gradients of each image."""

import importlib

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from models.backbones import Backbone
from models.depthwise import Depthwise, merge_phases, split_phases

CHANNELS = 6
SHAPES = [  # kernel, stride, dilation, height, width
    (3, 1, (1, 1), 9, 7),
    (3, 2, (1, 1), 9, 8),
    (5, 1, (2, 2), 9, 10),
    (5, 1, (4, 4), 16, 33),
    (3, 1, (3, 5), 12, 20),  # other phases of rows than of columns
    (3, 1, (6, 6), 5, 20),  # fewer rows than the dilation has
    (3, 2, (2, 2), 12, 12),
]


def convolution(kind, kernel, stride, dilation):
    same = kind is Conv2dSame
    padding = 0 if same else tuple(rate * (kernel // 2) for rate in dilation)
    return kind(CHANNELS, CHANNELS, kernel, stride, padding, dilation, CHANNELS, bias=False)


def answers(layer, weight, inputs, bf16=False):
    """Output and gradients of a layer, for a loss that weights each output differently."""
    inputs = inputs.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = layer(inputs)
    loss = (out.double() * torch.arange(out.numel()).view(out.shape).cos()).sum()
    return out, *torch.autograd.grad(loss, (inputs, weight))


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_pytorch(kind, shape):
    torch.manual_seed(0)
    *settings, height, width = shape
    plain = convolution(kind, *settings)
    inputs = torch.randn(2, CHANNELS, height, width).to(memory_format=torch.channels_last)
    expected = answers(plain.double(), plain.weight, inputs.double())
    plain = plain.float()
    for bf16, tolerance in ((False, 1e-5), (True, 2e-2)):
        got = answers(Depthwise(plain), plain.weight, inputs, bf16)
        assert got[0].dtype == (torch.bfloat16 if bf16 else torch.float32)
        for one, other in zip(got, expected, strict=True):
            assert (one.double() - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("phases", [(2, 2), (3, 1), (4, 5)])
def test_phases_are_every_second_row_and_column_and_can_be_merged(phases):
    images = torch.rand(2, 3, 11, 13)
    parts = split_phases(images, phases)
    assert torch.equal(merge_phases(parts, phases, images.shape), images)
    down, across = phases
    one = images[1, :, down - 1 :: down, 0::across]
    assert torch.equal(parts[down * across + (down - 1) * across][:, : one.shape[1], : one.shape[2]], one)


def test_a_backbone_keeps_the_names_of_its_weights():
    import timm

    plain = timm.create_model("tf_efficientnet_lite0", features_only=True)
    own = Backbone("efficientnet_lite0", output_stride=32, stages=4)
    assert {f"body.{name}" for name in plain.state_dict()} >= set(own.state_dict())
    assert sum(isinstance(module, Depthwise) for module in own.modules()) == 16
    assert not any(isinstance(module, nn.Conv2d) and not isinstance(module, Depthwise) and module.groups > 1
                   for module in own.modules())


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_dpsgd_computes_the_gradient_of_each_image(kind, shape):
    from opacus import GradSampleModule

    importlib.import_module("defenses.dpsgd")  # registers the function that is tested
    torch.manual_seed(0)
    *settings, height, width = shape
    layer = Depthwise(convolution(kind, *settings))
    inputs = torch.randn(3, CHANNELS, height, width, requires_grad=True)
    expected = [torch.autograd.grad(layer(one[None]).square().sum(), layer.weight)[0] for one in inputs]
    private = GradSampleModule(layer, loss_reduction="sum")
    private(inputs).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad_sample, torch.stack(expected), rtol=1e-4, atol=1e-4)
