"""UperNet (Xiao, Liu, Zhou, Jiang, Sun: Unified Perceptual Parsing for Scene Understanding, ECCV 2018)."""

import torch
from torch import nn

from models.backbones import Backbone
from models.layers import BINS, PyramidPooling, Segmenter, auxiliary_head, conv_norm, resize

POOLED = 512  # channels of each pyramid level, for every width


class UperHead(nn.Module):
    """Pyramid pooling of the coarsest features, then a feature pyramid; returns logits of the finest features' size.

    The authors' head has no dropout. The layer before the classifier drops nothing, except under Dropout at test time
    (`defenses.dropout`), which the first paper measures on UperNet, too (figure 5).
    """

    def __init__(self, inputs: list[int], classes: int, width: int):
        super().__init__()
        self.pyramid = PyramidPooling(inputs[-1], POOLED, align_corners=False, after=True)
        self.top = conv_norm(inputs[-1] + len(BINS) * POOLED, width, 3)
        self.laterals = nn.ModuleList(conv_norm(channels, width) for channels in inputs[:-1])
        self.outputs = nn.ModuleList(conv_norm(width, width, 3) for _ in inputs[:-1])
        self.classify = nn.Sequential(conv_norm(len(inputs) * width, width, 3), nn.Conv2d(width, classes, 1))
        self.dropout = nn.Dropout2d(0.0)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        level = self.top(self.pyramid(features[-1]))
        levels = [level]
        for feature, lateral, output in zip(features[-2::-1], reversed(self.laterals), reversed(self.outputs),
                                            strict=True):
            level = lateral(feature) + resize(level, feature)
            levels.append(output(level))
        merge, classify = self.classify
        merged = merge(torch.cat([resize(level, features[0]) for level in reversed(levels)], dim=1))
        return classify(self.dropout(merged))


def build(backbone: str = "resnet101s", classes: int = 19, output_stride: int = 32, stages: int = 4, width: int = 512,
          dropout: float = 0.1, auxiliary: bool = False, pretrained: bool = False, name: str = "upernet") -> Segmenter:
    """Build UperNet. The defaults are UperNet-101 with 83,147,219 parameters (60,856,019 at width 256).

    The authors' model has no auxiliary head. `auxiliary` adds one, and `dropout` is its dropout.
    """
    body = Backbone(backbone, output_stride, stages, pretrained)
    extra = auxiliary_head(body.channels[-2], classes, dropout) if auxiliary else None
    return Segmenter(body, UperHead(body.channels, classes, width), extra, align_corners=False)
