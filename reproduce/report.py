"""Write a scale's tables and figures, or the page of findings over several scales.

    python -m reproduce.report tiny                            # reproduce/results/tiny/report.md and fig1-5.png
    python -m reproduce.report tiny camvid --findings docs/findings.md
    python -m reproduce.report camvid --again 1                # the claims' figures of another training of everything
"""

import argparse
from pathlib import Path

from utils.cli import UserError, positive, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.report", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("scales", nargs="+", metavar="SCALE", help="tiny, camvid, paper, or a file of that form")
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--findings", metavar="FILE", help="only write the page of findings there")
    what.add_argument("--again", metavar="N", type=positive, default=0,
                      help="only write the claims' figures of training N (`--config again=N`), for the page to show")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.measured import Measured
    from reproduce.plan import Scale
    from utils.files import atomic_open

    all_measured = [Measured(Scale(name, args.again)) for name in args.scales]
    for measured in all_measured:
        if not measured.there:
            raise UserError(f"{measured.scale.results} holds no cells; `make reproduce SCALE={measured.scale.name}`")
        if args.again:
            keep_again(measured)
    if args.again:
        return
    texts = {Path(args.findings): findings(all_measured)} if args.findings else {
        measured.scale.results / "report.md": report(measured) for measured in all_measured}
    for path, text in texts.items():
        with atomic_open(path, "w") as file:
            file.write(text)
        print(path)


def keep_again(measured) -> None:
    """Write what another training found: commits, number of cells, claim -> setting -> figures and verdict."""
    from reproduce.claims import measure
    from utils.files import write_json

    path = measured.scale.again_folder / f"{measured.scale.again}.json"
    figures = {claim: {one.where: one.kept() for one in found} for claim, found in measure(measured).items()}
    write_json(path, {"commits": measured.commits(), "cells": len(measured.there), "claims": figures})
    print(path)


def report(measured) -> str:
    """Tables and figures of one scale, in the paper's order; the figures are drawn beside report.md."""
    from reproduce import figures, tables

    scale = measured.scale
    drawn = figures.draw(measured, scale.results)
    titles = {"fig1": "Fig. 1: patch sizes", "fig2": "Fig. 2: where to look, and how often",
              "fig3": "Fig. 3: Argmax", "fig4": "Fig. 4: AUC against mIoU on non-members (right and low is good)",
              "fig5": "Fig. 5: maps of one member, each with colours of its own"}
    return "\n".join([
        f"# Scale {scale.name}", "",
        f"{scale.note.strip()} `make reproduce SCALE={scale.name}`, attacker seeds up to "
        f"{max(cell.seed for cell in measured.there.values())}, commits "
        f"{', '.join(measured.commits())} (`+`: uncommitted changes).{_missing(measured)}{_again(measured)}", "",
        "## Table 2", "",
        "Max-F / AUC, mean over attacker seeds, in parentheses the range of the AUC; the paper's figures beside.", "",
        tables.table_two(measured), "## Victims and shadows", "", tables.models(measured), "## Defenses", "",
        "Random patches, seed 0. Gauss is named by its variance (the flag is its root), Dropout by its ratio, DPSGD by "
        "its noise variance. mIoU is that of the posteriors that were attacked.", "", tables.defenses(measured),
        "## Fig. 5: where the attacker looks", "",
        "Mean over images of the correlation (Pearson) of the class activation map with the loss map, and of the map "
        "under the defense with that before it, where the attacker is the same one.", "",
        tables.activation(measured),
        *(f"## {titles[name]}\n\n![{titles[name]}]({name}.png)\n" for name in drawn),
        "## Claims", "", claims([measured])])


def _missing(measured) -> str:
    """A sentence on the cells that are not there, if any."""
    lacks, cells = len(measured.missing), len(measured.scale.cells)
    return f" {lacks} of {cells} cells are not there yet." if lacks else ""


def _again(measured) -> str:
    """A sentence on the other trainings, if any."""
    others = "; ".join(f"*{name}*, {other['cells']} cells, commits {', '.join(other['commits'])}"
                       for name, other in measured.again().items())
    return f" Other trainings of all of it: {others}." if others else ""


def findings(all_measured: list) -> str:
    """The page of findings: each claim of the paper as a line."""
    from reproduce import claims as module
    from reproduce.plan import HERE

    notes = [f"- **{m.scale.name}**: {m.scale.note.strip()} [Tables and figures](../{m.scale.results}/report.md)."
             f"{_missing(m)}{_again(m)}" for m in all_measured]
    names = " ".join(m.scale.name for m in all_measured)
    return "\n".join([
        "# What of the paper holds here", "",
        f"Written by `python -m reproduce.report {names} --findings docs/findings.md` from the committed cells in "
        "`reproduce/results/`. Figures are points (%) with 95 % intervals over blocks of images, differences paired.",
        "", *(module.__doc__ or "").strip().split("\n\n")[1:], "", *notes, "", claims(all_measured),
        (HERE / "notes.md").read_text(encoding="utf-8")])


def claims(all_measured: list) -> str:
    """A row a claim: what was found in each setting of each scale, and the verdicts."""
    from reproduce.claims import CLAIMS, measure, overall
    from reproduce.tables import DASH, markdown

    each = [measure(measured) for measured in all_measured]
    rows = []
    for claim in CLAIMS:
        row = [claim]
        for found in (measures[claim] for measures in each):
            row += ["<br>".join(map(str, found)) or DASH, f"**{overall(found)}**" if found else DASH]
        rows.append(row)
    heads = [head for m in all_measured
             for head in (m.scale.name, "verdict" if m.scale.config.get("evidence", True) else "verdict (no evidence)")]
    return markdown(["the paper's claim", *heads], rows)


if __name__ == "__main__":
    run(main, parser())
