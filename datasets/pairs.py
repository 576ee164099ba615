"""Split files and the pairs of image and label that they name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np

from datasets.images import load_ids, load_image
from utils import VOID
from utils.cli import UserError
from utils.files import atomic_open
from utils.randomness import stream
from utils.untrusted import reading

TEXT = 64 * 2**20  # bytes of a split file
LONGEST = 4000  # characters of a path


@dataclass(frozen=True)
class Pair:
    """One line of a split file: `image` and `label` as written there, and the block they belong to."""

    image: str
    label: str
    group: str
    root: Path = Path()

    @property
    def name(self) -> str:
        """What the image is called in results: its path in the split file, without suffix."""
        return PurePosixPath(self.image).with_suffix("").as_posix().lstrip("/")

    @property
    def key(self) -> str:
        """What the image's random streams are derived from: its file name, wherever it lies."""
        return Path(self.image).stem


def read_split(path: str | Path, root: str | Path = ".", strip_prefix: str = "",
               must_exist: bool = True) -> list[Pair]:
    """Read lines `image label [group]`, `#` starting a comment, paths relative to `root`.

    A folder is read as the split files in it, one after the other. `strip_prefix` is cut from the front of both paths,
    and a leading slash is ignored, so that the lists of the release read as they are. Without a third column each
    image is a group of its own. Raises `UserError` for a missing or empty file, a line of another form, a path that
    leaves `root`, two images of one name, and, unless `must_exist` is false, an image or label that is not there.
    """
    root = Path(root)
    pairs = [pair for file in split_files(path) for pair in _read_file(file, root, strip_prefix)]
    if not pairs:
        raise UserError(f"{path} names no image")
    seen: set[str] = set()
    if twice := next((p.image for p in pairs if p.name in seen or seen.add(p.name)), None):
        raise UserError(f"{path} names {twice} twice, or with two suffixes")
    paths = (root / path for pair in pairs for path in (pair.image, pair.label) if must_exist)
    missing = (path for path in paths if not os.path.isfile(path))  # also where the name is too long for a file
    if gone := next(missing, None):
        raise UserError(f"{path} names {gone}, which is not there; is --root right?")
    return pairs


def split_files(path: str | Path) -> list[Path]:
    """The split file `path`, or those of the folder `path` (`*.txt`) in the order of their names."""
    path = Path(path)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if wrong := next((file for file in files or [path] if not file.is_file()), None):
        raise UserError(f"{wrong}: no such split file; `python -m datasets NAME --root DIR` writes them")
    return files


def _read_file(path: Path, root: Path, strip_prefix: str) -> Iterator[Pair]:
    for number, fields in read_fields(path, "image label [group]"):
        image, label = (field.removeprefix(strip_prefix).lstrip("/") for field in fields[:2])
        for field in map(PurePosixPath, (image, label)):
            if not field.name or ".." in field.parts or len(str(field)) > LONGEST:
                raise UserError(f"{path}, line {number}: `{str(field)[:80]}` names no file below --root; write paths "
                                "relative to it, without `..`")
        yield Pair(image, label, fields[2] if len(fields) == 3 else image, root)


def read_fields(path: Path, form: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of a text file with lines of `form`, such as `NAME [group]`; `#` starts a comment.

    Raises `UserError` for a file that is missing or no text, and for a line of another number of fields or with a
    character that cannot be printed.
    """
    names = form.split()
    most, least = len(names), sum(not name.startswith("[") for name in names)
    with reading(path, "text"):
        if path.stat().st_size > TEXT:
            raise ValueError(f"it is larger than {TEXT >> 20} MiB")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].replace("\t", " ")
        fields = line.split()
        if not line.isprintable():
            raise UserError(f"{path}, line {number}: expected `{form}`, found a character that cannot be printed")
        if fields and not least <= len(fields) <= most:
            raise UserError(f"{path}, line {number}: expected `{form}`, found {len(fields)} fields")
        if fields:
            yield number, fields


def write_split(path: str | Path, pairs: Iterable[Pair], comment: str = "") -> None:
    """Write `pairs` as a split file, with `comment` as its first line; `UserError` for a name that it cannot hold."""
    lines = [f"# {comment}"] if comment else []
    for pair in pairs:
        fields = [pair.image, pair.label, *([pair.group] if pair.group != pair.image else [])]
        if wrong := next((field for field in fields if "#" in field or field.split() != [field]), None):
            raise UserError(f"{path}: `{wrong}` has a space or #, which a split file cannot hold; rename it")
        lines.append(" ".join(fields))
    with atomic_open(path, "w") as file:
        file.write("\n".join(lines) + "\n")


def load_label(path: str | Path, dataset: ModuleType) -> np.ndarray:
    """Read a label as uint8 train ids (H, W), 255 = void.

    Raises `UserError` when the file is missing or broken, or holds an id outside the classes of `dataset`.
    """
    return check_label(dataset.decode(load_ids(path), Path(path)), len(dataset.CLASSES), path)


def check_label(label: np.ndarray, classes: int, path: str | Path) -> np.ndarray:
    """Return `label` if it is (H, W) with ids 0..classes-1 or 255 only, else raise `UserError`."""
    if label.ndim != 2:
        raise UserError(f"{path}: expected one id a position, found an array of shape {label.shape}")
    wrong = np.unique(label[(label >= classes) & (label != VOID)])
    if wrong.size:
        raise UserError(f"{path} holds id {wrong[0]}; the data set has classes 0..{classes - 1} and 255 = void")
    return label.astype(np.uint8)


def load_pair(pair: Pair, dataset: ModuleType) -> tuple[np.ndarray, np.ndarray]:
    """Read image (H, W, 3) and label (H, W) of a pair; `UserError` when their sizes differ."""
    image = load_image(pair.root / pair.image)
    label = load_label(pair.root / pair.label, dataset)
    check_sizes(image, label, pair.root / pair.label)
    return image, label


def check_sizes(image: np.ndarray, label: np.ndarray, path: str | Path) -> None:
    """Raise `UserError` where the sizes of image (H, W, 3) and label (H, W) differ; `path` is that of the label."""
    if image.shape[:2] != label.shape:
        turned = "; was one of them turned by its EXIF orientation?" if image.shape[1::-1] == label.shape else ""
        raise UserError(f"{path} is {label.shape[1]} x {label.shape[0]}, its image {image.shape[1]} x "
                        f"{image.shape[0]}{turned}")


def deal(groups: Sequence[str], shares: Sequence[float], seed: int, strata: Sequence[str] | None = None) -> np.ndarray:
    """Deal whole groups to parts: an int array with the part of each item, sizes near `shares`.

    Groups come in random order, one stratum after the other, each to the part that is least full for its share; so
    every part gets its share of every stratum (a drive, a side). A group lies in one stratum.
    """
    names, first, member_of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    sizes = np.bincount(member_of)
    order = stream(seed, "deal").permutation(len(names))
    if strata is not None:
        order = order[np.argsort(np.asarray(strata)[first][order], kind="stable")]
    shares, dealt = np.asarray(shares, float), np.zeros(len(shares))
    part = np.empty(len(names), int)
    for group in order:
        part[group] = np.argmin((dealt + sizes[group]) / shares)
        dealt[part[group]] += sizes[group]
    return part[member_of]
