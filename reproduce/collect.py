"""Write a cell: the small JSON file of one run of attack.py, from which tables and figures are made.

    python -m reproduce.collect RUN --into JSON --images JSON [--curve N ...] [--patches] [--maps]
"""

import argparse
from pathlib import Path

from utils.cli import new_parser, positive, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.collect")
    flags.add_argument("run", metavar="RUN", help="folder that attack.py wrote")
    flags.add_argument("--into", metavar="JSON", required=True, help="file of the cell")
    flags.add_argument("--images", metavar="JSON", required=True,
                       help="file with the images, members and groups of the setting")
    flags.add_argument("--curve", metavar="N", nargs="+", type=positive, default=[],
                       help="add the metrics of the first N patches of each image")
    flags.add_argument("--patches", action="store_true", help="add the scores of single patches")
    flags.add_argument("--maps", action="store_true", help="add the maps of the first member that the run has drawn; "
                       "they show the outlines of its image")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.cells import write_cell

    write_cell(Path(args.run), Path(args.into), Path(args.images), args.curve, args.patches, args.maps)


if __name__ == "__main__":
    run(main, parser())
