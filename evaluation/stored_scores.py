"""Read the scores that runs of attack.py have written, and pair the scores of several runs by image."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.provenance import IN, OUT, Identity, Images, read_provenance
from utils.arrays import read_npz
from utils.cli import UserError
from utils.distributed import warn_once
from utils.untrusted import reading

SIDES = ("a non-member", "a member")
KEYED = re.compile("[0-9a-f]{32}")  # a name that --hash-names wrote


def read_paired(folders: Sequence[Path]) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Scores (n,) of each run, membership bool (n,), and the group of each image, sorted by the name of the image.

    Raises `UserError` if the runs have scored different images, or give them other sides or groups. Warns if labels
    differ.
    """
    _check_images(folders)
    tables = [read_scores(folder) for folder in folders]
    first = tables[0]
    for folder, scores in zip(folders, tables, strict=True):
        _check_names(folders[0], first, folder, scores)
        for name, (member, group, _) in sorted(scores.items()):
            if member != first[name][0]:
                raise UserError(f"{name} is {SIDES[member]} in {folder} and {SIDES[not member]} in {folders[0]}; "
                                "compare runs with the same members")
            if group != first[name][1]:
                raise UserError(f"the group of {name} is {group} in {folder} and {first[name][1]} in {folders[0]}; "
                                "give both attacks one groups.txt, or split files with the same groups")
    names = sorted(first)
    columns = [np.array([scores[name][2] for name in names]) for scores in tables]
    return columns, np.array([first[name][0] for name in names]), [first[name][1] for name in names]


def _check_names(first: Path, rows: dict, folder: Path, others: dict) -> None:
    """Raise `UserError`, with the likely cause, unless the tables of two runs name the same images."""
    if rows.keys() == others.keys():
        return
    own, other = sorted(rows.keys() - others.keys()), sorted(others.keys() - rows.keys())
    keyed = [all(KEYED.fullmatch(name) for name in table) for table in (rows, others)]
    reason = "only runs on the same images can be compared"
    if any(keyed) and not rows.keys() & others.keys():
        reason = ("perhaps --hash-names had another key; attack both with one key" if all(keyed) else
                  f"the names of {(first, folder)[keyed[1]]} are keyed hashes; give --hash-names and its key in both")
    shown = " and ".join(f"{len(names)} are only in {run}, such as {names[0]}"
                         for run, names in ((folder, other), (first, own)) if names)
    raise UserError(f"{folder} scored other images than {first}: {shown}; {reason}")


def _check_images(folders: Sequence[Path]) -> None:
    """Raise `UserError` if an image of a run has other content in another run, by their files provenance.json.

    Warns if only its label differs.
    """
    labels = []
    known = {folder: images for folder in folders if (images := read_provenance(folder))}
    first: dict[str, tuple[Path, Identity]] = {}
    for folder, sides in known.items():
        for one in (*sides[IN].all, *sides[OUT].all):
            before, same = first.setdefault(one.name, (folder, one))
            comparable = (one.image and same.image) or (one.label and same.label)
            if one.image == same.image and one.label and same.label and one.label != same.label:
                labels.append(f"{one.name} in {folder} and {before}")
            if comparable and not Images([same]).find(one):
                raise UserError(f"{one.name} is another image in {folder} than in {before}; only runs on the same "
                                f"{'images' if one.image else 'labels'} can be compared")
    if labels:
        warn_once(f"{len(labels)} images have other labels in another run, such as {labels[0]}; check that this is "
                  "meant")


def read_scores(folder: Path) -> dict[str, tuple[bool, str, float]]:
    """Map each image of a run to (member, group, score). Reads scores.csv and patches.npz.

    Raises `UserError` if one of these files is missing or broken.
    """
    path, advice = folder / "scores.csv", "give folders that attack.py wrote"
    if not path.is_file():
        raise UserError(f"{folder} holds no scores.csv; {advice}")
    with reading(path, "table of scores", broken=advice), open(path, encoding="utf-8", newline="") as file:
        rows = [(row["image"], ("0", "1").index(row["member"]) == 1, float(row["score"]))
                for row in csv.DictReader(file)]
    names, groups = read_patches(folder, "image", "group")
    group = dict(zip(names.tolist(), groups.tolist(), strict=True))
    if len(rows) != len(group) or {name for name, _, _ in rows} != group.keys():
        raise UserError(f"{path} does not name each image of patches.npz once; {advice}")
    if not all(math.isfinite(score) for _, _, score in rows) or len({member for _, member, _ in rows}) < 2:
        raise UserError(f"{path} has a score that is not finite, or lacks members or non-members; {advice}")
    return {name: (member, group[name], score) for name, member, score in rows}


def read_patches(folder: Path, *columns: str) -> list[np.ndarray]:
    """Columns of patches.npz of a run, each (patches,): `image` and `group` are text, `score` is finite numbers.

    Raises `UserError` if a column is missing or has another form.
    """
    path = folder / "patches.npz"
    arrays = read_npz(path, columns)
    complete = all(name in arrays and arrays[name].ndim == 1
                   and arrays[name].dtype.kind == ("f" if name == "score" else "U") for name in columns)
    if (not complete or len({len(column) for column in arrays.values()}) > 1
            or not np.isfinite(arrays.get("score", 0)).all()):
        raise UserError(f"{path} lacks {', '.join(columns)} of some patches; write it again with attack.py")
    return [arrays[name] for name in columns]
