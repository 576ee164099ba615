"""Split files and the pairs of picture and label that they name."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from datasets.pictures import load_ids, load_image
from utils import VOID
from utils.cli import UserError
from utils.files import whole
from utils.randomness import stream


@dataclass(frozen=True)
class Pair:
    """One line of a split file: `image` and `label` as written there, and the block they belong to."""

    image: str
    label: str
    group: str
    root: Path = Path()

    @property
    def name(self) -> str:
        """What the picture is called in results: its path in the split file, without suffix."""
        return self.image.rpartition(".")[0].lstrip("/")

    @property
    def key(self) -> str:
        """What the picture's random streams are derived from: its file name, wherever it lies."""
        return Path(self.image).stem


def read_split(path: str | Path, root: str | Path = ".", strip_prefix: str = "",
               must_exist: bool = True) -> list[Pair]:
    """Read lines `image label [group]`, `#` starting a comment, paths relative to `root`.

    A folder is read as the split files in it, one after the other. `strip_prefix` is cut from the front of both paths,
    and a leading slash is ignored, so that the lists of the release read as they are. Without a third column each
    picture is a group of its own. Raises `UserError` for a missing or empty file, a line of another form, a picture
    named twice, and, unless `must_exist` is false, a picture or label that is not there.
    """
    root = Path(root)
    pairs = [pair for file in split_files(path) for pair in _read_file(file, root, strip_prefix)]
    if not pairs:
        raise UserError(f"{path} names no picture")
    seen: set[str] = set()
    if twice := next((p.image for p in pairs if p.image in seen or seen.add(p.image)), None):
        raise UserError(f"{path} names {twice} twice")
    missing = (root / p for pair in pairs for p in (pair.image, pair.label) if must_exist and not (root / p).is_file())
    if gone := next(missing, None):
        raise UserError(f"{path} names {gone}, which is not there; is --root right?")
    return pairs


def split_files(path: str | Path) -> list[Path]:
    """The split file `path`, or those of the folder `path` (`*.txt`) in the order of their names."""
    path = Path(path)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{path}: no such split file; `python -m datasets NAME --root DIR` writes them")
    return files


def _read_file(path: Path, root: Path, strip_prefix: str) -> Iterator[Pair]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text; a split file has lines `image label`") from None
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) not in (2, 3):
            raise UserError(f"{path}, line {number}: expected `image label [group]`, found {len(fields)} fields")
        image, label = (field.removeprefix(strip_prefix).lstrip("/") for field in fields[:2])
        yield Pair(image, label, fields[2] if len(fields) == 3 else image, root)


def write_split(path: str | Path, pairs: Iterable[Pair], comment: str = "") -> None:
    """Write `pairs` as a split file, with `comment` as its first line."""
    lines = [f"# {comment}"] if comment else []
    lines += [f"{p.image} {p.label}" + (f" {p.group}" if p.group != p.image else "") for p in pairs]
    with whole(path, "w") as file:
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
    """Read picture (H, W, 3) and label (H, W) of a pair; `UserError` when their sizes differ."""
    image = load_image(pair.root / pair.image)
    label = load_label(pair.root / pair.label, dataset)
    if image.shape[:2] != label.shape:
        turned = "; was one of them turned by its EXIF orientation?" if image.shape[1::-1] == label.shape else ""
        raise UserError(f"{pair.root / pair.label} is {label.shape[1]} x {label.shape[0]}, "
                        f"its picture {image.shape[1]} x {image.shape[0]}{turned}")
    return image, label


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
