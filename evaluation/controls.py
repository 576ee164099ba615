"""Controls: what separates members from non-members without the target model.

The blind control is a classifier that sees image and label but no model. The model control is the same attack on a
model that was trained on neither side. If a control is above chance, the two sides differ by more than membership.
"""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from datasets.inspection import Inspection
from evaluation.intervals import intervals, paired_difference, widen
from evaluation.metrics import compute_metrics
from evaluation.report import show_interval
from predictors.base import Record
from utils import VOID
from utils.files import atomic_open
from utils.randomness import stream

FOLDS = 5  # of whole groups
# The images of a fold share a classifier, which the variation between groups does not contain. The variance is higher
# by 1 + FOLDS / (FOLDS - 1) (Nadeau and Bengio, Machine Learning 52, 2003).
CROSS_FITTED = math.sqrt(1 + FOLDS / (FOLDS - 1))
LARGEST = 20_000  # images on which the blind classifiers are trained; more would take minutes
TREES = 100
SEEDS = 2**32  # scikit-learn takes only smaller seeds
DEALS = 999  # of groups to the two sides, for the permuted control
KINDS = 8  # kinds of files that the blind classifiers can tell apart, the most frequent
CLEAR = 0.6  # AUC of a control that would matter; "not above chance" needs an interval that ends below it
TITLES = {"blind": "control without a model", "model": "the same attack on --control"}


def features(found: Sequence[Inspection]) -> np.ndarray:
    """What is visible without a model, float64 (n, K); 0 where an image or a label is missing.

    Shares of the classes and of void, share of class boundaries, number of classes, mean and standard deviation of the
    colour channels, height and width, JPEG quantisation, logarithm of the file sizes, and the kinds of the files.
    """
    ids = sorted({number for one in found for number in one.ids})
    rows = []
    for one in found:
        counts, total = one.counts or {}, sum((one.counts or {}).values())
        labelled = max(1, total - counts.get(VOID, 0))
        rows.append([*(counts.get(number, 0) / labelled for number in ids), counts.get(VOID, 0) / max(1, total),
                     one.boundary or 0, len(one.ids), *(np.zeros(6) if one.colour is None else one.colour),
                     *(one.size or (0, 0)), one.quantisation, *(math.log(size or 1) for size in one.bytes)])
    kinds = [[kind for kind, _ in Counter(one.kinds[file] for one in found).most_common(KINDS)] for file in (0, 1)]
    shown = [[float(one.kinds[file] == kind) for file in (0, 1) for kind in kinds[file]] for one in found]
    return np.concatenate([np.array(rows, float), np.array(shown)], axis=1)


def blind_scores(found: Sequence[Inspection], member: np.ndarray, group: Sequence[str],
                 seed: int = 0) -> np.ndarray | None:
    """Score (n,) of each image by classifiers that were trained on other groups, and that see no model.

    The mean rank of a logistic regression and a random forest within each of `FOLDS` folds of whole groups. None if a
    side has a single group, so that no classifier can be tested, or if all images look the same.
    """
    seed = seed if seed < SEEDS else int(stream(seed, "control").integers(SEEDS))
    table, member, group = features(found), np.asarray(member, bool), tuple(map(str, group))
    table = table[:, table.std(axis=0) > 1e-12]
    folds = min(FOLDS, *(len({one for one, inside in zip(group, member, strict=True) if inside == side})
                         for side in (True, False)))
    if folds < 2 or not table.shape[1]:
        return None
    return _cross_fitted(table.tobytes(), member.tobytes(), group, folds, seed).copy()


@lru_cache(maxsize=8)  # several attacks in one process often have the same images
def _cross_fitted(table: bytes, member: bytes, group: tuple[str, ...], folds: int, seed: int) -> np.ndarray:
    """`blind_scores` from the bytes of the features float64 (n, K), and of member bool (n,); bytes can be hashed."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    member, table = np.frombuffer(member, bool), np.frombuffer(table).reshape(len(group), -1)
    scores = np.full(len(member), 0.5)
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(table, member, group):
        train = np.random.default_rng(seed).permutation(train)[:LARGEST]
        models = (make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
                  RandomForestClassifier(TREES, min_samples_leaf=3, random_state=seed))
        if 0 < member[train].sum() < len(train):
            ranks = [rankdata(model.fit(table[train], member[train]).predict_proba(table[test])[:, 1])
                     for model in models]
            scores[test] = (np.mean(ranks, axis=0) - 0.5) / len(test)
    return scores


def judge(control: np.ndarray, attack: np.ndarray, member: np.ndarray, group: Sequence[str],
          factor: float = 1.0) -> dict:
    """AUC of a control, and by how much the AUC of the attack exceeds it, each with its 95 % interval.

    "sides_differ": whether the interval of the control lies above 0.5 ("above"), below ("below"), or neither (""); None
    without an interval. `factor`: by how much the intervals are widened, the first on the logit scale; `CROSS_FITTED`
    for the blind control.
    """
    auc, interval = compute_metrics(control, member)["auc"], intervals(control, member, group)["auc"]
    paired = paired_difference([attack], [control], member, group, "auc")
    difference, around = paired["difference"], paired["interval"]
    interval = widen(auc, interval, factor)
    differ = interval and ("above" if interval[0] > 0.5 else "below" if interval[1] < 0.5 else "")
    return {"auc": auc, "auc_interval": interval, "sides_differ": differ,
            "attack_minus_control": difference,
            "attack_minus_control_interval": around and [difference + factor * (end - difference) for end in around]}


def deal_groups(member: np.ndarray, group: Sequence[str], seed: int, deals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Membership dealt to whole groups at random: member bool (n,), group (n,) -> bool (deals, G), group int (n,).

    As many groups are members as before; one that holds both sides counts by the share of its members.
    """
    names, index = np.unique(np.asarray(group), return_inverse=True)
    share = np.bincount(index, np.asarray(member, float)) / np.bincount(index)
    inside = np.arange(len(names)) < np.clip(round(share.sum()), 1, len(names) - 1)
    return stream(seed, "permuted").permuted(np.tile(inside, (deals, 1)), axis=1), index


