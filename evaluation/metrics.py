"""Membership metrics (section 2.3) and segmentation utility."""

import numpy as np

from utils import VOID


class Curves:
    """True and false positives at every threshold: score (n,), member bool (n,).

    `counts(weights)`, weights (B, n), returns the weighted true and false positives (B, T) of "score >= t" at each of
    the T distinct scores, highest first. Without weights each item counts once, and B is 1.
    """

    def __init__(self, score: np.ndarray, member: np.ndarray):
        score, member = np.asarray(score, float), np.asarray(member, bool)
        self.order = np.argsort(-score, kind="stable")
        self.member = member[self.order]
        ranked = score[self.order]
        self.last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self.size = len(score)

    def counts(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        ranked = np.ones((1, self.size)) if weights is None else np.atleast_2d(weights)[:, self.order]
        return (np.cumsum(ranked * self.member, axis=1)[:, self.last],
                np.cumsum(ranked * ~self.member, axis=1)[:, self.last])


def _auc(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, by trapezoids: equal scores count one half."""
    step = np.diff(false, axis=1, prepend=0)
    height = true - np.diff(true, axis=1, prepend=0) / 2
    return (step * height).sum(axis=1) / (true[:, -1] * false[:, -1])


def _max_f(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Largest 2 precision recall / (precision + recall) over all thresholds."""
    return (2 * true / (true + false + true[:, -1:])).max(axis=1)


def _tpr_at(rate: float):
    def tpr(true: np.ndarray, false: np.ndarray) -> np.ndarray:
        allowed = false <= rate * false[:, -1:] + 1e-9
        return np.where(allowed, true, 0).max(axis=1) / true[:, -1]
    return tpr


METRICS = {"auc": _auc, "max_f": _max_f, "tpr_at_5_fpr": _tpr_at(0.05)}


def compute_metrics(score: np.ndarray, member: np.ndarray) -> dict[str, float]:
    """AUC, max-F and TPR at 5 % FPR, each in 0..1, of scores (n,) and membership bool (n,).

    Raises `ValueError` if there are no members or no non-members, or if a score is not finite.
    """
    score, member = np.asarray(score, float), np.asarray(member, bool)
    if not member.any() or member.all():
        raise ValueError("metrics need members and non-members")
    if not np.isfinite(score).all():
        raise ValueError("a score is not finite")
    counts = Curves(score, member).counts()
    return {name: float(metric(*counts)[0]) for name, metric in METRICS.items()}


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
