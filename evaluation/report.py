"""Write the results of an attack (results.json, scores.csv, patches.npz, plots), and format them as a table."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.sample import Scored
from evaluation.intervals import MIN_GROUPS, count_groups, intervals, widen
from evaluation.metrics import RATES, chance, compute_metrics
from evaluation.plots import plot_curves
from utils.files import atomic_open, write_json
from utils.names import spreadsheet_safe


def summarise(scored: Sequence[Scored], widened: float = 1.0) -> dict:
    """Metrics of images and of patches with their 95 % intervals, and the F that guessing would reach.

    `widened`: by how much the interval of the AUC is widened on the logit scale (`Attack.widened`).

    The groups of patches are those of their images, because the patches of an image are not independent. If the attack
    has no patches, there is no entry "patch". "balanced" has as many patches of both sides, as in the paper (section
    2.4: 20 of each member and 33 of each non-member): the larger side has the first patches of each image only. If this
    changes no number, there is no entry "balanced".
    """
    member = np.array([s.member for s in scored], bool)
    group = np.array([s.group for s in scored])
    counts = np.array([len(s.patch_scores) for s in scored])
    levels = {"image": (np.array([s.score for s in scored]), member, group)}
    for name, kept in (("patch", counts), ("balanced", balanced(counts, member))):
        if counts.any() and (name == "patch" or (kept < counts).any()):
            levels[name] = (np.concatenate([s.patch_scores[:number] for s, number in zip(scored, kept, strict=True)]),
                            np.repeat(member, kept), np.repeat(group, kept))
    out: dict = {"chance": {}}
    for name, (score, inside, groups) in levels.items():
        bounds = intervals(score, inside, groups)
        values = compute_metrics(score, inside)
        bounds["auc"] = widen(values["auc"], bounds["auc"], widened)
        out[name] = values | {f"{key}_interval": value for key, value in bounds.items()}
        out["chance"][name] = chance(int(inside.sum()), int((~inside).sum()))
    return out | {"members": int(member.sum()), "non_members": int((~member).sum()),
                  "groups": count_groups(group, member), "blocks": len(set(group.tolist())),
                  "patches": int(counts.sum())}


def query_curve(scored: Sequence[Scored]) -> dict[str, float]:
    """AUC of images by the first n queries about each, for n = 1, 2, ..., N; empty if the attack counts no queries."""
    member = np.array([s.member for s in scored], bool)
    columns = np.array([s.statistics.get("queries", []) for s in scored]).T
    return {str(n): compute_metrics(column, member)["auc"] for n, column in enumerate(columns, start=1)}


def show_query_curve(curve: dict[str, float]) -> str:
    """Two lines of AUCs by the number of queries: 1, 2, 4, 8, ..., and all."""
    shown = sorted({2**power for power in range(len(curve).bit_length())} | {len(curve)})
    return (f"{'queries':8}" + "".join(f"{n:7}" for n in shown) + f"\n{'AUC':8}"
            + "".join(f"{curve[str(n)]:7.3f}" for n in shown))


def balanced(counts: np.ndarray, member: np.ndarray) -> np.ndarray:
    """How many patches of each image (n,) make the two sides about equal: counts int (n,), member bool (n,).

    The side with fewer patches keeps all of them, and an image keeps one at least.
    """
    sides = [int(counts[side].sum()) for side in (member, ~member)]
    share = np.where(member, *(min(1.0, other / max(1, side)) for side, other in zip(sides, sides[::-1], strict=True)))
    return np.minimum(counts, np.maximum(1, np.round(counts * share).astype(int)))


def write_scores(folder: Path, scored: Sequence[Scored], write_name: Callable[[str], str] = spreadsheet_safe) -> None:
    """Write scores.csv (`image,member,score`, sorted by image) and patches.npz.

    patches.npz has one row for each patch: its image, membership, group, corner (top, left) and score. If the attack
    has no patches, there is one row for each image. `write_name` converts the names of images and groups.
    """
    ordered = sorted((replace(s, name=write_name(s.name), group=write_name(s.group)) for s in scored),
                     key=lambda s: s.name)
    with atomic_open(folder / "scores.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "member", "score"])
        writer.writerows([s.name, int(s.member), repr(s.score)] for s in ordered)
    rows = [s if s.patch_scores else replace(s, corners=[[0, 0]], patch_scores=[s.score]) for s in ordered]
    with atomic_open(folder / "patches.npz") as file:
        counts = [len(s.corners) for s in rows]
        np.savez_compressed(
            file, image=np.repeat([s.name for s in rows], counts),
            member=np.repeat([s.member for s in rows], counts),
            group=np.repeat([s.group for s in rows], counts),
            corner=np.concatenate([s.corners for s in rows]).astype(np.int32),
            score=np.concatenate([s.patch_scores for s in rows]))


def table(results: dict) -> str:
    """The table of metrics that a run prints, and the number of groups that its intervals rest on."""
    lines = [f"{'':8}{'AUC':>7}  {'95 % interval':15}{'max-F':>7}  {'95 % interval':15}"
             f"{'random F':>9}{'all-member F':>14}"]
    for level in (level for level in ("image", "patch", "balanced") if level in results):
        metrics, guess = results[level], results["chance"][level]
        auc, f = (show_interval(metrics[f"{name}_interval"]) for name in ("auc", "max_f"))
        lines.append(f"{level:8}{metrics['auc']:7.3f}  {auc:15}{metrics['max_f']:7.3f}  {f:15}"
                     f"{guess['random_f']:9.3f}{guess['all_member_f']:14.3f}")
    lines.append(f"{'at an FPR of':>15}{'TPR of images':>15}  {'95 % interval':15}")
    lines += [f"{100 * rate:>13g} %" + _show_rate(name, results) for name, rate in RATES.items()]
    return "\n".join([*lines, describe_groups(results["groups"])])


def show_interval(interval: list[float] | None) -> str:
    """An interval with three decimals; a dash if there is none."""
    return "-" if interval is None else "[{:.3f}, {:.3f}]".format(*interval)


def _show_rate(name: str, results: dict) -> str:
    value = results["image"][name]
    if value is None:
        return f"    undecidable with {results['non_members']} non-members: needs {math.ceil(1 / RATES[name])}"
    return f"{value:15.3f}  {show_interval(results['image'][f'{name}_interval'])}"


def describe_groups(groups: dict[str, int]) -> str:
    """One line: how many groups the intervals rest on, or why there are none."""
    both = f", {groups['both']} of which hold both" if groups["both"] else ""
    line = f"{groups['members']} groups of members and {groups['non_members']} of non-members{both}"
    few = min(groups["members"], groups["non_members"]) < MIN_GROUPS
    return f"no intervals: {line}, fewer than {MIN_GROUPS} a side" if few else f"intervals over {line}"


def write_report(folder: Path, scored: Sequence[Scored], about: dict, write_name: Callable[[str], str],
                 widened: float = 1.0) -> dict:
    """Write all files of the report into `folder`, and return the results.

    `about`: further entries of results.json; `widened`: as in `summarise`.
    """
    results = summarise(scored, widened) | about
    write_scores(folder, scored, write_name)
    plot_curves(folder, scored, results)
    write_json(folder / "results.json", results)
    return results
