"""Layers that several segmentation models share."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone, padding

BINS = (1, 2, 3, 6)
GROUP = 16  # smallest number of channels per GroupNorm group: a pooled map may have only one position to normalise


def conv_norm(inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, dilation: int = 1,
              relu: bool = True) -> nn.Sequential:
    """Convolution without bias that keeps the size of the map, BatchNorm, and ReLU if `relu`.

    `kernel`: its side, or its height and width; odd numbers.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    layers = [nn.Conv2d(inputs, outputs, (height, width), padding=(dilation * (height // 2), dilation * (width // 2)),
                        dilation=dilation, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def resize(x: torch.Tensor, like: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Resize maps (N, C, h, w) bilinearly to the height and width of `like`."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)


class OwnLoss(ABC):
    """What a model with a loss of its own returns in training, in place of logits."""

    @abstractmethod
    def image_losses(self, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each image, float32 (N,), for labels int64 (N, H, W). Void positions have no part in it.

        The loss of a batch is the mean over its images.
        """


def group_norms(module: nn.Module) -> None:
    """Replace every BatchNorm in `module` by GroupNorm without parameters. An activation inside the BatchNorm is kept.

    This GroupNorm has no statistics of training images, and no gradients that DPSGD would have to clip.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            norm = nn.GroupNorm(math.gcd(max(1, channels // GROUP), channels), channels, affine=False)
            setattr(module, name, nn.Sequential(norm, child.act) if hasattr(child, "act") else norm)
        else:
            group_norms(child)


class PyramidPooling(nn.Module):
    """Concatenate the features with features pooled at several scales (Zhao et al., PSPNet, section 3.2).

    forward: (N, inputs, H, W) -> (N, inputs + len(BINS) * width, H, W). With `after`, the 1x1 convolution comes after
    the resizing, as in UperNet, otherwise before it.
    """

    def __init__(self, inputs: int, width: int, align_corners: bool, after: bool = False):
        super().__init__()
        self.branches = nn.ModuleList(conv_norm(inputs, width) for _ in BINS)
        self.align_corners, self.after = align_corners, after

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        out, size = [features], features.shape[-2:]
        for bins, branch in zip(BINS, self.branches, strict=True):
            pooled = F.adaptive_avg_pool2d(features, bins)
            pooled = pooled if self.after else branch(pooled)
            pooled = F.interpolate(pooled, size, mode="bilinear", align_corners=self.align_corners)
            out.append(branch(pooled) if self.after else pooled)
        return torch.cat(out, dim=1)


class Segmenter(nn.Module):
    """A segmentation model: a backbone, a head and, optionally, an auxiliary head on the second-last stage.

    forward: images (N, 3, H, W) in 0..1 -> logits (N, C, H, W), bilinearly resized from those of the head. In training
    with an auxiliary head: the pair (logits, auxiliary logits). If the backbone pads the images, the logits of the
    padding are cut off.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, auxiliary: nn.Module | None, align_corners: bool):
        super().__init__()
        self.backbone, self.head, self.auxiliary = backbone, head, auxiliary
        self.align_corners = align_corners

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        features = self.backbone(images)
        logits = self._full_size(self.head(features), images)
        if self.training and self.auxiliary is not None:
            return logits, self._full_size(self.auxiliary(features[-2]), images)
        return logits

    def _full_size(self, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        rows, columns = padding(images, self.backbone.multiple)
        size = (height + rows, width + columns)
        full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=self.align_corners)
        return full[..., :height, :width]


def auxiliary_head(inputs: int, classes: int, dropout: float) -> nn.Sequential:
    """3x3 convolution to a quarter of the channels, dropout, 1x1 classifier."""
    return nn.Sequential(conv_norm(inputs, inputs // 4, 3), nn.Dropout2d(dropout), nn.Conv2d(inputs // 4, classes, 1))
