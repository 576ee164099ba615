"""Read and write split files, and load the pairs of image and label that they list."""

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from datasets import find_dataset, show_dataset
from datasets.images import check_turned, load_ids, load_image
from utils import VOID
from utils.cli import UserError
from utils.distributed import warn_once
from utils.files import atomic_open
from utils.memory import collector_paused
from utils.randomness import stream
from utils.untrusted import reading

LINE = "image label [group]"  # form of a line of a split file
MAX_BYTES = 512 * 2**20  # of a split file
MAX_PATH = 4000  # characters
LISTED = 10_000  # with more files, folders are listed
# In lines without these every path is normal.
UNUSUAL = ("//", "./", "..", " /", "\t/", "\n/", "/ ", "/\t", "/\n", " .", "\t.", "\n.", "#", '"')
# A name in double quotes, in which \ stands before a quote or a backslash; another name; a comment; a broken name.
FIELD = re.compile(r'"((?:[^"\\\t]|\\["\\])+)"(?![^\s#])|([^\s"#][^\s#]*)|(#.*)|\S+')


class Pair(NamedTuple):
    """One line of a split file: paths of image and label, and the group (the block of a bootstrap)."""

    image: str
    label: str
    group: str
    root: Path = Path()

    @property
    def name(self) -> str:
        """Name of the image in results: its path in the split file without the suffix."""
        stem, _, suffix = self.image.rpartition(".")
        return stem if stem and "/" not in suffix and not stem.endswith("/") else self.image


def read_split(path: str | Path, root: str | Path = ".", strip_prefix: str = "",
               must_exist: bool = True, labels: bool = True) -> list[Pair]:
    """Read a split file with lines `image label [group]`; `#` starts a comment. Paths are relative to `root`.

    A name with a space, `#` or `"` is in double quotes, as `write_split` writes it.
    If `path` is a folder, its split files are read one after another. `strip_prefix` is removed from the start of both
    paths, then leading slashes, so the authors' lists need no changes. Without a third column each image forms a
    separate group. Raises `UserError` if a file is missing or empty, a line has another form, a path leaves `root`, two
    images have the same name, or, with `must_exist`, no path starts with `strip_prefix`, or an image or label does not
    exist. With `must_exist`, also warns if only some images have a group, or several have one label. `labels`: whether
    the labels must exist, too.
    """
    root = Path(root)
    with collector_paused():
        pairs = [pair for file in split_files(path) for pair in _read_file(file, root, strip_prefix)]
    if not pairs:
        raise UserError(f"{path} lists no image")
    if must_exist and strip_prefix:
        lines = [fields for file in split_files(path) for _, fields in read_fields(file, LINE)]
        if not any(field.startswith(strip_prefix) for fields in lines for field in fields[:2]):
            raise UserError(f"no path in {path} starts with {strip_prefix}; correct --strip-prefix, or leave it out")
    names = [pair.name for pair in pairs]
    if len(set(names)) < len(names):
        first = dict(zip(names[::-1], range(len(names))[::-1], strict=True))
        twice = next(pair for index, pair in enumerate(pairs) if first[pair.name] < index)
        raise UserError(f"{path} lists {twice.image} twice, or with two suffixes; keep one of these lines")
    if must_exist:
        files = [pair.image for pair in pairs] + [pair.label for pair in pairs if labels]
        if missing := find_missing(root, files):
            hint = "write / in place of \\" if "\\" in missing else f"check --root ({describe_folder(root)})"
            raise UserError(f"{path} lists {root / missing}, which is not there; {hint}")
        _warn_of_lines(path, pairs)
    return pairs


def find_missing(root: Path, files: Sequence[str]) -> str | None:
    """The first of the files below `root` that is not there; None if all are.

    If there are many, the folders are listed, which is faster than a question about each file.
    """
    if len(files) > LISTED:
        there = {folder: _names(root / folder) for folder in {file.rpartition("/")[0] for file in files}}
        parts = (file.rpartition("/") for file in files)
        found = ("/".join(filter(None, (folder, name))) for folder, _, name in parts if name not in there[folder])
    else:
        found = iter(files)
    # Unlike Path.is_file, os.path.isfile also returns False for a name that is too long.
    return next((file for file in found if not os.path.isfile(root / file)), None)


