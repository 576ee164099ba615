"""95 % intervals of metrics, from the variation between groups of images. `tools.coverage` measures their coverage.

The images of a group (a drive, a stretch of street) are alike, so the groups are what varies. AUC, max-F and paired
differences have a jackknife over groups and a Student t. Leaving out a group changes an AUC by the mean of its
placement values (Obuchowski, Biometrics 53, 1997). AUC and max-F are taken on the logit scale. A TPR has a
Clopper-Pearson interval; groups of several images lower its number of observations (Korn and Graubard, Survey
Methodology 24, 1998). With fewer than `MIN_GROUPS` groups of members or of non-members there is no interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from evaluation.metrics import METRICS, RATES, Curves, chance, compute_metrics, placements

MIN_GROUPS = 10  # of members, and of non-members; with fewer, no interval is given
TAIL = 0.025  # probability of error at each end of an interval
SMALLEST = 1e-20  # a smaller variance is a rounding error: nothing varies between groups
FOLDS = 10  # of groups, for the threshold of max-F
Interval = list[float] | None  # [low, high], or None: no interval can be given


@dataclass(frozen=True)
class Clusters:
    """The groups of one side: `index` int (n,), the group of each item of this side, among `total` groups of both."""

    index: np.ndarray
    total: int

    @property
    def sizes(self) -> np.ndarray:
        """Number of items of this side in each group (total,)."""
        return np.bincount(self.index, minlength=self.total)

    @property
    def count(self) -> int:
        """Number of groups that hold items of this side."""
        return int((self.sizes > 0).sum())

    @property
    def effective(self) -> float:
        """(sum of sizes)^2 / sum of squared sizes: as many groups of equal size are worth as much."""
        return len(self.index) ** 2 / float((self.sizes**2).sum())

    def sums(self, influence: np.ndarray) -> np.ndarray:
        """How far the mean over all items falls when each group is left out: influence (n,) of mean 0 -> (total,)."""
        left = np.maximum(len(self.index) - self.sizes, 1)
        return np.bincount(self.index, influence, self.total) / left


def split_groups(group: Sequence[str], member: np.ndarray) -> tuple[Clusters, Clusters]:
    """The groups of the members and of the non-members: group (n,), member bool (n,)."""
    names, index = np.unique(np.asarray(group), return_inverse=True)
    member = np.asarray(member, bool)
    return Clusters(index[member], len(names)), Clusters(index[~member], len(names))


def count_groups(group: Sequence[str], member: np.ndarray) -> dict[str, int]:
    """Number of groups with members, with non-members, and with both."""
    inside, outside = split_groups(group, member)
    both = int(((inside.sizes > 0) & (outside.sizes > 0)).sum())
    return {"members": inside.count, "non_members": outside.count, "both": both}


def intervals(score: np.ndarray, member: np.ndarray, group: Sequence[str]) -> dict[str, Interval]:
    """95 % interval of each metric of one attack: score (n,), member bool (n,), group (n,).

    None where no interval can be given: fewer than `MIN_GROUPS` groups on a side, no variation between groups, or a
    TPR at an FPR finer than the non-members allow. If all members score above all non-members, the interval of AUC and
    max-F is [low, 1] with a one-sided exact bound.
    """
    score, member = np.asarray(score, float), np.asarray(member, bool)
    values, sides = compute_metrics(score, member), split_groups(group, member)
    if not enough(sides):
        return dict.fromkeys(METRICS)
    return {name: _interval(name, value, score, member, sides) for name, value in values.items()}


def enough(sides: tuple[Clusters, Clusters]) -> bool:
    """Whether both sides have `MIN_GROUPS` groups."""
    return min(side.count for side in sides) >= MIN_GROUPS


def _interval(name: str, value: float | None, score: np.ndarray, member: np.ndarray,
              sides: tuple[Clusters, Clusters]) -> Interval:
    if value is None:
        return None
    if name in RATES:
        return rate_interval(value, _centred(Curves(score, member).above(name)[0]), sides[0])
    if value in (0, 1):
        bound = exact_bound(sides)
        return [bound, 1.0] if value == 1 else [0.0, 1 - bound]
    if name == "max_f":
        return max_f_interval(value, score, member, sides)
    return logit_interval(value, influences(name, score, member), sides)


def logit_interval(value: float, influence: tuple[np.ndarray, np.ndarray],
                   sides: tuple[Clusters, Clusters]) -> Interval:
    """Interval of a metric between 0 and 1 (exclusive); None if no group changes it, e.g. if all scores are equal."""
    smallest = 1 / (2 * len(influence[0]) * len(influence[1]))

    def scale(values: np.ndarray) -> np.ndarray:
        return logit(np.clip(values, smallest, 1 - smallest))

    variance, freedom = jackknife(value, influence, sides, scale)
    step = stats.t.ppf(1 - TAIL, freedom) * np.sqrt(variance)
    return [float(expit(scale(value) + sign * step)) for sign in (-1, 1)] if variance > SMALLEST else None


def widen(value: float, interval: Interval, factor: float) -> Interval:
    """The interval of a metric between 0 and 1, whose ends are `factor` times as far on the logit scale."""
    if not interval or not 0 < value < 1:
        return interval
    return [float(expit(logit(value) + factor * (logit(end) - logit(value)))) for end in interval]


def max_f_interval(value: float, score: np.ndarray, member: np.ndarray, sides: tuple[Clusters, Clusters]) -> Interval:
    """Interval of max-F, which takes into account that the threshold is chosen on the same items.

    The largest F of a sample lies above that of the distribution, and the F of thresholds that other groups chose lies
    below it; so the low end is that of the latter. It is at least the F of calling every item a member. The high end is
    the highest at the chosen threshold and at the deciles of the scores. None if all scores are equal.
    """
    if score.min() == score.max():
        return None
    curves = Curves(score, member)
    thresholds = [curves.thresholds[curves.f_scores().argmax()], *np.quantile(score, np.arange(1, FOLDS) / FOLDS)]
    highs = [_f_interval(score[member] >= t, score[~member] >= t, sides)[1] for t in thresholds]
    chosen = cross_fitted(score, member, sides)
    floor = chance(len(chosen[0]), len(chosen[1]))["all_member_f"]
    return [min(max(_f_interval(*chosen, sides)[0], floor), value), max(highs)]


def _f_interval(hit: np.ndarray, alarm: np.ndarray, sides: tuple[Clusters, Clusters]) -> list[float]:
    """Interval of the F of calling these members bool (m,) and non-members bool (n,) members."""
    value = _f_score(hit, alarm)
    return (logit_interval(value, _f_influences(hit, alarm), sides) if 0 < value < 1 else None) or [value, value]


def cross_fitted(score: np.ndarray, member: np.ndarray, sides: tuple[Clusters, Clusters],
                 quality: Callable[[Curves], np.ndarray] = Curves.f_scores) -> tuple[np.ndarray, np.ndarray]:
    """Which members bool (m,) and non-members bool (n,) reach a threshold that the other folds of groups chose.

    It is the one with the highest `quality`, by default the threshold of max-F.
    """
    kind = (sides[0].sizes > 0) * 2 + (sides[1].sizes > 0) * 1
    fold_of = np.empty(len(kind), int)
    fold_of[np.argsort(kind, kind="stable")] = np.arange(len(kind)) % FOLDS
    fold = np.empty(len(score), int)
    fold[member], fold[~member] = (fold_of[side.index] for side in sides)
    high = np.zeros(len(score), bool)
    for number in range(FOLDS):
        rest, held = fold != number, fold == number
        curves = Curves(score[rest], member[rest])
        high[held] = score[held] >= curves.thresholds[quality(curves).argmax()]
    return high[member], high[~member]


def influences(name: str, score: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each member (m,) and each non-member (n,) moves a metric; both have mean 0.

    The thresholds of max-F and of a TPR are held fixed. For max-F this is exact to first order, because its threshold
    is a maximum.
    """
    if name == "auc":
        inside, outside = placements(score[member], score[~member])
        return _centred(inside), _centred(outside)
    hit, alarm = Curves(score, member).above(name)
    return (_centred(hit), np.zeros(len(alarm))) if name in RATES else _f_influences(hit, alarm)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def _f_score(hit: np.ndarray, alarm: np.ndarray) -> float:
    """F of calling these members (m,) and these non-members (n,) members; both are bool."""
    return float(2 * hit.sum() / (hit.sum() + alarm.sum() + len(hit)))


