"""What an attack leaves behind: results.json, scores.csv, patches.npz, plots, and a table on the screen."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.scoring import Scored
from evaluation.intervals import intervals
from evaluation.metrics import chance, compute_metrics
from utils.files import atomic_open, write_json
from utils.names import spreadsheet_safe

PATCH_RESAMPLES = 500  # patches are many, and their blocks few


def summarise(scored: Sequence[Scored], seed: int) -> dict:
    """Figures of images and of patches with their 95 % intervals, and what guessing would give.

    Patches are resampled with their image's block, since those of one image are not independent.
    """
    member = np.array([s.member for s in scored])
    group = np.array([s.group for s in scored])
    counts = np.array([len(s.patch_scores) for s in scored])
    levels = {
        "image": (np.array([s.score for s in scored]), member, group, {}),
        "patch": (np.concatenate([s.patch_scores for s in scored]), np.repeat(member, counts),
                  np.repeat(group, counts), {"resamples": PATCH_RESAMPLES}),
    }
    out: dict = {"chance": {}}
    for name, (score, inside, blocks, options) in levels.items():
        bounds = intervals(score, inside, blocks, seed, **options)
        out[name] = compute_metrics(score, inside) | {f"{key}_interval": value for key, value in bounds.items()}
        out["chance"][name] = chance(int(inside.sum()), int((~inside).sum()))
    return out | {"members": int(member.sum()), "non_members": int((~member).sum()),
                  "blocks": len(set(group.tolist())), "patches": int(counts.sum())}


def write_scores(folder: Path, scored: Sequence[Scored], hide: Callable[[str], str] = spreadsheet_safe) -> None:
    """Write scores.csv (`image,member,score`, by image) and patches.npz (corner, score, image and block of each).

    `hide` is what the names of images and blocks are written as.
    """
    ordered = sorted((replace(s, name=hide(s.name), group=hide(s.group)) for s in scored), key=lambda s: s.name)
    with atomic_open(folder / "scores.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "member", "score"])
        writer.writerows([s.name, int(s.member), repr(s.score)] for s in ordered)
    with atomic_open(folder / "patches.npz") as file:
        counts = [len(s.corners) for s in ordered]
        np.savez_compressed(
            file, image=np.repeat([s.name for s in ordered], counts),
            member=np.repeat([s.member for s in ordered], counts),
            group=np.repeat([s.group for s in ordered], counts),
            corner=np.concatenate([s.corners for s in ordered]).astype(np.int32),
            score=np.concatenate([s.patch_scores for s in ordered]))


def table(results: dict) -> str:
    """The figures as the lines that a run prints."""
    lines = [f"{'':8}{'AUC':>7}  {'95 % interval':15}{'max-F':>7}  {'95 % interval':15}"
             f"{'random F':>9}{'all-member F':>14}"]
    for level in ("image", "patch"):
        own, luck = results[level], results["chance"][level]
        auc, f = (f"[{low:.3f}, {high:.3f}]" for low, high in (own["auc_interval"], own["max_f_interval"]))
        lines.append(f"{level:8}{own['auc']:7.3f}  {auc:15}{own['max_f']:7.3f}  {f:15}"
                     f"{luck['random_f']:9.3f}{luck['all_member_f']:14.3f}")
    return "\n".join(lines)


def write_report(folder: Path, scored: Sequence[Scored], about: dict, seed: int, hide: Callable[[str], str]) -> dict:
    """Write everything into `folder`, names as `hide` has them, and return the results."""
    from evaluation.plots import plot_curves

    results = summarise(scored, seed) | about
    write_scores(folder, scored, hide)
    plot_curves(folder, scored, results)
    write_json(folder / "results.json", results)
    return results
