"""Read what an image and its label say without any model: what identifies them, and what describes them."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from datasets import IMAGES, find_dataset
from datasets.images import check_turned, describe_file, load_ids, load_image
from datasets.pairs import check_sizes, decode_label
from utils import VOID
from utils.cli import UserError
from utils.distributed import gather, own_share, warn_once
from utils.log import progress

Files = tuple[Path, Path, str | None]  # image, label, and the name of the data set that decodes the label
FLAT = 4  # see `look_of`
_found: dict[tuple, "Inspection"] = {}


@dataclass(frozen=True)
class Inspection:
    """What the files of one image say. The image or the label may be missing; what depends on it is then None.

    In the place of a label there may be an image as ground truth, which has no `counts`, `boundary` and `values`.

    `image`, `label`: SHA-256 of the decoded pixels, 32 hex digits; the label as train ids. `look`: see `look_of`.
    `size`: (H, W). `counts`: number of pixels of each id that the label has, 255 = void. `boundary`: share of
    neighbouring pixels with different ids. `colour`: mean and standard deviation of the three channels (6,), 0..255.
    `kinds`: format, mode and compression of the two files. `quantisation`: sum of the quantisation tables of a JPEG
    image (the higher, the lower its quality), else 0. `bytes`: sizes of the two files. `values`: the ids in the label
    file, before they are decoded; none for colours. `peak`: the highest value, as it is read, of an image of 16 bits a
    channel; None for other images.
    """

    image: str | None
    label: str | None
    look: str | None
    size: tuple[int, int] | None
    counts: dict[int, int] | None
    boundary: float | None
    colour: np.ndarray | None
    kinds: tuple[str | None, str | None]
    quantisation: int
    bytes: tuple[int | None, int | None]
    values: tuple[int, ...] = ()
    peak: int | None = None

    @property
    def ids(self) -> list[int]:
        """The train ids of the label, without void."""
        return [number for number in self.counts or () if number != VOID]

    @property
    def pattern(self) -> str | None:
        """The hash of the label; None if it has a single id beside void, because many images share such a label."""
        return self.label if self.counts is None or len(self.ids) > 1 else None

    def without_label(self) -> "Inspection":
        """What the file of the image alone says."""
        return replace(self, label=None, size=self.size if self.image else None, counts=None, boundary=None,
                       kinds=(self.kinds[0], None), bytes=(self.bytes[0], None), values=())


def inspect(image: Path, label: Path, dataset: str | None) -> Inspection:
    """Inspect an image and its label (`dataset` None: it holds train ids). Files that have not changed are read once.

    Raises `UserError` if a file is broken, or if image and label have different sizes.
    """
    key = _key(image, label, dataset)
    if key not in _found:
        _found[key] = _read(*(path if os.path.isfile(path) else None for path in (image, label)), dataset)
    return _found[key]


def _key(image: Path, label: Path, dataset: str | None) -> tuple:
    """Paths, data set, and sizes and times of the two files."""
    states = [os.stat(path) if os.path.isfile(path) else None for path in (image, label)]
    return image, label, dataset, *((state.st_size, state.st_mtime_ns) if state else None for state in states)


def inspect_all(files: Sequence[Files], what: str = "comparing images") -> list[Inspection]:
    """Inspect many images in parallel; under torchrun, each process reads its share. `what`: title of the bar."""
    share = own_share(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = gather(list(progress(pool.map(lambda one: inspect(*one), share), what, len(share))))
    _found.update((_key(*one), result) for one, result in zip(files, found, strict=True))
    return found


def _read(image: Path | None, label: Path | None, dataset: str | None) -> Inspection:
    pixels = ids = look = colour = counts = boundary = None
    values: tuple[int, ...] = ()
    if image and label:
        check_turned(image, label)
    if image:
        pixels = load_image(image)
        look, colour = look_of(pixels), np.concatenate(cv2.meanStdDev(pixels)).ravel()
    if label and dataset == IMAGES:
        ids = load_image(label)
        colour = np.concatenate([*([colour] if image else []), *map(np.ravel, cv2.meanStdDev(ids))])
    elif label:
        raw, ids = _read_label(label, image, dataset)
        values = tuple(np.unique(raw).tolist()) if raw.ndim == 2 else ()
        counts = {number: int(count) for number, count in enumerate(np.bincount(ids.ravel())) if count}
        boundary = _boundary(ids)
    if image and label:
        check_sizes(pixels, ids, label)
    first = pixels if image else ids
    kinds = [describe_file(path) if path else (None, 0, False) for path in (image, label)]
    return Inspection(hash_array(pixels), hash_array(ids), look, None if first is None else first.shape[:2],
                      counts, boundary, colour, tuple(kind for kind, *_ in kinds), kinds[0][1],
                      tuple(path and path.stat().st_size for path in (image, label)), values,
                      int(pixels.max()) if kinds[0][2] else None)


def _read_label(label: Path, image: Path | None, dataset: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The values of a label, and its train ids. If it cannot be read, the error says whether the image could be one."""
    try:
        raw = load_ids(label)
        return raw, decode_label(raw, label, dataset)
    except UserError as error:
        if image and _is_label(image, dataset):
            raise UserError(f"{error}. {image} can be read as a label, so image and label may be exchanged (a "
                            "split file has the image first)") from None
        raise


