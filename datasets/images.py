"""Images and label files, opened in one way: formats known by their content, sizes bounded before decoding."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import VOID
from utils.untrusted import reading

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # Pillow knows more; some start another program
PIXELS = 100_000_000
ALPHA = {"LA": 0, "PA": 0, "RGBA": slice(3)}  # mode -> what is left of its channels without it

# A file is read or refused; what Pillow has to say in between would be a line beside ours.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """Open an image file by its header. Raises `UserError` for what is none, is too large or fails in the block."""
    with reading(path, what, missing="is --root right?"):
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"it is broken, or none of {', '.join(FORMATS)}") from None
        with image:
            if not 0 < image.width * image.height <= PIXELS:
                raise ValueError(f"it is {image.width} x {image.height}; it may have {PIXELS:,} pixels")
            if image.format == "TIFF":
                with _silence():
                    image.load()
            yield image


@contextmanager
def _silence() -> Iterator[None]:
    """Let nothing reach the screen as an error: libtiff writes there itself."""
    screen = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def load_image(path: str | Path) -> np.ndarray:
    """Read an image as uint8 RGB (H, W, 3), turned upright as its EXIF says; of several frames the first.

    Transparency is dropped; of 16 bits the upper eight are kept. Raises `UserError` when it is missing, broken, of
    floating-point numbers or of too many pixels.
    """
    with opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        image.info.pop("transparency", None)  # else Pillow looks for a colour that stands for it
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        if image.mode.startswith("I"):
            grey = np.asarray(image)
            if grey.min() < 0 or grey.max() > 0xFFFF:
                raise ValueError("its pixels have more than 16 bits")
            return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)  # as Pillow reads colours of 16 bits
        return np.asarray(image.convert("RGB"))


def load_ids(path: str | Path) -> np.ndarray:
    """Read a label as it is stored: ids uint8 (H, W), of a palette the indices, or colours uint8 (H, W, 3).

    Turned upright as its EXIF says, without its alpha. Raises `UserError` when the file is missing, broken or neither
    of the two, or holds an id outside 0..255.
    """
    with opened(path, "label") as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode not in ("1", "L", "P", "RGB", *ALPHA) and not image.mode.startswith("I"):
            raise ValueError(f"its pixels ({image.mode}) are neither ids nor RGB colours")
        raw = np.asarray(image)
        if image.mode in ALPHA:
            raw = raw[..., ALPHA[image.mode]]
        if wrong := [value for value in (int(raw.min()), int(raw.max())) if not 0 <= value <= VOID]:
            raise ValueError(f"it holds id {wrong[0]}; a label has ids 0..254 and 255 = void")
        return raw.astype(np.uint8)
