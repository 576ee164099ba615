"""Measure the cells of a batch of a scale in one process: run attack.py for each, and write its cell.

    python -m reproduce.measure SCALE BATCH

Cells that exist are left out. One process for many cells imports the libraries once, and computes once what depends on
the images alone.
"""

import argparse
import runpy
import shlex
import sys
from collections.abc import Sequence

from utils.cli import UserError, natural, new_parser, run
from utils.files import ROOT


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.measure")
    flags.add_argument("scale", metavar="SCALE", help="name of a scale file, or its path")
    flags.add_argument("batch", metavar="BATCH", help="the batch, e.g. A0-direct for the attacks on model A0 of a bed "
                       "that need no trained attacker; after an unknown name all are listed")
    flags.add_argument("--again", type=natural, default=0, metavar="N", help="another training of the scale (default: "
                       "0, the first one)")
    flags.add_argument("--dry-run", action="store_true", help="print the commands only")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.cells import write_cell
    from reproduce.forms import read

    scale = read(args.scale, args.again)
    if args.batch not in scale.batches:
        raise UserError(f"{args.scale} has no batch {args.batch}; it has {', '.join(scale.batches)}")
    files = {scale.results / f"{cell.name}.json": cell for cell in scale.batches[args.batch]}
    missing = [(into, cell) for into, cell in files.items() if not into.exists()]
    for number, (into, cell) in enumerate(missing, 1):
        if args.dry_run:
            print(shlex.join(["python", *scale.cell_command(cell)]))
            continue
        print(f"cell {number} of {len(missing)}: {cell.name}", flush=True)
        call(scale.cell_command(cell))
        write_cell(scale.run_of(cell), into, **scale.collected(cell))


def call(words: Sequence[str]) -> None:
    """Run a script with its arguments, `words`, in this process, which ends if the script ends with an error."""
    before = sys.argv
    sys.argv = list(words)
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = before


if __name__ == "__main__":
    run(main, parser())
