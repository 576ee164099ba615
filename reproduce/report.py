"""Write the tables and figures of a scale, or the page of findings over several scales.

    python -m reproduce.report tiny                            # reproduce/results/tiny/report.md and fig1-5.png
    python -m reproduce.report tiny camvid --findings docs/findings.md
    python -m reproduce.report camvid --again 1                # the claims' metrics of another training of everything
"""

import argparse
from pathlib import Path

from utils.cli import UserError, positive, run

FIGURES = {"fig1": "Fig. 1: patch sizes", "fig2": "Fig. 2: selections of patches, and their number",
           "fig3": "Fig. 3: Argmax", "fig4": "Fig. 4: AUC against mIoU on non-members (lower right is better)",
           "fig5": "Fig. 5: maps of one member, each with its own colour scale"}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.report", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("scales", nargs="+", metavar="SCALE",
                       help="a scale of reproduce/scales (tiny, camvid, ...), or another file of the same form")
    output = flags.add_mutually_exclusive_group()
    output.add_argument("--findings", metavar="FILE", help="write only the page of findings, into this file")
    output.add_argument("--again", metavar="N", type=positive, default=0,
                        help="write only the claims' metrics of training N (snakemake --config again=N), which the "
                        "reports then show")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.measured import Measured
    from reproduce.plan import read_scale
    from utils.files import atomic_open

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


def write_again(measured) -> None:
    """Write the commits, number of cells and findings of another training: key of a claim -> label -> record."""
    from reproduce.claims import measure
    from utils.files import write_json

    path = measured.scale.again_folder / f"{measured.scale.again}.json"
    records = {key: {finding.label: finding.record() for finding in each} for key, each in measure(measured).items()}
    write_json(path, {"commits": measured.commits(), "cells": len(measured.cells), "claims": records})
    print(path)


def report(measured) -> str:
    """The report of a scale, in the paper's order. Draws the figures into the folder of the report."""
    from reproduce import figures, tables

    scale = measured.scale
    drawn = figures.draw(measured, scale.results)
    return "\n".join([
        f"# Scale {scale.name}", "",
        f"{scale.note.strip()} Run by `make reproduce SCALE={scale.name}`, with attacker seeds 0 to "
        f"{max(cell.seed for cell in measured.cells.values())}, at commits "
        f"{', '.join(measured.commits())} (`+`: with uncommitted changes).{_missing(measured)}{_others(measured)}", "",
        "## Table 2", "",
        "Max-F / AUC: the mean over attacker seeds, with the range of the AUC in parentheses. The paper's values stand "
        "beside them.", "", tables.table_two(measured), "## Victims and shadows", "", tables.models(measured),
        "## Defenses", "",
        "Random patches, attacker seed 0. The number behind a name is the variance of Gauss (the flag is its square "
        "root), the ratio of Dropout, or the noise variance of DPSGD. mIoU is that of the attacked posteriors.", "",
        tables.defenses(measured), "## Fig. 5: activation maps of the attacker", "",
        "Pearson correlation, mean over images, of the class activation map (CAM) with the loss map; and of the CAM "
        "under the defense with the CAM before it, where both come from the same attacker.", "",
        tables.activation(measured), *(f"## {FIGURES[name]}\n\n![{FIGURES[name]}]({name}.png)\n" for name in drawn),
        "## Claims", "", claims([measured])])


def _missing(measured) -> str:
    """A sentence about missing cells, if any."""
    missing, cells = len(measured.missing), len(measured.scale.cells)
    return f" {missing} of {cells} cells are missing." if missing else ""


def _others(measured) -> str:
    """A sentence about other trainings, if any."""
    others = "; ".join(f"*{name}*, {other['cells']} cells, commits {', '.join(other['commits'])}"
                       for name, other in measured.others().items())
    return f" Other trainings of all models: {others}." if others else ""


def findings(all_measured: list) -> str:
    """The page of findings: the verdict on each claim, the values behind it, and the notes."""
    from reproduce.claims import RULE
    from reproduce.plan import FOLDER

    notes = [f"- **{m.scale.name}**: {m.scale.note.strip()} [Tables and figures](../{m.scale.results}/report.md)."
             f"{_missing(m)}{_others(m)}" for m in all_measured]
    names = " ".join(m.scale.name for m in all_measured)
    return "\n".join([
        "# Which claims of the paper hold here", "",
        f"Written by `python -m reproduce.report {names} --findings docs/findings.md` from the committed cells in "
        "`reproduce/results/`.", "", RULE, "", *notes, "", claims(all_measured),
        (FOLDER / "notes.md").read_text(encoding="utf-8")])


def claims(all_measured: list) -> str:
    """A table of verdicts, one row for each claim, and below it the findings of each claim, folded."""
    from reproduce.claims import CLAIMS, measure, overall
    from reproduce.tables import DASH, markdown

    scales, measures = [measured.scale for measured in all_measured], list(map(measure, all_measured))
    heads = [scale.name + ("" if scale.evidence else " (no evidence)") for scale in scales]
    verdicts = markdown(["claim of the paper", *heads], [
        [claim.text, *(f"**{overall(by_key[claim.key])}**" if by_key[claim.key] else DASH for by_key in measures)]
        for claim in CLAIMS])
    details = []
    for claim in CLAIMS:
        rows = [[scale.name, finding.label, finding.metrics,
                 "; ".join(f"{name}: {other['metrics']}" for name, other in finding.others.items()) or DASH,
                 finding.verdict]
                for scale, by_key in zip(scales, measures, strict=True) for finding in by_key[claim.key]]
        table = markdown(["scale", "setting", "points [95 % interval]", "other trainings", "verdict"], rows)
        details += [f"<details><summary>{claim.text}</summary>", "", table, "</details>", ""] if rows else []
    return "\n".join([verdicts, "The values behind each verdict:", "", *details])


if __name__ == "__main__":
    run(main, parser())
