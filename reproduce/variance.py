"""The table of variances: how much of the variance of an AUC comes from trainings, patches and images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import compute_metrics
from evaluation.variance import REST, components, variance_over_images
from reproduce import paper
from reproduce.measured import Measured
from reproduce.tables import DASH, markdown

LOCATIONS = "patch locations"
FACTORS = ("victim", "shadow", "attacker", LOCATIONS)
IMAGES = "images"
ABOUT = """\
Standard deviation of the AUC of one attack, in points, and the share of the variance in parentheses. *Victim*,
*shadow*: another training with another seed; *attacker*: another seed of its training; *patch locations*: another
random draw of them; *rest*: what these do only in combination. These are estimated by symmetric sums of squared
differences between attacks on the same images, the analysis of variance if the attacks are balanced (Koch,
Technometrics 10, 1968). *Images*: other groups of images, by the jackknife, with the models as they are; it is a mean
over the attacks. *With*: the two change together in all attacks, and the value is that of both. –: it does not change,
or cannot be estimated. An estimate below 0 is shown as 0."""


@dataclass(frozen=True)
class Observation:
    """One attack: its score (n,) on images with membership bool (n,) and group (n,), and its level of each factor.

    `stratum`: attacks of other strata are not compared. `levels`: factors that it leaves out have the same level in all
    attacks.
    """

    stratum: str
    levels: Mapping[str, str]
    score: np.ndarray
    member: np.ndarray
    group: Sequence[str]


def of_scale(measured: Measured) -> dict[str, list[Observation]]:
    """The attacks of table 2 in all settings and trainings, with other draws of the patch locations, by title."""
    found: dict[str, list[Observation]] = {paper.title(method): [] for method in paper.TABLE}
    for training in (measured, *measured.trainings):
        scale = training.scale
        for cell in training.cells.values():
            usual = (cell.defense, cell.count, cell.size) == ("none", scale.count, scale.size_of(cell.setting))
            if not usual or cell.method not in paper.TABLE:
                continue
            kind, _, select = cell.method.partition("-")
            models = [scale.victim_of(cell)]
            if kind != "threshold":
                models += [scale.attacker_of(cell).source, scale.attacker_of(cell).name]
            levels = dict(zip(FACTORS, (f"{scale.again} {name}" for name in models), strict=False))
            if select in ("random", "rejection"):
                levels[LOCATIONS] = str(scale.seed_of(cell))
            found[paper.title(cell.method)].append(
                Observation(cell.setting, levels, training.scores(cell), *training.images(cell.setting)))
    return found


def variances(rows: Mapping[str, Sequence[Observation]]) -> str:
    """The table of variances, one row for each entry of `rows`."""
    heads = ["attack", "attacks compared", *FACTORS, REST, IMAGES]
    return markdown(heads, [[name, str(len(found)), *_row(found)] for name, found in rows.items() if found])


def _row(found: Sequence[Observation]) -> list[str]:
    values = [100 * compute_metrics(one.score, one.member)["auc"] for one in found]
    levels = {factor: [one.levels.get(factor, "") for one in found] for factor in FACTORS}
    parts = components(values, levels, [one.stratum for one in found])
    images = [variance_over_images(one.score, one.member, one.group) for one in found]
    if None not in images:
        parts[IMAGES,] = 100**2 * float(np.mean(images))
    parts = {names: max(variance, 0.0) for names, variance in parts.items()}
    total = sum(parts.values())
    shown = {}
    for names, variance in parts.items():
        shown |= dict.fromkeys(names[1:], f"with {names[0]}")
        shown[names[0]] = f"{variance**0.5:.1f}" + (f" ({100 * variance / total:.0f} %)" if total else "")
    return [shown.get(name, DASH) for name in (*FACTORS, REST, IMAGES)]
