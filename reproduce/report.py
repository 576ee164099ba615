"""Write the tables and figures of a scale, or the page of findings over several scales.

    python -m reproduce.report tiny                            # reproduce/results/tiny/report.md and fig1-5.png
    python -m reproduce.report tiny camvid --findings docs/findings.md
    python -m reproduce.report camvid --again 1                # the findings of another training of all models
"""

import argparse
from pathlib import Path

from utils.cli import UserError, new_parser, positive, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.report")
    flags.add_argument("scales", nargs="+", metavar="SCALE",
                       help="a scale of reproduce/scales (tiny, camvid, ...), or another file of the same form")
    output = flags.add_mutually_exclusive_group()
    output.add_argument("--findings", metavar="FILE", help="write the page of findings into this file, and no report")
    output.add_argument("--again", metavar="N", type=positive, default=0,
                        help="write only the findings of training N (snakemake --config again=N); the reports then "
                        "show them beside those of the first training")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.measured import Measured
    from reproduce.pages import findings, report, write_again
    from reproduce.plan import paper_of, read_scale
    from reproduce.table_one import read_table_one
    from reproduce.table_one_page import Errors, page
    from utils.files import atomic_open

    second = [name for name in args.scales if paper_of(name) == 2]
    if second and (args.findings or args.again or len(second) < len(args.scales)):
        raise UserError(f"{second[0]} is a scale of the second paper, which has only a report; give it alone")
    if second:
        for scale in map(read_table_one, second):
            path = scale.results / "report.md"
            with atomic_open(path, "w") as file:
                file.write(page(Errors(scale)))
            print(path)
        return
    all_measured = [Measured(read_scale(name, args.again)) for name in args.scales]
    for measured in all_measured:
        if not measured.cells:
            raise UserError(f"{measured.scale.results} has no cells; run make reproduce SCALE={measured.scale.name}")
        if args.again:
            write_again(measured)
    if args.again:
        return
    texts = {Path(args.findings): findings(all_measured)} if args.findings else {
        measured.scale.results / "report.md": report(measured) for measured in all_measured}
    for path, text in texts.items():
        with atomic_open(path, "w") as file:
            file.write(text)
        print(path)


if __name__ == "__main__":
    run(main, parser())
