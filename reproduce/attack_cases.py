"""The cases of the paper's claims about patches and attacks (section 2.4)."""

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np

from evaluation.pooled import Contrast, contrast, mean_contrast
from reproduce import paper
from reproduce.cases import Case, Cases, difference, level, new_case, pairs_of
from reproduce.cells import unpack_patches
from reproduce.measured import Measured
from reproduce.plan import INPUTS, Cell, Setting

CHANGED = 0.5  # rejection is tested where it changes the scores of at least this share of the images


def above(*pairs: tuple[str, str]) -> Cases:
    """Cases: the first attack of each pair minus the second."""
    def cases(measured: Measured, setting: str) -> Iterator[Case]:
        for first, second in pairs:
            if cells := pairs_of(measured, setting, first, second):
                label = paper.INPUTS[first.partition("-")[0]] if len(pairs) > 1 else ""
                yield new_case(measured, setting, label, [difference(measured, pair) for pair in cells])
    return cases


def auc_of(method: str, applies: Callable[[str, Setting], bool] = lambda name, setting: True) -> Cases:
    """Cases: the metric of an attack, in the settings to which the claim applies."""
    def cases(measured: Measured, setting: str) -> Iterator[Case]:
        cells = measured.seeds(setting, method)
        if cells and applies(setting, measured.scale.settings[setting]):
            yield new_case(measured, setting, "", [level(measured.scores(cell)) for cell in cells])
    return cases


# Patch sizes

def sizes_compared(measured: Measured, setting: str) -> Iterator[tuple[Cell, Cell, str]]:
    """Pairs of a larger and a smaller patch size, and why the pair is not counted (else "").

    The pair that is counted has the largest and the smallest size of those with one architecture of the attacker. If it
    is another pair, that of the largest and smallest size of all follows.
    """
    from models.attacker import halvings_for  # imports torch

    cells = [cell for cell in measured.sizes() if cell.setting == setting]
    alike = [list(group) for _, group in groupby(cells, lambda cell: halvings_for(cell.size))]
    one = max(alike, key=len, default=[])
    if len(one) > 1:
        yield one[0], one[-1], ""
    if len(cells) > 1 and len(one) < len(cells):
        halvings = [halvings_for(cell.size) for cell in (cells[0], cells[-1])]
        yield (cells[0], cells[-1],
               f"is not counted: attackers of two architectures, with {halvings[0]} and {halvings[1]} halvings")


def largest_minus_smallest(label: str) -> Cases:
    """Cases: images with large patches minus images with small ones. `label`: a format string for the two sizes."""
    def cases(measured: Measured, setting: str) -> Iterator[Case]:
        for first, second, reason in sizes_compared(measured, setting):
            yield Case(label.format(first.size, second.size), [[difference(measured, (first, second))]],
                       *measured.images(setting), note=reason, counted=not reason)
    return cases


def single_patches(measured: Measured, setting: str) -> Iterator[Case]:
    """Single large patches minus single small ones, with the same number of patches of each image."""
    for first, second, reason in sizes_compared(measured, setting):
        scores = [unpack_patches(measured.results(cell)) for cell in (first, second)]
        count = min(len(images[0]) for images in scores)
        flat = [np.concatenate([patches[:count] for patches in images]) for images in scores]
        member, group = measured.images(setting)
        yield Case(f"patches, {first.size} - {second.size}", [[contrast(flat[:1], flat[1:])]],
                   np.repeat(member, count), np.repeat(group, count), note=reason, counted=not reason)


# Selections of patches

def sliding_as_random(measured: Measured, setting: str) -> Iterator[Case]:
    """Sliding minus random with as many patches, as a mean over the numbers of patches that both have.

    The random cells have more patches; only the first ones are used.
    """
    counts = measured.scale.selections.counts
    for kind in INPUTS if setting in measured.scale.selections.settings else ():
        walks = {cell.seed: cell for cell in measured.seeds(setting, f"{kind}-random", count=max(counts)) if cell.curve}
        by_seed: dict[int, list[Contrast]] = {}
        used = set()
        for count in counts:
            for cell in measured.seeds(setting, f"{kind}-sliding", count=count):
                if measured.windows(cell) == count and cell.seed in walks:
                    random = measured.scores(walks[cell.seed], count)
                    by_seed.setdefault(cell.seed, []).append(contrast([measured.scores(cell)], [random]))
                    used.add(count)
        if by_seed:
            yield new_case(measured, setting, paper.INPUTS[kind], list(map(mean_contrast, by_seed.values())),
                           note=f"{' and '.join(map(str, sorted(used)))} patches")


def rejection_gain(measured: Measured, setting: str) -> Iterator[Case]:
    """Rejection minus random, over the attackers whose rejection changes the scores of enough images."""
    for kind, name in paper.INPUTS.items():
        pairs = pairs_of(measured, setting, f"{kind}-rejection", f"{kind}-random")
        contrasts = [difference(measured, pair) for pair in pairs]
        yield from _where_it_rejects(measured, setting, name, contrasts,
                                     [_changed(*map(measured.scores, pair)) for pair in pairs])


def rejection_at_few(measured: Measured, setting: str) -> Iterator[Case]:
    """The gain of rejection over random with the fewest patches, minus this gain with the most patches."""
    selections = measured.scale.selections
    for kind, name in paper.INPUTS.items() if setting in selections.settings else ():
        few, many = min(selections.counts), max(selections.counts)
        pairs = [pair for pair in pairs_of(measured, setting, f"{kind}-rejection", f"{kind}-random", count=many)
                 if all(cell.curve for cell in pair)]
        columns = [[measured.scores(cell, count) for count in (few, many) for cell in pair] for pair in pairs]
        yield from _where_it_rejects(measured, setting, name, [Contrast(each, [1, -1, -1, 1]) for each in columns],
                                     [_changed(each[2], each[3]) for each in columns])


def _where_it_rejects(measured: Measured, setting: str, label: str, contrasts: list[Contrast],
                      changed: list[float]) -> Iterator[Case]:
    """The case of the attackers that change enough images; if there is none, a case of all that is not counted."""
    enough = [one for one, share in zip(contrasts, changed, strict=True) if share >= CHANGED]
    if contrasts:
        shares = "/".join(f"{100 * share:.0f}" for share in changed)
        note = f"rejection changed {shares} % of the images; {len(enough)} of {len(contrasts)} attackers are counted"
        yield new_case(measured, setting, label, enough or contrasts, note=note, counted=bool(enough))


def _changed(first: np.ndarray, second: np.ndarray) -> float:
    """The share of images whose scores (n,) differ."""
    return float(np.mean(first != second))
