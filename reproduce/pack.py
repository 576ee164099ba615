"""Move the results of a scale that are files of their own to one file for each folder, before they are committed.

    python -m reproduce.pack SCALE

The tables are the same before and after, and a result that is packed is not measured again.
"""

import argparse

from utils.cli import natural, new_parser, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.pack")
    flags.add_argument("scale", metavar="SCALE", help="name of a scale file, or its path")
    flags.add_argument("--again", type=natural, default=0, metavar="N", help="another training of the scale (default: "
                       "0, the first one)")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.forms import read, results_of
    from reproduce.packed import pack_results
    from utils.files import lock_run

    scale = read(args.scale, args.again)
    lock_run(scale.runs)  # no run may write results meanwhile
    count = pack_results(results_of(scale))
    print(f"{scale.results}: {count} results packed")


if __name__ == "__main__":
    run(main, parser())
