"""Verdicts on claims, from the interval of a value and the range that a claim gives for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
LEVEL = 0.05  # of all verdicts together
UNKNOWN = (-inf, inf)  # bounds of a value without an interval
PROVISIONAL = ", so verdicts are provisional: they may change with these cells."


@dataclass(frozen=True)
class Range:
    """The values, in points, for which a claim holds: above `low` and below `high`."""

    low: float = -inf
    high: float = inf

    def judge(self, low: float, high: float) -> str:
        """The verdict from an interval: it holds if the interval is inside the range, and not if it is outside."""
        if low > self.low and high < self.high:
            return HOLDS
        return FAILS if low > self.high or high < self.low else OPEN

    def test(self, value: float, error: float, freedom: float) -> tuple[str, float]:
        """The only verdict that `value` allows other than not decided, and its p-value.

        `error`, `freedom`: standard error of the value, and the degrees of freedom of its Student t. The p-value is the
        smallest level at which the interval of the value gives this verdict: at .05 the 95 % interval decides.
        """
        from scipy import stats  # takes a second to import, which --help of a script should not need

        def tail(distance: float) -> float:
            return float(stats.t.sf(distance / error, freedom)) if error > 0 else float(distance <= 0)

        inside = max(tail(value - self.low), tail(self.high - value))
        outside = min(tail(self.low - value), tail(value - self.high))
        return (HOLDS, min(2 * inside, 1.0)) if inside <= outside else (FAILS, min(2 * outside, 1.0))

    def __str__(self) -> str:
        if self.low == -self.high:
            return f"within ±{self.high:g}"
        bounds = [f"above {self.low:g}"] if self.low > -inf else []
        return " and ".join([*bounds, *([f"below {self.high:g}"] if self.high < inf else [])])


ABOVE = Range(low=0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted by Holm (Scandinavian Journal of Statistics 6, 1979), in the order of `p_values`."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
