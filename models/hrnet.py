"""HRNetV2 (Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", arXiv:1904.04514)."""

import torch
from torch import nn

from models.backbones import Backbone
from models.layers import Segmenter, conv_norm, resize
from utils.cli import UserError

STRIDE = 32  # of the coarsest branch


class C1Head(nn.Module):
    """Concatenate the four branches at stride 4, 3x3 convolution to a quarter of the channels, 1x1 classifier.

    forward: list of (N, channels[i], h[i], w[i]), the finest first -> logits (N, classes, h[0], w[0]).
    """

    def __init__(self, inputs: list[int], classes: int):
        super().__init__()
        total = sum(inputs)
        self.classify = nn.Sequential(conv_norm(total, total // 4, 3), nn.Conv2d(total // 4, classes, 1))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.classify(torch.cat([resize(feature, features[0]) for feature in features], dim=1))


def build(backbone: str = "hrnet_w48", classes: int = 150, pretrained: bool = False,
          name: str = "hrnetv2") -> Segmenter:
    """Build HRNetV2 with the head C1 of CSAIL's code for ADE20K, the model of Shafran et al.

    The defaults have 66,519,030 parameters: 65,325,120 in the body, and 720 x 180 x 9 + 2 x 180 + 180 x 150 + 150 in
    the head. As in the code of the authors, branches are fused after bilinear upsampling (timm: nearest), and images
    are padded until 32 divides their sides. There, the loss is computed at stride 4; here, at the size of the image.
    Raises `UserError` for a backbone that is no HRNet.
    """
    if not backbone.startswith("hrnet"):
        raise UserError(f"{name} needs an HRNet as its backbone, not {backbone}; give --backbone hrnet_w18_small or "
                        "hrnet_w48")
    body = Backbone(backbone, STRIDE, 4, pretrained, multiple=STRIDE, feature_location="")
    for module in body.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    return Segmenter(body, C1Head(body.channels, classes), None, align_corners=False)
