"""DeepLab-v3+ (Chen et al., ECCV 2018) and DPC (Chen et al., NeurIPS 2018): two context modules with one decoder."""

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.depthwise import Depthwise
from models.layers import Segmenter, auxiliary_head, conv_norm

RATES = (6, 12, 18)  # dilation rates of atrous pooling at output stride 16; doubled at 8
# Branches of the DPC cell at output stride 16: (input branch or -1 for the features, rate in height, rate in width).
CELL = ((-1, 1, 6), (0, 18, 15), (1, 6, 3), (0, 1, 1), (0, 6, 21))
LOW = 48  # channels of the features at stride 4 in the decoder


def separable(inputs: int, outputs: int, rate: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """Depthwise 3x3 convolution with dilation `rate` (height, width), norm, ReLU, then 1x1 convolution, norm, ReLU."""
    return nn.Sequential(
        Depthwise(nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False)),
        nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv_norm(inputs, outputs))


class AtrousPyramid(nn.Module):
    """1x1, three atrous separable 3x3 and image pooling in parallel: (N, inputs, H, W) -> (N, 5 width, H, W)."""

    def __init__(self, inputs: int, width: int, scale: int):
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(inputs, width),
                                       *(separable(inputs, width, (rate * scale,) * 2) for rate in RATES)])
        self.pool = conv_norm(inputs, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1)


class DensePrediction(nn.Module):
    """The cell found by search: five separable 3x3, connected as in `CELL`: (N, inputs, H, W) -> (N, 5 width, H, W)."""

    def __init__(self, inputs: int, width: int, scale: int):
        super().__init__()
        self.branches = nn.ModuleList(
            separable(inputs if source < 0 else width, width, (height * scale, across * scale))
            for source, height, across in CELL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        for branch, (source, _, _) in zip(self.branches, CELL, strict=True):
            outputs.append(branch(x if source < 0 else outputs[source]))
        return torch.cat(outputs, dim=1)


class DeepLabHead(nn.Module):
    """Context module, projection, and decoder with the features at stride 4; returns logits at stride 4."""

    def __init__(self, context: nn.Module, low: int, classes: int, width: int, dropout: float):
        super().__init__()
        self.context = context
        self.project = nn.Sequential(conv_norm(5 * width, width), nn.Dropout(dropout))
        self.low = conv_norm(low, LOW)
        self.decode = nn.Sequential(separable(width + LOW, width), separable(width, width))
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        low = self.low(features[0])
        high = self.project(self.context(features[-1]))
        high = F.interpolate(high, low.shape[-2:], mode="bilinear", align_corners=True)
        return self.classify(self.decode(torch.cat([high, low], dim=1)))


CONTEXTS = {"deeplabv3plus": AtrousPyramid, "dpc": DensePrediction}


def build(backbone: str = "xception71", classes: int = 19, output_stride: int = 16, stages: int = 4, width: int = 256,
          dropout: float = 0.1, auxiliary: bool = False, pretrained: bool = False,
          name: str = "deeplabv3plus") -> Segmenter:
    """Build DeepLab-v3+ or, with `name="dpc"`, DPC. The defaults are those of the paper, with Xception-71.

    The papers have no auxiliary head; `auxiliary` adds one, for small models.
    """
    body = Backbone(backbone, output_stride, stages, pretrained)
    context = CONTEXTS[name](body.channels[-1], width, max(1, 16 // output_stride))
    head = DeepLabHead(context, body.channels[0], classes, width, dropout)
    extra = auxiliary_head(body.channels[-2], classes, dropout) if auxiliary else None
    return Segmenter(body, head, extra, align_corners=True)
