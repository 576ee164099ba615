"""Compare the images of an attack by their content: no image may play two roles that exclude one another."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets.inspection import check_labels, inspect
from datasets.provenance import IN, OUT, Identity, Images, copies, list_pairs, read_provenance, warn_of_groups
from predictors.base import Predictor, Record, identify
from utils.cli import UserError
from utils.distributed import is_main, print_once
from utils.files import fingerprint


@dataclass
class Roles:
    """The attacked images by content, and what they were compared with.

    `known`: descriptions of the images at hand that they were compared with; `copies`, `overlap`, `unseen`: numbers of
    images that --allow names.
    """

    images: list[Identity]
    members: Images
    non_members: Images
    known: list[str] = field(default_factory=list)
    copies: int = 0
    overlap: int = 0
    unseen: int = 0

    @property
    def summary(self) -> dict:
        """The entry of results.json."""
        return {"compared_with": self.known, "copies": self.copies, "overlap": self.overlap, "unseen": self.unseen}


def examine(records: Sequence[Record], predictor: Predictor,
            allow: Sequence[str]) -> tuple[Roles, list[Record]]:
    """Identify the attacked images. Returns them, and the records with copies of an image in one group.

    Where both image and label are missing, the stored output identifies an image. Raises `UserError` if an image is on
    both sides, or twice on one side and this is not allowed. Warns of images with the same label on both sides.
    """
    images = [one if one.image or one.label or not predictor.files(record) else
              replace(one, image=fingerprint(list(predictor.files(record))))
              for one, record in zip(identify(records), records, strict=True)]
    check_labels([inspect(*record.files) for record in records], "the attacked images", records[0].dataset)
    sides = [Images(one for one, record in zip(images, records, strict=True) if record.member is side)
             for side in (True, False)]
    if both := sides[1].shared(sides[0].all):
        raise UserError(f"the same image is a member and a non-member: {list_pairs(both)}; remove it from one side")
    if (alike := sides[1].alike(sides[0].all)) and is_main():
        print(f"warning: members and non-members with the same label, though their pixels differ: {list_pairs(alike)}; "
              "perhaps they are versions of one image", file=sys.stderr)
    roles, twice = Roles(images, *sides), [pair for side in sides for pair in copies(side.all)]
    if twice and "copies" not in allow:
        raise UserError(f"the same image is attacked twice: {list_pairs(twice)}; remove the copies, or give "
                        "--allow copies to count each copy")
    roles.copies, groups = len(twice), {record.name: record.group for record in records}
    first = {copy.name: groups[original.name] for copy, original in twice}
    return roles, [replace(record, group=first.get(record.name, record.group)) for record in records]


def compare_with_victim(roles: Roles, checkpoints: Sequence[Path], allow: Sequence[str]) -> None:
    """Compare members and non-members with the training images of the target model, where they are at hand.

    Raises `UserError` if the model was trained on a non-member, or if it was not trained on a member and this is not
    allowed.
    """
    for path in checkpoints:
        if not (trained := read_provenance(path.parent)):
            continue
        roles.known.append("training images of the target model")
        inside, outside = (trained[IN].shared(side.all) for side in (roles.members, roles.non_members))
        unseen = len(roles.members.all) - len(inside)
        if unseen and len(outside) > len(inside):
            raise UserError(f"{path} was trained on {len(outside)} of the non-members and on {len(inside)} of the "
                            "members; exchange the two sides")
        if outside:
            raise UserError(f"{path} was trained on {len(outside)} of the {len(roles.non_members.all)} non-members, "
                            f"such as {outside[0][0].name}; remove them from the non-members")
        roles.unseen += unseen
        if unseen and "unseen" not in allow:
            seen = {one.name for one, _ in inside}
            example = next(one.name for one in roles.members.all if one.name not in seen)
            raise UserError(f"{path} was not trained on {unseen} of the {len(roles.members.all)} members, such as "
                            f"{example}; give the members of this model or, if they are meant, --allow unseen. To see "
                            "what an attack finds on a model that saw neither side, give this model as --control")


def compare_with_attacker(roles: Roles, checkpoint: Path | None, allow: Sequence[str]) -> None:
    """Compare the attacked images with those that the attacker was trained on, where they are at hand.

    Raises `UserError` if an image is the same and this is not allowed. Warns of groups that both have.
    """
    if checkpoint and (trained := read_provenance(checkpoint.parent)):
        _compare(roles, Images([*trained[IN].all, *trained[OUT].all]), f"D^S of {checkpoint}", "attacker", allow)


def compare_with_population(roles: Roles, population: Sequence[Record], allow: Sequence[str]) -> None:
    """Compare the attacked images with those of --population, as `compare_with_attacker` does."""
    _compare(roles, Images(identify(population)), "--population", "attack", allow)


def _compare(roles: Roles, learned: Images, what: str, learner: str, allow: Sequence[str]) -> None:
    roles.known.append(what.partition(" of ")[0])
    if shared := learned.shared(roles.images):
        if "overlap" not in allow:
            raise UserError(f"{len(shared)} of the {len(roles.images)} attacked images, such as {shared[0][0].name}, "
                            f"are in {what}, so the {learner} knows their membership; attack other images, or give "
                            "--allow overlap to count them")
        roles.overlap += len(shared)
    warn_of_groups(Images(roles.images), learned, f"the attacked images and {what}")


def compare_with_control(roles: Roles, checkpoints: Sequence[Path]) -> None:
    """Raise `UserError` if a model that is to serve as a control was trained on an attacked image."""
    for path in checkpoints:
        if (trained := read_provenance(path.parent)) and (seen := trained[IN].shared(roles.images)):
            raise UserError(f"--control {path} was trained on {len(seen)} of the attacked images, such as "
                            f"{seen[0][0].name}; a control is a model that was trained on none")


def say(roles: Roles) -> None:
    """Print with what the attacked images were compared, and what was allowed."""
    others = f"; also compared with: {', '.join(roles.known)}" if roles.known else ""
    allowed = {"copies": roles.copies, "images of D^S": roles.overlap,
               "members that the model was not trained on": roles.unseen}
    counted = [f"{number} {what}" for what, number in allowed.items() if number]
    print_once(f"compared by content: no image is on both sides{others}"
               + (f"; allowed: {', '.join(counted)}" if counted else ""))
