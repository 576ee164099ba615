"""Measure the blind control where there is nothing to find: members and non-members are exchanged at random.

    python -m tools.blind_control                  # about two minutes on one core
"""

import argparse

from utils.cli import natural, new_parser, positive, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.blind_control")
    flags.add_argument("--tree", default="examples", help="images and labels (default: examples)")
    flags.add_argument("--runs", type=positive, default=200, help="number of random exchanges (default: 200)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the exchanges (default: 0)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np
    from tqdm import trange

    from datasets.inspection import inspect_all
    from evaluation.controls import CROSS_FITTED, blind_scores, judge
    from predictors.stored import list_records
    from utils.randomness import stream

    records = list_records(args.tree)
    found, group = inspect_all([record.files for record in records]), [record.group for record in records]
    judged = []
    for number in trange(args.runs, leave=False, disable=None):
        rng = stream(args.seed, "exchange", number)
        member = rng.permutation([record.member for record in records])
        judged.append(judge(blind_scores(found, member, group, number), rng.random(len(member)), member, group,
                            CROSS_FITTED))
    inside = [one["auc_interval"][0] <= 0.5 <= one["auc_interval"][1] for one in judged]
    above = [one["sides_differ"] == "above" for one in judged]
    mean = np.mean([one["auc"] for one in judged])
    print(f"{args.runs} exchanges: mean AUC {mean:.3f}; the interval contains 0.5 in {100 * np.mean(inside):.1f} % and "
          f"lies above it in {100 * np.mean(above):.1f} %")


if __name__ == "__main__":
    run(main, parser())
