"""Membership metrics (section 2.3) and segmentation utility."""

import numpy as np

from utils import VOID

RATES = {"tpr_at_10_fpr": 0.1, "tpr_at_5_fpr": 0.05, "tpr_at_1_fpr": 0.01, "tpr_at_0.1_fpr": 0.001}
METRICS = ("auc", "max_f", *RATES)


class Curves:
    """True and false positives at every threshold: score (n,), member bool (n,).

    `true`, `false` int (T,): members and non-members with "score >= t" at each of the T distinct scores in
    `thresholds` (T,), highest first.
    """

    def __init__(self, score: np.ndarray, member: np.ndarray):
        self.score, self.member = np.asarray(score, float), np.asarray(member, bool)
        order = np.argsort(-self.score, kind="stable")
        ranked, inside = self.score[order], self.member[order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self.thresholds = ranked[last]
        self.true, self.false = np.cumsum(inside)[last], np.cumsum(~inside)[last]

    def f_scores(self) -> np.ndarray:
        """2 precision recall / (precision + recall) at each threshold (T,)."""
        return 2 * self.true / (self.true + self.false + self.true[-1])

    def accuracies(self) -> np.ndarray:
        """Share of members and non-members that are called right, at each threshold (T,)."""
        return (self.true + self.false[-1] - self.false) / (self.true[-1] + self.false[-1])

    def allowed(self, rate: float) -> int:
        """The number of leading thresholds with an FPR of at most `rate`."""
        return int((self.false <= rate * self.false[-1] + 1e-9).sum())

    def above(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Which members bool (m,) and non-members bool (n,) reach the threshold of max-F or of a TPR at an FPR."""
        count = self.allowed(RATES[metric]) if metric in RATES else int(self.f_scores().argmax()) + 1
        high = self.score >= (self.thresholds[count - 1] if count else np.inf)
        return high[self.member], high[~self.member]


def placements(members: np.ndarray, non_members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the non-members below each member (m,), and of the members above each non-member (n,).

    Equal scores count one half. The mean of each is the AUC.
    """
    from scipy.stats import rankdata  # takes a second to import, which --help of a script should not need

    first = len(members)
    ranks = rankdata(np.concatenate([members, non_members]))
    below = (ranks[:first] - rankdata(members)) / len(non_members)
    return below, 1 - (ranks[first:] - rankdata(non_members)) / first


def compute_metrics(score: np.ndarray, member: np.ndarray) -> dict[str, float | None]:
    """AUC, max-F and TPR at an FPR of 10, 5, 1 and 0.1 %, each in 0..1, of scores (n,) and membership bool (n,).

    A TPR is None if no single false positive is allowed: at 1 % with fewer than 100 non-members. Raises `ValueError` if
    there are no members or no non-members, or if a score is not finite.
    """
    score, member = np.asarray(score, float), np.asarray(member, bool)
    if not member.any() or member.all():
        raise ValueError("metrics need members and non-members")
    if not np.isfinite(score).all():
        raise ValueError("a score is not finite")
    curves = Curves(score, member)
    step = np.diff(curves.false, prepend=0)
    height = curves.true - np.diff(curves.true, prepend=0) / 2  # trapezoids: equal scores count one half
    sizes = int(curves.true[-1]), int(curves.false[-1])
    return {"auc": float((step * height).sum() / (sizes[0] * sizes[1])), "max_f": float(curves.f_scores().max()),
            **{name: float(curves.above(name)[0].mean()) if decidable(rate, sizes[1]) else None
               for name, rate in RATES.items()}}


def decidable(rate: float, non_members: int) -> bool:
    """Whether an FPR of `rate` allows at least one false positive."""
    return rate * non_members >= 1 - 1e-9


def chance(members: int, non_members: int) -> dict[str, float]:
    """F of guessing "member" with probability 0.5, and of calling every item a member (section 2.3)."""
    precision = members / (members + non_members)
    return {"random_f": precision / (precision + 0.5), "all_member_f": 2 * precision / (precision + 1)}


def confusion(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Confusion matrix (classes, classes), rows = label, of integer arrays of one shape; void (255) is excluded."""
    known = label != VOID
    index = label[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean intersection over union over the classes that occur, from a confusion matrix."""
    hit = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return float((hit[union > 0] / union[union > 0]).mean())
