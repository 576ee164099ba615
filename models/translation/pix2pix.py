"""pix2pix (Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from models.translation.base import Translator, initialise
from utils.cli import UserError

DEEPEST = 8  # times the first number of channels that a layer has at most
DROPOUT = 0.5
SMALLEST = 32  # sides of an image, of which the discriminator leaves some patches
L1 = 100.0  # weight of the L1 loss


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with the statistics of the batch also at test time (section 3.3 of the paper): those of one image."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def down(inputs: int, outputs: int, norm: bool, active: bool = True) -> list[nn.Module]:
    """LeakyReLU, convolution that halves the size, and BatchNorm."""
    layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if active else []
    layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
    return [*layers, batch_norm(outputs)] if norm else layers


def up(inputs: int, outputs: int, dropout: bool = False) -> list[nn.Module]:
    """ReLU, transposed convolution that doubles the size, BatchNorm, and dropout."""
    layers = [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), batch_norm(outputs)]
    return [*layers, nn.Dropout(DROPOUT)] if dropout else layers


class UNet(nn.Module):
    """The generator: images float32 (N, `inputs`, H, W) in -1..1 -> (N, `outputs`, H, W) in -1..1.

    H and W must be multiples of 2 ** `downs`. `width`: number of channels of the first layer. The paper's U-Net-256 has
    width 64 and 8 downs: 54,413,955 parameters. The three layers beside the innermost have dropout.
    """

    def __init__(self, width: int = 64, downs: int = 8, inputs: int = 3, outputs: int = 3):
        super().__init__()
        channels = [width * min(2**index, DEEPEST) for index in range(downs)]
        pairs = list(pairwise(channels))
        last = len(pairs) - 1
        self.downs = nn.ModuleList([nn.Sequential(*down(inputs, width, norm=False, active=False)), *(
            nn.Sequential(*down(one, two, norm=index < last)) for index, (one, two) in enumerate(pairs))])
        self.ups = nn.ModuleList(
            nn.Sequential(*up(two if index == last else 2 * two, one, dropout=last - 3 <= index < last))
            for index, (one, two) in reversed(list(enumerate(pairs))))
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, outputs, 4, 2, 1), nn.Tanh())
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = [images]
        for layer in self.downs:
            features.append(layer(features[-1]))
        out = features.pop()
        for layer in self.ups:
            out = torch.cat([features.pop(), layer(out)], dim=1)
        return self.last(out)


class PatchDiscriminator(nn.Module):
    """The 70 x 70 PatchGAN: input and output of a translation -> logits of patches.

    (N, `inputs`, H, W) -> (N, 1, H / 8 - 2, W / 8 - 2). 2,768,705 parameters at `width` 64 and 6 inputs.
    """

    def __init__(self, width: int = 64, inputs: int = 6):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for one, two, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 8 * width, 1)):
            layers += [nn.Conv2d(one, two, 4, stride, 1, bias=False), batch_norm(two), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))
        initialise(self)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return self.layers(pairs)


class Pix2Pix(Translator):
    """U-Net and PatchGAN with their losses: cGAN + 100 L1; the loss of the discriminator is halved (section 3.3).

    `width`: channels of the first layer of both networks, 64 in the paper; `size`: sides of the training images, a
    power of two, which the innermost layer reduces to one position.
    """

    def __init__(self, width: int = 64, size: int = 256, inputs: int = 3):
        super().__init__()
        if size & (size - 1) or size < SMALLEST:
            raise UserError(f"training images of {size} x {size} do not fit pix2pix; give it sides that are a power of "
                            f"two, and {SMALLEST} at least")
        self.multiple = size
        self.generator = UNet(width, size.bit_length() - 1, inputs)
        self.discriminator = PatchDiscriminator(width, inputs + 3)

    def discriminator_loss(self, inputs: torch.Tensor, truth: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        true, made = (self.discriminator(torch.cat([inputs, images], dim=1)) for images in (truth, outputs))
        return (against(true, 1.0) + against(made, 0.0)) / 2

    def generator_loss(self, inputs: torch.Tensor, truth: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        made = self.discriminator(torch.cat([inputs, outputs], dim=1))
        return against(made, 1.0) + L1 * F.l1_loss(outputs, truth)


def against(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Mean binary cross-entropy of the logits of patches against one target, 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, target, dtype=torch.float32))
