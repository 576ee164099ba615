"""The base classes of predictors for models that were not trained here."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from predictors.base import Predictor, PredictorOptions, Query
from predictors.preprocess import Preprocess


class ForeignPredictor(Predictor):
    """A model that gets a prepared image and returns logits or a posterior. A subclass defines `answer`.

    `preprocess`: what the format says about the model; the entries of --preprocess replace it. Each image has a
    separate query, so that an output does not depend on the other images.
    """

    takes = frozenset({"preprocess"})

    def __init__(self, where: str, options: PredictorOptions, preprocess: Preprocess):
        super().__init__(where, options)
        self.preprocess = preprocess.changed(options.access.preprocess)

    @abstractmethod
    def answer(self, inputs: torch.Tensor, key: str) -> torch.Tensor:
        """The output (C, h, w), or (h, w, C) with the layout "nhwc", for the input of `Preprocess.prepare`.

        `key`: identifies the image, for defenses that draw random numbers.
        """

    def ask(self, query: Query) -> torch.Tensor:
        """The output of the model as it is, for `Preprocess.posterior`."""
        return self.answer(self.preprocess.prepare(query.image), query.record.id)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        return [self.preprocess.posterior(self.ask(query), query.image.shape[:2], self.stride).cpu()
                for query in queries]


class ForeignModel(ForeignPredictor):
    """A PyTorch model. A subclass may define `logits`, if the model does not return a tensor (N, C, h, w)."""

    takes_query_defenses = True

    def __init__(self, where: str, options: PredictorOptions, preprocess: Preprocess, model: nn.Module,
                 channels: int):
        """`channels`: number of channels of the output; one channel becomes two classes."""
        super().__init__(where, options, preprocess)
        self.model = options.defense.prepare(model.eval().to(options.compute.device))
        self.classes = self.preprocess.kept or max(channels, 2)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """The output (1, C, h, w) for the input (1, 3, H, W)."""
        return self.model(inputs)

    @torch.inference_mode()
    def answer(self, inputs: torch.Tensor, key: str) -> torch.Tensor:
        seed = self.options.defense.query_seed(key)
        if seed is not None:
            torch.manual_seed(seed)
        with self.options.compute.autocast():
            return self.logits(inputs[None].to(self.options.compute.device))[0].float()
