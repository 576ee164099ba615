"""Compare attacks on the same images, paired: python -m evaluation.compare RUN RUN [RUN ...].

Prints the AUC and max-F of each run of attack.py and its difference to the first, with a 95 % interval from one
bootstrap that draws the same blocks for all of them.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import UserError, run
from utils.untrusted import reading

if TYPE_CHECKING:
    import numpy as np


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="evaluation.compare", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folders of attack.py, the first the yardstick")
    flags.add_argument("--figure", choices=("auc", "max_f", "tpr_at_5_fpr"), default="auc", help="(default: auc)")
    flags.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    return flags


def main(args: argparse.Namespace) -> None:
    from evaluation.intervals import paired_difference
    from evaluation.metrics import compute_metrics

    columns, member, group = read_paired([Path(name) for name in args.runs])
    for run_name, column in zip(args.runs, columns, strict=True):
        line = f"{run_name}: {args.figure} {compute_metrics(column, member)[args.figure]:.3f}"
        if column is not columns[0]:
            both = paired_difference([column], columns[:1], member, group, args.figure, args.seed)
            low, high = both["interval"]
            line += f", {both['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line)


def read_paired(folders: Sequence[Path]) -> tuple[list["np.ndarray"], "np.ndarray", list[str]]:
    """Scores (n,) of each run, membership (n,) and block of the images that all of them scored.

    Raises `UserError` when they scored different ones.
    """
    import numpy as np

    tables = [read_scores(folder) for folder in folders]
    known = {name: row[:2] for name, row in tables[0].items()}
    for folder, scores in zip(folders, tables, strict=True):
        if {name: row[:2] for name, row in scores.items()} != known:
            raise UserError(f"{folder} scored other images than {folders[0]}; only the same can be compared")
    names = sorted(known)
    columns = [np.array([scores[name][2] for name in names]) for scores in tables]
    return columns, np.array([known[name][0] for name in names]), [known[name][1] for name in names]


def read_scores(folder: Path) -> dict[str, tuple[bool, str, float]]:
    """Image -> (member, block, score), from scores.csv and patches.npz of a run; `UserError` when they are broken."""
    path, advice = folder / "scores.csv", "give folders that attack.py wrote"
    if not path.is_file():
        raise UserError(f"{folder} holds no scores.csv; {advice}")
    with reading(path, "table of scores", broken=advice), open(path, encoding="utf-8", newline="") as file:
        rows = [(row["image"], ("0", "1").index(row["member"]) == 1, float(row["score"]))
                for row in csv.DictReader(file)]
    names, groups = read_patches(folder, "image", "group")
    group = dict(zip(names.tolist(), groups.tolist(), strict=True))
    if len(rows) != len(group) or {name for name, _, _ in rows} != group.keys():
        raise UserError(f"{path} does not name each image of patches.npz once; {advice}")
    if not all(math.isfinite(score) for _, _, score in rows) or len({member for _, member, _ in rows}) < 2:
        raise UserError(f"{path} has no finite score of each image, or only one side; {advice}")
    return {name: (member, group[name], score) for name, member, score in rows}


def read_patches(folder: Path, *columns: str) -> list["np.ndarray"]:
    """Columns of patches.npz of a run, each (patches,): `image` and `group` text, `score` finite numbers."""
    import numpy as np

    from utils.arrays import read_npz

    path = folder / "patches.npz"
    found = read_npz(path, columns)
    whole = all(name in found and found[name].ndim == 1 and found[name].dtype.kind == ("f" if name == "score" else "U")
                for name in columns)
    if not whole or len({len(column) for column in found.values()}) > 1 or not np.isfinite(found.get("score", 0)).all():
        raise UserError(f"{path} has no {', '.join(columns)} of each patch; make it anew with attack.py")
    return [found[name] for name in columns]


if __name__ == "__main__":
    run(main, parser())
