"""Write the report of a scale, with tables and figures, and the page of findings over several scales."""

from reproduce import figures, tables
from reproduce.claims import CLAIMS, RULE, measure, overall
from reproduce.measured import Measured
from reproduce.plan import FOLDER
from reproduce.tables import DASH, markdown
from utils.files import write_json

FIGURES = {"fig1": "Fig. 1: patch sizes", "fig2": "Fig. 2: selections of patches, and their number",
           "fig3": "Fig. 3: Argmax", "fig4": "Fig. 4: AUC against mIoU on non-members (lower right is better)",
           "fig5": "Fig. 5: maps of one member, each with its own colour scale"}


def write_again(measured: Measured) -> None:
    """Write commits, number of cells and findings of another training: key of a claim -> label -> record."""
    path = measured.scale.again_folder / f"{measured.scale.again}.json"
    records = {key: {finding.label: finding.record() for finding in each} for key, each in measure(measured).items()}
    write_json(path, {"commits": measured.commits(), "cells": len(measured.cells), "claims": records})
    print(path)


def report(measured: Measured) -> str:
    """The report of a scale, in the paper's order. Draws the figures into the folder of the report."""
    scale = measured.scale
    drawn = figures.draw(measured, scale.results)
    return "\n".join([
        f"# Scale {scale.name}", "",
        f"{scale.note.strip()} The commands are those of `make reproduce SCALE={scale.name}`, with attacker seeds 0 to "
        f"{max(cell.seed for cell in measured.cells.values())}. They ran at commits "
        f"{', '.join(measured.commits())} (`+`: with uncommitted changes).{_missing(measured)}{_others(measured)}", "",
        "## Table 2", "",
        "Max-F / AUC: means over attacker seeds, with the range of the AUC in parentheses. The columns *paper* "
        "have the values of the paper.", "", tables.table_two(measured),
        "## Victims and shadows", "", tables.models(measured), "## Defenses", "",
        "Random patches, attacker seed 0. The number after a name is the variance of Gauss (the flag `-gauss` is its "
        "square root), the ratio of Dropout, or the noise variance of DPSGD. mIoU is measured on the attacked "
        "posteriors.", "",
        tables.defenses(measured), "## Fig. 5: activation maps of the attacker", "",
        "Mean Pearson correlation over images: of the class activation map (CAM) with the loss map, and of the CAM "
        "under the defense with the CAM before it. The second needs two CAMs of the same attacker.", "",
        tables.activation(measured), *(f"## {FIGURES[name]}\n\n![{FIGURES[name]}]({name}.png)\n" for name in drawn),
        "## Claims", "", claims([measured])])


def _missing(measured: Measured) -> str:
    """A sentence about missing cells, if any."""
    missing, cells = len(measured.missing), len(measured.scale.cells)
    return f" {missing} of {cells} cells are missing." if missing else ""


def _others(measured: Measured) -> str:
    """A sentence about other trainings, if any."""
    others = "; ".join(f"*{name}*, {other['cells']} cells, commits {', '.join(other['commits'])}"
                       for name, other in measured.others().items())
    return f" Other trainings of all models: {others}." if others else ""


def findings(all_measured: list[Measured]) -> str:
    """The page of findings: the verdict on each claim, the values behind it, and the notes."""
    notes = [f"- **{m.scale.name}**: {m.scale.note.strip()} [Tables and figures](../{m.scale.results}/report.md)."
             f"{_missing(m)}{_others(m)}" for m in all_measured]
    names = " ".join(m.scale.name for m in all_measured)
    return "\n".join([
        "# Which claims of the paper hold here", "",
        f"Written by `python -m reproduce.report {names} --findings docs/findings.md` from the committed cells in "
        "`reproduce/results/`.", "", RULE, "", *notes, "", claims(all_measured),
        (FOLDER / "notes.md").read_text(encoding="utf-8")])


def claims(all_measured: list[Measured]) -> str:
    """A table with the verdict on each claim, and below it a foldable table of the findings of each claim."""
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
