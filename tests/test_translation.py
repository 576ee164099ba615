"""Image-to-image translation: the generators and discriminators of the second paper."""

import pytest
import torch

from models.translation.pix2pix import PatchDiscriminator, UNet


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_pix2pix_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        assert count(UNet()) == 54_413_955 and count(PatchDiscriminator()) == 2_768_705


@pytest.mark.parametrize("downs, size", [(8, (256, 256)), (7, (128, 256)), (5, (64, 32))])
def test_shapes_and_range(downs, size):
    images = torch.rand(2, 3, *size) * 2 - 1
    out = UNet(width=4, downs=downs)(images)
    assert out.shape == images.shape and out.abs().max() <= 1
    logits = PatchDiscriminator(width=4)(torch.cat([images, out], dim=1))
    assert logits.shape == (2, 1, size[0] // 8 - 2, size[1] // 8 - 2)


def test_every_weight_of_the_generator_is_used():
    net = UNet(width=4, downs=5)
    net(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_logit_of_the_discriminator_sees_70_pixels():
    net = PatchDiscriminator(width=2)
    for index, layer in enumerate(net.layers):
        if isinstance(layer, torch.nn.BatchNorm2d):
            net.layers[index] = torch.nn.Identity()  # its statistics are those of all pixels
    images = torch.zeros(1, 6, 256, 256, requires_grad=True)
    net(images)[0, 0, 15, 15].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70
