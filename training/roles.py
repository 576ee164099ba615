"""Compare the images of a training by their content: those of its two sides, and with those of the victim."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import IMAGES, find_dataset, show_dataset
from datasets.inspection import Inspection, check_depth, check_labels, check_meaning, inspect
from datasets.pairs import Pair
from datasets.provenance import (
    IN,
    OUT,
    Identity,
    Images,
    copies,
    list_pairs,
    read_provenance,
    warn_of_groups,
    warn_of_near,
    warn_of_versions,
)
from predictors import file_of
from predictors.base import Record, identify, look_alikes
from utils.cli import UserError
from utils.distributed import warn_once


def compare_sides(inside: Sequence[Pair], outside: Sequence[Pair], dataset: str,
                  names: tuple[str, str] = ("--train", "--test")) -> dict[str, list[Identity]]:
    """Identify the training images (`inside`) and the other images of a victim or a shadow.

    Raises `UserError` if an image is on both sides, or if the labels of a side are all void or have one class. Warns of
    labels that are all void, copies among the training images, groups that both sides have, and if half of the classes
    do not occur.
    """
    roles, found = {}, []
    for role, pairs, name in ((IN, inside, names[0]), (OUT, outside, names[1])):
        records = [Record.of_pair(pair, dataset) for pair in pairs]
        roles[role] = identify(records)
        found.append([inspect(*record.files) for record in records])
        check_labels(found[-1], name, dataset)
        check_depth(found[-1], name)
        if void := sum(one.counts is not None and not one.ids for one in found[-1]):
            warn_once(f"{void} of {len(records)} labels of {name} are void everywhere; these images change nothing")
    if dataset != IMAGES:
        warn_of_absent_classes(found[0], names[0], dataset)
    check_meaning([*found[0], *found[1]], " and ".join(names), dataset)
    known = Images(roles[IN])
    if both := known.shared(roles[OUT]):
        raise UserError(f"{names[0]} and {names[1]} share {len(both)} images: {list_pairs(both)}; an image is either "
                        "trained on or not, so remove it from one of them")
    if twice := copies(roles[IN]):
        warn_once(f"{names[0]} holds {len(twice)} copies of images: {list_pairs(twice)}")
    warn_of_groups(known, Images(roles[OUT]), f"both {names[0]} and {names[1]}")
    warn_of_versions(known, Images(roles[OUT]), f"images of {names[0]} and {names[1]}")
    if near := look_alikes(*([Record.of_pair(pair, dataset) for pair in side] for side in (inside, outside))):
        warn_once(f"{len(near)} images of {names[0]} look like one of {names[1]} in another group, such as "
                  f"{near[0][0].name} and {near[0][1].name}")
    return roles


def warn_of_absent_classes(found: Sequence[Inspection], what: str, dataset: str) -> None:
    """Print a warning if at least half of the classes of a data set occur in no label of `what`."""
    names, present = find_dataset(dataset).CLASSES, {number for one in found for number in one.ids}
    absent = [name for number, name in enumerate(names) if number not in present]
    if 2 * len(absent) >= len(names):
        warn_once(f"{len(absent)} of the {len(names)} classes of {show_dataset(dataset)} occur in no label of {what}: "
                  f"{', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}; check --dataset")


def compare_shadow_data(pairs: Sequence[Pair], dataset: str, victim: str, allow: Sequence[str]) -> None:
    """Compare D^S with the training images of the victim, where its provenance.json is at hand.

    Raises `UserError` if they share images and this is not allowed. Warns of groups that both have, and of versions.
    """
    path = file_of(victim)
    if not path or not (trained := read_provenance(path.parent)):
        return
    images = identify([Record.of_pair(pair, dataset) for pair in pairs])
    if (both := trained[IN].shared(images)) and "overlap" not in allow:
        raise UserError(f"{len(both)} of the {len(pairs)} images of D^S, such as {both[0][0].name}, are training "
                        f"images of {victim}; give other images, or --allow overlap if the attacker is to know them")
    warn_of_groups(Images(images), trained[IN], "both D^S and the training images of the victim")
    warn_of_versions(trained[IN], Images(images), "training images of the victim and images of D^S")
    warn_of_near(trained[IN], Images(images), "images of D^S", "training images of the victim")


def check_unchanged(folder: Path, roles: Mapping[str, Sequence[Identity]]) -> None:
    """Raise `UserError` if the images of a run that is resumed are not those that it was started with."""
    if before := read_provenance(folder):
        changed = [one.name for role in (IN, OUT) for one, old in zip(roles[role], before[role].all, strict=False)
                   if (one.image, one.label) != (old.image, old.label)]
        if changed or any(len(roles[role]) != len(before[role].all) for role in (IN, OUT)):
            raise UserError(f"the images of {folder} have changed since it was started"
                            f"{f', such as {changed[0]}' if changed else ''}; start a new run")
