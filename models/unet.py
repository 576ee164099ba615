"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015), the model of Chobola, Usynin and Kaissis (AISec 2023).

The code of that study was not at hand. These are assumptions: convolutions keep the size of the map, BatchNorm follows
each of them, and an image in 0..1 is shifted and scaled to -1..1.
"""

from itertools import pairwise

import torch
from torch import nn

from models.backbones import pad
from models.layers import Segmenter, conv_norm

DOWNS = 4


def double(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm and ReLU."""
    return nn.Sequential(conv_norm(inputs, outputs, 3), conv_norm(outputs, outputs, 3))


class ContractingPath(nn.Module):
    """The left half: images (N, 3, H, W) in 0..1 -> list of (N, channels[i], h / 2**i, w / 2**i), with i = 0..4.

    h and w are H and W, rounded up to a multiple of 16. The paper places dropout at the end of this path.
    """

    mean = (0.5, 0.5, 0.5)
    multiple = 2**DOWNS

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.channels = [width * 2**level for level in range(DOWNS + 1)]
        self.levels = nn.ModuleList(double(inputs, outputs) for inputs, outputs in pairwise([3, *self.channels]))
        self.pool, self.dropout = nn.MaxPool2d(2), nn.Dropout2d(dropout)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x, features = pad(2 * images - 1, self.multiple), []
        for level in self.levels:
            x = level(self.pool(x) if features else x)
            features.append(x)
        return [*features[:-1], self.dropout(x)]


class ExpandingPath(nn.Module):
    """The right half: the features of `ContractingPath` -> logits (N, classes, h, w)."""

    def __init__(self, channels: list[int], classes: int):
        super().__init__()
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in channels[-2::-1])
        self.levels = nn.ModuleList(double(2 * width, width) for width in channels[-2::-1])
        self.classify = nn.Conv2d(channels[0], classes, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = features[-1]
        for up, level, skipped in zip(self.ups, self.levels, features[-2::-1], strict=True):
            x = level(torch.cat([skipped, up(x)], dim=1))
        return self.classify(x)


def build(classes: int = 2, width: int = 64, dropout: float = 0.1, pretrained: bool = False,
          name: str = "unet") -> Segmenter:
    """Build a U-Net with `width` channels in its first level, and 16 times as many in its last.

    The defaults have 31,037,698 parameters. There are no ImageNet weights, so `pretrained` has no effect.
    """
    path = ContractingPath(width, dropout)
    return Segmenter(path, ExpandingPath(path.channels, classes), None, align_corners=False)
