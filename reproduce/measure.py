"""Measure the cells of a batch of a scale in one process: run attack.py for each, and write its cell.

    python -m reproduce.measure SCALE BATCH

Cells that exist are left out. One process for many cells imports the libraries once, and computes once what depends on
the images alone. If an attack fails, the others still run. Change no code while a batch runs: the process keeps the
code that it has read, but its cells name the commit at the time of each attack.
"""

import argparse
import shlex

from utils.cli import UserError, natural, new_parser, run
from utils.scripts import run_script

STOPPED = 128  # exit codes from here on are those of a signal


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.measure")
    flags.add_argument("scale", metavar="SCALE", help="name of a scale file, or its path")
    flags.add_argument("batch", metavar="BATCH", help="the batch, e.g. A0-direct for the attacks on model A0 of a bed "
                       "that need no trained attacker; after an unknown name all are listed")
    flags.add_argument("--again", type=natural, default=0, metavar="N", help="another training of the scale (default: "
                       "0, the first one)")
    flags.add_argument("--dry-run", action="store_true", help="print the commands of all cells of the batch only")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.cells import write_cell
    from reproduce.forms import batches, missing_cells, read

    scale = read(args.scale, args.again)
    found = batches(scale)
    if args.batch not in found:
        raise UserError(f"{args.scale} has no batch {args.batch}; it has {', '.join(found)}")
    cells = found[args.batch]
    if args.dry_run:
        print("\n".join(shlex.join(["python", *scale.cell_command(cell)]) for cell in cells))
        return
    missing = missing_cells(scale, cells)
    failed = []
    for number, cell in enumerate(missing, 1):
        print(f"cell {number} of {len(missing)}: {cell.name}", flush=True)
        try:
            run_script(scale.cell_command(cell))
            write_cell(scale.run_of(cell), scale.results / f"{cell.name}.json", **scale.cell_arguments(cell))
        except (SystemExit, UserError) as error:
            if isinstance(error, SystemExit) and error.code >= STOPPED:
                raise
            failed.append(cell.name if isinstance(error, SystemExit) else f"{cell.name} ({error})")
    if failed:
        raise UserError(f"{len(failed)} of {len(missing)} cells could not be measured: {', '.join(failed)}")


if __name__ == "__main__":
    run(main, parser())
