"""Read the scores that runs of attack.py have written, and pair the scores of several runs by image."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.pairs import read_fields
from datasets.provenance import IN, OUT, Identity, Images, read_provenance
from utils.arrays import read_npz
from utils.cli import UserError
from utils.distributed import warn_once
from utils.files import read_json
from utils.names import spreadsheet_safe
from utils.untrusted import reading

SIDES = ("a non-member", "a member")
KEYED = re.compile("[0-9a-f]{32}")  # a name that --hash-names wrote
SETTINGS = ("attack", "input", "score", "select", "num_patch", "tau", "defense")  # of results.json: one scale of scores


def read_paired(folders: Sequence[Path]) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Scores (n,) of each run, membership bool (n,), and the group of each image, sorted by the name of the image.

    Raises `UserError` if a run is given twice, or if the runs have scored different images, or give them other sides or
    groups. Warns if labels differ.
    """
    places = [folder.resolve() for folder in folders]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise UserError(f"{twice} is given twice; give each run once")
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


def read_population(folder: Path, run: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores (n,), membership bool (n,) and groups of `folder`, a run of the attack of `run` on other images.

    Raises `UserError` if results.json says that the attacks differ, or provenance.json that an image is in both.
    """
    attacks = [read_json(one / "results.json") for one in (folder, run) if (one / "results.json").is_file()]
    if different := [key for key in SETTINGS if len({str(one.get(key)) for one in attacks}) > 1]:
        first, second = (one.get(different[0]) for one in attacks)
        raise UserError(f"{folder} and {run} have scores of two scales: {different[0]} is {first} and {second}; give "
                        "both attacks the same flags")
    images = [[*known[IN].all, *known[OUT].all] for one in (folder, run) if (known := read_provenance(one))]
    if folder.resolve() == run.resolve() or (len(images) > 1 and Images(images[0]).shared(images[1])):
        raise UserError(f"{folder} and {run} have scored the same images; give a run on other images, such as those of "
                        "a shadow")
    rows = read_scores(folder).values()
    return np.array([row[2] for row in rows]), np.array([row[0] for row in rows]), [row[1] for row in rows]


def read_list(path: Path, names: Sequence[str], folder: Path) -> np.ndarray:
    """Which of the images `names` of the run `folder` a file lists, bool (n,).

    A line has the name of an image, as in scores.csv, or is one of a split file: `image label [group]`; the suffix may
    be left out. Raises `UserError` if the file lists no image, or an image twice or that the run has not scored.
    """
    place, found = {name: index for index, name in enumerate(names)}, np.zeros(len(names), bool)
    for number, (image, *_) in read_fields(path, "IMAGE [label] [group]"):
        known = [place[name] for name in map(spreadsheet_safe, (image, PurePosixPath(image).with_suffix("").as_posix()))
                 if name in place]
        if not known:
            keyed = all(map(KEYED.fullmatch, names))
            raise UserError(f"{path}, line {number}: {folder} has no score of {image}; " + (
                "its names are keyed hashes, so list hashes" if keyed else
                f"list names as in its scores.csv, such as {names[0]}"))
        if found[known[0]]:
            raise UserError(f"{path}, line {number}: {image} is listed twice; keep one of these lines")
        found[known[0]] = True
    if not found.any():
        raise UserError(f"{path} lists no image")
    return found


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