def _names(folder: Path) -> set[str]:
    """Names of the regular files in a folder; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError:
        return set()


def _warn_of_lines(path: str | Path, pairs: Sequence[Pair]) -> None:
    """Warn of a split file in which only some lines have a group, or several images have one label."""
    single = sum(pair.group == pair.image for pair in pairs)
    if 0 < single < len(pairs):
        warn_once(f"{path} has no group in {single} of {len(pairs)} lines; each of these images is its own group")
    label, count = Counter(pair.label for pair in pairs).most_common(1)[0]
    if count > 1:
        warn_once(f"{path} lists the label {label} for {count} images; check that they have one label")


def check_files(root: Path, parts: Mapping[str, Sequence[Pair]]) -> None:
    """Raise `UserError` if an image or a label of a data set is missing, and say what its folder holds."""
    for kind in ("image", "label"):
        paths = {getattr(pair, kind) for part in parts.values() for pair in part}
        if missing := sorted(path for path in paths if not os.path.isfile(root / path)):
            raise UserError(f"{len(missing)} of {len(paths)} {kind}s are missing, such as {root / missing[0]}; "
                            f"{describe_folder(root)}")


def describe_folder(root: Path) -> str:
    """What a folder holds, for a message about something that is missing there."""
    if not root.is_dir():
        return f"there is no folder {root}"
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir())
    return f"{root} holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"


def split_files(path: str | Path) -> list[Path]:
    """Return the split file `path`, or, if `path` is a folder, its `*.txt` files sorted by name."""
    path = Path(path)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if files and path.is_dir():
        other = sorted(file.name for file in path.iterdir()
                       if file not in files and not file.name.startswith((".", "README")))
        if other:
            raise UserError(f"{path} holds {other[0]} beside split files; move it away, or give one split file")
    if wrong := next((file for file in files or [path] if not file.is_file()), None):
        raise UserError(f"{wrong}: no such split file; write it with `python -m datasets NAME --root DIR`")
    return files


def _read_file(path: Path, root: Path, strip_prefix: str) -> Iterator[Pair]:
    text = read_text(path)
    lines = f"\n{text}\n"
    usual = not strip_prefix and not any(mark in lines for mark in UNUSUAL)
    for number, fields in fields_of_lines(text, path, LINE):
        image, label = fields[:2]
        if not usual or len(image) + len(label) > MAX_PATH:
            image, label = (_normal(field, strip_prefix, f"{path}, line {number}") for field in (image, label))
        yield Pair(image, label, fields[2] if len(fields) == 3 else image, root)


def _normal(path: str, strip_prefix: str, where: str) -> str:
    """A path without the prefix, a leading `/`, `//` and `./`. Raises `UserError` if it leaves its folder by `..`."""
    below = PurePosixPath(path.removeprefix(strip_prefix).lstrip("/"))
    if not below.name or ".." in below.parts or len(path) > MAX_PATH:
        raise UserError(f"{where}: `{str(below)[:80]}` is not a path below --root; write paths relative to --root, "
                        "without `..`")
    return below.as_posix()


def read_text(path: Path) -> str:
    """The text of a file. Raises `UserError` if it is missing, larger than `MAX_BYTES`, or not UTF-8 text."""
    with reading(path, "text"):
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")


def read_fields(path: Path, form: str, counts: tuple[int, int] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of each line of a text file. Raises `UserError` as `read_text` and
    `fields_of_lines` do.
    """
    yield from fields_of_lines(read_text(path), path, form, counts)


