"""The base classes of predictors for models that were not trained here, and what their loaders share."""

import importlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from datasets.pairs import describe_folder
from predictors.base import Predictor, PredictorOptions, Query
from predictors.checkpoint import TYPICAL, gradient_norm
from predictors.preprocess import Preprocess
from utils.cli import UserError
from utils.device import Compute
from utils.files import read_json
from utils.precision import architecture, forward_step, settle
from utils.untrusted import reading

SMALLEST = 1e-30  # a smaller posterior is raised to it before the logarithm


class ForeignPredictor(Predictor):
    """A model that gets a prepared image and returns logits or a posterior. A subclass defines `answer`.

    `preprocess`: what the format says about the model; the entries of --preprocess replace it. Each image has a
    separate query, so that an output does not depend on the other images. `own_names`: the names that the files of the
    model give its channels; they are shown, and not compared with those of a data set, which may be spelled otherwise.
    `prepares`: whether `ask` can show the model differently prepared images, as the gate does.
    """

    takes = frozenset({"preprocess"})
    own_names: Sequence[str] | None = None
    prepares: bool = True

    def __init__(self, where: str, options: PredictorOptions, preprocess: Preprocess):
        super().__init__(where, options)
        self.preprocess = preprocess.changed(options.access.preprocess)

    @abstractmethod
    def answer(self, inputs: torch.Tensor, key: str) -> torch.Tensor:
        """The output (C, h, w), or (h, w, C) with the layout "nhwc", for the input of `Preprocess.prepare`.

        `key`: identifies the image, for defenses that draw random numbers.
        """

    def ask(self, query: Query, preprocess: Preprocess) -> torch.Tensor:
        """The output of the model as it is, for an image that `preprocess` prepared."""
        return self.answer(preprocess.prepare(query.image), query.key)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        found = []
        for query in queries:
            raw = self.ask(query, self.preprocess)
            found.append(self.preprocess.posterior(raw, query.image.shape[:2], self.stride).cpu())
        return found


class ForeignModel(ForeignPredictor):
    """A PyTorch model. A subclass may define `forward`, if the model does not return a tensor (N, C, h, w)."""

    takes_query_defenses = True
    has_weights = True
    computes = True

    def __init__(self, where: str, options: PredictorOptions, preprocess: Preprocess, model: nn.Module,
                 channels: int):
        """`channels`: number of channels of the output; one channel becomes two classes."""
        super().__init__(where, options, preprocess)
        self.model = model.eval().to(options.compute.device)
        self.options = options = replace(options, compute=self._settle(options.compute))
        self.model = options.defense.prepare(self.model)
        self.classes = self.preprocess.kept or max(channels, 2)

    def _settle(self, compute: Compute) -> Compute:
        """`compute` with the precision in which the model is queried, measured on one image of a typical size."""
        if not compute.measure:
            return compute
        inputs = self.preprocess.prepare(np.zeros((*TYPICAL, 3), np.uint8))[None]
        return settle(compute, f"queries of {type(self.model).__name__}", (architecture(self.model), inputs.shape),
                      lambda: forward_step(self.forward, inputs.to(compute.device)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The output (1, C, h, w) for the input (1, 3, H, W)."""
        return self.model(inputs)

    def gradient_norm(self, query: Query, truth: torch.Tensor) -> float:
        raw = self._forward(self.preprocess.prepare(query.image), query.key)
        posterior = self.preprocess.posterior(raw, query.image.shape[:2], self.stride)
        return gradient_norm(self.model, posterior.clamp_min(SMALLEST).log()[None], truth)

    @torch.inference_mode()
    def answer(self, inputs: torch.Tensor, key: str) -> torch.Tensor:
        return self._forward(inputs, key)

    def _forward(self, inputs: torch.Tensor, key: str) -> torch.Tensor:
        seed = self.options.defense.query_seed(key)
        if seed is not None:
            torch.manual_seed(seed)
        with self.options.compute.autocast():
            return self.forward(inputs[None].to(self.options.compute.device))[0].float()


def optional(package: str, kind: str) -> ModuleType:
    """Import an optional package. `kind`: the kind of predictor that needs it. Raises `UserError` without it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{kind}: needs the package {package}; install it with `pip install -r "
                        "requirements-audit.txt`") from None


def read_folder(where: str, kind: str, name: str = "config.json") -> dict:
    """The JSON object in WHERE/`name`. Raises `UserError` if it is missing or holds something else.

    `kind`: what the folder should be, such as "Hugging Face".
    """
    folder = Path(where)
    if not (folder / name).is_file():
        raise UserError(f"{where} is no folder of a {kind} model: it must hold {name}, but {describe_folder(folder)}")
    content = read_json(folder / name)
    if not isinstance(content, dict):
        raise UserError(f"{folder / name} must hold one JSON object")
    return content


def find_weights(where: str) -> Path:
    """The safetensors weights of a folder, or their index. Raises `UserError` without them, as for pickles."""
    folder = Path(where)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
    reason = f"; {pickles[0]} can hold code and is not opened; convert it to safetensors" if pickles else ""
    raise UserError(f"{where} holds no model.safetensors{reason}")


@contextmanager
def loading(path: Path, kind: str) -> Iterator[None]:
    """Load a model without the network. Every exception becomes a `UserError` of one line about `path`.

    `kind`: what the file should be, for the message.
    """
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        with reading(path, kind):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
