"""Segmentation models V and S, and the per-patch attacker A_P.

A model is rebuilt from a plain dict, its `spec`: `{"name": "pspnet", "backbone": "resnet18", ...}`. A new model is
one file with a `build(**spec)` and one line in the table.
"""

import argparse
import importlib
from typing import TYPE_CHECKING

from utils.cli import UserError, positive

if TYPE_CHECKING:
    from torch import nn

SEGMENTERS = {"pspnet": "models.pspnet", "upernet": "models.upernet", "deeplabv3plus": "models.deeplab",
              "dpc": "models.deeplab"}


def build_segmenter(spec: dict, pretrained: bool = False) -> "nn.Module":
    """Build the model of `spec`: `name`, one of `SEGMENTERS`, and the arguments of its `build`.

    `group_norms` names the parts (backbone, head, auxiliary) that have GroupNorm instead of BatchNorm.
    """
    from models.layers import group_norms

    arguments = dict(spec)
    grouped = arguments.pop("group_norms", ())
    model = importlib.import_module(SEGMENTERS[spec["name"]]).build(**arguments, pretrained=pretrained)
    for part in grouped:
        group_norms(getattr(model, part))
    return model


def read_segmenter(path: str) -> dict:
    """The checkpoint of a segmentation model; `UserError` when it is none."""
    from utils.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    spec = checkpoint.get("model") or {}
    if spec.get("name") not in SEGMENTERS or not isinstance(spec.get("classes"), int):
        raise UserError(f"{path} holds no segmentation model; train one with train_victim.py or train_shadow.py")
    return checkpoint


def load_segmenter(path: str) -> tuple["nn.Module", dict]:
    """The model in checkpoint `path`, in eval mode on the CPU, and the checkpoint; `UserError` when it is none."""
    from utils.checkpoints import rebuild

    checkpoint = read_segmenter(path)
    model = rebuild(lambda: build_segmenter(checkpoint["model"]), checkpoint["state_dict"], path)
    return model.eval(), checkpoint


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a segmentation model; the defaults are the small PSPNet of the demo."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=SEGMENTERS, default="pspnet", help="segmentation head (default: pspnet)")
    model.add_argument("--backbone", default="resnet10t", help="timm backbone, e.g. resnet18, resnet101s, xception71, "
                       "efficientnet_lite0 (default: resnet10t)")
    model.add_argument("--output-stride", type=positive, default=8, help="of the backbone: 8, 16 or 32 (default: 8)")
    model.add_argument("--stages", type=positive, default=3, help="stages of the backbone that are used (default: 3)")
    model.add_argument("--width", type=positive, default=128,
                       help="channels of the head (default: 128; the paper's 512)")
    model.add_argument("--dropout", type=float, default=0.1, help="before the classifier (default: 0.1)")
    model.add_argument("--pretrained", action="store_true", help="start from ImageNet weights")