def _is_label(path: Path, dataset: str | None) -> bool:
    """Whether a file can be read as a label of a data set."""
    try:
        decode_label(load_ids(path), path, dataset)
    except UserError:
        return False
    return True


def hash_array(array: np.ndarray | None) -> str | None:
    """SHA-256 of shape and content of an array, the first 32 hex digits."""
    if array is None:
        return None
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]


def look_of(pixels: np.ndarray) -> str | None:
    """Perceptual hash of an image uint8 (H, W, 3): the difference hashes of the image and of its mirror image, in hex.

    Each has 64 bits for 8 x 8 cells that are darker than the next on the right, and 64 for those that are darker than
    the next below. Few of them change if the image is resized or compressed. None if fewer than `FLAT` of 64 bits are
    set, or are not: images without contrast, such as black ones, look alike.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    wide, high = (cv2.resize(grey, size, interpolation=cv2.INTER_AREA) for size in ((9, 8), (8, 9)))
    bits = [darker for side in (slice(None), slice(None, None, -1))
            for darker in (wide[:, side][:, 1:] > wide[:, side][:, :-1], (high[1:] > high[:-1])[:, side])]
    flat = any(not FLAT <= part.sum() <= 64 - FLAT for part in bits[:2])
    return None if flat else np.packbits(bits).tobytes().hex()


def _boundary(ids: np.ndarray) -> float:
    """Share of the pairs of neighbouring pixels that have different ids; 0 for a single pixel."""
    different = (ids[1:] != ids[:-1]).sum() + (ids[:, 1:] != ids[:, :-1]).sum()
    return float(different / max(1, 2 * ids.size - sum(ids.shape)))


def check_labels(found: Sequence[Inspection], what: str, dataset: str | None) -> None:
    """Raise `UserError` if the labels of `what` are all void, have a single class, or have 255 with two meanings.

    Warns if half of the pixels are void.
    """
    check_meaning(found, what, dataset)
    counts: Counter[int] = Counter()
    for one in found:
        counts.update(one.counts or {})
    total, void = counts.total(), counts.pop(VOID, 0)
    check = ("check --dataset, which turns the ids in the files into classes" if dataset else
             "the labels of a tree hold train ids, and 255 for void")
    if total and not counts:
        raise UserError(f"every label of {what} is void everywhere, so nothing can be measured; {check}")
    if len(counts) == 1:
        advice = "" if dataset is None else "; masks of 0 and 255 need --dataset folder --classes 2"
        raise UserError(f"the labels of {what} have a single class, {next(iter(counts))}, and 255 is void, so every "
                        f"output is right{advice}")
    if 2 * void > total:
        warn_once(f"{100 * void / total:.0f} % of the label pixels of {what} are void; {check}")


def check_depth(found: Sequence[Inspection], what: str) -> None:
    """Print a warning if the images of 16 bits of `what` use only the lower 12, of which 4 or fewer are read.

    Raises `UserError` if all images have 16 bits, and each is read as black.
    """
    if not (deep := [one.peak for one in found if one.peak is not None]) or max(deep) >= 16:
        return
    message = (f"{len(deep)} of {len(found)} images of {what} have 16 bits a channel, and their highest value is below "
               f"{256 * (max(deep) + 1)}; the upper 8 bits are read, so they have at most {max(deep) + 1} "
               f"levels{' (they are black)' if not max(deep) else ''}; save them with 8 bits, or scaled to 0..65535")
    if len(deep) == len(found) and not max(deep):
        raise UserError(message)
    warn_once(message)


def check_meaning(found: Sequence[Inspection], what: str, dataset: str | None) -> None:
    """Raise `UserError` if 255 is a class in some masks of two classes, and may be void in others."""
    if dataset not in (None, IMAGES) and getattr(find_dataset(dataset), "reads_binary", False):
        ambiguous = [VOID in one.values and 1 not in one.values for one in found]
        if any(ambiguous) and any(1 in one.values for one in found):
            raise UserError(f"some masks of {what} hold 0 and 255, and others 1, so 255 may be class 1 or void; give "
                            "--label-map FILE with the lines `0 0`, `1 1` and `255 void` (or `255 1`)")
