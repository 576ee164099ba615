"""How the stored outputs of one side were changed: rounded, clipped, smoothed, resized. The two sides must be alike.

An attack would otherwise recognise the form of an output instead of membership.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictors.stored import TINY
from utils.cli import UserError
from utils.distributed import warn_once

VALUES = 16384  # of an output, at most
HALF_BITS = 11  # significant bits of a float16
DISTINCT = 50  # different values; posteriors with fewer are constant over the image rather than clipped
DECIMALS = (1, 2, 3, 4, 5)  # to which posteriors may have been rounded
LEVELS = (255, 1023, 4095, 65535)  # of posteriors that were stored as integers
CLIPPED = 0.05  # share of the values that are the smallest or the largest one
BLOCKS = 0.5  # share of equal 2 x 2 blocks; 0.01 is usual
ZEROS = 0.1  # difference of the shares of zeros
TAIL, RATIO = 0.001, 100  # quantile of the values, and the ratio by which it may differ


@dataclass(frozen=True)
class Form:
    """What the outputs of one side have in common.

    `change`: how their values were changed; `blocks`: share of equal 2 x 2 blocks; `flat`: whether they look like a
    softmax of posteriors; `zeros`: share of zeros; `tail`: the quantile `TAIL` of the values.
    """

    change: str
    blocks: float
    flat: bool
    zeros: float
    tail: float

    @property
    def words(self) -> list[str]:
        """What must be equal on both sides."""
        return [self.change, "resized by repeating positions" if self.blocks > BLOCKS else "not resized",
                "a softmax of posteriors" if self.flat else "posteriors"]


@dataclass(frozen=True)
class Excerpt:
    """Some values of an output (n,), its largest value, its number of classes, and its share of equal 2 x 2 blocks."""

    values: np.ndarray
    largest: float
    classes: int
    blocks: float

    @classmethod
    def of(cls, output: np.ndarray) -> "Excerpt":
        """The excerpt of an output float32 (C, h, w)."""
        return cls(output.ravel()[:: -(-output.size // VALUES)], float(output.max()), len(output),
                   _equal_blocks(output))


def find_form(excerpts: Sequence[Excerpt]) -> Form:
    """The form of the outputs of one side."""
    values = np.concatenate([one.values for one in excerpts])
    values = np.where(values <= TINY, 0, values)  # the smallest float16 stands for a 0 that was stored as float16
    classes, largest = excerpts[0].classes, max(one.largest for one in excerpts)
    flat = classes > 1 and np.ptp(values) > 1e-4 and largest <= 1.001 * np.e / (np.e + classes - 1)
    return Form(describe_rounding(values), float(np.mean([one.blocks for one in excerpts])), bool(flat),
                float((values == 0).mean()), max(float(np.quantile(values, TAIL)), TINY))


def compare_forms(members: Form, others: Form, whose: str = "") -> None:
    """Raise `UserError` if the stored outputs of members and non-members were changed differently.

    Warns if both look like a softmax of posteriors. `whose`: name of the model for messages.
    """
    pairs = list(zip(members.words, others.words, strict=True))
    if abs(members.zeros - others.zeros) > ZEROS:
        pairs.append((f"{100 * members.zeros:.0f} % zeros", f"{100 * others.zeros:.0f} % zeros"))
    if max(members.tail, others.tail) > RATIO * min(members.tail, others.tail):
        pairs.append((f"{members.tail:.1g} or more", f"{others.tail:.1g} or more"))
    if different := next((pair for pair in pairs if pair[0] != pair[1]), None):
        raise UserError(f"the posteriors of members{whose} are {different[0]}, and those of non-members "
                        f"{different[1]}, so an attack would recognise the form of the values; store both sides alike")
    if members.flat:
        warn_once(f"no posterior{whose} exceeds e / (e + C - 1), so a softmax may have been applied twice")


def _equal_blocks(output: np.ndarray) -> float:
    """Share of equal values in 2 x 2 blocks of a class, among the blocks that are neither certain nor at the minimum.

    0 if there are fewer than `DISTINCT` such blocks.
    """
    height, width = (size // 2 * 2 for size in output.shape[1:])
    blocks = output[:, :height, :width].reshape(len(output), height // 2, 2, width // 2, 2)
    low, high = blocks.min((2, 4), initial=1), blocks.max((2, 4), initial=0)
    open_ones = (low > max(1e-4, float(output.min()))) & (high < 0.999)
    return float((low == high)[open_ones].mean()) if open_ones.sum() >= DISTINCT else 0.0


def significant_bits(values: np.ndarray) -> int:
    """The largest number of bits that a value float32 needs for its significand: 11 or fewer if all are float16."""
    whole = np.ldexp(np.frexp(values.astype(np.float32))[0], 24).astype(np.int64)
    lowest = np.bitwise_or.reduce(whole, axis=None)
    return 24 - (int(lowest & -lowest).bit_length() - 1) if lowest else 0


def describe_rounding(values: np.ndarray) -> str:
    """How posteriors float32 (n,) were changed: set to 0 or 1, rounded, clipped, mostly set to 0, or not."""
    if ((values == 0) | (values == 1)).all():
        return "one-hot"
    for steps, name in [(10**decimals, f"{decimals} decimals") for decimals in DECIMALS] + [
            (levels, f"{levels + 1} levels") for levels in LEVELS]:
        scaled = values.astype(float) * steps
        if (abs(scaled - scaled.round()) < 0.01).all():
            return f"rounded to {name}"
    bits, smallest, largest = significant_bits(values), values.min(), values.max()
    changes = [f"rounded to {bits} bits"] if bits <= HALF_BITS else []
    distinct = len(np.unique(values)) > DISTINCT
    if distinct and smallest > 2e-7 and (values == smallest).mean() > CLIPPED:
        changes.append(f"clipped at {smallest:.2g}")
    if distinct and largest < 0.9999 and (values == largest).sum() > CLIPPED * (values > largest / 2).sum():
        changes.append(f"clipped above {largest:.4g}")
    if (values == 0).mean() > 0.5:
        changes.append("mostly 0")
    return " and ".join(changes) or "not rounded"
