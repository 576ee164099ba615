"""Compare attacks on the same images by paired differences.

    python -m evaluation.compare RUN RUN [RUN ...]

Prints a metric of each run of attack.py and its difference to the first run, with a 95 % interval over the groups of
images. The difference is paired: each image is compared with itself.
"""

import argparse
from pathlib import Path

from evaluation.metrics import METRICS
from utils.cli import UserError, new_parser, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "evaluation.compare")
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folders that attack.py wrote; the others are compared "
                       "with the first")
    flags.add_argument("--metric", "--figure", choices=METRICS, default="auc",
                       help="metric to compare (default: auc)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from evaluation.intervals import count_groups, paired_difference
    from evaluation.metrics import compute_metrics
    from evaluation.report import describe_groups
    from evaluation.stored_scores import read_paired

    columns, member, group = read_paired([Path(name) for name in args.runs])
    if compute_metrics(columns[0], member)[args.metric] is None:
        raise UserError(f"--metric {args.metric} cannot be decided with {int((~member).sum())} non-members; compare "
                        "another metric, or runs on more non-members")
    for name, column in zip(args.runs, columns, strict=True):
        line = f"{name}: {args.metric} {compute_metrics(column, member)[args.metric]:.3f}"
        if column is not columns[0] and np.array_equal(column, columns[0]):
            line += ", every score is that of the first run"
        elif column is not columns[0]:
            both = paired_difference([column], columns[:1], member, group, args.metric)
            line += f", {both['difference']:+.3f}"
            line += "" if both["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*both["interval"])
        print(line)
    print(describe_groups(count_groups(group, member)))


if __name__ == "__main__":
    run(main, parser())
