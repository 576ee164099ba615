"""Compare the images of an attack by their content: no image may play two roles that exclude one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scipy.stats import fisher_exact

from datasets.inspection import check_depth, check_labels, hash_array, inspect
from datasets.provenance import (
    IN,
    OUT,
    Images,
    copies,
    list_pairs,
    read_provenance,
    read_training_images,
    versions,
    warn_of_groups,
    warn_of_near,
    warn_of_versions,
)
from evaluation.alignment import check_alignment, other_models
from predictors import file_of
from predictors.base import Predictor, Query, Record, group_repeats, identify, look_alikes, tell_apart
from predictors.reference import Reference
from predictors.samples import Source
from utils import VOID
from utils.cli import UserError
from utils.distributed import print_once, warn_once

UNBALANCED = 0.01  # p-value of Fisher's exact test
ENOUGH = 3  # references for each image of a population, so that no single model tells the sides apart


@dataclass
class Roles:
    """The attacked images by content, and with what they were compared.

    `allow`: what is not refused, of "copies", "overlap", "unseen" and "unbalanced"; `known`: the images at hand that
    they were compared with; `counts`: the numbers of images, or of unbalanced references, that were allowed.
    """

    members: Images
    non_members: Images
    allow: Sequence[str] = ()
    known: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("copies", "overlap", "unseen", "unbalanced"),
                                                                         0))

    @property
    def images(self) -> Images:
        """The images of both sides."""
        return Images([*self.members.all, *self.non_members.all])

    @property
    def summary(self) -> dict:
        """The entry of results.json."""
        return {"compared_with": self.known} | self.counts

    def refuse(self, what: str, number: int, message: str) -> None:
        """Raise `UserError` if there are such cases and --allow does not name them; count them otherwise."""
        if number and what not in self.allow:
            raise UserError(message)
        self.counts[what] += number


def examine(records: Sequence[Record], predictor: Predictor, allow: Sequence[str]) -> tuple[Roles, list[Record]]:
    """Identify the attacked images. Returns them, and the records with copies and versions of an image in one group.

    Where image and label are both missing, the stored output identifies an image. Raises `UserError` if an image is on
    both sides, or twice on one side and this is not allowed. Warns of images with the same label on both sides.
    """
    images = identify(records)
    inspected = [inspect(*record.files) for record in records]
    check_labels(inspected, "the attacked images", records[0].dataset)
    check_depth(inspected, "the attacked images")
    found = [one if one.image or one.label else replace(one, image=_output_hash(record, predictor))
             for one, record in zip(images, records, strict=True)]
    first, second = (Images(one for one, record in zip(found, records, strict=True) if record.member is side)
                     for side in (True, False))
    if both := second.shared(first.all):
        raise UserError(f"the same image is a member and a non-member: {list_pairs(both)}; remove it from one side")
    warn_of_versions(first, second, "members and non-members")
    roles = Roles(*(Images(one for one, record in zip(images, records, strict=True) if record.member is side)
                    for side in (True, False)), allow)
    twice, again = ([pair for side in (first, second) for pair in compare(side.all)] for compare in (copies, versions))
    roles.refuse("copies", len(twice), f"the same image is attacked twice: {list_pairs(twice)}; remove the copies, or "
                 "give --allow copies to count each copy" if twice else "")
    if again:
        warn_once(f"{len(again)} attacked images have the label of an earlier one of their side, and other pixels: "
                  f"{list_pairs(again)}; perhaps they are versions of one image, so they form one group with it")
    records = tell_apart(group_repeats(records, [*again, *twice]))
    warn_of_look_alikes(records)
    return roles, records


def check_truth(source: Source) -> None:
    """Raise `UserError` if an image has no label, or if its label is void at all positions of the output.

    Classes that the view of the source leaves out are void, too.
    """
    seen = source.label_view.label if source.label_view else lambda label: label
    stride = source.stride or source.predictor.stride or source.form()[1]
    for record in source.records if source.predictor.kind == "posterior" else ():
        found = inspect(*record.files)
        counts = found.counts or {}
        total, void = sum(counts.values()), sum(counts[number] for number in counts if seen(number) == VOID)
        positions = math.prod(-(-side // stride) for side in found.size or (1, 1))
        if (void >= positions or not total) and (seen(record.load_label())[::stride, ::stride] == VOID).all():
            where = f"at stride {stride}" if total > void else "everywhere"
            where += " except for classes that are left out" if void > counts.get(VOID, 0) else ""
            raise UserError(f"{record.name}: its label is void {where}, so it cannot be attacked; leave the image out")


def warn_of_look_alikes(records: Sequence[Record]) -> None:
    """Print a warning if some attacked images look like images of other groups, on the same or on the other side."""
    if near := look_alikes(records, records):
        across = sum(one.member is not other.member for one, other in near)
        (one, other), total = near[0], len(records)
        warn_once(f"{len(near)} of {total} attacked images look like one of another group, {across} of them like one "
                  f"of the other side, such as {one.name} and {other.name}; intervals take groups as independent")


def _output_hash(record: Record, predictor: Predictor) -> str | None:
    """Hash of the values of a stored output, in whatever form a file has them; None for a model that is queried."""
    return None if predictor.reads_images else hash_array(predictor.predict([Query(record, None)])[0].numpy())


def compare_with_victim(roles: Roles, victim: str) -> None:
    """Compare members and non-members with the training images of the target model, where they are at hand.

    Raises `UserError` if the model was trained on a non-member, or if it was not trained on a member and this is not
    allowed. Warns of non-members that look like training images.
    """
    checkpoint = file_of(victim)
    trained = read_training_images(checkpoint, f"--victim {victim}", "the members, and on no non-member", print_once)
    if trained is None:
        return
    roles.known.append("training images of the target model")
    inside, outside = (trained.shared(side.all) for side in (roles.members, roles.non_members))
    members, seen = roles.members.all, {one.name for one, _ in inside}
    unseen = [one.name for one in members if one.name not in seen]
    if unseen and len(outside) > len(inside):
        raise UserError(f"{checkpoint} was trained on {len(outside)} of the non-members and on {len(inside)} of the "
                        "members; exchange the two sides")
    if outside:
        raise UserError(f"{checkpoint} was trained on {len(outside)} of the {len(roles.non_members.all)} non-members, "
                        f"such as {outside[0][0].name}; remove them from the non-members")
    warn_of_versions(trained, roles.images, "training images of the target model and attacked images")
    warn_of_near(trained, roles.non_members, "attacked non-members", "training images of the target model")
    roles.refuse("unseen", len(unseen), f"{checkpoint} was not trained on {len(unseen)} of the {len(members)} members, "
                 f"such as {unseen[0]}; give the members of this model or, if these are meant, --allow unseen. To see "
                 "what an attack finds on a model that saw neither side, give it as --control" if unseen else "")


def compare_with_attacker(roles: Roles, checkpoint: Path) -> None:
    """Compare the attacked images with those that the attacker was trained on, where they are at hand.

    Raises `UserError` if an image is the same and this is not allowed. Warns of groups that both have.
    """
    if trained := read_provenance(checkpoint.parent):
        _compare(roles, Images([*trained[IN].all, *trained[OUT].all]), "D^S", "attacker")


def compare_with_population(roles: Roles, population: Sequence[Record]) -> None:
    """Check the labels of --population, and compare its images as `compare_with_attacker` does."""
    check_labels([inspect(*record.files) for record in population], "--population", population[0].dataset)
    _compare(roles, Images(identify(population)), "--population", "attack")


def check_non_members(population: Sequence[Record], victim: str) -> None:
    """Raise `UserError` if the target model was trained on an image of --population, where its images are at hand."""
    trained = read_training_images(file_of(victim), f"--victim {victim}", "no image of --population", print_once)
    if trained and (seen := trained.shared(identify(population))):
        raise UserError(f"{victim} was trained on {len(seen)} of the {len(population)} images of --population, such as "
                        f"{seen[0][0].name}; this attack learns from images that it was not trained on: remove them")


def _compare(roles: Roles, learned: Images, what: str, learner: str) -> None:
    roles.known.append(what)
    shared, total = learned.shared(roles.images.all), len(roles.images.all)
    roles.refuse("overlap", len(shared), f"{len(shared)} of the {total} attacked images, such as {shared[0][0].name}, "
                 f"are in {what}, so the {learner} knows their membership; attack other images, or give --allow "
                 "overlap to count them" if shared else "")
    warn_of_groups(roles.images, learned, f"the attacked images and {what}")
    warn_of_versions(learned, roles.images, f"{what} and attacked images")
    warn_of_near(learned, roles.images, "attacked images", f"images of {what}")


def compare_with_references(roles: Roles, references: Sequence[Reference]) -> None:
    """Raise `UserError` if a reference was trained on clearly more images of one side, and this is not allowed.

    It is left out for these images, so which references are used would tell members from non-members. Otherwise the
    number of such images is printed. Warns of attacked images that look like its training images.
    """
    for reference in references:
        shown, unbalanced = compare_sides(reference, roles.members, roles.non_members)
        where = f"the reference {reference.predictor.where}"
        roles.refuse("unbalanced", int(unbalanced), f"{where} was trained on {shown}; it would be left out for them, "
                     "which tells the sides apart: give references that saw as many of both sides, or --allow "
                     "unbalanced for an upper bound")
        if shown:
            print_once(f"{where} was trained on {shown}; for these images it does not count as a model that did not "
                       "see them")
        warn_of_near(reference.trained_on, roles.images, "attacked images", f"training images of {where}")


def compare_sides(reference: Reference, members: Images, non_members: Images) -> tuple[str, bool]:
    """On how many images of each side a reference was trained, in words ("" for none), and whether the shares differ.

    They differ if the p-value of Fisher's exact test is below `UNBALANCED`.
    """
    sides = [members.all, non_members.all]
    seen = [len(reference.trained_on.shared(side)) for side in sides]
    table = [seen, [len(side) - count for side, count in zip(sides, seen, strict=True)]]
    shown = f"{seen[0]} of {len(sides[0])} members and on {seen[1]} of {len(sides[1])} non-members"
    return shown if any(seen) else "", bool(fisher_exact(table).pvalue < UNBALANCED)


def lend_references(population: Source, references: Sequence[Reference]) -> Source:
    """The population with the reference models that can serve for it.

    The population's own model is left out. If each image has `ENOUGH` of the other models that were not trained on it,
    as in a bed of models on the parts of one set of images, each image gets equally many of these. Else a reference
    that was trained on clearly more images of one side is left out, too: it would count for the other side only. Lines
    say which references are used. Raises `UserError` if none is left, if a reference cannot be queried about the
    images, and as `check_alignment`.
    """
    if any(one.predictor.reads_images for one in references) and not population.records[0].image.is_file():
        raise UserError(f"{population.records[0].image} is missing, so references cannot be queried about "
                        "--population; give a run of train_shadow.py")
    others, images = other_models(population, references), identify(population.records)
    sides = [Images(one for one, record in zip(images, population.records, strict=True) if record.member is side)
             for side in (True, False)]
    fewest = min(sum(not one.saw(record) for one in others) for record in population.records)
    kept, shared = [], fewest >= ENOUGH and any(compare_sides(one, *sides)[1] for one in others)
    for reference in references:
        shown, unbalanced = compare_sides(reference, *sides)
        where = f"the reference {reference.predictor.where}"
        if reference in others and (shared or not unbalanced):
            check_alignment(replace(population, predictor=reference.predictor, view=reference.view),
                            f"{where}, on --population")
            kept.append(reference)
            continue
        why = f"it was trained on {shown}" if reference in others else "it is the model of --population itself"
        print_once(f"--population is attacked without {where}: {why}")
    if not kept:
        raise UserError("no reference model can serve for --population, because each is its own model or was trained "
                        "on clearly more images of one side; give --references other models, too")
    if shared:
        print_once(f"each image of --population gets {fewest} of {len(kept)} references, which were not trained on it")
    return replace(population, references=tuple(kept), unseen=fewest if shared else None)


def compare_with_control(roles: Roles, control: str) -> None:
    """Raise `UserError` if a model that is to serve as a control was trained on an attacked image.

    Warns of attacked images that look like its training images.
    """
    trained = read_training_images(file_of(control), f"--control {control}", "none of the attacked images")
    if trained is not None:
        roles.known.append("training images of --control")
        if seen := trained.shared(roles.images.all):
            raise UserError(f"--control {control} was trained on {len(seen)} of the attacked images, such as "
                            f"{seen[0][0].name}; a control is a model that was trained on none")
        warn_of_near(trained, roles.images, "attacked images", "training images of --control")


def say(roles: Roles) -> None:
    """Print with what the attacked images were compared, and what was allowed."""
    names = {"copies": "copies", "overlap": "images that the attacker knows",
             "unseen": "members that the model was not trained on",
             "unbalanced": "references that were trained on more images of one side"}
    counted = [f"{number} {names[what]}" for what, number in roles.counts.items() if number]
    print_once("compared by content: no image is on both sides"
               + (f"; also compared with {', '.join(roles.known)}" if roles.known else "")
               + (f"; allowed: {', '.join(counted)}" if counted else ""))
