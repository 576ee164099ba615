"""Translators of this project, in memory or in a checkpoint: their output for an image is an image."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from datasets import IMAGES
from models import load_translator
from models.translation.base import Translator
from predictors.base import Predictor, PredictorOptions, Query
from utils.checkpoints import load_checkpoint
from utils.cli import UserError
from utils.device import Compute
from utils.precision import Step, forward_step, random_images, settle


class ModelTranslator(Predictor):
    """A translator in memory: outputs float32 (3, H, W) in 0..1, of the size of the input.

    Each image has a separate forward pass, because BatchNorm takes its statistics from the batch.
    """

    kind = "image"
    dataset = IMAGES
    computes = True

    def __init__(self, model: Translator, options: PredictorOptions):
        super().__init__("a translator in memory", replace(options, stride=1))
        self.model = model

    @torch.inference_mode()
    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        compute, model, outputs = self.options.compute, self.model.eval(), []
        for query in queries:
            height, width = query.image.shape[:2]
            if height % model.multiple or width % model.multiple:
                raise UserError(f"{query.record.image} is {width} x {height}; the sides of the images of {self.where} "
                                f"must be multiples of {model.multiple}")
            pixels = torch.from_numpy(np.ascontiguousarray(query.image.transpose(2, 0, 1)))[None].to(compute.device)
            with compute.autocast():
                output = model((pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last))
            outputs.append(output[0].float().add(1).div(2).clamp(0, 1).cpu().contiguous())
        return outputs


class CheckpointTranslator(ModelTranslator):
    """The translator in a checkpoint, loaded at the first query."""

    def __init__(self, where: str, options: PredictorOptions):
        Predictor.__init__(self, where, replace(options, stride=1))
        if options.compute.measure:
            self.options = replace(self.options, compute=self._settle(options.compute))

    def _settle(self, compute: Compute) -> Compute:
        """`compute` with the precision in which the translator is queried."""
        spec = load_checkpoint(self.where)["model"]

        def make_step() -> Step:
            size = spec["arguments"]["size"]
            return forward_step(self.model, random_images((1, 3, size, size), compute.device))

        return settle(compute, f"queries of {spec['name']}", spec, make_step)

    @cached_property
    def model(self) -> Translator:
        return load_translator(self.where).to(self.options.compute.device, memory_format=torch.channels_last)
