"""A user's lists of members and non-members, as split files of images and masks in two folders."""

import csv
import io
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from datasets.folder import match_files
from datasets.pairs import MAX_BYTES, Pair, write_split
from utils.cli import UserError
from utils.files import walk_files
from utils.untrusted import reading

REFERENCES = "references.txt"  # split file of the images for references
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".jfif", ".png", ".ppm", ".tif", ".tiff", ".webp")  # of images, lower case
YES, NO = ("1", "true", "yes", "member", "in"), ("0", "false", "no", "non-member", "out", "")


def write_sides(images: str, masks: str, members: str, non_members: str | None, folder: Path,
                references: str | None = None) -> tuple[str, str, Path]:
    """Write members.txt and non_members.txt into `folder`, and return their paths and the root of their paths.

    `references`: a list of names of further images, which are on neither side; references.txt has them.
    `images`, `masks`: folders with files of equal names. `members`: a list of names, one per line, a folder with files
    of these names, or a CSV file whose header has the columns `image` and `member` (1 or 0). `non_members`: a list or a
    folder; None for all images that are not in `members`. A name is a path below `images`, in a list with or without
    its suffix. Raises `UserError` if a folder or a file is missing or wrong, a name is no image, or a side is empty.
    """
    for place in (images, masks):
        if not Path(place).is_dir():
            raise UserError(f"{place} is no folder; give the folder of the images as --images, and that of their "
                            "ground truth as --masks")
    root = Path(os.path.commonpath([Path(images).absolute(), Path(masks).absolute()]))
    pairs = {os.path.relpath(root / pair.image, Path(images).absolute()): pair
             for pair in match_files(root, Path(images).absolute(), Path(masks).absolute())}
    known = {name for path in pairs for name in (path, os.path.splitext(path)[0])}
    inside, outside = read_sides(members, images, known)
    if non_members and outside is not None:
        raise UserError(f"{members} says which images are no members; leave --non-members out")
    chosen = _find(inside, pairs, members, images)
    if non_members:
        outside = read_sides(non_members, images, known)[0]
    apart = _find(read_sides(references, images, known)[0], pairs, references, images) if references else []
    taken = {*chosen, *apart}
    others = _find(outside, pairs, non_members or members, images) if outside is not None else [
        pair for pair in pairs.values() if pair not in taken]
    for what, side in (("member", chosen), ("non-member", others)):
        if not side:
            raise UserError(f"{non_members or members} leaves no image as a {what}; an audit needs both sides")
    files = folder / "members.txt", folder / "non_members.txt"
    for file, side in zip(files, (chosen, others), strict=True):
        write_split(file, side)
    if references:
        write_split(folder / REFERENCES, apart)
    return str(files[0]), str(files[1]), root


def read_sides(path: str, images: str = ".", known: Collection[str] = ()) -> tuple[list[str], list[str] | None]:
    """The names of a list or a folder and None or, of a CSV file, the names of its members and of its non-members.

    `images`: the folder below which the names are. `known`: the names of its images; a line that begins with `#` is a
    comment, unless it is one of them. Raises `UserError` if the file is no UTF-8 text, a CSV file lacks a column or has
    another value than `YES`, `NO`, or a folder has no image.
    """
    if Path(path).is_dir():
        return names_in(path, images, known), None
    with reading(path, "text"):
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        text = Path(path).read_text(encoding="utf-8-sig")
    lines = [line.strip() for line in text.splitlines()]
    first = next((line for line in lines if line), "")
    if "," not in first or first in known:
        return [line for line in lines if line in known or (line and not line.startswith("#"))], None
    table = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    if not table or not {"image", "member"} <= table[0].keys():
        raise UserError(f"{path} must have the columns `image` and `member` in its first line, or one name per line")
    sides: tuple[list[str], list[str]] = [], []
    for number, row in enumerate(table, 2):
        value = (row["member"] or "").strip().lower()
        if value not in YES + NO:
            raise UserError(f"{path}, line {number}: `{value[:40]}` is no membership; write 1 for a member, 0 for none")
        sides[value in NO].append((row["image"] or "").strip())
    return sides


def names_in(folder: str, images: str, known: Collection[str]) -> list[str]:
    """The names of the images in a folder: its files with the suffix of an image, or whose name is one of `known`.

    They are relative to the folder `images` if they lie in it, and else to `folder`. Raises `UserError` if there are
    none.
    """
    ways = [(change(folder), change(images)) for change in (os.path.abspath, os.path.realpath)]  # links may lead inside
    below = next((os.path.relpath(own, whole) for own, whole in ways if Path(own).is_relative_to(whole)), ".")
    names = [os.path.normpath(Path(below, file.relative_to(folder))) for file in walk_files(Path(folder))]
    if found := [name for name in names if name in known or name.lower().endswith(SUFFIXES)]:
        return found
    raise UserError(f"{folder} holds no image; give a folder with images, or a list of their names")


def _find(names: Sequence[str], pairs: dict[str, Pair], path: str, images: str) -> list[Pair]:
    """The pairs of `names`, sorted, each once. Raises `UserError` for a name that is no image."""
    by_stem = {os.path.splitext(name)[0]: pair for name, pair in pairs.items()}
    found = [pairs.get(name) or by_stem.get(name) for name in names]
    if None in found:
        way = ("give a folder inside it, or one whose files have the paths of its images" if Path(path).is_dir() else
               "write paths relative to that folder")
        raise UserError(f"{path} names {names[found.index(None)]}, which is no image below {images}; {way}")
    return sorted(set(found), key=lambda pair: pair.image)
