"""Measure the cells of a batch of a bed of models in one process: attack.py and reproduce.collect for each.

    python -m reproduce.measure SCALE BATCH

Cells that exist are left out. One process for many cells imports the libraries once, and computes once what depends on
the images alone.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduce.rotations import read_rotations
from utils.cli import UserError, new_parser, run

ROOT = Path(__file__).parents[1]


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.measure")
    flags.add_argument("scale", metavar="SCALE", help="name of a scale file of a bed of models, or its path")
    flags.add_argument("batch", metavar="BATCH", help="a model and what attacks it, e.g. A0-direct or A0-learned")
    return flags


def main(args: argparse.Namespace) -> None:
    bed = read_rotations(args.scale)
    if args.batch not in bed.batches:
        raise UserError(f"{args.scale} has no batch {args.batch}; it has {', '.join(bed.batches)}")
    from reproduce.cells import write_cell

    cells = [(cell, bed.results / f"{cell.name}.json") for cell in bed.batches[args.batch]]
    missing = [(cell, into) for cell, into in cells if not into.exists()]
    for number, (cell, into) in enumerate(missing, 1):
        print(f"cell {number} of {len(missing)}: {cell.name}", flush=True)
        call(bed.cell_command(cell))
        write_cell(bed.run_of(cell), into, bed.results / "images" / f"{cell.model.part}.json")


def call(words: Sequence[str]) -> None:
    """Run a script with its arguments, `words`, in this process. Ends the process if the script ends with an error."""
    before = sys.argv
    sys.argv = list(words)
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = before


if __name__ == "__main__":
    run(main, parser())
