"""Segmentation models of torchvision: `torchvision:NAME=FILE`, with the weights as a state_dict in FILE.

NAME is one of torchvision's builders, such as deeplabv3_resnet50. FILE is what `torch.save(model.state_dict(), FILE)`
writes, or .safetensors. The number of classes, and whether there is an auxiliary head, follow from the weights.
"""

import torch
import torchvision

from predictors.base import PredictorOptions
from predictors.foreign import ForeignModel
from predictors.preprocess import IMAGENET, Preprocess
from utils.checkpoints import read_weights, rebuild
from utils.cli import UserError

CLASSIFIERS = ("classifier.4.weight", "classifier.low_classifier.weight")  # of FCN and DeepLabV3, and of LR-ASPP


class TorchvisionPredictor(ForeignModel):
    """A model of torchvision, with its normalisation of ImageNet. Raises `UserError` if the weights do not fit NAME."""

    def __init__(self, where: str, options: PredictorOptions):
        name, equals, path = where.partition("=")
        names = torchvision.models.list_models(torchvision.models.segmentation)
        if not equals or not path or name not in names:
            raise UserError(f"torchvision:{where}: expected torchvision:NAME=FILE, with the weights in FILE, and as "
                            f"NAME one of {', '.join(names)}")
        state = read_weights(path)
        last = next((state[key] for key in CLASSIFIERS if key in state), None)
        if last is None or last.ndim != 4:
            raise UserError(f"{path} holds no weights of a segmentation model of torchvision: {CLASSIFIERS[0]} is "
                            "missing")
        arguments = {"num_classes": last.shape[0]}
        if not name.startswith("lraspp"):
            arguments["aux_loss"] = any(key.startswith("aux_classifier.") for key in state)
        model = rebuild(lambda: torchvision.models.get_model(name, weights=None, weights_backbone=None, **arguments),
                        state, path)
        super().__init__(where, options, Preprocess(**IMAGENET), model, last.shape[0])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs)["out"]
