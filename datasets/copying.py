"""Write a resized copy of a data set: images and labels, or pairs of images for image translation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets import IMAGES
from datasets.images import PIXELS, load_ids, load_image
from datasets.pairs import Pair, load_label
from utils import VOID
from utils.cli import UserError
from utils.files import atomic_open
from utils.log import progress

Load = Callable[[Path], np.ndarray]


def copy_pairs(pairs: Sequence[Pair], copy: Path, side: int, part: str, aspect: float | None = None) -> list[Pair]:
    """Write resized copies of images and labels below `copy`, and return the new pairs. What exists is not rewritten.

    The shorter side gets `side` pixels; `aspect`: width / height (default: that of the image). Images are resized by
    area averaging, labels by nearest neighbour. Raises `UserError` if a file that exists has other pixels.
    """
    out = []
    for pair in progress(pairs, f"resizing {part}"):
        image = str(Path(pair.image).with_suffix(".png"))
        for source, load, target, method in ((pair.image, load_image, image, cv2.INTER_AREA),
                                             (pair.label, load_ids, pair.label, cv2.INTER_NEAREST_EXACT)):
            array = load(pair.root / source)
            size = scaled(array.shape[:2], side, pair.root / source, aspect)
            write(copy / target, cv2.resize(array, size, interpolation=method), load, pair.root / source)
        out.append(pair._replace(image=image, group=image if pair.group == pair.image else pair.group, root=copy))
    return out


def scaled(shape: tuple[int, int], side: int, path: Path, aspect: float | None = None) -> tuple[int, int]:
    """Width and height after a resize to a shorter side of `side`. Raises `UserError` if they are too large."""
    height, width = (1, aspect) if aspect else shape
    factor = side / min(height, width)
    if height * width * factor**2 > PIXELS:
        raise UserError(f"{path} is {shape[1]} x {shape[0]}; --short-side {side} would give it more than {PIXELS:,} "
                        "pixels; lower it")
    return round(width * factor), round(height * factor)


def copy_translation(pairs: Sequence[Pair], dataset: str, copy: Path, side: int, part: str,
                     direction: str) -> list[Pair]:
    """Write pairs of images for image translation below `copy`, and return pairs (input, ground truth).

    `direction`: of `DIRECTIONS`, for example `label-to-image`. Labels become images with the colours of `palette`;
    where the data set has images in their place, they are kept. All are squashed to `side` x `side` pixels, as pix2pix
    does. Raises `UserError` if a file that exists has other pixels.
    """
    out = []
    for pair in progress(pairs, f"resizing {part}"):
        files = []
        for source, is_image in ((pair.image, True), (pair.label, dataset == IMAGES)):
            target = str(Path(source).with_suffix(".png"))
            if is_image:
                array = cv2.resize(load_image(pair.root / source), (side, side), interpolation=cv2.INTER_AREA)
            else:
                label = load_label(pair.root / source, dataset)
                array = palette()[cv2.resize(label, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)]
            write(copy / target, array, load_image, pair.root / source)
            files.append(target)
        named = dict(zip(("image", "label"), files, strict=True))
        one, other = (named[name] for name in direction.split("-to-"))
        group = one if pair.group == pair.image else pair.group
        out.append(pair._replace(image=one, label=other, group=group, root=copy))
    return out


def palette() -> np.ndarray:
    """A colour for each train id, uint8 (256, 3): void is black; others differ in the high bits of their channels."""
    ids, colours = (np.arange(256) + 1) % 256, np.zeros((256, 3), int)
    for bit in range(8):
        colours[:, bit % 3] |= (ids >> bit & 1) << (7 - bit // 3)
    colours[VOID] = 0
    return colours.astype(np.uint8)


def write(path: Path, array: np.ndarray, load: Load, source: Path) -> None:
    """Write an image as PNG. Raises `UserError` if there is a file with other pixels. `source`: for that message."""
    if not path.exists():
        with atomic_open(path) as file:
            Image.fromarray(array).save(file, "PNG")
    elif not np.array_equal(load(path), array):
        raise UserError(f"{path} is not {source} at this size: it was made from another file, or the file has changed "
                        "since; remove the folder of the copy, or give --copy another one")
