"""Compare attacks on the same images by paired differences.

    python -m evaluation.compare RUN RUN [RUN ...]

Prints a metric of each run of attack.py and its difference to the first run, with a 95 % interval from one bootstrap
that draws the same groups for all runs.
"""

import argparse
from pathlib import Path

from utils.cli import new_parser, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "evaluation.compare")
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folders that attack.py wrote; the others are compared "
                       "with the first")
    flags.add_argument("--metric", "--figure", choices=("auc", "max_f", "tpr_at_5_fpr"), default="auc",
                       help="metric to compare (default: auc)")
    flags.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    return flags


def main(args: argparse.Namespace) -> None:
    from evaluation.intervals import paired_difference
    from evaluation.metrics import compute_metrics
    from evaluation.stored_scores import read_paired

    columns, member, group = read_paired([Path(name) for name in args.runs])
    for name, column in zip(args.runs, columns, strict=True):
        line = f"{name}: {args.metric} {compute_metrics(column, member)[args.metric]:.3f}"
        if column is not columns[0]:
            both = paired_difference([column], columns[:1], member, group, args.metric, args.seed)
            low, high = both["interval"]
            line += f", {both['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line)


if __name__ == "__main__":
    run(main, parser())
