"""The discriminator at two scales and the losses that pix2pixHD and SPADE have in common."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from models.translation.base import Translator, draw_normal, initialise
from utils.cli import UserError

Features = Sequence[Sequence[torch.Tensor]]  # of each scale, of each layer; the last layer gives the logits

SCALES = 2
MATCHING = 10.0  # weight of the feature matching loss
PERCEPTUAL = 10.0  # weight of the perceptual loss
VGG_LAYERS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}  # of `vgg19().features`: relu1_1 ... relu5_1


class PatchLayers(nn.Module):
    """A PatchGAN of five layers that returns the output of each: (N, `inputs`, H, W) -> 5 maps, the last of logits.

    The sizes of the maps are H / 2 + 1, H / 4 + 1, H / 8 + 1, H / 8 + 2 and H / 8 + 3 for an H that 8 divides, because
    the padding is 2. InstanceNorm has no parameters. `spectral`: the three convolutions before InstanceNorm have
    spectral normalisation, and no bias. `draw` initialises the weights.
    """

    def __init__(self, width: int, inputs: int, spectral: bool, draw: Callable[[torch.Tensor], object]):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Conv2d(inputs, width, 4, 2, 2), nn.LeakyReLU(0.2))])
        for one, two, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 8 * width, 1)):
            convolution = nn.Conv2d(one, two, 4, stride, 2, bias=not spectral)
            self.layers.append(nn.Sequential(convolution, nn.InstanceNorm2d(two), nn.LeakyReLU(0.2)))
        self.layers.append(nn.Conv2d(8 * width, 1, 4, 1, 2))
        initialise(self, draw=draw)
        if spectral:
            for layer in self.layers[1:-1]:
                spectral_norm(layer[0])

    def forward(self, pairs: torch.Tensor) -> list[torch.Tensor]:
        features = [pairs]
        for layer in self.layers:
            features.append(layer(features[-1]))
        return features[1:]


def halve(images: torch.Tensor) -> torch.Tensor:
    """Average pooling 3 x 3 with stride 2, (N, C, H, W) -> (N, C, H / 2, W / 2); the padding is not in the averages."""
    return F.avg_pool2d(images, 3, 2, 1, count_include_pad=False)


class MultiScaleDiscriminator(nn.Module):
    """`SCALES` networks of one form: the first sees the input and output of a translation, the second at half the size.

    (N, `inputs`, H, W) -> the features of `PatchLayers` at each scale. With `width` 64 and 39 inputs, the 36 channels
    of Cityscapes and 3 of the output, it has 5,603,202 parameters, and 5,601,410 with `spectral`.
    """

    def __init__(self, width: int = 64, inputs: int = 6, spectral: bool = False,
                 draw: Callable[[torch.Tensor], object] = draw_normal):
        super().__init__()
        self.scales = nn.ModuleList(PatchLayers(width, inputs, spectral, draw) for _ in range(SCALES))

    def forward(self, pairs: torch.Tensor) -> list[list[torch.Tensor]]:
        features = []
        for index, network in enumerate(self.scales):
            pairs = halve(pairs) if index else pairs
            features.append(network(pairs))
        return features


class TwoScaleTranslator(Translator):
    """The losses of pix2pixHD and SPADE: adversarial + 10 feature matching + 10 perceptual.

    A subclass sets `generator`, `discriminator` and `vgg` (whether the perceptual loss is used), and defines the two
    adversarial terms. They get the logits (N, 1, h, w) of each scale.
    """

    vgg: bool = False

    def generator_term(self, made: Sequence[torch.Tensor]) -> torch.Tensor:
        """The adversarial loss of the generator. `made`: logits of its outputs."""
        raise NotImplementedError

    def discriminator_term(self, true: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of the discriminator. `true`, `made`: logits of the ground truth and of the generator's outputs."""
        raise NotImplementedError

    def features(self, inputs: torch.Tensor, images: torch.Tensor) -> list[list[torch.Tensor]]:
        """The features of inputs together with images, which are outputs or their ground truth."""
        return self.discriminator(torch.cat([inputs, images], dim=1))

    def discriminator_loss(self, inputs: torch.Tensor, truth: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return self.discriminator_term(logits(self.features(inputs, truth)), logits(self.features(inputs, outputs)))

    def generator_loss(self, inputs: torch.Tensor, truth: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        made = self.features(inputs, outputs)
        with torch.no_grad():
            true = self.features(inputs, truth)
        loss = self.generator_term(logits(made)) + MATCHING * feature_matching(true, made)
        return loss + PERCEPTUAL * perceptual(outputs, truth) if self.vgg else loss


def logits(features: Features) -> list[torch.Tensor]:
    """The logits of each scale, float32 (N, 1, h, w)."""
    return [layers[-1].float() for layers in features]


def feature_matching(true: Features, made: Features) -> torch.Tensor:
    """Mean absolute difference of features, summed over layers without the logits, and averaged over scales.

    Equation 4 of pix2pixHD. The paper sums over the scales; the released code of both papers averages.
    """
    pairs = [pair for scale in zip(true, made, strict=True) for pair in list(zip(*scale, strict=True))[:-1]]
    return sum(F.l1_loss(two.float(), one.float()) for one, two in pairs) / len(made)


@cache
def vgg19() -> nn.Module:
    """The layers of VGG19 up to relu5_1 with ImageNet weights, in eval mode. Raises `UserError` without its weights."""
    from torchvision.models import VGG19_Weights
    from torchvision.models import vgg19 as build

    try:
        model = build(weights=VGG19_Weights.IMAGENET1K_V1)
    except OSError as error:  # a failed download is a URLError
        raise UserError(f"the ImageNet weights of vgg19 could not be downloaded ({type(error).__name__}); leave vgg "
                        "out to train without the perceptual loss") from None
    return model.features[:max(VGG_LAYERS) + 1].eval().requires_grad_(False)


def perceptual(outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of features of VGG19, weighted by `VGG_LAYERS`. The weights are no part of a translator.

    The images are float32 (N, 3, H, W) in -1..1, and go into VGG19 as they are, like in the released code of both
    papers, though VGG19 was trained on images in another range.
    """
    network, loss = vgg19().to(outputs.device), torch.zeros((), device=outputs.device)
    with torch.no_grad():
        true = vgg_features(network, truth)
    for index, made in vgg_features(network, outputs).items():
        loss = loss + VGG_LAYERS[index] * F.l1_loss(made.float(), true[index].float())
    return loss


def vgg_features(network: nn.Module, images: torch.Tensor) -> dict[int, torch.Tensor]:
    """The outputs of the layers `VGG_LAYERS`, by their index."""
    features = {}
    for index, layer in enumerate(network):
        images = layer(images)
        if index in VGG_LAYERS:
            features[index] = images
    return features
