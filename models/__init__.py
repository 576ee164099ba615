"""Segmentation models V and S, translators, and the per-patch attacker A_P.

A segmentation model is rebuilt from a plain dict, its `spec`: `{"name": "pspnet", "backbone": "resnet18", ...}`. A new
model is one file with a `build(**spec)`, and one line in `MODELS`. A new translator is one file with a subclass of
`models.translation.base.Translator`, and one line in `TRANSLATORS`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from utils.cli import UserError, number
from utils.distributed import warn_once
from utils.tables import Entry, Table

if TYPE_CHECKING:
    from torch import nn

    from models.attacker import InputSpec
    from models.translation.base import Translator


@dataclass(frozen=True)
class ModelEntry(Entry):
    """A model in `MODELS`.

    `unused`: the settings of `SegmenterTraining` that have no effect on it. `build` does not get them.
    """

    unused: tuple[str, ...] = ()


MODELS = Table("segmentation model", {
    "pspnet": ModelEntry("models.pspnet:build", "pyramid pooling"),
    "upernet": ModelEntry("models.upernet:build", "pyramid pooling and a feature pyramid"),
    "deeplabv3plus": ModelEntry("models.deeplab:build", "atrous pyramid and a decoder"),
    "dpc": ModelEntry("models.deeplab:build", "DeepLab-v3+ with a dense prediction cell"),
    "hrnetv2": ModelEntry("models.hrnet:build", "parallel branches of four resolutions",
                          ("output_stride", "stages", "width", "dropout", "aux_weight")),
    "unet": ModelEntry("models.unet:build", "U-Net, without a backbone",
                       ("backbone", "output_stride", "stages", "pretrained", "aux_weight")),
    "pranet": ModelEntry("models.pranet:build", "PraNet, for two classes",
                         ("output_stride", "stages", "dropout", "aux_weight", "label_smoothing")),
    "infnet": ModelEntry("models.infnet:build", "Inf-Net, for two classes",
                         ("output_stride", "stages", "dropout", "aux_weight", "label_smoothing")),
})

TRANSLATORS = Table("translator", {
    "pix2pix": Entry("models.translation.pix2pix:Pix2Pix", "U-Net and PatchGAN"),
    "pix2pixhd": Entry("models.translation.pix2pixhd:Pix2PixHD", "residual generator, PatchGAN at two scales"),
    "spade": Entry("models.translation.spade:Spade", "layers modulated by the input, PatchGAN at two scales"),
})

FEATURES = Table("feature extractor", {
    "efficientnet_lite0": Entry("models.features:efficientnet_lite0", "needs no download, and is not the paper's"),
    "wide_resnet50_2": Entry("models.features:wide_resnet50_2", "that of their code; its weights are downloaded"),
})

WITHOUT_DROPOUT = ("upernet",)  # models that have a dropout layer only in their auxiliary head


def unused_flags(model: str, aux_weight: float) -> list[tuple[bool, str, list[str]]]:
    """The rules of `utils.cli.refuse_unused` about the flags that have no effect on a model."""
    return [(True, f"on {model}; leave it out", [f"--{name.replace('_', '-')}" for name in MODELS[model].unused]),
            (model in WITHOUT_DROPOUT and not aux_weight,
             f"on {model} with --aux-weight 0, which has no dropout layer; leave it out", ["--dropout"])]


def warn_if_unfinished(checkpoint: dict, where: str) -> None:
    """Print a line on stderr if the training of a checkpoint stopped before its last epoch or, with --steps, step."""
    arguments = checkpoint.get("args") if isinstance(checkpoint.get("args"), dict) else {}
    unit, count = ("epochs", "epoch") if arguments.get("steps") is None else ("steps", "averaged")
    total, done = arguments.get(unit), checkpoint.get(count)
    if isinstance(total, int) and isinstance(done, int) and done < total:
        warn_once(f"the training of {where} stopped after {done} of {total} {unit}; resume it with --continue, or say "
                  "so beside the results")


def build_segmenter(spec: dict, pretrained: bool = False) -> "nn.Module":
    """Build the model that `spec` describes: its `name` in `MODELS`, and the arguments of its `build`.

    The entry `group_norms` lists the parts (backbone, head, auxiliary) that have GroupNorm instead of BatchNorm.
    """
    from models.layers import group_norms

    arguments = dict(spec)
    grouped = arguments.pop("group_norms", ())
    model = MODELS.load(spec["name"])(**arguments, pretrained=pretrained)
    for part in grouped:
        group_norms(getattr(model, part))
    return model


def stored_spec(spec: dict) -> dict:
    """`spec` in the form in which checkpoints store it: {"name", "classes", "arguments"}."""
    rest = {key: value for key, value in spec.items() if key not in ("name", "classes")}
    return {"name": spec["name"], "classes": spec["classes"], "arguments": rest}


def read_segmenter(path: str) -> dict:
    """Load the checkpoint of a segmentation model, with its `spec` under "model". Raises `UserError` for other files.

    Checkpoints of earlier versions, in which the arguments are not in a separate dict, are read too.
    """
    from utils.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    stored = checkpoint.get("model") or {}
    arguments = stored.get("arguments", {})
    spec = {**{key: value for key, value in stored.items() if key != "arguments"},
            **(arguments if isinstance(arguments, dict) else {})}
    if spec.get("name") not in MODELS or not isinstance(spec.get("classes"), int):
        raise UserError(f"{path} holds no segmentation model; train one with train_victim.py or train_shadow.py")
    return checkpoint | {"model": spec}


def load_segmenter(path: str) -> tuple["nn.Module", dict]:
    """Load the model of a checkpoint (in eval mode, on the CPU), and the checkpoint itself.

    Raises `UserError` if the file is no checkpoint of a segmentation model.
    """
    from utils.checkpoints import rebuild

    checkpoint = read_segmenter(path)
    model = rebuild(lambda: build_segmenter(checkpoint["model"]), checkpoint["state_dict"], path)
    return model.eval(), checkpoint


@cache
def feature_extractor(name: str) -> "nn.Module":
    """The extractor `name` of `FEATURES`, in eval mode.

    Images float32 (N, 3, 224, 224) in 0..1 -> maps of strides 4, 8, 16 and 32.
    """
    return FEATURES.load(name)().eval().requires_grad_(False)


def build_translator(spec: dict) -> "Translator":
    """Build the translator that `spec` describes: its `name` in `TRANSLATORS`, and the arguments of its class."""
    return TRANSLATORS.load(spec["name"])(**spec["arguments"])


def load_translator(path: str) -> "Translator":
    """Load the translator of a checkpoint (in eval mode, on the CPU). Raises `UserError` for any other file."""
    from utils.checkpoints import load_checkpoint, rebuild

    checkpoint = load_checkpoint(path)
    spec = checkpoint.get("model") or {}
    if spec.get("name") not in TRANSLATORS or not isinstance(spec.get("arguments"), dict):
        raise UserError(f"{path} holds no translator; train one with train_translator.py")
    warn_if_unfinished(checkpoint, path)
    return rebuild(lambda: build_translator(spec), checkpoint["state_dict"], path).eval()


@dataclass(frozen=True)
class LoadedAttacker:
    """An attacker for inference: model, input settings, number of classes (None: any), and path of the checkpoint.

    `class_names`: those of the shadows that it was trained on, if they are known. `arguments`: those of its training.
    The model is in eval mode, and each BatchNorm is merged into the convolution before it.
    """

    model: "nn.Module"
    spec: "InputSpec"
    classes: int | None
    path: str
    class_names: Sequence[str] | None = None
    arguments: dict | None = None


def load_attacker(path: str, arch: str = "resnet50", dilated: bool = False,
                  patch_size: int | None = None) -> LoadedAttacker:
    """Load the attacker of a checkpoint, on the CPU.

    A checkpoint of the release has only weights. Its input follows from the number of channels; `arch`, `dilated` and
    `patch_size` (default 90) must be given. Raises `UserError` for any other file, and if they are not those that the
    checkpoint stores. Warns of a last.pth.tar, whose training may be unfinished, and which has other weights than
    best.pth.tar.
    """
    from models.attacker import RELEASE_FLOOR, Attacker, InputSpec, build_attacker
    from utils.checkpoints import load_checkpoint, rebuild, require

    checkpoint = load_checkpoint(path)
    stored, state = checkpoint.get("model"), checkpoint["state_dict"]
    if stored is None:
        first = state.get("conv1.0.weight", state.get("module.conv1.0.weight"))
        if first is None or first.ndim != 4:
            raise UserError(f"{path} is no attacker: it has no conv1.0.weight; train one with train_attacker.py")
        channels = first.shape[1]
        kind, classes = ("loss", None) if channels == 1 else ("concate", channels // 2)
        model = rebuild(lambda: Attacker(arch, channels, dilated=dilated), state, path)
        spec = InputSpec(kind, patch_size or 90, RELEASE_FLOOR)
    elif stored["name"] != "attacker":
        raise UserError(f"{path} is no attacker but a {stored['name'][:40]}; attack it with --victim {path}")
    else:
        model = rebuild(lambda: build_attacker(**stored["arguments"]), state, path)
        spec, classes = InputSpec.from_checkpoint(checkpoint, path), require(stored, "classes", int, path)
        if patch_size not in (None, spec.size):
            raise UserError(f"{path} was trained on patches of {spec.size}; leave --patch-size out")
        if dilated or arch not in ("resnet50", stored["arguments"].get("arch")):
            raise UserError(f"{path} stores its architecture, unlike those of the release; leave -a and -dilation out")
    if "optimizer" in checkpoint:
        warn_if_unfinished(checkpoint, path)
    if "average" in checkpoint:
        warn_once(f"{path} has the weights of the last step; the attacker is their average, which is in best.pth.tar "
                  "once the training is finished")
    return LoadedAttacker(model.fold_norms(), spec, classes, str(path), checkpoint.get("classes"),
                          checkpoint.get("args"))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a segmentation model. The defaults are the small PSPNet of the demo."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=MODELS, default="pspnet", help=f"{MODELS.help()} (default: pspnet)")
    model.add_argument("--backbone", default="resnet10t", help="timm backbone, e.g. resnet18, resnet101s, xception71, "
                       "efficientnet_lite0, for hrnetv2 hrnet_w18_small (default: resnet10t)")
    model.add_argument("--output-stride", type=number(1, 32, int), default=8,
                       help="output stride of the backbone: 8, 16 or 32 (default: 8)")
    model.add_argument("--stages", type=number(1, 8, int), default=3,
                       help="number of stages of the backbone that are used (default: 3)")
    model.add_argument("--width", type=number(1, 8192, int), default=128,
                       help="number of channels of the head (default: 128; the paper has 512); unet: of its first "
                       "level; pranet, infnet: of their receptive field blocks (32 in their papers)")
    model.add_argument("--dropout", type=number(0, 0.99), default=0.1,
                       help="dropout ratio before the classifier (default: 0.1)")
    model.add_argument("--pretrained", action="store_true", help="start from ImageNet weights")
