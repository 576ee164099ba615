"""Write the results of an attack (results.json, scores.csv, patches.npz, plots), and format them as a table."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.sample import Scored
from evaluation.intervals import intervals
from evaluation.metrics import chance, compute_metrics
from evaluation.plots import plot_curves
from utils.files import atomic_open, write_json
from utils.names import spreadsheet_safe

PATCH_RESAMPLES = 500  # fewer than for images, because each resample of many patches is slow


def summarise(scored: Sequence[Scored], seed: int = 0) -> dict:
    """Metrics of images and of patches with their 95 % intervals, and the F that guessing would reach.

    Patches are resampled together with the group of their image, because the patches of an image are not independent.
    If the attack has no patches, there is no entry "patch".
    """
    member = np.array([s.member for s in scored], bool)
    group = np.array([s.group for s in scored])
    counts = np.array([len(s.patch_scores) for s in scored])
    levels = {"image": (np.array([s.score for s in scored]), member, group, {})}
    if counts.any():
        levels["patch"] = (np.concatenate([s.patch_scores for s in scored]), np.repeat(member, counts),
                           np.repeat(group, counts), {"resamples": PATCH_RESAMPLES})
    out: dict = {"chance": {}}
    for name, (score, inside, groups, options) in levels.items():
        bounds = intervals(score, inside, groups, seed, **options)
        out[name] = compute_metrics(score, inside) | {f"{key}_interval": value for key, value in bounds.items()}
        out["chance"][name] = chance(int(inside.sum()), int((~inside).sum()))
    return out | {"members": int(member.sum()), "non_members": int((~member).sum()),
                  "blocks": len(set(group.tolist())), "patches": int(counts.sum())}


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
    """The table of metrics that a run prints."""
    lines = [f"{'':8}{'AUC':>7}  {'95 % interval':15}{'max-F':>7}  {'95 % interval':15}"
             f"{'random F':>9}{'all-member F':>14}"]
    for level in (level for level in ("image", "patch") if level in results):
        metrics, guess = results[level], results["chance"][level]
        auc, f = (f"[{low:.3f}, {high:.3f}]" for low, high in (metrics["auc_interval"], metrics["max_f_interval"]))
        lines.append(f"{level:8}{metrics['auc']:7.3f}  {auc:15}{metrics['max_f']:7.3f}  {f:15}"
                     f"{guess['random_f']:9.3f}{guess['all_member_f']:14.3f}")
    return "\n".join(lines)


def write_report(folder: Path, scored: Sequence[Scored], about: dict, seed: int,
                 write_name: Callable[[str], str]) -> dict:
    """Write all files of the report into `folder`, and return the results. `about`: further entries of results.json."""
    results = summarise(scored, seed) | about
    write_scores(folder, scored, write_name)
    plot_curves(folder, scored, results)
    write_json(folder / "results.json", results)
    return results
