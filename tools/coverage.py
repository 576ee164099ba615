"""Measure how often the 95 % intervals of evaluation/intervals.py and evaluation/pooled.py contain the true value.

    python -m tools.coverage                       # the table of docs/validity.md, about 5 minutes on one core
    python -m tools.coverage --runs 400 --metrics max_f

Scores are Gaussian. Members lie higher by the shift that gives the AUC of the column, and the images of a group share
35 % of the variance. *nested*: each group holds members or non-members; *crossed*: each group holds both; *single*:
each image is its own group. *unequal*: group sizes are log-normal (sigma 0.8). Each cell is the coverage in percent.
*pooled*: the difference of two attacks over several strata with one or more trainings each. *sets*: each stratum has
its own images. *rotation*: four parts of one set; each is a stratum's members and another's non-members.
"""

import argparse
from functools import partial

from utils.cli import natural, new_parser, positive, run

SINGLE = ["auc", "difference", "max_f", "tpr_at_10_fpr"]
AUCS = (0.5, 0.6, 0.75, 0.9, 0.95)
DESIGNS = [*((kind, groups, images) for kind in ("nested", "nested unequal", "crossed", "crossed unequal")
             for groups, images in ((10, 12), (20, 12), (50, 10), (200, 4))),
           *(("single", groups, 1) for groups in (10, 20, 60, 200, 500))]
POOLED = [(kind, strata, trainings, groups) for kind, strata in (("sets", 2), ("sets", 4), ("rotation", 4))
          for trainings in (1, 2, 4) for groups in (10, 30)]
CORRELATION = 0.35
SPREAD = 0.1  # standard deviation of the shift between trainings, for each attack


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.coverage")
    flags.add_argument("--runs", type=positive, default=2000, help="simulated runs of each cell (default: 2000)")
    flags.add_argument("--metrics", nargs="+", choices=(*SINGLE, "pooled"), default=SINGLE,
                       help="metrics to simulate (default: all of one training); difference: the paired difference of "
                       "two AUCs; pooled: its mean over strata and trainings")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the simulation (default: 0)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np
    from scipy.stats import norm
    from tqdm import tqdm

    from evaluation.intervals import intervals, paired_difference
    from evaluation.metrics import Curves
    from evaluation.pooled import Stratum, contrast, pooled_difference
    from utils.randomness import stream

    def sizes(rng, kind, groups, images):
        """Number of images in each group."""
        if "unequal" not in kind:
            return np.full(groups, images)
        return np.maximum(1, np.round(images * rng.lognormal(-0.32, 0.8, groups))).astype(int)

    def draw(rng, kind, groups, images, shift):
        """Scores of two attacks (2, n) on the same images, membership (n,) and groups (n,)."""
        counts = [sizes(rng, kind, groups, images) for _ in range(2)]
        group = np.concatenate([np.repeat(np.arange(groups), counts[0]),
                                np.repeat(np.arange(groups), counts[1]) + (0 if "crossed" in kind else groups)])
        member = np.repeat([True, False], [counts[0].sum(), counts[1].sum()])
        share = 0 if kind == "single" else CORRELATION

        def noise():
            return (rng.normal(0, np.sqrt(share), 2 * groups)[group]
                    + rng.normal(0, np.sqrt(1 - share), len(group)))

        common = noise()
        return [np.sqrt(0.7) * common + np.sqrt(0.3) * noise() + shift * member for _ in range(2)], member, group

    at = np.linspace(-8, 12, 20001)

    def truth(metric, score, member, shift):
        """The value of a metric for infinitely many images with the same share of members.

        A TPR is that of the threshold of this sample.
        """
        if metric == "max_f":
            true = norm.sf(at - shift)
            return (2 * true / (true + (~member).sum() / member.sum() * norm.sf(at) + 1)).max()
        if metric == "tpr_at_10_fpr":
            curve = Curves(score, member)
            count = curve.allowed(0.1)
            return norm.sf((curve.thresholds[count - 1] if count else np.inf) - shift)
        return norm.cdf(shift / np.sqrt(2)) if metric == "auc" else 0.0

    def single_covers(metric, design, rng, shift):
        """Whether the interval contains the true value."""
        scores, member, group = draw(rng, *design, shift)
        if metric == "difference":
            interval = paired_difference(scores[:1], scores[1:], member, group)["interval"]
        else:
            interval = intervals(scores[0], member, group)[metric]
        value = truth(metric, scores[0], member, shift)
        return interval is not None and interval[0] - 1e-12 <= value <= interval[1] + 1e-12

    def noise_of(rng, group):
        """Noise (n,) of variance 1, of which the images of a group share a part."""
        return (rng.normal(0, np.sqrt(CORRELATION), group.max() + 1)[group]
                + rng.normal(0, np.sqrt(1 - CORRELATION), len(group)))

    def draw_strata(rng, kind, strata, trainings, groups, shift):
        """Strata in which both attacks of each training have the same expected AUC."""
        parts = [np.repeat(np.arange(groups), 8) + groups * part for part in range(2 * strata)]
        found = []
        difficulty = noise_of(rng, np.concatenate(parts))
        for number in range(strata):
            inside, outside = ((number, (number + 1) % strata) if kind == "rotation" else (2 * number, 2 * number + 1))
            group = np.concatenate([parts[inside], parts[outside]])
            member = np.repeat([True, False], [len(parts[inside]), len(parts[outside])])
            common = difficulty.reshape(2 * strata, -1)[[inside, outside]].ravel()
            arm = [contrast(*([np.sqrt(0.5) * common + np.sqrt(0.5) * noise_of(rng, group)
                               + member * (shift + rng.normal(0, SPREAD))] for _ in range(2)))
                   for _ in range(trainings)]
            found.append(Stratum(kind if kind == "rotation" else str(number), [arm], member, group.astype(str)))
        return found

    def pooled_covers(design, rng, shift):
        interval = pooled_difference(draw_strata(rng, *design, shift))["interval"]
        return interval[0] <= 0 <= interval[1]

    def print_table(title, head, rows):
        """`rows`: label -> (key of the random stream, function of an rng and a shift that says whether it covers)."""
        print(f"{title}\n| {head} | " + " | ".join(f"AUC {auc}" for auc in AUCS) + " |")
        print("|---|" + "---|" * len(AUCS), flush=True)
        for label, (key, covers_once) in rows.items():
            row = []
            for auc in AUCS:
                shift, rng = np.sqrt(2) * norm.ppf(auc), stream(args.seed, *key)
                hits = [covers_once(rng, shift) for _ in tqdm(range(args.runs), desc=f"{title} {label} {auc}",
                                                              leave=False, disable=None)]
                row.append(f"{100 * np.mean(hits):.1f}")
            print(f"| {label} | " + " | ".join(row) + " |", flush=True)
        print(flush=True)

    for metric in args.metrics:
        if metric == "pooled":
            print_table(metric, "strata, trainings of each, groups a side", {
                f"{kind}: {strata}, {trainings}, {groups}":
                (("pooled", *design), partial(pooled_covers, design))
                for design in POOLED for kind, strata, trainings, groups in [design]})
        else:
            print_table(metric, "groups a side x images", {
                f"{kind}, {groups} x {images}":
                (("coverage", *design[:2]), partial(single_covers, metric, design))
                for design in DESIGNS for kind, groups, images in [design]})


if __name__ == "__main__":
    run(main, parser())
