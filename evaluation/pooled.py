"""One difference from several trainings and several sets of images, with a 95 % interval.

A *stratum* is one split of a set of images, with one or more trainings on it. The estimate is the mean over strata of
the mean over trainings. Its variance has two parts. Images: a jackknife over groups, where a group that several strata
use is left out of all of them at once. Trainings: the variance between the trainings of one stratum, which is assumed
to be the same in all strata, so that a stratum with one training has it too. What differs between trainings by group of
images is in both parts and counts once. The degrees of freedom are those of Satterthwaite (Biometrics Bulletin 2,
1946). `tools.coverage --metrics pooled` measures the coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.intervals import MIN_GROUPS, TAIL, Clusters, Interval, influences
from evaluation.metrics import compute_metrics

POWER = 0.8  # probability with which a difference of `detectable` is found


@dataclass(frozen=True)
class Contrast:
    """A sum of metrics of attacks on one training: `columns`, arrays of scores (n,), and `signs`, their weights."""

    columns: Sequence[np.ndarray]
    signs: Sequence[float]

    def value(self, metric: str, member: np.ndarray) -> float:
        values = [compute_metrics(column, member)[metric] for column in self.columns]
        if None in values:
            raise ValueError(f"{metric} needs more than {int((~member).sum())} non-members")
        return float(np.dot(self.signs, values))

    def influences(self, metric: str, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far each member (m,) and each non-member (n,) moves the value."""
        parts = zip(*(influences(metric, np.asarray(column, float), member) for column in self.columns), strict=True)
        inside, outside = (np.asarray(self.signs) @ np.stack(part) for part in parts)
        return inside, outside


def contrast(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Contrast:
    """The mean over `first` minus that over `second`, which may be empty; each array is the scores (n,) of a seed."""
    return Contrast([*first, *second], [1 / len(first)] * len(first) + [-1 / max(1, len(second))] * len(second))


def mean_contrast(contrasts: Sequence[Contrast]) -> Contrast:
    """The mean of several contrasts on the same images, such as those of several attackers of one training."""
    return Contrast([column for one in contrasts for column in one.columns],
                    [sign / len(contrasts) for one in contrasts for sign in one.signs])


@dataclass(frozen=True)
class Stratum:
    """Trainings on one split of the set `images`: membership bool (n,) and group (n,) of its images.

    `arms`: one sequence of trainings where a contrast is within each training; two where it is between trainings, such
    as those of two tasks. Their means are added, so the contrasts of the second arm have negative signs.
    """

    images: str
    arms: Sequence[Sequence[Contrast]]
    member: np.ndarray
    group: Sequence[str]

    def values(self, metric: str) -> list[np.ndarray]:
        """For each arm, the value of each training."""
        return [np.array([one.value(metric, self.member) for one in arm]) for arm in self.arms]


def pooled_difference(strata: Sequence[Stratum], metric: str = "auc",
                      others: Sequence[Sequence[np.ndarray]] = ()) -> dict[str, object]:
    """The mean over strata, with its interval over groups of images and over trainings.

    `others`: trainings of another kind, such as attackers that several targets share. The estimate is the mean of
    independent parts, and each part has one array: its value by each training. Their variance is added.

    Returns {"difference", "interval": [low, high], "detectable", "trainings", "error", "freedom"}. `detectable`: the
    smallest difference that would have been found with a probability of 80 %. `trainings`: the degrees of freedom of
    the variance between trainings; with 0 the interval does not contain this variance. `error` and `freedom`: the
    standard error, and the degrees of freedom of its Student t. Interval, `detectable`, `error` and `freedom` are None
    if a set of images has fewer than `MIN_GROUPS` groups on a side. Raises `ValueError` if the non-members are too few
    for the FPR of `metric`.
    """
    values = [stratum.values(metric) for stratum in strata]
    difference = float(np.mean([sum(arm.mean() for arm in arms) for arms in values]))
    sets = [[one for one in strata if one.images == name] for name in dict.fromkeys(one.images for one in strata)]
    parts = [_over_groups(each, metric, len(strata)) for each in sets]
    between, trainings = _over_trainings(values)
    found = {"difference": difference, "interval": None, "detectable": None, "trainings": trainings, "error": None,
             "freedom": None}
    if None in parts:
        return found
    images, of_images, shared = zip(*parts, strict=True)
    another, more = _over_trainings(others)
    variance = sum(images) + max(between - sum(shared), 0.0) + another
    if variance == 0:
        return found | {"interval": [difference, difference], "detectable": 0.0, "error": 0.0, "freedom": 1.0}
    squares = [one**2 / count for one, count in zip(images, of_images, strict=True)]
    squares += [one**2 / count for one, count in ((between, trainings), (another, more)) if count]
    freedom = variance**2 / sum(squares)
    step = stats.t.ppf(1 - TAIL, freedom) * np.sqrt(variance)
    interval: Interval = [float(difference - step), float(difference + step)]
    return found | {"interval": interval, "error": float(np.sqrt(variance)), "freedom": float(freedom),
                    "detectable": float(step + stats.t.ppf(POWER, freedom) * np.sqrt(variance))}


def _over_groups(strata: Sequence[Stratum], metric: str, total: int) -> tuple[float, float, float] | None:
    """The variance over the groups of one set of images; None with few groups. `total`: number of all strata.

    Returns this variance, its degrees of freedom, and the part of it that differs between the trainings of a stratum:
    the variance between trainings contains this part too.
    """
    names, index = np.unique(np.concatenate([np.asarray(one.group) for one in strata]), return_inverse=True)
    change, shares, shared = np.zeros(len(names)), np.zeros((2, len(names))), 0.0
    for stratum in strata:
        own, index = index[: len(stratum.group)], index[len(stratum.group) :]
        sides = [Clusters(own[one], len(names)) for one in (stratum.member, ~stratum.member)]
        shares += np.stack([side.sizes / len(side.index) for side in sides]) / len(strata)
        for arm in stratum.arms:
            changes = np.stack([sum(side.sums(influence) for side, influence in zip(
                sides, one.influences(metric, stratum.member), strict=True)) for one in arm]) / total
            change += changes.mean(axis=0)
            if len(arm) > 1:
                shared += float(changes.var(axis=0, ddof=1).sum()) / len(arm)
    if (shares > 0).sum(axis=1).min() < MIN_GROUPS:
        return None
    return float((change**2).sum()), max(float(1 / (shares**2).sum(axis=1).max()) - 1, 1.0), shared


def _over_trainings(values: Sequence[Sequence[np.ndarray]]) -> tuple[float, int]:
    """Variance of the mean over strata that trainings cause, and its degrees of freedom.

    `values`: for each stratum and arm, the value of each training.
    """
    arms = [arm for each in values for arm in each]
    freedom = sum(len(arm) - 1 for arm in arms)
    if freedom == 0:
        return 0.0, 0
    variance = sum(float(((arm - arm.mean()) ** 2).sum()) for arm in arms) / freedom
    return variance * sum(1 / len(arm) for arm in arms) / len(values) ** 2, freedom
