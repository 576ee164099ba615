"""How much of the variance of a metric comes from each of several random factors, such as trainings.

The value of a cell is the sum of the mean of its stratum, an effect of its level of each factor, and a remainder. The
effects are independent with mean 0. Two factors may be crossed, or one nested in the other. The expectation of half the
squared difference of two cells is then the sum of the variances of the factors in which they differ. These are averaged
over all pairs of a stratum, and over the pairs with an equal level of each factor, so there is one equation for each
variance (symmetric sums of squared differences: Koch, Technometrics 10, 1968). With the same number of cells for all
levels the estimates are those of the analysis of variance (Searle, Casella, McCulloch, Variance Components, 1992).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.intervals import enough, influences, jackknife, split_groups
from evaluation.metrics import compute_metrics

REST = "rest"  # the remainder: interactions of the factors


def components(values: Sequence[float], levels: Mapping[str, Sequence[str]],
               stratum: Sequence[str]) -> dict[tuple[str, ...], float]:
    """Map the names of factors to the variance that they cause: values (n,), levels (n,) of each factor, stratum (n,).

    Factors whose levels change together in all cells cannot be told apart and share an entry; a factor with another
    level in each cell shares that of `REST`. A factor that does not vary within a stratum has no entry, nor has one
    that the cells do not determine. An estimate may be negative.
    """
    values, first, second = np.asarray(values, float), *np.triu_indices(len(values), 1)
    inside = _index(stratum)[first] == _index(stratum)[second]
    first, second = first[inside], second[inside]
    halves = (values[first] - values[second]) ** 2 / 2
    names: dict[bytes, list[str]] = {}
    differ: list[np.ndarray] = []
    for name, level in (*levels.items(), (REST, list(map(str, range(len(values)))))):
        other = _index(level)[first] != _index(level)[second]
        if other.any():
            same = names.setdefault(other.tobytes(), [])
            differ += [] if same else [other]
            same.append(name)
    pairs = [np.ones(len(halves), bool), *(~other for other in differ if not other.all())]
    if not differ:
        return {}
    shares = np.array([[other[chosen].mean() for other in differ] for chosen in pairs])
    inverse = np.linalg.pinv(shares)
    determined = np.isclose(inverse @ shares, np.eye(len(differ)), atol=1e-8).all(axis=1)
    found = inverse @ [halves[chosen].mean() for chosen in pairs]
    return {tuple(group): float(variance) for group, variance, known in
            zip(names.values(), found, determined, strict=True) if known}


def _index(labels: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def variance_over_images(score: np.ndarray, member: np.ndarray, group: Sequence[str]) -> float | None:
    """Variance of the AUC over groups of images, by a jackknife: score (n,), member bool (n,), group (n,).

    None with few groups. See `evaluation.intervals`.
    """
    sides = split_groups(group, member)
    if not enough(sides):
        return None
    score = np.asarray(score, float)
    return jackknife(compute_metrics(score, member)["auc"], influences("auc", score, member), sides)[0]
