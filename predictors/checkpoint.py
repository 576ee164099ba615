"""Models of this project in a checkpoint, and segmentation models in memory."""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import nn

from models import TRANSLATORS, load_segmenter, read_segmenter, warn_if_unfinished
from models.windows import Windowed
from predictors.base import Predictor, PredictorOptions, Query
from utils.checkpoints import load_checkpoint, require


class ModelPredictor(Predictor):
    """A segmentation model in memory, which is queried about complete images.

    On a CPU, or if the model draws random numbers, each image has a separate forward pass. Therefore an output does not
    depend on the other images. On a GPU, images of equal size share a forward pass.
    """

    takes_query_defenses = True

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

    @torch.inference_mode()
    def _posteriors(self, images: np.ndarray, seed: int | None) -> list[torch.Tensor]:
        """Posteriors (C, h, w) of images uint8 (N, H, W, 3). `seed`: seed of the random numbers of the model."""
        # The model may be loaded here; this must precede the seed, because building a model draws random numbers.
        compute, model = self.options.compute, self.model
        if seed is not None:
            torch.manual_seed(seed)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(compute.device)
        with compute.autocast():
            logits = model((pixels.float() / 255).contiguous(memory_format=torch.channels_last))
        return list(logits[:, :, :: self.stride, :: self.stride].float().softmax(dim=1).cpu())


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
        Predictor.__init__(self, where, options)
        checkpoint = read_segmenter(where)
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


def crop_of(checkpoint: dict, where: str) -> tuple[int, int]:
    """Height and width of the crops on which a model was trained. Raises `UserError` if the checkpoint has none."""
    height, width = require(require(checkpoint, "args", dict, where), "crop", list, where)
    return height, width