def permuted_records(records: Sequence[Record], seed: int) -> list[Record]:
    """The records with membership dealt to whole groups at random, on which every attack must find nothing."""
    ordered = sorted(records, key=lambda one: one.name)
    dealt, index = deal_groups(np.array([one.member for one in ordered]), [one.group for one in ordered], seed)
    member = dict(zip((one.name for one in ordered), dealt[0][index].tolist(), strict=True))
    return [replace(record, member=member[record.name]) for record in records]


def permuted_aucs(score: np.ndarray, member: np.ndarray, group: Sequence[str], seed: int = 0) -> np.ndarray:
    """AUC (DEALS,) of scores (n,) if membership is dealt to whole groups at random: what an attack gets by chance.

    Raises `ValueError` if all images are of one group.
    """
    dealt, index = deal_groups(member, group, seed, DEALS)
    if dealt.shape[1] < 2:
        raise ValueError("all images are of one group")
    count = dealt @ np.bincount(index)
    return (dealt @ np.bincount(index, rankdata(score)) - count * (count + 1) / 2) / (count * (len(index) - count))


def verdict(name: str, judged: dict) -> str:
    """One line about a control: its AUC, and what follows from it."""
    line = f"{TITLES[name]}: AUC {judged['auc']:.3f}"
    if judged["sides_differ"] is None:
        return f"{line}, no interval: it is not decided whether the sides differ by more than membership"
    line += f" {show_interval(judged['auc_interval'])}"
    if judged["sides_differ"] == "below" and name == "model":
        return f"{line}: below chance, so the sides differ in the other direction, and the attack may be underestimated"
    if judged["sides_differ"] == "" and judged["auc_interval"][1] >= CLEAR:
        return f"{line}: it is not decided whether the sides differ by more than membership"
    if judged["sides_differ"] != "above":
        return f"{line}: not above chance"
    without = "without any model" if name == "blind" else "for this model, too, so not only by membership"
    interval = judged["attack_minus_control_interval"]
    return (f"{line}: the sides differ {without}; attack minus control: {judged['attack_minus_control']:+.3f}"
            + (" [{:+.3f}, {:+.3f}]".format(*interval) if interval else ""))


def describe_sides(found: Sequence[Inspection], member: Sequence[bool]) -> list[str]:
    """A warning for each property of the files that has few values, and no value that both sides have."""
    warnings = []
    for what, value in (("size of the images", lambda one: one.size),
                        ("format of the images", lambda one: one.kinds[0]),
                        ("JPEG quantisation of the images", lambda one: one.quantisation),
                        ("format of the labels", lambda one: one.kinds[1])):
        sides = [{value(one) for one, inside in zip(found, member, strict=True) if inside is side}
                 for side in (True, False)]
        if not sides[0] & sides[1] and 2 * max(map(len, sides)) <= min(sum(member), len(member) - sum(member)):
            first, second = (" or ".join(sorted(map(_show, side))[:2]) for side in sides)
            warnings.append(f"the {what} tells the sides apart: {first} for members, {second} for non-members; an "
                            "attack may recognise this instead of membership")
    return warnings


def _show(value: object) -> str:
    return f"{value[1]} x {value[0]}" if isinstance(value, tuple) else "missing" if value is None else str(value)


def write_controls(folder: Path, names: Sequence[str], member: np.ndarray, controls: Mapping[str, np.ndarray]) -> None:
    """Write controls.csv: the score of each image under each control, in the order of scores.csv."""
    rows = sorted(zip(names, np.asarray(member, int).tolist(), *(scores.tolist() for scores in controls.values()),
                      strict=True))
    with atomic_open(folder / "controls.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "member", *controls])
        writer.writerows([*row[:2], *map(repr, row[2:])] for row in rows)
