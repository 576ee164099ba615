"""Models of this project in a checkpoint, and segmentation models in memory."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import TRANSLATORS, load_segmenter, read_segmenter, warn_if_unfinished
from models.windows import Windowed
from predictors.base import BATCH, Predictor, PredictorOptions, Query
from utils import VOID
from utils.checkpoints import load_checkpoint, require
from utils.device import Compute
from utils.precision import forward_step, random_images, settle

TYPICAL = (256, 512)  # height and width of the images of a model whose checkpoint does not say how it was trained
LARGEST = 4096  # height and width of the images of a measurement


def gradient_norm(model: nn.Module, log_posterior: torch.Tensor, truth: torch.Tensor) -> float:
    """The norm of `Predictor.gradient_norm` for the log-posterior (1, C, h, w) of a model."""
    loss = F.nll_loss(log_posterior, truth[None].to(log_posterior.device, torch.long), ignore_index=VOID)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return math.sqrt(sum(float(one.double().square().sum()) for one in gradients if one is not None))


class ModelPredictor(Predictor):
    """A segmentation model in memory, which is queried about complete images.

    On a CPU, or if the model draws random numbers, each image has a separate forward pass. Therefore an output does not
    depend on the other images. On a GPU, images of equal size share a forward pass.
    """

    takes_query_defenses = True
    has_weights = True
    computes = True

    def __init__(self, model: nn.Module, classes: int, options: PredictorOptions):
        super().__init__("a model in memory", options)
        self.classes, self.model = classes, options.defense.prepare(model)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        outputs = []
        for _, run in groupby(queries, key=lambda query: query.image.shape):
            run = list(run)
            seeds = [self.options.defense.query_seed(query.key) for query in run]
            together = len(run) if self.options.compute.device.type == "cuda" and seeds == [None] * len(run) else 1
            for start in range(0, len(run), together):
                images = np.stack([query.image for query in run[start : start + together]])
                outputs += self._posteriors(images, seeds[start])
        return outputs

    def gradient_norm(self, query: Query, truth: torch.Tensor) -> float:
        logits = self._logits(query.image[None], self.options.defense.query_seed(query.key))
        return gradient_norm(self.model, logits.log_softmax(dim=1), truth)

    def _posteriors(self, images: np.ndarray, seed: int | None) -> list[torch.Tensor]:
        """Posteriors (C, h, w) of images uint8 (N, H, W, 3). `seed`: seed of the random numbers of the model."""
        _ = self.model  # weights that are loaded in inference mode would have no gradient
        with torch.inference_mode():
            return list(self._logits(images, seed).softmax(dim=1).cpu())

    def _logits(self, images: np.ndarray, seed: int | None) -> torch.Tensor:
        """Logits float32 (N, C, h, w) on the device of the model."""
        # The model may be loaded here; this must precede the seed, because building a model draws random numbers.
        compute, model = self.options.compute, self.model
        if seed is not None:
            torch.manual_seed(seed)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(compute.device)
        with compute.autocast():
            logits = model((pixels.float() / 255).contiguous(memory_format=torch.channels_last))
        return logits[:, :, :: self.stride, :: self.stride].float()


def open_checkpoint(where: str, options: PredictorOptions) -> Predictor:
    """The segmentation model or the translator in a checkpoint. Raises `UserError` if the file holds neither."""
    stored = load_checkpoint(where).get("model") or {}
    if stored.get("name") in TRANSLATORS:
        from predictors.translator import CheckpointTranslator

        return CheckpointTranslator(where, options)
    return CheckpointPredictor(where, options)


class CheckpointPredictor(ModelPredictor):
    """The model in a checkpoint, loaded at the first query. Raises `UserError` if the file is no segmentation model."""

    takes_windows = True

    def __init__(self, where: str, options: PredictorOptions):
        checkpoint = read_segmenter(where)
        Predictor.__init__(self, where, replace(options, compute=settle_query(options.compute, checkpoint, where)))
        self.classes, self.dataset = checkpoint["model"]["classes"], checkpoint.get("dataset")
        self.class_names = checkpoint.get("classes")
        self.window = crop_of(checkpoint, where) if options.windows is True else options.windows
        warn_if_unfinished(checkpoint, where)

    @cached_property
    def model(self) -> nn.Module:
        model, _ = load_segmenter(self.where)
        if self.window:
            model = Windowed(model, self.window)
        return self.options.defense.prepare(model.to(self.options.compute.device))


def settle_query(compute: Compute, checkpoint: dict, where: str) -> Compute:
    """`compute` with the precision in which the model of a checkpoint is queried: about images like its crops.

    The choice does not depend on the images that follow, so all outputs of a model have one precision.
    """
    match checkpoint.get("args"):
        case {"crop": [int(height), int(width)]} if 0 < height <= LARGEST and 0 < width <= LARGEST:
            size = height, width
        case _:
            size = TYPICAL
    shape = (BATCH if compute.device.type == "cuda" else 1, 3, *size)
    return settle(compute, f"queries of {checkpoint['model']['name']}", (checkpoint["model"], shape),
                  lambda: forward_step(load_segmenter(where)[0].to(compute.device),
                                       random_images(shape, compute.device)))


def crop_of(checkpoint: dict, where: str) -> tuple[int, int]:
    """Height and width of the crops on which a model was trained. Raises `UserError` if the checkpoint has none."""
    height, width = require(require(checkpoint, "args", dict, where), "crop", list, where)
    return height, width