def _f_influences(hit: np.ndarray, alarm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`influences` of `_f_score`: its derivatives by the true and the false positive rate."""
    ratio = len(alarm) / len(hit)
    base = hit.mean() + ratio * alarm.mean() + 1
    return (_centred(hit) * 2 * (ratio * alarm.mean() + 1) / base**2,
            _centred(alarm) * -2 * ratio * hit.mean() / base**2)


def jackknife(value: float, influence: tuple[np.ndarray, np.ndarray], sides: tuple[Clusters, Clusters],
              scale: Callable[[np.ndarray], np.ndarray] = np.asarray) -> tuple[float, float]:
    """Variance of `scale(value)` by a jackknife over groups, and its degrees of freedom.

    Each group is left out once; a group that holds both sides is left out of both. The usual factor 1 - 1 / groups is
    left out: without it, intervals from 10 groups have their nominal coverage. The degrees of freedom are those of the
    side with fewer groups, where groups of unequal size count as `Clusters.effective`.
    """
    changes = [side.sums(values)[side.sizes > 0] for side, values in zip(sides, influence, strict=True)]
    if ((sides[0].sizes > 0) & (sides[1].sizes > 0)).any():
        changes = [sum(side.sums(values) for side, values in zip(sides, influence, strict=True))]
    variance = sum(float(((scale(value - change) - scale(value)) ** 2).sum()) for change in changes)
    return variance, max(min(side.effective for side in sides) - 1, 1)


def exact_bound(sides: tuple[Clusters, Clusters]) -> float:
    """One-sided 95 % bound for an AUC of 1: the lowest AUC that would separate so many groups once in 20 times.

    Groups of members and of non-members are put into pairs that share no group; one image of each gives independent
    comparisons, all of which were won.
    """
    pairs = min(sides[0].count, sides[1].count, int(((sides[0].sizes > 0) | (sides[1].sizes > 0)).sum()) // 2)
    return float((2 * TAIL) ** (1 / pairs))


def rate_interval(rate: float, influence: np.ndarray, side: Clusters) -> list[float]:
    """Clopper-Pearson interval of a share of items, given its threshold: influence (n,), hits minus `rate`.

    If every item is a group, it is exact. Else the number of observations is divided by the design effect.
    """
    count = len(influence)
    if side.count < count:
        count = side.count
        if 0 < rate < 1:
            variance = float((side.sums(influence) ** 2).sum())
            wider = (stats.norm.ppf(TAIL) / stats.t.ppf(TAIL, max(side.effective - 1, 1))) ** 2
            count = min(len(influence), rate * (1 - rate) / max(variance, SMALLEST)) * wider
    return exact_interval(rate * count, count)


def exact_interval(hits: float, count: float) -> list[float]:
    """Clopper-Pearson 95 % interval of a probability after `hits` of `count` independent trials."""
    low = 0.0 if hits <= 0 else float(stats.beta.ppf(TAIL, hits, count - hits + 1))
    high = 1.0 if hits >= count else float(stats.beta.ppf(1 - TAIL, hits + 1, count - hits))
    return [low, high]


def mean_interval(values: np.ndarray, group: Sequence[str]) -> Interval:
    """95 % interval of the mean of `values` (n,) over groups (n,); None with fewer than `MIN_GROUPS` groups."""
    values, group = np.asarray(values, float), np.asarray(group)
    side, _ = split_groups(group, np.ones(len(values), bool))
    if side.count < MIN_GROUPS:
        return None
    variance, freedom = jackknife(values.mean(), (_centred(values), np.zeros(len(values))), (side, side))
    return _around(values.mean(), variance, freedom)


def _around(value: float, variance: float, freedom: float) -> Interval:
    """The interval around a value; None if it does not vary between groups."""
    if variance <= SMALLEST:
        return None
    step = stats.t.ppf(1 - TAIL, freedom) * np.sqrt(variance)
    return [float(value - step), float(value + step)]


def paired_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], member: np.ndarray,
                      group: Sequence[str], metric: str = "auc") -> dict[str, object]:
    """Metric of `first` minus that of `second` on the same items: {"difference", "interval": [low, high] or None}.

    `first` and `second` have one or more arrays of scores (n,), one for each attacker seed. The metric of each is the
    mean over its arrays. Thresholds of max-F and TPR are held fixed. The interval of equal scores is [0, 0]; it is None
    with few groups, and if different scores have a difference that does not vary, as two AUCs of 1. Raises
    `ValueError` if the non-members are too few for the FPR of `metric`.
    """
    member, columns = np.asarray(member, bool), [*first, *second]
    sign = np.array([1 / len(first)] * len(first) + [-1 / len(second)] * len(second))
    values = [compute_metrics(score, member)[metric] for score in columns]
    if None in values:
        raise ValueError(f"{metric} needs more than {int((~member).sum())} non-members")
    sides, difference = split_groups(group, member), float(np.dot(values, sign))
    if not enough(sides):
        return {"difference": difference, "interval": None}
    parts = zip(*(influences(metric, np.asarray(score, float), member) for score in columns), strict=True)
    if all(np.array_equal(*pair) for pair in zip(first, second, strict=False)) and len(first) == len(second):
        return {"difference": difference, "interval": [0.0, 0.0]}
    variance, freedom = jackknife(difference, tuple(sign @ np.stack(part) for part in parts), sides)
    return {"difference": difference, "interval": _around(difference, variance, freedom)}
