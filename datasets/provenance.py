"""Which images played which role in a run, by their content: the private file `provenance.json` of a run.

Whoever holds the hashes of the training images of a model knows its members. So the file stays beside the run, and only
its owner can read it; checkpoints, trees and reports never contain hashes. Under --hash-names they are keyed.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from datasets.survey import near_duplicates
from utils.cli import UserError
from utils.distributed import is_main, warn_once
from utils.files import read_json, write_json

FILE = "provenance.json"
NOTE = "Private: who holds these hashes can tell which images the model was trained on. Do not hand this file on."
FAR = 40  # of 128 bits, from which on two perceptual hashes are of different images
IN, OUT = "in", "out"  # trained on, or attacked as a member; and not


@dataclass(frozen=True)
class Identity:
    """What identifies an image: hashes of its decoded pixels and of its label.

    `group`: None if the image is its own group. `label`: None without a label, or if the label has a single class.
    `look`: the perceptual hash (`inspection.look_of`); files of earlier versions lack it.
    """

    name: str
    group: str | None
    image: str | None
    label: str | None
    look: str | None = None

    def hashed(self, write_name: Callable[[str], str]) -> "Identity":
        """The same with every text converted by `write_name`, and without `look`: keyed hashes have no similarity."""
        return Identity(**{name: value and write_name(value) for name, value in asdict(self).items()} | {"look": None})


class Images:
    """Identities that can be searched by content."""

    def __init__(self, identities: Iterable[Identity]):
        self.all: list[Identity] = []
        self._by_image: dict[str, Identity] = {}
        self._by_label: dict[str, list[Identity]] = {}
        for one in identities:
            self.add(one)

    def add(self, one: Identity) -> None:
        """Add an image."""
        self.all.append(one)
        if one.image:
            self._by_image.setdefault(one.image, one)
        if one.label:
            self._by_label.setdefault(one.label, []).append(one)

    def find(self, wanted: Identity) -> Identity | None:
        """The same image as `wanted`: equal pixels or, where one of the two has no pixels, an equal label."""
        if wanted.image in self._by_image:
            return self._by_image[wanted.image]
        candidates = self._by_label.get(wanted.label, [])
        return next((one for one in candidates if not (one.image and wanted.image)), None)

    def shared(self, others: Iterable[Identity]) -> list[tuple[Identity, Identity]]:
        """The pairs (other, own) of images that are the same."""
        return [(other, own) for other in others if (own := self.find(other))]

    def alike(self, others: Iterable[Identity]) -> list[tuple[Identity, Identity]]:
        """The pairs (other, first own) of images with other pixels and the same label, as after a compression.

        Images that do not look alike at all, as those that share one mask, are left out.
        """
        return [(other, own) for other in others if (own := next((
            one for one in self._by_label.get(other.label, ())
            if one.image and other.image and one.image != other.image and not _unlike(one.look, other.look)), None))]

    def near(self, others: Iterable[Identity]) -> list[tuple[Identity, Identity]]:
        """The pairs (other, own) of images in two groups that look alike, and are in no pair of `shared` and `alike`.

        As an image that was resized together with its label, or mirrored.
        """
        rest = [one for one in others if not self.find(one) and not self.alike([one])]
        groups = ([one.group or "\n1" for one in rest], [one.group or "\n2" for one in self.all])  # as no file has them
        return [(rest[one], self.all[own]) for one, own in near_duplicates(
            [one.look for one in rest], [one.look for one in self.all], groups)]

    def groups(self) -> set[str]:
        """The names of the groups; images that are their own group have none."""
        return {one.group for one in self.all if one.group}


def _unlike(first: str | None, second: str | None) -> bool:
    """Whether two perceptual hashes show that images have nothing in common. About 64 of 128 bits differ by chance."""
    return bool(first and second) and (_bits(first) ^ _bits(second)).bit_count() > FAR


@cache
def _bits(look: str) -> int:
    """The hash of the image, without that of its mirror image."""
    return int(look[:32], 16)


def copies(identities: Sequence[Identity]) -> list[tuple[Identity, Identity]]:
    """The pairs (image, earlier image) of equal images among `identities`."""
    return _with_earlier(identities, Images.shared)


def versions(identities: Sequence[Identity]) -> list[tuple[Identity, Identity]]:
    """The pairs (image, earlier image) with other pixels and the same label among `identities`."""
    return _with_earlier(identities, Images.alike)


def _with_earlier(identities: Sequence[Identity], compare: Callable) -> list[tuple[Identity, Identity]]:
    earlier, pairs = Images([]), []
    for one in identities:
        pairs += compare(earlier, [one])[:1]
        earlier.add(one)
    return pairs


def list_pairs(pairs: Sequence[tuple[Identity, Identity]]) -> str:
    """The first pair, and the number of others, for a message."""
    (first, second), rest = pairs[0], len(pairs) - 1
    return f"{first.name} and {second.name}" + (f", and {rest} other pairs" if rest else "")


def warn_of_groups(first: Images, second: Images, what: str) -> None:
    """Print a warning if some groups, such as cities or drives, have images in both collections."""
    if both := sorted(first.groups() & second.groups()):
        warn_once(f"{len(both)} groups, such as {both[0]}, are in {what}; images of a group are alike")


def warn_of_versions(first: Images, second: Images, what: str) -> None:
    """Print a warning if images with other pixels have the same label in both collections."""
    if alike := first.alike(second.all):
        warn_once(f"{what} have the same label, and other pixels: {list_pairs(alike)}; perhaps they are versions of "
                  "one image")


def warn_of_near(known: Images, others: Images, what: str, role: str) -> None:
    """Print a warning if images of `others`, which are called `what`, look like images of `known`, which are `role`."""
    if near := known.near(others.all):
        warn_once(f"{len(near)} of {len(others.all)} {what} look like {role} (perceptual hash), such as "
                  f"{near[0][0].name} and {near[0][1].name}; perhaps they are resized or mirrored versions")


def write_provenance(folder: Path, roles: Mapping[str, Sequence[Identity]]) -> None:
    """Write the file of a run, which only its owner can read. `roles`: the images of `IN` and of `OUT`."""
    if is_main():
        content = {role: [asdict(one) for one in images] for role, images in roles.items()}
        write_json(folder / FILE, {"note": NOTE} | content, private=True)


def read_training_images(checkpoint: Path | None, what: str, assumed: str,
                         say: Callable[[str], None] = warn_once) -> Images | None:
    """The images that a model was trained on; None, and a line that says what is `assumed`, if they are not known."""
    if checkpoint and (known := read_provenance(checkpoint.parent)):
        return known[IN]
    say(f"the training images of {what} are not known; it is assumed that it was trained on {assumed}")
    return None


def read_provenance(folder: Path) -> dict[str, Images] | None:
    """The images of each role of a run; None if the folder has no `FILE`, or it belongs to another user.

    Raises `UserError` if it is broken.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    if not os.access(path, os.R_OK):
        warn_once(f"{path} belongs to another user, so its images are not compared")
        return None
    content = read_json(path)
    roles = {role: content.get(role) if isinstance(content, dict) else None for role in (IN, OUT)}
    for images in roles.values():
        if not isinstance(images, list) or not all(map(_is_identity, images)):
            raise UserError(f"{path} is damaged; remove it, and the images of the run are not compared any more")
    return {role: Images(Identity(**one) for one in images) for role, images in roles.items()}


def _is_identity(entry: object) -> bool:
    """Whether an entry of `FILE` has the fields of an `Identity`; `look` may be missing."""
    names = {field.name for field in fields(Identity)}
    return (isinstance(entry, dict) and entry.keys() | {"look"} == names
            and all(value is None or isinstance(value, str) for value in entry.values())
            and re.fullmatch("[0-9a-f]{64}", entry.get("look") or 64 * "0") is not None)
