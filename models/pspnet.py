"""PSPNet (Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017)."""

from torch import nn

from models.backbones import Backbone
from models.layers import BINS, PyramidPooling, Segmenter, auxiliary_head, conv_norm


class PSPHead(nn.Module):
    """Pyramid pooling of the last features, 3x3 convolution, dropout, classifier; logits at their resolution."""

    def __init__(self, inputs: int, classes: int, width: int, dropout: float):
        super().__init__()
        pooled = inputs // len(BINS)
        self.pyramid = PyramidPooling(inputs, pooled, align_corners=True)
        self.classify = nn.Sequential(
            conv_norm(inputs + len(BINS) * pooled, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1)
        )

    def forward(self, features):
        return self.classify(self.pyramid(features[-1]))


def build(backbone: str = "resnet101s", classes: int = 19, output_stride: int = 8, stages: int = 4, width: int = 512,
          dropout: float = 0.1, auxiliary: bool = True, pretrained: bool = False, name: str = "pspnet") -> Segmenter:
    """Build PSPNet. The defaults are PSPNet-101: 65,707,475 parameters, and 2,364,691 more in the auxiliary head.

    For small models: `stages` is the number of stages of the backbone, `width` the number of channels of the head.
    """
    body = Backbone(backbone, output_stride, stages, pretrained)
    head = PSPHead(body.channels[-1], classes, width, dropout)
    extra = auxiliary_head(body.channels[-2], classes, dropout) if auxiliary else None
    return Segmenter(body, head, extra, align_corners=True)
