"""Which classes the label spaces of two data sets share, by the names of the classes.

`MEANINGS` lists names that mean the same. `PARTS` lists classes that another data set has as one class: CamVid's
bicyclist is a rider with a bicycle. A class that only one data set has is not shared, even if the other counts it to a
larger class, as CamVid counts walls to buildings.
"""

from collections.abc import Sequence

from utils import VOID
from utils.cli import UserError

MEANINGS = {"pavement": "sidewalk", "pedestrian": "person", "sign": "traffic sign", "tree": "vegetation"}
PARTS = {"rider": "bicyclist", "bicycle": "bicyclist"}


def known_names(names: object) -> bool:
    """Whether class names, such as those in a checkpoint, say what the classes are.

    False without names, for equal names, and for the numbers that stand for names in `--dataset folder --classes N`.
    """
    return (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names) > 0 and list(names) != [f"class {index}" for index in range(len(names))])


def places_of(space: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """For each class of a label space the index of its class in `names`, or 255 if `names` has none for it."""
    places = {_meaning(name): index for index, name in enumerate(names)}
    return tuple(places.get(name, places.get(PARTS.get(name), VOID)) for name in map(_meaning, space))


def lacking(space: Sequence[str], names: Sequence[str]) -> list[str]:
    """The classes of `names` that a label space lacks."""
    places = places_of(space, names)
    return [name for index, name in enumerate(names) if index not in places]


def shared_classes(space: Sequence[str], *others: Sequence[str]) -> list[str]:
    """The names of the classes that all label spaces have, in the order of the first, with one name for each meaning.

    Classes of `PARTS` become the larger class if one of the label spaces has only the larger class.
    """
    meanings = [set(map(_meaning, one)) for one in (space, *others)]
    found: dict[str, str] = {}
    for name in space:
        larger = PARTS.get(_meaning(name))
        merged = any(larger in one and _meaning(name) not in one for one in meanings)
        kept = larger if merged else name
        found.setdefault(_meaning(kept), kept)
    names = list(found.values())
    while missing := {name for one in (space, *others) for name in lacking(one, names)}:
        names = [name for name in names if name not in missing]
    return names


def check_shared(names: Sequence[str], first: str, second: str) -> None:
    """Raise `UserError` if two label spaces share fewer than two classes, `names`."""
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class"
        raise UserError(f"{first} and {second} share {found}, by the names of their classes, and an attack needs two; "
                        "give models of data sets that have more in common")


def _meaning(name: str) -> str:
    return MEANINGS.get(name, name)
