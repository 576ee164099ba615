"""pix2pixHD (Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs", 2018).

The paper feeds 36 channels, the one-hot label and the edges of instances. This project feeds colour images, so the
default is 3.
"""

from collections.abc import Sequence

import torch
from torch import nn

from models.translation.base import check_size, initialise
from models.translation.patch_losses import MultiScaleDiscriminator, TwoScaleTranslator, halve, vgg19

DOWNS = 4
BLOCKS = 9  # residual blocks of the global generator
LOCAL_BLOCKS = 3  # those of the local enhancer


def normed(convolution: nn.Module) -> nn.Sequential:
    """A convolution, InstanceNorm without parameters, and ReLU."""
    return nn.Sequential(convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU())


def wide_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 7 x 7 convolution that keeps the size, with reflection padding."""
    return nn.Conv2d(inputs, outputs, 7, padding=3, padding_mode="reflect")


def down(channels: int) -> nn.Sequential:
    """Half the size, and double the channels."""
    return normed(nn.Conv2d(channels, 2 * channels, 3, 2, 1))


def up(channels: int) -> nn.Sequential:
    """Double the size, and half the channels."""
    return normed(nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1))


def image_layer(width: int, outputs: int) -> nn.Sequential:
    """The last layer of a generator: `width` channels -> an image in -1..1."""
    return nn.Sequential(wide_convolution(width, outputs), nn.Tanh())


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with reflection padding and InstanceNorm, added to the input (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        one, two = (nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect") for _ in range(2))
        self.layers = nn.Sequential(normed(one), two, nn.InstanceNorm2d(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.layers(features)


class GlobalGenerator(nn.Module):
    """The global generator G1 (section 3.1): images float32 (N, `inputs`, H, W) in -1..1 -> (N, `outputs`, H, W).

    H and W must be multiples of 16, and 32 at least. `width`: number of channels at full size; each of the four layers
    that halve the size doubles it. The paper's has width 64 and 36 inputs: 182,546,755 parameters. `body` ends before
    the last layer, with `width` channels.
    """

    def __init__(self, width: int = 64, inputs: int = 3, outputs: int = 3):
        super().__init__()
        channels = [width * 2**index for index in range(DOWNS + 1)]
        self.body = nn.Sequential(
            normed(wide_convolution(inputs, width)),
            *(down(number) for number in channels[:-1]),
            *(ResidualBlock(channels[-1]) for _ in range(BLOCKS)),
            *(up(number) for number in channels[:0:-1]))
        self.last = image_layer(width, outputs)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(images))


class LocalEnhancer(nn.Module):
    """The local enhancer G2 around the body of a global generator, which sees half the size (section 3.1).

    Images float32 (N, `inputs`, H, W) in -1..1 -> (N, `outputs`, H, W). H and W must be multiples of 32, and 64 at
    least. `width`: number of channels at full size, half of those of the global generator. The paper's has width 32
    and 36 inputs: 182,857,059 parameters. The paper trains the global generator first, then both together:
    `coarse` takes the state of a `GlobalGenerator.body`.
    """

    def __init__(self, width: int = 32, inputs: int = 3, outputs: int = 3):
        super().__init__()
        self.coarse = GlobalGenerator(2 * width, inputs, outputs).body
        self.before = nn.Sequential(normed(wide_convolution(inputs, width)), down(width))
        self.after = nn.Sequential(*(ResidualBlock(2 * width) for _ in range(LOCAL_BLOCKS)), up(2 * width),
                                   image_layer(width, outputs))
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.after(self.before(images) + self.coarse(halve(images)))


class Pix2PixHD(TwoScaleTranslator):
    """Global generator and discriminator at two scales: least squares + 10 feature matching (section 3.2).

    `width`: channels of the first layer of both networks, 64 in the paper; `size`: sides of the training images;
    `inputs`: channels of an input image; `vgg`: add 10 times the perceptual loss, whose weights are downloaded;
    `local`: the generator is the local enhancer. The paper has three scales, and its released code has two.
    """

    def __init__(self, width: int = 64, size: int = 256, inputs: int = 3, vgg: bool = False, local: bool = False):
        super().__init__()
        self.multiple = 2 ** (DOWNS + local)
        check_size(size, self.multiple)
        if vgg:
            vgg19()  # the error of a failed download comes before any long work
        self.vgg = vgg
        self.generator = LocalEnhancer(width // 2, inputs) if local else GlobalGenerator(width, inputs)
        self.discriminator = MultiScaleDiscriminator(width, inputs + 3)

    def generator_term(self, made: Sequence[torch.Tensor]) -> torch.Tensor:
        return sum(((one - 1) ** 2).mean() for one in made)

    def discriminator_term(self, true: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> torch.Tensor:
        return (self.generator_term(true) + sum((one**2).mean() for one in made)) / 2
