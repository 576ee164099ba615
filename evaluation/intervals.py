"""Bootstrap intervals, over images or over groups of images."""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.metrics import METRICS, Curves
from utils.randomness import stream

RESAMPLES = 2000
CHUNK = 4_000_000  # largest number of weights in memory


def group_weights(group: Sequence[str], member: np.ndarray, resamples: int, seed: int) -> Callable[[], np.ndarray]:
    """Return a function that draws the next chunk of weights (b, n): how often each resample contains each item.

    Groups are drawn with replacement. Three kinds of groups are drawn separately: groups of members, groups of
    non-members, and groups with both. Therefore every resample has members and non-members. If each item is a group,
    this is the usual stratified bootstrap.
    """
    names, index = np.unique(np.asarray(group), return_inverse=True)
    share = np.bincount(index, weights=np.asarray(member, float)) / np.bincount(index)
    kind = np.where(share == 1, 0, np.where(share == 0, 1, 2))
    rng = stream(seed, "bootstrap")
    rows = max(1, min(resamples, CHUNK // len(index)))

    def draw() -> np.ndarray:
        weights = np.zeros((rows, len(names)))
        for stratum in range(3):
            groups = np.flatnonzero(kind == stratum)
            if groups.size:
                weights[:, groups] = rng.multinomial(groups.size, np.full(groups.size, 1 / groups.size), size=rows)
        return weights[:, index]

    return draw


def bootstrap(scores: Sequence[np.ndarray], member: np.ndarray, group: Sequence[str], seed: int = 0,
              resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Metrics of the resamples: name -> array (resamples, len(scores)).

    scores: arrays (n,) of one or more attacks on the same items. A resample has the same weights for all attacks, so
    their differences are paired. Resamples without members or without non-members are dropped.
    """
    draw = group_weights(group, member, resamples, seed)
    curves = [Curves(score, member) for score in scores]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    done = 0
    while done < resamples:
        weights = draw()[: resamples - done]
        done += len(weights)
        sides = weights @ np.stack([member, ~np.asarray(member, bool)], axis=1).astype(float)
        weights = weights[(sides > 0).all(axis=1)]
        counts = [curve.counts(weights) for curve in curves]
        for name, metric in METRICS.items():
            rows[name].append(np.stack([metric(*count) for count in counts], axis=1))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def intervals(score: np.ndarray, member: np.ndarray, group: Sequence[str], seed: int = 0,
              resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """95 % percentile interval [low, high] of each metric of one attack: score (n,), member bool (n,)."""
    drawn = bootstrap([score], np.asarray(member, bool), group, seed, resamples)
    return {name: [float(q) for q in np.quantile(values[:, 0], [0.025, 0.975])] for name, values in drawn.items()}


def mean_interval(values: np.ndarray, group: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """95 % percentile interval [low, high] of the mean of `values` (n,), by a bootstrap over groups."""
    values = np.asarray(values, float)
    draw, means = group_weights(group, np.ones(len(values)), resamples, seed), np.empty(0)
    while len(means) < resamples:
        weights = draw()[: resamples - len(means)]
        means = np.append(means, weights @ values / weights.sum(axis=1))
    return [float(q) for q in np.quantile(means, [0.025, 0.975])]


def paired_difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray], member: np.ndarray,
                      group: Sequence[str], metric: str = "auc", seed: int = 0) -> dict[str, object]:
    """Metric of `first` minus that of `second` on the same items: {"difference", "interval": [low, high]}.

    `first` and `second` have one or more arrays of scores (n,), one for each attacker seed. The metric of each is the
    mean over its arrays.
    """
    member, columns = np.asarray(member, bool), [*first, *second]
    sign = np.array([1 / len(first)] * len(first) + [-1 / len(second)] * len(second))
    values = np.array([float(METRICS[metric](*Curves(score, member).counts())[0]) for score in columns])
    low, high = np.quantile(bootstrap(columns, member, group, seed)[metric] @ sign, [0.025, 0.975])
    return {"difference": float(values @ sign), "interval": [float(low), float(high)]}
