"""SPADE (Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", CVPR 2019).

The paper feeds one-hot labels, for Cityscapes with the edges of instances (36 channels), for ADE20K without (151). This
project feeds colour images, so the default is 3.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from models.translation.base import check_size, initialise
from models.translation.patch_losses import MultiScaleDiscriminator, TwoScaleTranslator, vgg19

CHANNELS = (16, 16, 16, 16, 8, 4, 2, 1)  # before, between and after the seven blocks, times the width
DOUBLED = {5: (1, 3, 4, 5, 6), 6: (1, 2, 3, 4, 5, 6)}  # number of doublings -> the blocks before which they are
MORE = 512  # sides of training images from which the size is doubled six times, as for Cityscapes in the paper

draw_xavier = partial(nn.init.xavier_normal_, gain=0.02)


class SpadeNorm(nn.Module):
    """BatchNorm whose scale and shift at each position are computed from the input map (equation 1).

    Features (N, `channels`, h, w) and input maps (N, `inputs`, H, W), resized to h x w by nearest neighbour ->
    (N, `channels`, h, w). `hidden`: channels of the convolution that scale and shift share. BatchNorm itself has no
    parameters.
    """

    def __init__(self, channels: int, inputs: int, hidden: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.shared = nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU())
        self.gamma, self.beta = (nn.Conv2d(hidden, channels, 3, padding=1) for _ in range(2))

    def forward(self, features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        hidden = self.shared(F.interpolate(maps, size=features.shape[-2:], mode="nearest"))
        return self.norm(features) * (1 + self.gamma(hidden)) + self.beta(hidden)


class SpadeBlock(nn.Module):
    """The residual block of figure 4 (left): features (N, `channels`, h, w) and input maps -> (N, `outputs`, h, w).

    Where the number of channels changes, the shortcut has a `SpadeNorm` and a 1 x 1 convolution.
    """

    def __init__(self, channels: int, outputs: int, inputs: int, hidden: int):
        super().__init__()
        middle = min(channels, outputs)
        self.norms = nn.ModuleList(SpadeNorm(number, inputs, hidden) for number in (channels, middle))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(one, two, 3, padding=1) for one, two in ((channels, middle), (middle, outputs)))
        if channels != outputs:
            self.norms.append(SpadeNorm(channels, inputs, hidden))
            self.convolutions.append(nn.Conv2d(channels, outputs, 1, bias=False))

    def forward(self, features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        out = features
        for norm, convolution in zip(self.norms[:2], self.convolutions[:2], strict=True):
            out = convolution(F.leaky_relu(norm(out, maps), 0.2))
        if len(self.norms) > 2:
            features = self.convolutions[2](self.norms[2](features, maps))
        return features + out


class SpadeGenerator(nn.Module):
    """The generator of figure 4 (right), without an image encoder: inputs (N, `inputs`, H, W) -> (N, `outputs`, H, W).

    The outputs are in -1..1. The first layer sees the input at H / 2 ** `ups`, and the size is doubled `ups` times, 5
    or 6. H and W must be multiples of 2 ** `ups`, and in training at least twice it. `width`: number of channels at
    full size. The paper's has width 64: 93,048,003 parameters with 36 inputs and 96,492,483 with 151, whatever `ups`
    is. A scale and a shift share 2 * `width` channels, 128 in the paper.
    """

    def __init__(self, width: int = 64, ups: int = 6, inputs: int = 3, outputs: int = 3):
        super().__init__()
        self.ups = ups
        channels = [width * factor for factor in CHANNELS]
        self.first = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(SpadeBlock(one, two, inputs, 2 * width) for one, two in pairwise(channels))
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        initialise(self, draw=draw_xavier)
        for block in self.blocks:
            for convolution in block.convolutions:
                spectral_norm(convolution)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        height, width = (side // 2**self.ups for side in maps.shape[-2:])
        out = self.first(F.interpolate(maps, size=(height, width), mode="nearest"))
        for index, block in enumerate(self.blocks):
            if index in DOUBLED[self.ups]:
                out = F.interpolate(out, scale_factor=2, mode="nearest")
            out = block(out, maps)
        return torch.tanh(self.last(F.leaky_relu(out, 0.2)))


class Spade(TwoScaleTranslator):
    """Generator and discriminator with spectral normalisation: hinge loss + 10 feature matching.

    `width`: channels of the generator at full size and of the discriminator's first layer, 64 in the paper; `size`:
    sides of the training images, which are doubled six times from 512 on and five times below; `inputs`: channels of an
    input image; `vgg`: add 10 times the perceptual loss, whose weights are downloaded. BatchNorm has the statistics of
    the batch in training, which `torch.nn.SyncBatchNorm.convert_sync_batchnorm` can extend to all devices, as in the
    paper; in eval mode it has their running averages.
    """

    rates = (1e-4, 4e-4)
    betas = (0.0, 0.9)

    def __init__(self, width: int = 64, size: int = 256, inputs: int = 3, vgg: bool = False):
        super().__init__()
        ups = 6 if size >= MORE else 5
        self.multiple = 2**ups
        check_size(size, self.multiple)
        if vgg:
            vgg19()  # the error of a failed download comes before any long work
        self.vgg = vgg
        self.generator = SpadeGenerator(width, ups, inputs)
        self.discriminator = MultiScaleDiscriminator(width, inputs + 3, spectral=True, draw=draw_xavier)

    def generator_term(self, made: Sequence[torch.Tensor]) -> torch.Tensor:
        return -sum(one.mean() for one in made) / len(made)

    def discriminator_term(self, true: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> torch.Tensor:
        losses = [F.relu(1 - one).mean() + F.relu(1 + two).mean() for one, two in zip(true, made, strict=True)]
        return sum(losses) / len(losses)
