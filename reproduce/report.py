"""Write the tables and figures of a scale, or the page of findings over several scales.

    python -m reproduce.report tiny                            # reproduce/results/tiny/report.md and its figures
    python -m reproduce.report camvid --findings docs/findings.md
"""

import argparse
from pathlib import Path

from utils.cli import UserError, new_parser, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.report")
    flags.add_argument("scales", nargs="+", metavar="SCALE",
                       help="a scale of reproduce/scales (tiny, camvid, ...), or another file of the same form")
    flags.add_argument("--findings", metavar="FILE", help="write the page of findings into this file, and no report")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.forms import form_of
    from reproduce.measured import Measured
    from reproduce.pages import findings, report
    from reproduce.plan import read_scale
    from utils.files import atomic_open

    others = [name for name in args.scales if form_of(name) != "table-two"]
    if others and (args.findings or len(others) < len(args.scales)):
        raise UserError(f"{others[0]} has only a report, and is not on the page of findings; give it alone")
    if others:
        for name in others:
            write_report(name)
        return
    all_measured = [Measured(read_scale(name)) for name in args.scales]
    for measured in all_measured:
        if not measured.cells:
            raise UserError(f"{measured.scale.results} has no cells; run make reproduce SCALE={measured.scale.name}")
    texts = {Path(args.findings): findings(all_measured)} if args.findings else {
        measured.scale.results / "report.md": report(measured) for measured in all_measured}
    for path, text in texts.items():
        with atomic_open(path, "w") as file:
            file.write(text)
        print(path)


def write_report(name: str) -> None:
    """Write the report of a scale that is not of the form of table 2."""
    from reproduce.forms import form_of, read
    from reproduce.rotations_page import Bed, bed_page
    from reproduce.table_one_page import Errors, page
    from utils.files import atomic_open

    scale = read(name)
    path = scale.results / "report.md"
    with atomic_open(path, "w") as file:
        file.write(page(Errors(scale)) if form_of(name) == "table-one" else bed_page(Bed(scale)))
    print(path)


if __name__ == "__main__":
    run(main, parser())
