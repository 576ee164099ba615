"""A user's own data: images/NAME.* and masks/NAME.* of equal names, in folders of any depth.

The classes and the meaning of the values in a mask are settings, which `settings` turns into the text that is stored in
checkpoints. `python -m datasets folder` writes four parts of whole groups.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from datasets.pairs import Pair, deal, describe_folder, read_fields, set_once
from utils import VOID
from utils.cli import UserError
from utils.distributed import warn_once
from utils.files import files_by_name

PARTS = ("victim_in", "victim_out", "shadow_in", "shadow_out")
IMAGES = ("images", "img")  # the first is read
MASKS = ("masks", "labels")  # either is read
NEEDED = "--dataset folder needs --classes N, --class-names FILE or --label-map FILE"
VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled")  # no names of a class that is to be recognised
FEWEST = 8  # groups; with fewer proposed, each image is its own group


@dataclass(frozen=True)
class Folder:
    """A data set with the classes `CLASSES`. `ids`, `colours`: value in a mask -> class, 255 = void.

    If both are empty, the values are the classes, and 255 is void. With two classes, a mask of 0 and 255 is one of the
    classes 0 and 1.
    """

    CLASSES: tuple[str, ...]
    ids: dict[int, int]
    colours: dict[tuple[int, int, int], int]

    @property
    def reads_binary(self) -> bool:
        """Whether 255 in a mask without 1 means class 1."""
        return len(self.CLASSES) == 2 and not self.ids and not self.colours

    def decode(self, raw: np.ndarray, path: Path) -> np.ndarray:
        """Convert ids (H, W) or colours (H, W, 3) to classes (H, W). Raises `UserError` for a value without a class."""
        if self.colours:
            return self._decode_colours(raw, path)
        if self.ids and raw.ndim == 2:
            table = np.full(256, -1)
            table[list(self.ids)] = list(self.ids.values())
            label = table[raw]
            if (label < 0).any():
                raise UserError(f"{path} holds id {raw[label < 0][0]}, which --label-map does not have; add a line "
                                f"`{raw[label < 0][0]} CLASS`, or `{raw[label < 0][0]} void`")
            return label.astype(np.uint8)
        if self.reads_binary and is_binary(raw):
            return (raw == VOID).astype(np.uint8)
        return raw

    def _decode_colours(self, raw: np.ndarray, path: Path) -> np.ndarray:
        if raw.ndim != 3:
            raise UserError(f"{path} has one value per pixel, but --label-map has colours; give a map of ids")
        code = raw.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        label = np.full(code.shape, -1)
        for (red, green, blue), number in self.colours.items():
            label[code == 65536 * red + 256 * green + blue] = number
        if (label < 0).any():
            colour = " ".join(map(str, raw[label < 0][0].tolist()))
            raise UserError(f"{path} has the colour {colour}, which --label-map does not have; add a line "
                            f"`{colour} CLASS`, or `{colour} void`")
        return label.astype(np.uint8)

    def splits(self, root: Path, seed: int = 0) -> dict[str, list[Pair]]:
        """Return victim_in, victim_out, shadow_in, shadow_out, and shadow, the union of the last two.

        All images of a group go to the same part. Raises `UserError` if an image has no mask, a mask no image, or if
        there are fewer groups than parts.
        """
        pairs = find_pairs(root)
        groups = [pair.group for pair in pairs]
        if (count := len(set(groups))) < len(PARTS):
            raise UserError(f"{root} has {count} groups of images, and each of the parts {', '.join(PARTS)} needs one "
                            f"or more: add images, until there are {len(PARTS)} groups")
        part = deal(groups, (1, 1, 1, 1), seed)
        found = {name: [pair for pair, number in zip(pairs, part, strict=True) if number == index]
                 for index, name in enumerate(PARTS)}
        return found | {"shadow": found["shadow_in"] + found["shadow_out"]}


def is_binary(raw: np.ndarray) -> bool:
    """Whether a mask has the value 255 and no other value than 0."""
    return raw.ndim == 2 and bool(((raw == 0) | (raw == VOID)).all()) and bool((raw == VOID).any())


@cache
def parse(settings: str) -> Folder:
    """The data set of `settings`. Raises `UserError` for other text, such as that of a damaged checkpoint, or none."""
    if not settings:
        raise UserError(NEEDED)
    try:
        content = json.loads(settings)
        names, ids, colours = (content[key] for key in ("classes", "ids", "colours"))
        found = Folder(tuple(map(str, names)), {int(key): int(value) for key, value in ids.items()},
                       {tuple(int(part) for part in key.split()): int(value) for key, value in colours.items()})
        whole = isinstance(names, list) and all(len(colour) == 3 for colour in found.colours)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        whole = False
    if not whole:
        raise UserError("the settings of --dataset folder are damaged; give --classes N, --class-names FILE or "
                        "--label-map FILE")
    count, values = len(found.CLASSES), [*found.ids, *(part for colour in found.colours for part in colour)]
    targets = [value for value in (*found.ids.values(), *found.colours.values()) if value != VOID]
    if not 1 < count < VOID or not all(0 <= value <= VOID for value in values) or not all(
            0 <= value < count for value in targets):
        raise UserError("--dataset folder needs 2 to 254 classes, and a map of values 0..255 to these classes only")
    return found


def settings(classes: int | None, class_names: str | None, label_map: str | None) -> str:
    """The settings as text: number of classes, file with one name per line, and file with lines `VALUE CLASS`.

    VALUE is an id or a colour `R G B`; CLASS is a number, a name of `class_names`, or `void`. Raises `UserError` if the
    files cannot be read or contradict `classes`.
    """
    if not (classes or class_names or label_map):
        raise UserError(NEEDED)
    names = read_names(class_names) if class_names else []
    if classes and names and classes != len(names):
        raise UserError(f"--classes {classes}: {class_names} has {len(names)} names; leave --classes out")
    ids: dict[str, int] = {}
    colours: dict[str, int] = {}
    for number, fields in _lines(label_map, "`ID CLASS` or `R G B CLASS`") if label_map else ():
        where = f"{label_map}, line {number}"
        if len(fields) not in (2, 4) or not all(part.isdecimal() and int(part) <= VOID for part in fields[:-1]):
            raise UserError(f"{where}: expected `ID CLASS` or `R G B CLASS`, with values 0..255")
        target, value = _class_number(fields[-1], names, where), " ".join(str(int(part)) for part in fields[:-1])
        set_once(ids if len(fields) == 2 else colours, value, target, where)
    if ids and colours:
        raise UserError(f"{label_map} has ids and colours; give one kind")
    known = [value for value in (*ids.values(), *colours.values()) if value != VOID]
    for index, name in enumerate(names):
        if name.lower() in VOID_NAMES and (index in known or not label_map):
            raise UserError(f"{class_names}: {name} would be a class like any other; leave this name out, and give "
                            "--label-map FILE with the line `VALUE void` for its value in the masks")
    return as_settings(classes or len(names) or max(known, default=-1) + 1, names, ids, colours)


def as_settings(classes: int, names: Sequence[str] = (), ids: Mapping[str, int] | None = None,
                colours: Mapping[str, int] | None = None) -> str:
    """The text that `parse` reads. Without `names`, the classes are numbered. Raises `UserError` as `parse` does."""
    names = list(names) or [f"class {index}" for index in range(classes)]
    text = json.dumps({"classes": names, "ids": ids or {}, "colours": colours or {}})
    parse(text)
    return text


def read_names(path: str) -> list[str]:
    """The names of the classes. Raises `UserError` if one occurs twice or is a number, or all begin with a number."""
    names = [" ".join(fields) for _, fields in _lines(path, "name")]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has the name {twice[0]} twice; give each class a name of its own")
    if numbers := [name for name in names if name.isdecimal()]:
        raise UserError(f"{path} has {numbers[0]} as a name, which --label-map would read as the number of a class; "
                        "give names, or leave the file out")
    if names and all(name.split()[0].isdecimal() for name in names):
        raise UserError(f"{path}: its lines seem to be `ID NAME`; give the names only, in the order of the ids")
    return names


def _lines(path: str, form: str) -> list[tuple[int, list[str]]]:
    """Number and fields of each line. Raises `UserError` if a line has more than eight fields."""
    return list(read_fields(Path(path), form, (1, 8)))


def _class_number(text: str, names: Sequence[str], where: str) -> int:
    if text == "void":
        return VOID
    if text in names:
        return names.index(text)
    if not text.isdecimal():
        raise UserError(f"{where}: there is no class {text}; give a number, void, or a name of --class-names, which is "
                        "in double quotes if it has a space")
    return int(text)


def find_pairs(root: Path) -> list[Pair]:
    """The pairs of `root`, sorted.

    Raises `UserError` if an image has no mask, a mask no image, a name occurs twice, or there are two folders of one
    kind.
    """
    for names in (IMAGES, MASKS):
        if all((root / name).is_dir() for name in names):
            raise UserError(f"{root} holds {names[0]}/ and {names[1]}/, and only one of them can be read; move the "
                            "other one away")
    masks = next((name for name in MASKS if (root / name).is_dir()), None)
    if not (root / "images").is_dir() or not masks:
        raise UserError(f"{root} must hold the folders images and masks, with files of equal names, but "
                        f"{describe_folder(root)}")
    if other := sorted(path for name in (*IMAGES, *MASKS) for path in root.glob(f"*/{name}")
                       if path.is_dir() and path.parent.name not in ("images", masks)):
        warn_once(f"{other[0]} is left out: only {root / 'images'} and {root / masks} are read")
    return match_files(root, root / "images", root / masks)


def match_files(root: Path, images: Path, masks: Path) -> list[Pair]:
    """The pairs of files of equal names in two folders below `root`, sorted, in the groups of `propose_groups`.

    Raises `UserError` if a folder has no file, an image has no mask, a mask no image, or a name occurs twice.
    """
    found = [files_by_name(folder) for folder in (images, masks)]
    for (one, other), folder in zip((found, found[::-1]), (masks, images), strict=True):
        if lacking := sorted(one.keys() - other.keys()):
            raise UserError(f"{len(lacking)} of {len(one)} files, such as {one[lacking[0]]}, have no file of the same "
                            f"name in {folder}; add them, or move these files away")
    if not found[0]:
        raise UserError(f"{images} holds no files")
    names = sorted(found[0])
    paths = [[files[name].relative_to(root).as_posix() for name in names] for files in found]
    return [Pair(image, label, group, root)
            for image, label, group in zip(*paths, propose_groups(paths[0], names), strict=True)]


def propose_groups(images: Sequence[str], names: Sequence[str]) -> list[str]:
    """A group for each of `images`, whose names are `names`, such as a folder and a number: `drive/12`.

    It is the folder of the name, or the name without the number at its end. Each image is its own group if neither
    gives `FEWEST` groups of which some have several images.
    """
    by_folder = [name.rpartition("/")[0] for name in names]
    by_text = [re.sub(r"[-_]*\d+$", "", name) for name in names]
    for groups in (by_folder, by_text):
        if FEWEST <= len(set(groups)) < len(names) and all(groups):
            return groups
    return list(images)
