"""Cases of a claim: what it compares in one setting, and the value over several of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from evaluation.metrics import RATES, decidable
from evaluation.pooled import Contrast, Stratum, contrast, mean_contrast, pooled_difference
from reproduce.measured import Measured
from reproduce.plan import Cell


@dataclass(frozen=True)
class Case:
    """What a claim compares in one setting: membership bool (n,) and group (n,) of its images, and their scores.

    `trainings`: for each training of the models, one contrast for each seed of the attacker. `lost`: points of mIoU on
    non-members that a defense costs. A case that is not counted is shown and is not part of the value of the claim;
    `note` says why.
    """

    label: str
    trainings: Sequence[Sequence[Contrast]]
    member: np.ndarray
    group: Sequence[str]
    note: str = ""
    lost: float = 0.0
    counted: bool = True


Cases = Callable[[Measured, str], Iterator[Case]]  # the cases of a claim in one training and one setting


def new_case(measured: Measured, setting: str, label: str, contrasts: Sequence[Contrast], **more: object) -> Case:
    """A case of one training. `label` is added to the title of the setting."""
    title = measured.title(setting)
    return Case(f"{title}, {label}" if label else title, [contrasts], *measured.images(setting), **more)


def level(score: np.ndarray) -> Contrast:
    """The metric of one attack, not compared with another: score (n,)."""
    return Contrast([score], [1.0])


def pairs_of(measured: Measured, setting: str, first: str, second: str, **values: int) -> list[tuple[Cell, Cell]]:
    """The cells of two attacks with the same attacker seed. A threshold has one cell for all seeds."""
    left, right = ({cell.seed: cell for cell in measured.seeds(setting, method, **values)}
                   for method in (first, second))
    if second.startswith("threshold") and right:
        right = dict.fromkeys(left, *right.values())
    return [(left[seed], right[seed]) for seed in left if seed in right]


def difference(measured: Measured, pair: tuple[Cell, Cell]) -> Contrast:
    """The metric of the first cell minus that of the second."""
    return contrast(*([measured.scores(cell)] for cell in pair))


@dataclass(frozen=True)
class Value:
    """A value in points with its 95 % interval, or None where there are too few groups of images.

    `detectable`: the smallest difference that would have been found with a probability of 80 %; `error`, `freedom`:
    standard error, and the degrees of freedom of its Student t; `trainings`: the degrees of freedom of the variance
    between trainings, which is not in the interval if they are 0.
    """

    value: float
    interval: tuple[float, float] | None
    detectable: float | None
    error: float | None
    freedom: float | None
    trainings: int

    def show(self, sign: str = "+") -> str:
        """The value and its interval. `sign`: the flag of a format for the sign, "+" or "-"."""
        interval = "no interval" if self.interval is None else "[{}]".format(
            ", ".join(f"{bound:{sign}.1f}" for bound in self.interval))
        return f"{self.value:{sign}.1f} {interval}"


def pool(cases: Sequence[Case], metric: str = "auc") -> Value | None:
    """The mean over the cases; None if there are none, or if the non-members are too few for a TPR at this FPR.

    Each case is a stratum of `evaluation.pooled`, and a group of images that several cases have counts once. The
    variance between trainings is that between trainings of the models. If each case has only one, it is that between
    attackers, without the variance of victims and shadows.
    """
    if not cases or any(not decidable(RATES.get(metric, 1), int((~case.member).sum())) for case in cases):
        return None
    several = any(len(case.trainings) > 1 for case in cases)
    strata = [Stratum("scale", [[mean_contrast(seeds) for seeds in case.trainings] if several else case.trainings[0]],
                      case.member, case.group) for case in cases]
    found = pooled_difference(strata, metric)
    signs = [np.asarray(case.trainings[0][0].signs) for case in cases]
    possible = [100 * float(np.mean([clip(each).sum() for each in signs]))
                for clip in (partial(np.minimum, 0), partial(np.maximum, 0))]  # e.g. -100 and 100 for a difference
    interval = tuple(float(np.clip(100 * bound, *possible)) for bound in found["interval"] or ()) or None
    detectable, error = (None if found[key] is None else 100 * found[key] for key in ("detectable", "error"))
    return Value(100 * found["difference"], interval, detectable, error, found["freedom"], found["trainings"])
