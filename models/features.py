"""ImageNet features of an image, from which a linear predictor predicts its ground truth (Shafran et al.)."""

import torch
from torch import nn

from models.backbones import Backbone
from utils.cli import UserError


def efficientnet_lite0() -> nn.Module:
    """24 + 40 + 112 + 320 channels at strides 4, 8, 16 and 32."""
    return Backbone("efficientnet_lite0", output_stride=32, stages=4, pretrained=True)


def wide_resnet50_2() -> nn.Module:
    """256 + 512 + 1024 + 2048 channels at strides 4, 8, 16 and 32. Raises `UserError` without its ImageNet weights."""
    from torchvision.models import Wide_ResNet50_2_Weights
    from torchvision.models import wide_resnet50_2 as build

    try:
        return ResNetFeatures(build(weights=Wide_ResNet50_2_Weights.IMAGENET1K_V1))
    except OSError as error:  # a failed download is a URLError
        raise UserError(f"the ImageNet weights of wide_resnet50_2 could not be downloaded ({type(error).__name__}); "
                        "leave --features out to use efficientnet_lite0") from None


class ResNetFeatures(nn.Module):
    """The outputs of layer1 to layer4 of a torchvision ResNet, for images (N, 3, H, W) in 0..1."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        net = self.model
        out, features = net.maxpool(net.relu(net.bn1(net.conv1((images - self.mean) / self.std)))), []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            out = layer(out)
            features.append(out)
        return features
