"""What happens to an image before a model gets it, and to the output before it is a posterior.

A model of another library has its own normalisation, size and classes. `Preprocess` says which. Each loader of
`predictors/` guesses it from the format, and a JSON file, `--preprocess FILE`, changes single entries:

    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": [512, 1024], "classes": [0, 1, 1, 255]}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from defenses.gauss import normalise_or_uniform
from predictors.classes import merge_channels
from utils import VOID
from utils.cli import UserError
from utils.files import read_json

COLOURS = "rgb"
LARGEST = 2**14  # pixels of a side of the input
TOLERANCE = 1e-2  # by which a posterior may leave 0..1: rounding to bf16 changes it by under 0.004
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _is_number(value: object, low: float = -1e6, kind: type | tuple = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= 1e6


def _is_side(value: object) -> bool:
    return _is_number(value, 1, int) and value <= LARGEST


def _are(test: Callable[[object], bool], count: int | None = None) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and (len(value) == count if count else len(value) > 0) and all(
        map(test, value))


# Entry -> whether a value is allowed, and what it must be.
ALLOWED: dict[str, tuple[Callable[[object], bool], str]] = {
    "channels": (lambda value: isinstance(value, str) and 0 < len(value) <= 64 and set(value) <= set(COLOURS),
                 'the letters r, g and b in the order of the channels, such as "bgr"'),
    "scale": (lambda value: _is_number(value, 1e-6), "a positive number: 1 for inputs in 0..1, 255 for 0..255"),
    "mean": (lambda value: value is None or _are(_is_number)(value), "a list with one number per channel"),
    "std": (lambda value: value is None or _are(lambda one: _is_number(one, 1e-6))(value),
            "a list with one positive number per channel"),
    "size": (lambda value: value is None or _is_side(value) or _are(_is_side, 2)(value),
             "[HEIGHT, WIDTH], the length of the short side, or null for the size of the image"),
    "longest": (lambda value: value is None or _is_side(value), "the largest length of the long side, or null"),
    "multiple": (lambda value: _is_side(value), "a whole number, such as 32"),
    "layout": (lambda value: value in ("nchw", "nhwc"), '"nchw" or "nhwc"'),
    "output": (lambda value: value in ("logits", "posterior", "sigmoid"), '"logits", "posterior" or "sigmoid"'),
    "classes": (lambda value: value is None or _are(lambda one: _is_number(one, 0, int) and one <= VOID)(value),
                f"a list with one train id per channel of the output, {VOID} for a channel that is left out"),
}


@dataclass(frozen=True)
class Preprocess:
    """Input and output of a model.

    `channels`: the colour of each input channel, "rgb", "bgr", or more letters for more channels. `scale`: the value of
    a full pixel, 1 or 255. `mean`, `std`: per input channel, after `scale` (None: 0 and 1). `size`: height and width to
    which an image is resized, or its short side (None: its own size). `longest`: with a short side, the length that the
    long side may have (None: any). `multiple`: the sides are then padded to a multiple of this. `layout`: of input and
    output, "nchw" or "nhwc". `output`: "logits", "posterior", or "sigmoid", which are logits of independent classes.
    `classes`: the train id of each channel of the output (None: its index); channels of one train id are added, and
    channels with 255 are left out.

    Raises `UserError` for any other value.
    """

    channels: str = "rgb"
    scale: float = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | int | None = None
    longest: int | None = None
    multiple: int = 1
    layout: str = "nchw"
    output: str = "logits"
    classes: tuple[int, ...] | None = None

    def __post_init__(self):
        for name in ALLOWED:
            _check(name, getattr(self, name))
        for name in ("mean", "std"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.channels):
                raise UserError(f'"{name}" of the preprocessing has {len(getattr(self, name))} numbers for the '
                                f'{len(self.channels)} channels "{self.channels}"; give one per channel')
        if self.longest and not isinstance(self.size, int):
            raise UserError('"longest" of the preprocessing needs "size" with the length of the short side')
        kept = set(self.classes or ()) - {VOID}
        if self.classes and kept != set(range(max(len(kept), 2))):
            raise UserError(f'"classes" of the preprocessing must use each train id from 0 to the largest, and two or '
                            f"more; found {', '.join(map(str, sorted(kept))) or 'none'}. If the model has no channel "
                            "for a class, make that class void in the labels")

    def changed(self, changes: Mapping[str, object]) -> "Preprocess":
        """The preprocessing with the entries of `changes`."""
        return replace(self, **changes)

    @property
    def kept(self) -> int | None:
        """The number of train ids that `classes` names. None without `classes`."""
        return len(set(self.classes) - {VOID}) if self.classes else None

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """Image uint8 (H, W, 3) -> input float32 (C, h, w), or (h, w, C) with the layout "nhwc".

        A smaller size averages over the pixels (bilinear with antialiasing). Padding is right and below, and 0 after
        the normalisation.
        """
        order = [COLOURS.index(colour) for colour in self.channels]
        pixels = torch.from_numpy(np.ascontiguousarray(image[..., order].transpose(2, 0, 1))).float()
        pixels = _resize(pixels, self.resized(image.shape[:2]), antialias=True)
        pixels = pixels * self.scale / 255
        if self.mean:
            pixels = pixels - torch.tensor(self.mean)[:, None, None]
        if self.std:
            pixels = pixels / torch.tensor(self.std)[:, None, None]
        height, width = self.input_size(image.shape[:2])
        pixels = F.pad(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))
        return pixels if self.layout == "nchw" else pixels.permute(1, 2, 0).contiguous()

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width to which an image of `size` (H, W) is resized, without padding."""
        if not isinstance(self.size, int):
            return self.size or tuple(size)
        factor = self.size / min(size)
        if self.longest:
            factor = min(factor, self.longest / max(size))
        return tuple(max(1, round(factor * side)) for side in size)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the input for an image of `size` (H, W), with padding."""
        return tuple(-(-side // self.multiple) * self.multiple for side in self.resized(size))

    def posterior(self, raw: torch.Tensor, size: tuple[int, int], stride: int = 1) -> torch.Tensor:
        """The posterior float32 (K, ceil(H/s), ceil(W/s)) of an output for an image of `size` (H, W).

        `raw`: (C, h, w), or (h, w, C) with the layout "nhwc", of any h and w: it is resized bilinearly, as it is and
        before any softmax, its padding is cut off, and position (i, j) of the result belongs to pixel (i s, j s) of the
        image. One channel p becomes two classes, 1 - p and p. Raises `UserError` for another shape, another number of
        channels than `classes` has, a posterior with values outside 0..1, and for logits that are posteriors.
        """
        if raw.ndim != 3 or 0 in raw.shape:
            raise UserError(f"the output of the model has the shape {tuple(raw.shape)}; it must be (classes, height, "
                            "width) for one image")
        raw = (raw if self.layout == "nchw" else raw.permute(2, 0, 1)).float()
        self.check_kind(raw.detach())
        resized, covered = self.resized(size), self.input_size(size)
        if covered != resized:
            raw = _resize(raw, covered)[:, : resized[0], : resized[1]]
        found = self.probabilities(_resize(raw, size)[:, ::stride, ::stride])
        if not self.classes:
            return found
        if len(self.classes) != len(found):
            raise UserError(f'"classes" of the preprocessing has {len(self.classes)} entries, and the model gives '
                            f"{len(found)} classes; give one entry per class")
        return merge_channels(found, self.classes, self.kept)

    def probabilities(self, raw: torch.Tensor) -> torch.Tensor:
        """Values (C, h, w) of the kind `output` -> posterior (C, h, w); one channel becomes two classes."""
        if self.output == "posterior":
            raw = raw.clamp(0, 1)
            return normalise_or_uniform(raw if len(raw) > 1 else torch.cat([1 - raw, raw]))
        if len(raw) == 1:
            return torch.cat([-raw, raw]).sigmoid()
        return raw.softmax(dim=0) if self.output == "logits" else normalise_or_uniform(raw.sigmoid())

    def check_kind(self, raw: torch.Tensor) -> None:
        """Raise `UserError` if the values (C, h, w) of an output contradict `output`."""
        low, high = float(raw.min()), float(raw.max())
        if self.output == "posterior" and (low < -TOLERANCE or high > 1 + TOLERANCE):
            raise UserError(f"the output of the model has values from {low:.3g} to {high:.3g}, so it is no posterior: "
                            'the softmax is missing; give --preprocess FILE with {"output": "logits"}')
        if self.output != "posterior" and are_posteriors(raw):
            raise UserError("the output of the model has values in 0..1 that sum to 1 over the classes, so it is a "
                            "posterior, and the softmax would be applied twice; give --preprocess FILE with "
                            '{"output": "posterior"}')


def are_posteriors(values: torch.Tensor) -> bool:
    """Whether values (C, h, w) of two channels or more lie in 0..1 and sum to 1 everywhere."""
    return bool(len(values) > 1 and values.min() >= -TOLERANCE and values.max() <= 1 + TOLERANCE
                and ((values.sum(dim=0) - 1).abs() < TOLERANCE).all())


def _resize(maps: torch.Tensor, size: tuple[int, int], antialias: bool = False) -> torch.Tensor:
    """Maps (C, h, w) -> (C, H, W), bilinear; unchanged if they have this size."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False, antialias=antialias)[0]


def read_changes(path: str | Path) -> dict[str, object]:
    """The entries of a JSON file, for `Preprocess.changed`. Raises `UserError` for unknown names and wrong values."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object, such as {{\"channels\": \"bgr\"}}")
    if unknown := [name for name in content if name not in ALLOWED]:
        raise UserError(f"{path}: there is no entry {unknown[0][:40]!r}; there are {', '.join(ALLOWED)}")
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    for name, value in changes.items():
        _check(name, value, f"{path}: ")
    return changes


def _check(name: str, value: object, where: str = "") -> None:
    allowed, form = ALLOWED[name]
    if not allowed(value):
        raise UserError(f'{where}"{name}" of the preprocessing must be {form}')
