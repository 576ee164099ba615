"""Look at the images and labels of a data set before anything is trained on them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from datasets.inspection import Inspection, check_depth, check_labels, inspect_all
from datasets.pairs import Pair
from utils import VOID

NEAR = 10  # of the 128 bits of a difference hash, how many may differ between near-duplicates
BLOCK = 2**22  # pairs of images that are compared at once


def survey(parts: Mapping[str, Sequence[Pair]], dataset: str,
         classes: Sequence[str]) -> tuple[list[str], dict[str, Inspection]]:
    """Inspect all images of the parts of a data set, and describe them in a few lines.

    Returns lines about sizes and formats, classes and void, groups, copies, and near-duplicates between parts; and the
    inspection of each image path. Raises `UserError` if a file is broken, or a label has other ids than the data set.
    """
    pairs = {pair.image: pair for part in parts.values() for pair in part}
    found = dict(zip(pairs, inspect_all([(pair.root / pair.image, pair.root / pair.label, dataset)
                                         for pair in pairs.values()], "reading images"), strict=True))
    check_labels(list(found.values()), "the data set", dataset)
    check_depth(list(found.values()), "the data set")
    lines = [*describe(list(found.values()), classes), _groups(list(pairs.values())), *repeated(parts, found)]
    return lines + left_out(list(pairs.values())), found


def left_out(pairs: Sequence[Pair]) -> list[str]:
    """One line about the files beside the images of `pairs` that are in no part; none if there are none."""
    used = {pair.root / pair.image for pair in pairs}
    beside = [path for folder in sorted({path.parent for path in used}) for path in sorted(folder.iterdir())
              if path.is_file() and not path.name.startswith(".")]
    rest = [path for path in beside if path not in used]
    return [f"{len(rest)} of {len(beside)} files beside the images are in no part, such as {rest[0]}"] if rest else []


def without_copies(parts: Mapping[str, Sequence[Pair]], found: Mapping[str, Inspection]) -> dict[str, list[Pair]]:
    """The parts without images that are copies of another image; the first by path is kept."""
    first: dict[str, str] = {}
    for image in sorted(found):
        first.setdefault(found[image].image, image)
    return {name: [pair for pair in part if first[found[pair.image].image] == pair.image]
            for name, part in parts.items()}


def describe(found: Sequence[Inspection], classes: Sequence[str]) -> list[str]:
    """Sizes, formats, classes and void of all images."""
    sizes, counts = Counter(f"{one.size[1]} x {one.size[0]}" for one in found), Counter()
    for one in found:
        counts.update(one.counts)
    kinds = [Counter(one.kinds[file].partition(",")[0] for one in found) for file in (0, 1)]
    void, absent = counts.pop(VOID, 0), [name for number, name in enumerate(classes) if not counts[number]]
    return [f"{len(found)} images of {_most(sizes)}; images are {_most(kinds[0])}, labels {_most(kinds[1])}",
            f"{len(classes) - len(absent)} of {len(classes)} classes occur"
            + (f", absent: {', '.join(absent)}" if absent else "")
            + f"; {100 * void / max(1, void + counts.total()):.1f} % of the pixels are void"]


def _most(counts: Counter) -> str:
    """The two most frequent values, and the number of others."""
    shown, rest = [value for value, _ in counts.most_common(2)], len(counts) - 2
    return " and ".join(shown) + (f" and {rest} others" if rest > 0 else "")


def _groups(pairs: Sequence[Pair]) -> str:
    groups = Counter(pair.group for pair in pairs)
    if len(groups) == len(pairs):
        return "each image is its own group"
    return f"{len(groups)} groups of {min(groups.values())} to {max(groups.values())} images, such as {min(groups)}"


def repeated(parts: Mapping[str, Sequence[Pair]], found: Mapping[str, Inspection]) -> list[str]:
    """The number of copies, and of near-duplicates between each two parts. Unions of other parts are left out."""
    hashes = [one.image for one in found.values()]
    lines = [f"{len(hashes) - len(set(hashes))} images are copies of others"]
    images = {name: {pair.image for pair in part} for name, part in parts.items()}
    single = [(name, part) for name, part in parts.items()
              if not any(images[name] > other for other in images.values())]
    for (first, some), (second, others) in combinations(single, 2):
        if not images[first] & images[second]:
            near = near_duplicates(*([found[pair.image].look for pair in part] for part in (some, others)))
            if near:
                one, other = some[near[0][0]].image, others[near[0][1]].image
                lines.append(f"{len(near)} images of {first} look like one of {second}, such as {one} and {other}")
    return lines


def near_duplicates(first: Sequence[str | None], second: Sequence[str | None],
                    groups: tuple[Sequence[str], Sequence[str]] | None = None) -> list[tuple[int, int]]:
    """The images of `first` that look like an image of `second`, or like its mirror image, each with the nearest one.

    `first`, `second`: the hashes of `inspection.look_of`; None is like nothing. At most `NEAR` bits differ. `groups`:
    those of the images, if images of one group are not to be compared. Returns pairs of positions in both. Of images
    that are as near, the first one is taken.
    """
    one, other = (np.frombuffer(bytes.fromhex("".join(look or 64 * "0" for look in side)), np.uint8).reshape(-1, 2, 16)
                  for side in (first, second))
    there = [np.flatnonzero([look is not None for look in side]) for side in (first, second)]
    known: dict[str, int] = {}
    numbers = [np.array([known.setdefault(group, len(known)) for group in side], np.int64) for side in groups or ()]
    best = np.full(len(one), (NEAR + 1) * len(other))  # number of different bits times len(other), plus the position
    for side in (0, 1):
        for rows, columns in _candidates(one[there[0], 0], other[there[1], side]):
            rows, columns = there[0][rows], there[1][columns]
            words = one[rows, 0].view(np.uint64) ^ other[columns, side].view(np.uint64)
            different = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
            near = different <= NEAR
            if numbers:
                near &= numbers[0][rows] != numbers[1][columns]
            np.minimum.at(best, rows[near], different[near] * len(other) + columns[near])
    found = np.flatnonzero(best < (NEAR + 1) * len(other))
    return [(int(row), int(best[row] % len(other))) for row in found]


def _candidates(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (n,) in both of all pairs that may differ in at most `NEAR` of 128 bits: uint8 (N, 16) and (M, 16).

    The bits are dealt to `NEAR` + 1 parts, so two hashes that differ in at most `NEAR` bits have a part in common. A
    pair that has several parts in common comes several times. If this gives more than all pairs, all pairs come once.
    """
    bits, parts = [np.unpackbits(side, axis=1) for side in (first, second)], []
    for part in range(NEAR + 1):
        sought, keys = (np.packbits(side[:, part :: NEAR + 1], axis=1).view(np.uint16)[:, 0] for side in bits)
        order = np.argsort(keys, kind="stable")
        parts.append((*(np.searchsorted(keys[order], sought, side) for side in ("left", "right")), order))
    if sum((ends - starts).sum() for starts, ends, _ in parts) > len(first) * len(second):
        every = np.zeros(len(first), np.int64)
        parts = [(every, every + len(second), np.arange(len(second)))]
    for starts, ends, order in parts:
        yield from _ranges(starts, ends, order)


def _ranges(starts: np.ndarray, ends: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each row number i with all entries of order[starts[i]:ends[i]], about `BLOCK` pairs at once."""
    counts = ends - starts
    total = np.cumsum(counts)
    for rows in np.split(np.arange(len(counts)), np.searchsorted(total, np.arange(BLOCK, total[-1], BLOCK))
                         if len(counts) else []):
        sizes = counts[rows]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(rows, sizes), order[np.repeat(starts[rows], sizes) + inside]