def fields_of_lines(text: str, path: Path, form: str,
                    counts: tuple[int, int] | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of each line of a text that has any; `#` starts a comment. `path`: for errors.

    A field that begins with a double quote ends with one, and may have spaces and `#`; see `quoted`.
    `form` describes a line, for example `NAME [group]`; fields in brackets are optional. `counts`: smallest and largest
    number of fields (default: those of `form`). Raises `UserError` if a line has another number of fields, a character
    that cannot be printed, or a quote without its other half.
    """
    names = form.split()
    smallest, largest = counts or (sum(not name.startswith("[") for name in names), len(names))
    plain = not any(mark in text for mark in '#"') and text.replace("\n", " ").replace("\t", " ").isprintable()
    for number, line in enumerate(text.split("\n"), 1):
        fields = None
        if not plain:
            if '"' in line:
                line, fields = _read_quotes(line, f"{path}, line {number}")
            else:
                line = line.partition("#")[0]
            if not line.replace("\t", " ").isprintable():
                raise UserError(f"{path}, line {number}: expected `{form}`, found a character that cannot be printed")
        fields = line.split() if fields is None else fields
        if fields and not smallest <= len(fields) <= largest:
            spaces = "; put a name with a space in double quotes" if len(fields) > largest else ""
            raise UserError(f"{path}, line {number}: expected `{form}`, found {len(fields)} fields{spaces}")
        if fields:
            yield number, fields


def _read_quotes(line: str, where: str) -> tuple[str, list[str]]:
    """A line without its comment, and its fields. Raises `UserError` for a broken name. `where`: file and line."""
    found = list(FIELD.finditer(line))
    comment = next((match.start() for match in found if match[3]), len(line))
    names = [match for match in found if match.start() < comment]
    if not all(match[1] or match[2] for match in names):
        raise UserError(f'{where}: a name that begins with a double quote must end with one; write \\" for a quote in '
                        "it, and \\\\ for a backslash")
    return line[:comment], [match[2] or re.sub(r"\\(.)", r"\1", match[1]) for match in names]


def quoted(field: str) -> str:
    """A field as a line has it: in double quotes if it has a space, `#` or a double quote."""
    if not re.search(r'[\s"#]', field):
        return field
    return '"{}"'.format(re.sub(r'(["\\])', r"\\\1", field))


def set_once(found: dict, key: Hashable, value: object, where: str) -> None:
    """Set `found[key]`. Raises `UserError` if it has another value from an earlier line. `where`: file and line."""
    if found.setdefault(key, value) != value:
        raise UserError(f"{where}: {key} already has {found[key]}, and now {value}; keep one of the lines")


def write_split(path: str | Path, pairs: Iterable[Pair], comment: str = "") -> None:
    """Write `pairs` to a split file with `comment` as its first line. Raises `UserError` as `fields_of` does."""
    lines = [f"# {comment}"] if comment else []
    with atomic_open(path, "w") as file:
        file.write("\n".join([*lines, *(" ".join(fields_of(pair, path)) for pair in pairs)]) + "\n")


def fields_of(pair: Pair, path: str | Path) -> list[str]:
    """The fields of a pair in the split file `path`, as its line has them.

    Raises `UserError` if one is empty, or has a character that cannot be printed, such as a line break.
    """
    fields = [pair.image, pair.label, *([pair.group] if pair.group != pair.image else [])]
    if wrong := [field for field in fields if not field or not field.isprintable()]:
        raise UserError(f"{path}: {wrong[0]!a} has a character that cannot be printed, or is empty, which a split file "
                        "cannot hold; rename the file")
    return list(map(quoted, fields))


def load_label(path: str | Path, dataset: str | None) -> np.ndarray:
    """Read a label file as train ids, uint8 (H, W), 255 = void.

    Raises `UserError` if the file is missing or broken, or has an id outside the classes of `dataset`.
    """
    return decode_label(load_ids(path), path, dataset)


def decode_label(raw: np.ndarray, path: str | Path, dataset: str | None) -> np.ndarray:
    """Decode the values of a label file by a data set (None: they are train ids): uint8 (H, W), 255 = void.

    Raises `UserError` for an id outside the classes of the data set.
    """
    if dataset is None:
        return check_label(raw, VOID, path)
    hint = "; --label-map FILE says which class a value is" if show_dataset(dataset) == "folder" else ""
    return check_label(find_dataset(dataset).decode(raw, Path(path)), len(find_dataset(dataset).CLASSES), path, hint)


def check_label(label: np.ndarray, classes: int, path: str | Path, hint: str = "") -> np.ndarray:
    """Return `label` as uint8. Raises `UserError` if it is not (H, W) or has ids other than 0..classes-1 and 255.

    `hint`: what may help, for the message.
    """
    if label.ndim != 2:
        grey = "; its channels are equal, so save one of them" if (label == label[..., :1]).all() else ""
        raise UserError(f"{path}: expected one id per pixel, found an array of shape {label.shape}{grey or hint}")
    wrong = np.unique(label[(label >= classes) & (label != VOID)])
    if wrong.size:
        raise UserError(f"{path} holds id {wrong[0]}; the data set has classes 0..{classes - 1}, and 255 for void"
                        f"{hint}")
    return label.astype(np.uint8)


def load_pair(pair: Pair, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the image (H, W, 3) and label (H, W) of a pair, uint8. Raises `UserError` if their sizes differ."""
    check_turned(pair.root / pair.image, pair.root / pair.label)
    image = load_image(pair.root / pair.image)
    label = load_label(pair.root / pair.label, dataset)
    check_sizes(image, label, pair.root / pair.label)
    return image, label


def check_sizes(image: np.ndarray, label: np.ndarray, path: str | Path) -> None:
    """Raise `UserError` if the sizes of image (H, W, 3) and ground truth differ. `path`: path of the ground truth."""
    if image.shape[:2] != label.shape[:2]:
        rotated = image.shape[1::-1] == label.shape[:2]
        hint = "; perhaps the EXIF orientation of only one of them is set" if rotated else ""
        raise UserError(f"{path} is {label.shape[1]} x {label.shape[0]}, its image {image.shape[1]} x "
                        f"{image.shape[0]}{hint}")


def at_most(count: int, pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """At most `count` pairs, in their order: whole groups that are drawn at random, as long as they fit."""
    sizes, kept = Counter(pair.group for pair in pairs), set()
    for group in stream(seed, "at most").permutation(sorted(sizes)).tolist():
        if sizes[group] <= count:
            kept.add(group)
            count -= sizes[group]
    return [pair for pair in pairs if pair.group in kept]


def deal(groups: Sequence[str], shares: Sequence[float], seed: int, strata: Sequence[str] | None = None) -> np.ndarray:
    """Assign items to parts of sizes close to `shares`; all items of a group go to the same part.

    groups: the group of each item. strata: the stratum (for example a drive) of each item; all items of a group must
    have the same stratum. Returns the part of each item, int (N,). The groups are taken in random order, one stratum
    after another. Each goes to the part that is least full for its share, so every part gets about its share of every
    stratum.
    """
    names, first, group_of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    sizes = np.bincount(group_of)
    order = stream(seed, "deal").permutation(len(names))
    if strata is not None:
        order = order[np.argsort(np.asarray(strata)[first][order], kind="stable")]
    shares, filled = np.asarray(shares, float), np.zeros(len(shares))
    part = np.empty(len(names), int)
    for group in order:
        part[group] = np.argmin((filled + sizes[group]) / shares)
        filled[part[group]] += sizes[group]
    return part[group_of]
