"""The base class of predictors that get arrays of other people, whose values say what they are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from predictors.base import PredictorOptions, Query
from predictors.foreign import ForeignPredictor
from predictors.preprocess import TOLERANCE, Preprocess
from utils import VOID
from utils.cli import UserError
from utils.distributed import warn_once


class ArrayPredictor(ForeignPredictor):
    """A model that answers an image with an array of logits, of posteriors, or of labels.

    The answers are floats (C, h, w), or (h, w, C) with the layout "nhwc", or integers (h, w). If --preprocess has no
    "output", the values of the first answer decide whether all are logits or posteriors. A subclass defines `answer`,
    which returns a NumPy array, or `fetch` and `prepares = False` if the model gets no prepared image.
    """

    def __init__(self, where: str, options: PredictorOptions, preprocess: Preprocess | None = None):
        super().__init__(where, options, preprocess or Preprocess())
        self.guesses_output = "output" not in options.access.preprocess

    def size(self, query: Query) -> tuple[int, int]:
        """Height and width of an image."""
        return query.image.shape[:2]

    def fetch(self, query: Query, preprocess: Preprocess) -> np.ndarray:
        """The answer of the model for an image that `preprocess` prepared."""
        return self.answer(preprocess.prepare(query.image), query.key)

    def ask(self, query: Query, preprocess: Preprocess) -> torch.Tensor:
        raw = self.fetch(query, preprocess)
        if self._are_labels(raw):
            return torch.from_numpy(raw)
        return self._values(raw, query)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        return [self._checked(self._posterior(self.fetch(query, self.preprocess), query)) for query in queries]

    def _checked(self, posterior: torch.Tensor) -> torch.Tensor:
        """The same posterior. Raises `UserError` if it has not the classes of the data set."""
        if self.options.classes not in (None, len(posterior)):
            raise UserError(f"{self.where} has {len(posterior)} classes, and the data set has {self.options.classes}; "
                            'give the right --dataset, or --preprocess with the train id of each class as "classes"')
        return posterior

    def _posterior(self, raw: np.ndarray, query: Query) -> torch.Tensor:
        """The posterior (C, ceil(H/s), ceil(W/s)) of an answer."""
        if self._are_labels(raw):
            return self._of_labels(raw, self.size(query), self._about(query))
        values = self._values(raw, query)  # may set "output"
        return self.preprocess.posterior(values, self.size(query), self.stride)

    def _are_labels(self, raw: np.ndarray) -> bool:
        """Whether an answer has labels. A model with such answers has no logits that an input could change."""
        if raw.dtype.kind in "biu":
            self.prepares = False
        return raw.dtype.kind in "biu"

    def _about(self, query: Query) -> str:
        return f"{self.where}: the answer for {query.record.name}"

    def _values(self, raw: np.ndarray, query: Query) -> torch.Tensor:
        """Logits or posteriors float32 (C, h, w), or (h, w, C), of an answer. It may have a batch of one in front."""
        about = self._about(query)
        while raw.ndim > 3 and len(raw) == 1:
            raw = raw[0]
        raw = raw[None] if raw.ndim == 2 else raw
        count = raw.shape[0 if self.preprocess.layout == "nchw" else -1] if raw.ndim == 3 else 0
        if raw.dtype.kind != "f" or not 0 < count < VOID or 0 in raw.shape:
            raise UserError(f"{about} is {raw.dtype} {raw.shape}; it must be posteriors or logits (classes, height, "
                            f"width) of at most {VOID - 1} classes, or labels (height, width)")
        with np.errstate(over="ignore"):
            raw = torch.from_numpy(np.array(raw, np.float32))
        if not raw.isfinite().all():
            raise UserError(f"{about} holds NaN or infinite values, so it cannot be attacked")
        if self.guesses_output:
            self._guess_output(raw)
        return raw

    def _guess_output(self, raw: torch.Tensor) -> None:
        """Set "output" by the values of an answer: those within 0..1 are posteriors, all others logits."""
        self.guesses_output = False
        output = "posterior" if raw.min() >= -TOLERANCE and raw.max() <= 1 + TOLERANCE else "logits"
        self.preprocess = replace(self.preprocess, output=output)
        warn_once(f"{self.where}: its answers are read as {'posteriors' if output == 'posterior' else 'logits'}, "
                  f'because the first one has values from {raw.min():.3g} to {raw.max():.3g}; --preprocess with '
                  '"output" changes that')

    def _of_labels(self, labels: np.ndarray, size: tuple[int, int], about: str) -> torch.Tensor:
        """The one-hot posterior of labels (h, w), which are resized by the nearest position."""
        while labels.ndim > 2 and len(labels) == 1:
            labels = labels[0]
        classes = len(self.preprocess.classes or ()) or self.options.classes
        if labels.ndim != 2 or 0 in labels.shape:
            raise UserError(f"{about} is {labels.dtype} {labels.shape}; labels must be (height, width)")
        if not classes:
            raise UserError(f"{about} holds labels, whose number of classes is not known; give --dataset, or "
                            '--preprocess with "classes"')
        if (low := int(labels.min())) < 0 or (high := int(labels.max())) >= classes:
            raise UserError(f"{about} holds the label {low if low < 0 else high}, and there are {classes} classes; "
                            'give the train id of each label as "classes" of --preprocess')
        warn_once(f"{self.where} answers with labels, so its posteriors are one-hot: give -argmax, and for --attack "
                  "learned an attacker that was trained with it")
        rows, columns = (torch.arange(0, full, self.stride).mul(2).add(1).mul(own).div(2 * full, rounding_mode="floor")
                         for full, own in zip(size, labels.shape, strict=True))
        label = torch.from_numpy(labels.astype(np.int64))[rows[:, None], columns]
        one_hot = F.one_hot(label, classes).permute(2, 0, 1).float()
        return Preprocess(output="posterior", classes=self.preprocess.classes).posterior(one_hot, label.shape)
