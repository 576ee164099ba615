"""Models of segmentation-models-pytorch: `smp:DIR`, the folder that `model.save_pretrained(DIR)` writes.

config.json says which model it is, and model.safetensors has the weights. No weights of ImageNet are downloaded.
"""

import inspect
import re
from pathlib import Path

import timm
import torch

from predictors.base import PredictorOptions
from predictors.foreign import ForeignModel, find_weights, loading, optional, read_folder
from predictors.preprocess import IMAGENET, Preprocess
from utils.checkpoints import read_weights, rebuild
from utils.cli import UserError

MULTIPLE = 32  # output stride of the encoders
# An activation in config.json -> what the model returns. A softmax of a log-softmax is the softmax.
OUTPUTS = {"None": "logits", "identity": "logits", "logsoftmax": "logits", "softmax": "posterior",
           "softmax2d": "posterior", "sigmoid": "posterior"}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
DPN = {"mean": (124 / 255, 117 / 255, 104 / 255), "std": (1 / (0.0167 * 255),) * 3}
OTHERS = {"inception": HALF, "xception": HALF, "dpn": DPN, "timm-tf_efficientnet_lite": HALF}  # start of an encoder


class SmpPredictor(ForeignModel):
    """A model of segmentation-models-pytorch. Raises `UserError` if the folder holds none, or its files do not fit.

    The normalisation is that of the encoder's weights of ImageNet, and images are padded to multiples of `MULTIPLE`.
    """

    def __init__(self, where: str, options: PredictorOptions):
        smp = optional("segmentation_models_pytorch", "smp")
        config, weights, path = read_folder(where, "segmentation-models-pytorch"), find_weights(where), Path(where)
        names = {model.__name__: model for model in smp.MODEL_ARCHITECTURES_MAPPING.values()}
        build = names.get(str(config.get("_model_class")))
        if not build:
            raise UserError(f"{path / 'config.json'} names no model of segmentation-models-pytorch in _model_class; it "
                            f"has {', '.join(names)}")
        arguments = _arguments(config, build, path / "config.json")
        with loading(weights, "file of weights"):
            model = rebuild(lambda: build(**arguments), read_weights(weights), weights)
        output = OUTPUTS[str(arguments.get("activation"))]
        encoder = str(arguments.get("encoder_name", "resnet34"))
        normalisation = encoder_normalisation(encoder, config.get("encoder_weights"))
        super().__init__(where, options, Preprocess(multiple=MULTIPLE, output=output, **normalisation), model,
                         model.segmentation_head[0].out_channels)
        read = arguments.get("in_channels", 3)
        if read != len(self.preprocess.channels):
            raise UserError(f"{where} reads {read} channels, and {len(self.preprocess.channels)} are given; give "
                            f'--preprocess FILE with "channels", "mean" and "std" of {read} entries')

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = self.model(inputs)
        return output[0] if isinstance(output, tuple) else output  # the second is the head that classifies images


def _arguments(config: dict, build: type, path: Path) -> dict:
    """The arguments of the model. Raises `UserError` for one that it does not know, or that could read other files."""
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    if unknown := [key for key in arguments if key not in inspect.signature(build.__init__).parameters]:
        raise UserError(f"{path}: {build.__name__} has no argument {unknown[0][:40]!r}")
    encoder = str(arguments.get("encoder_name", "resnet34"))
    if not re.fullmatch(r"[\w.-]+", encoder):  # timm would look for others in the network or in other folders
        raise UserError(f"{path}: encoder_name {encoder[:40]!r} is no name of an encoder")
    if (activation := str(arguments.get("activation"))) not in OUTPUTS:
        raise UserError(f"{path}: the activation {activation[:40]!r} gives no posterior; remove it, and the model "
                        "returns logits")
    return arguments | {"encoder_weights": None}


def encoder_normalisation(encoder: str, weights: object) -> dict:
    """The mean and std with which the weights of ImageNet of an encoder were trained."""
    if encoder.startswith("tu-") and timm.is_model(encoder[3:]):
        known = timm.get_pretrained_cfg(encoder[3:])
        return {"mean": tuple(known.mean), "std": tuple(known.std)}
    if weights == "advprop":
        return HALF
    return next((found for start, found in OTHERS.items() if encoder.startswith(start)), IMAGENET)
