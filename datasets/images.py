"""Read image and label files.

The format is determined by the content of a file, not by its name. The number of pixels is checked before decoding.
"""

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils import VOID
from utils.cli import UserError
from utils.untrusted import reading

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # Pillow reads more formats, but starts programs for some
PIXELS = 100_000_000  # largest number of pixels of an image
CHANGED = re.compile("L;[24]|[^I].*;16")  # raw modes of pixels that Pillow converts to another range
ALPHA = {"LA": 0, "PA": 0, "RGBA": slice(3)}  # mode with an alpha channel -> indices of its other channels

# An error must be a single line, so warnings and log messages of Pillow are not printed.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def open_image(path: str | Path, kind: str = "image") -> Iterator[Image.Image]:
    """Open an image file and check its header.

    Raises `UserError` if the file is not an image or has more than `PIXELS` pixels, and for any exception in the `with`
    block.
    """
    with reading(path, kind, missing="check the folder that was given, and the names in it"):
        try:
            image = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"it is broken, or its format is none of {', '.join(FORMATS)}") from None
        with image:
            if kind == "label":
                check_samples(image)
            if not 0 < image.width * image.height <= PIXELS:
                raise ValueError(f"it is {image.width} x {image.height}; at most {PIXELS:,} pixels are allowed")
            if image.format == "TIFF":
                with _silent_stderr():
                    image.load()
            yield image


BITS_PER_SAMPLE = 258  # tag of TIFF


def check_samples(image: Image.Image) -> None:
    """Raise `ValueError` if Pillow changes the values of an open label when it reads them.

    It multiplies grey values of 2 or 4 bits, and those of a PPM file, up to 255, and cuts channels of 16 bits to 8.
    """
    for tile in image.tile:
        raw = _raw_mode(tile)
        changed = tile.codec_name in ("ppm", "ppm_plain") and isinstance(tile.args, tuple) and tile.args[1] != 255
        if CHANGED.match(raw) or changed:
            raise ValueError(f"its values are not stored as 8 bits ({raw}), and reading would change them; save it as "
                             "PNG with 8 bits")


def _raw_mode(tile: object) -> str:
    """How a file stores the pixels of a tile of an open image, such as `RGB` or `RGB;16B`."""
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


_stderr_lock = threading.Lock()  # stderr belongs to all threads


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what C libraries write to stderr: libtiff prints its errors there."""
    with _stderr_lock, open(os.devnull, "wb") as devnull:
        stderr = os.dup(2)
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def load_image(path: str | Path) -> np.ndarray:
    """Read an image as uint8 RGB (H, W, 3).

    The image is rotated as its EXIF orientation says. If the file has several frames, the first is read. Transparency
    is ignored. A 16-bit value keeps its upper 8 bits. Raises `UserError` if the file is missing or broken, has
    floating-point pixels or too many pixels.
    """
    with open_image(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        image.info.pop("transparency", None)  # otherwise Pillow searches for the transparent colour
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers")
        if image.mode.startswith("I"):
            grey = np.asarray(image)
            if grey.min() < 0 or grey.max() > 0xFFFF:
                raise ValueError("its pixels have more than 16 bits")
            return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)  # as Pillow converts 16-bit RGB
        return np.asarray(image.convert("RGB"))


def is_lossy(image: Image.Image, path: str | Path) -> bool:
    """Whether the format of an open image changes pixel values: JPEG, TIFF with JPEG compression, lossy WebP."""
    if image.format == "WEBP":
        with open(path, "rb") as file:
            return b"VP8 " in file.read(4096)  # the chunk of a lossy frame; a lossless one is VP8L
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def describe_file(path: str | Path) -> tuple[str, int, bool]:
    """Format, mode and compression of an image file, for example `PNG RGB`, and the sum of its quantisation tables.

    The sum is 0 if the file is no JPEG. The higher it is, the lower the quality. Third, whether `load_image` keeps only
    the upper 8 of 16 bits.
    """
    with open_image(path) as image:
        tables, compression = getattr(image, "quantization", None) or {}, image.info.get("compression", "")
        kind = f"{image.format} {image.mode}{f', {compression}' if compression else ''}"
        deep = image.mode.startswith("I") or any(";16" in _raw_mode(tile) for tile in image.tile) or (
            image.format == "TIFF" and max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) == 16)
        return kind, sum(map(sum, tables.values())), deep


def check_turned(image: str | Path, label: str | Path) -> None:
    """Raise `UserError` if an EXIF tag turns only one of image and label, and the sizes fit in both positions.

    It is then unknown whether the label belongs to the stored or to the turned image. Otherwise the sizes tell.
    """
    with open_image(image) as first, open_image(label, "label") as second:
        tags = [_orientation(first), _orientation(second)]
        same_size = max(tags) <= 4 or first.width == first.height
    if tags[0] != tags[1] and same_size:
        turned, other = (image, label) if tags[0] != 1 else (label, image)
        raise UserError(f"{turned} is turned by its EXIF tag, but {other} has no such tag, so they may not belong "
                        "together; save both as they are to be seen, without the tag")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, 1 (not turned) to 8, from its header."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to search behind them
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def load_ids(path: str | Path) -> np.ndarray:
    """Read the stored values of a label: ids uint8 (H, W), or colours uint8 (H, W, 3).

    The ids of an image with a palette are its indices. The label is rotated as its EXIF orientation says, and its alpha
    channel is dropped. Raises `UserError` if the file is missing or broken, is compressed with losses, has other pixels
    than ids or RGB colours, or has an id outside 0..255.
    """
    with open_image(path, "label") as image:
        if is_lossy(image, path):
            raise ValueError("its format changes ids (lossy compression); save labels as PNG from the original ids")
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode not in ("1", "L", "P", "RGB", *ALPHA) and not image.mode.startswith("I"):
            raise ValueError(f"its pixels ({image.mode}) are neither ids nor RGB colours")
        raw = np.asarray(image)
        if image.mode in ALPHA:
            raw = raw[..., ALPHA[image.mode]]
        if wrong := [value for value in (int(raw.min()), int(raw.max())) if not 0 <= value <= VOID]:
            raise ValueError(f"it holds id {wrong[0]}; a label may have ids 0..254, and 255 for void")
        return raw.astype(np.uint8)
