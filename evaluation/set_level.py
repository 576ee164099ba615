"""Tests of a whole collection of images: was it used for training, how much of it, and how large must it be?

The *claim* are the images that were perhaps used. The *null* are images of the same distribution that were not. Both
have scores of one target model, higher for members. Images of a group are dependent, so groups are what is exchanged,
counted and left out (Maini, Yaghini, Papernot, ICLR 2021, arXiv 2104.10706, test single images).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import comb

import numpy as np
from scipy import stats

from evaluation.intervals import (
    SMALLEST,
    TAIL,
    Clusters,
    Interval,
    enough,
    intervals,
    jackknife,
    rate_interval,
    split_groups,
)
from evaluation.metrics import compute_metrics
from evaluation.pooled import POWER
from evaluation.report import show_interval
from utils.cli import UserError
from utils.randomness import stream

SIDES = ("claim", "null")
LEVEL = 0.05  # p-values at or below it count as evidence
DEALS = 9999  # random deals of a permutation test; all deals, where there are not more
FEWEST = 100  # deals that a permutation test needs: with fewer its p-value cannot reach 0.01
SMALLEST_SIDE = 3  # groups a side; perfect separation of 2 and 2 is not yet evidence
WEAKER = ("This is evidence, no proof. It is weaker if the images of the null are of another kind than those of the "
          "claim (camera, place, date, who labelled them), if groups depend on one another, or if several attacks or "
          "lists were tried and one was chosen.")
FLOOR = 1e-12  # a smaller variance of a difference of mean ranks (0..1) is a rounding error
BLOCK = 2**22  # groups of all deals that are in memory at once


def was_used(columns: Sequence[np.ndarray], claim: np.ndarray, group: Sequence[str], seed: int = 0,
             deals: int = DEALS) -> dict[str, object]:
    """One-sided test that the scores of the claim are higher than those of the null.

    columns: one or more attacks' scores, each (n,), higher for members; claim: bool (n,); group (n,). Several attacks
    are combined with weights from half of the groups, and the test is on the other half (`weigh`). Returns "p",
    "method" and "deals" (`p_value`); "weights", None for one attack; "images" and "groups", each [claim, null]; "auc"
    and "auc_interval", of claim against null; "correlation" within groups; "needed" (`needed`); and "detectable", the
    AUC that would have been found with a probability of `POWER`. Raises `UserError` if a side has too few groups.
    """
    score, tested, weights = weigh(columns, claim, group, seed)
    claim, group = np.asarray(claim, bool)[tested], np.asarray(group)[tested]
    sides, auc = split_groups(group, claim), compute_metrics(score, claim)["auc"]
    related = correlation(score, claim, sides)
    size = max(_alike(side) for side in sides)
    return {**p_value(score, claim, group, seed, deals), "weights": weights,
            "images": [len(side.index) for side in sides], "groups": [side.count for side in sides], "auc": auc,
            "auc_interval": intervals(score, claim, group)["auc"], "correlation": related,
            "needed": needed(auc, size, related), "detectable": detectable(sides, related)}


def weigh(columns: Sequence[np.ndarray], claim: np.ndarray, group: Sequence[str],
          seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[float] | None]:
    """Combine attacks into one score: (scores (k,) of the tested images, which images bool (n,), weights).

    The weights are those of a ridge regression of the side on the standardised scores (penalty 1). It is fitted on half
    of the groups of each side; the others are tested, so the weights know nothing of them (Maini et al., NeurIPS 2024,
    arXiv 2406.06443). One attack is returned as it is, with weights None. Raises `UserError` with fewer than 4 groups.
    """
    if len(columns) == 1:
        return np.asarray(columns[0], float), np.ones(len(claim), bool), None
    claim, table = np.asarray(claim, bool), np.stack(columns, axis=1)
    names, index = np.unique(np.asarray(group), return_inverse=True)
    sides = split_groups(group, claim)
    for name, side in zip(SIDES, sides, strict=True):
        if side.count < 4:
            raise UserError(f"the {name} has {side.count} groups of images, too few to learn the weights of "
                            f"{len(columns)} attacks on one half and to test on the other; give one run")
    kind = (sides[0].sizes > 0) * 2 + (sides[1].sizes > 0) * 1
    order = stream(seed, "weights").permutation(len(names))
    order = order[np.argsort(kind[order], kind="stable")]
    tested = np.isin(index, order[::2])
    learned, spread = table[~tested], table[~tested].std(axis=0)
    table = (table - learned.mean(axis=0)) / np.where(spread > 0, spread, 1)
    learned, side = table[~tested], claim[~tested] - claim[~tested].mean()
    weights = np.linalg.solve(learned.T @ learned + np.eye(len(columns)), learned.T @ side)
    return table[tested] @ weights, tested, weights.tolist()


def p_value(score: np.ndarray, claim: np.ndarray, group: Sequence[str], seed: int = 0,
            deals: int = DEALS) -> dict[str, object]:
    """p-value that the claim's scores are higher: {"p", "method", "deals"}; score, claim bool, group (n,).

    The statistic is the difference of the mean ranks of the images, divided by its standard error over groups, so that
    sides with groups of other sizes can be exchanged (Janssen, Statistics & Probability Letters 36, 1997). Method
    "permutation": its place among `deals` random deals of whole groups to the two sides, or among all deals. Methods
    "mixed" and "few": its Student t, where a group holds images of both sides, or where there are fewer than `FEWEST`
    deals. Raises `UserError` if a side has one group, or if neither is possible.
    """
    claim, sides = np.asarray(claim, bool), split_groups(group, claim)
    for name, side in zip(SIDES, sides, strict=True):
        if side.count < 2:
            raise UserError(f"the {name} has {side.count} group of images; a test needs 2 on each side, because images "
                            "of one group are alike; list images of more groups")
    inside, outside = (side.sizes > 0 for side in sides)
    rank = stats.rankdata(score) / len(claim)
    rank -= rank.mean()
    mixed, possible = bool((inside & outside).any()), comb(len(inside), int(inside.sum()))
    influence = rank[claim] - rank[claim].mean(), rank[~claim].mean() - rank[~claim]
    difference = float(rank[claim].mean() - rank[~claim].mean())
    variance, freedom = jackknife(difference, influence, sides)
    if variance > SMALLEST and (mixed or possible < FEWEST):
        return {"p": float(stats.t.sf(difference / np.sqrt(variance), freedom)),
                "method": "mixed" if mixed else "few", "deals": 0}
    if mixed:
        raise UserError("no group differs from another, and groups hold images of both sides; no test is possible")
    p, drawn = _permutation(sum(np.bincount(side.index, rank[one], side.total) for side, one in
                                zip(sides, (claim, ~claim), strict=True)),
                            sides[0].sizes + sides[1].sizes, inside, stream(seed, "deals"), deals)
    return {"p": p, "method": "permutation", "deals": drawn}


def _permutation(sums: np.ndarray, sizes: np.ndarray, inside: np.ndarray, rng: np.random.Generator,
                 deals: int) -> tuple[float, int]:
    """p-value and number of deals: sums of ranks, sizes and side of each group (G,)."""
    moments = np.stack([sizes, sums, sizes**2, sizes * sums, sums**2], axis=1).astype(float)
    observed = _statistics(moments, inside[None])[0]
    observed -= 1e-9 * (1 + abs(observed))  # rounding errors of equal values
    every = comb(len(inside), int(inside.sum())) <= deals
    found = [_statistics(moments, dealt) >= observed for dealt in (
        _all_deals(inside) if every else _random_deals(inside, rng, deals))]
    count, hits = sum(map(len, found)), sum(int(one.sum()) for one in found)
    return (hits / count if every else (hits + 1) / (count + 1)), count


def _all_deals(inside: np.ndarray) -> Iterator[np.ndarray]:
    chosen = np.array(list(combinations(range(len(inside)), int(inside.sum()))))
    dealt = np.zeros((len(chosen), len(inside)), bool)
    np.put_along_axis(dealt, chosen, True, axis=1)
    yield dealt


def _random_deals(inside: np.ndarray, rng: np.random.Generator, deals: int) -> Iterator[np.ndarray]:
    block = max(1, BLOCK // len(inside))
    for first in range(0, deals, block):
        yield rng.permuted(np.tile(inside, (min(block, deals - first), 1)), axis=1)


def _statistics(moments: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """Studentised difference of the mean ranks for each deal: moments (G, 5), dealt bool (B, G) -> (B,)."""
    difference, variance = 0.0, 0.0
    for sign, part in ((1, dealt), (-1, ~dealt)):
        size, total, size_2, product, total_2 = (part.astype(float) @ moments).T
        mean, groups = total / size, part.sum(axis=1)
        difference = difference + sign * mean
        variance = variance + groups / (groups - 1) * (total_2 - 2 * mean * product + mean**2 * size_2) / size**2
    return difference / np.sqrt(np.maximum(variance, FLOOR))


def correlation(score: np.ndarray, claim: np.ndarray, sides: tuple[Clusters, Clusters]) -> float:
    """Correlation of the ranks of two images of a group, 0..1, by an analysis of variance within the two sides."""
    rank = stats.rankdata(score)
    between = total = spread = 0.0
    for side, one in zip(sides, (claim, ~claim), strict=True):
        values, sizes = rank[one] - rank[one].mean(), side.sizes[side.sizes > 0]
        sums = np.bincount(side.index, values, side.total)[side.sizes > 0]
        between += float((sums**2 / sizes).sum())
        total += float((values**2).sum())
        spread += len(values) - float((sizes**2).sum()) / len(values)
    free = sum(side.count for side in sides) - 2, len(rank) - sum(side.count for side in sides)
    if min(free) == 0 or total == 0:
        return 0.0
    outer, inner = between / free[0], (total - between) / free[1]
    return float(np.clip((outer - inner) / (outer + (spread / free[0] - 1) * inner), 0, 1))


def _alike(side: Clusters) -> float:
    """Mean size of the group of an image: by it correlation lowers the effective number of images."""
    return len(side.index) / side.effective


def design_effect(size: float, related: float) -> float:
    """By how much groups of `size` images with a correlation raise the variance of a mean (Kish, 1965)."""
    return 1 + (size - 1) * related


def _both_errors(level: float = LEVEL) -> float:
    """The sum of the normal quantiles of the level and of the power."""
    return float(stats.norm.ppf(1 - level) + stats.norm.ppf(POWER))


def needed(auc: float, size: float = 1.0, related: float = 0.0) -> dict[str, int] | None:
    """The smallest claim, and null, that a test would find with a probability of `POWER`: {"images", "groups"}.

    For normal scores with this AUC: images a side = 2 ((z_level + z_power) / d)^2, d = sqrt(2) z_AUC, times the design
    effect of groups of `size` images. At least `SMALLEST_SIDE` groups. None if the AUC is not above 0.5.
    """
    if auc <= 0.5:
        return None
    images = (_both_errors() / stats.norm.ppf(auc)) ** 2 * design_effect(size, related)
    groups = max(SMALLEST_SIDE, int(np.ceil(images / size)))
    return {"images": max(int(np.ceil(images)), int(np.ceil(SMALLEST_SIDE * size))), "groups": groups}


def detectable(sides: tuple[Clusters, Clusters], related: float = 0.0, level: float = LEVEL) -> float:
    """The AUC that a one-sided test on these groups would find with a probability of `POWER`."""
    variance = sum(design_effect(_alike(side), related) / len(side.index) for side in sides)
    return float(stats.norm.cdf(_both_errors(level) * np.sqrt(variance / 2)))


def share_used(claim: np.ndarray, claim_group: Sequence[str], score: np.ndarray, member: np.ndarray,
               group: Sequence[str]) -> dict[str, object]:
    """The share of a collection that was used, with a 95 % interval over groups, neither limited to 0..1.

    claim (k,), claim_group (k,): its scores. score, member (bool), group (n,): a population of known membership, such
    as the attack on a shadow. Tong, Ye, Zarifzadeh, Shokri (ICLR 2025): mean of (guess - FPR) / (TPR - FPR). A guess
    is whether a score reaches the middle of the medians of the population's two sides, which is not fitted to the
    rates. The interval is Fieller's (1954), with the variances of all three rates by a jackknife over groups. Returns
    "share", "interval", "threshold", "claim_rate", "tpr" and "fpr". The share is None if the TPR is not above the FPR;
    the interval, with few groups or if TPR - FPR could be 0.
    """
    member = np.asarray(member, bool)
    threshold = float(np.median(score[member]) + np.median(score[~member])) / 2
    own, _ = split_groups(claim_group, np.ones(len(claim), bool))
    parts = [(claim >= threshold, own),
             *zip((score[member] >= threshold, score[~member] >= threshold), split_groups(group, member), strict=True)]
    rate, tpr, fpr = (float(hit.mean()) for hit, _ in parts)
    found = {"share": None, "interval": None, "threshold": threshold, "claim_rate": rate, "tpr": tpr, "fpr": fpr}
    if tpr <= fpr:
        return found
    sides = tuple(side for _, side in parts)
    if enough(sides):
        freedom = max(min(side.effective for side in sides) - 1, 1)
        found["interval"] = _fieller(parts, float(stats.t.ppf(1 - TAIL, freedom)))
    return found | {"share": (rate - fpr) / (tpr - fpr)}


def _fieller(parts: Sequence[tuple[np.ndarray, Clusters]], step: float) -> Interval:
    """All p with |rate - fpr - p (tpr - fpr)| <= step standard errors; None if these are not an interval.

    parts: guesses bool and groups of the claim, of the population's members and of its non-members.
    """
    rate, tpr, fpr = (hit.mean() for hit, _ in parts)
    _, inside, outside = changes = [side.sums(hit - hit.mean()) for hit, side in parts]
    claim, true, false = (float((change**2).sum()) or _variance_of_none(hit, side, step)
                          for change, (hit, side) in zip(changes, parts, strict=True))
    both = float((inside * outside).sum())
    a = (tpr - fpr) ** 2 - step**2 * (true + false - 2 * both)
    b = (rate - fpr) * (tpr - fpr) - step**2 * (false - both)
    c = (rate - fpr) ** 2 - step**2 * (claim + false)
    if a <= 0:
        return None
    root = np.sqrt(max(b**2 - a * c, 0.0))
    return [float((b - root) / a), float((b + root) / a)]


def _variance_of_none(hit: np.ndarray, side: Clusters, step: float) -> float:
    """The variance of a rate that no group changes, such as 0 or 1, from its exact interval."""
    low, high = rate_interval(float(hit.mean()), hit - hit.mean(), side)
    return ((high - low) / step) ** 2


def null_check(columns: Sequence[np.ndarray], group: Sequence[str], times: int, seed: int = 0, deals: int = 199,
               progress: Callable = iter) -> dict[str, float]:
    """Deal the null's groups into two random halves `times` times: the share of p-values of at most 1, 5 and 10 %.

    columns: scores of the null, each (n,); group (n,). A valid test has shares of at most these levels. Raises
    `UserError` if a half would have too few groups.
    """
    names, index = np.unique(np.asarray(group), return_inverse=True)
    if len(names) < (fewest := 4 if len(columns) == 1 else 8):
        raise UserError(f"the null has {len(names)} groups of images; to test its halves, it needs {fewest}")
    p = []
    for number in progress(range(times)):
        half = stream(seed, "halves", number).permutation(len(names))[: len(names) // 2]
        score, tested, _ = weigh(columns, claim := np.isin(index, half), group, number)
        p.append(p_value(score, claim[tested], index[tested], number, deals)["p"])
    return {str(level): float(np.mean(np.array(p) <= level)) for level in (0.01, LEVEL, 0.1)}


def verdict(found: dict) -> str:
    """What `was_used` found, in plain words."""
    (claim, null), groups, p = found["images"], found["groups"], found["p"]
    lines = [f"tested: {claim} images of the claim in {groups[0]} groups, {null} of the null in {groups[1]} groups; "
             f"AUC of claim against null {found['auc']:.3f} {show_interval(found['auc_interval'])}"]
    if found["weights"]:
        lines.insert(0, "weights of the attacks, learned on the other half of the groups: "
                     + ", ".join(f"{weight:+.2f}" for weight in found["weights"]))
    size = f"p = {p:.4f}" if p >= 1e-4 else f"p = {p:.1g}"
    if p <= LEVEL:
        lines.append(f"evidence that the claim was used for training: {size} (one-sided)")
    else:
        lines.append(f"no evidence that the claim was used for training: {size} (one-sided); with these groups an AUC "
                     f"of {found['detectable']:.2f} would have been found with a probability of {100 * POWER:.0f} %, "
                     "a lower one is easily missed")
    lines.append("method: " + {
        "permutation": f"{found['deals']} deals of whole groups to the two sides",
        "mixed": "Student t over groups, because some groups hold images of both sides",
        "few": f"Student t over groups, because there are fewer than {FEWEST} deals of whole groups",
    }[found["method"]])
    if needs := found["needed"]:
        lines.append(f"smallest set: with this AUC and a correlation of {found['correlation']:.2f} within groups, a "
                     f"claim and a null of about {needs['images']} images in {needs['groups']} groups each would be "
                     f"found with a probability of {100 * POWER:.0f} %"
                     + (", and as many more are needed for the weights" if found["weights"] else ""))
    return "\n".join([*lines, WEAKER])


def describe_share(claim: dict, null: dict) -> str:
    """What `share_used` found for the claim, and for the null, whose share should be 0."""
    if claim["share"] is None:
        return "share of the claim that was used: none, because on --shadow-run the attack finds no members"
    lines = [f"share of the claim that was used: {_show_share(claim)}; of the null, where it should be 0: "
             f"{_show_share(null)}",
             f"(threshold {claim['threshold']:.3g}: reached by {100 * claim['claim_rate']:.0f} % of the claim, and on "
             f"--shadow-run by {100 * claim['tpr']:.0f} % of the members and {100 * claim['fpr']:.0f} % of the others)"]
    if null["interval"] and not null["interval"][0] <= 0 <= null["interval"][1]:
        lines.append("the share of the null is not 0, so scores of the two models differ, and the share of the claim "
                     "is wrong, too")
    return "\n".join(lines)


def _show_share(found: dict) -> str:
    share, *interval = np.clip([found["share"], *(found["interval"] or ())], 0, 1)
    return f"{share:.2f} {'[{:.2f}, {:.2f}]'.format(*interval) if interval else '(no interval)'}"
