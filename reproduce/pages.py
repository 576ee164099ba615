"""Write the report of a scale, with tables and figures, and the page of findings over several scales."""

from reproduce import figures, paper, tables
from reproduce.cases import Case, Value, pool
from reproduce.claims import RULE, measure, verdicts
from reproduce.defense_cases import taken
from reproduce.measured import Measured
from reproduce.plan import FOLDER, WINDOWS
from reproduce.tables import DASH, markdown
from reproduce.variance import ABOUT, of_scale, variances
from reproduce.verdicts import PROVISIONAL

GAP = """\
Each victim of the scale, with and without a defense in its training. The gap is mIoU on members minus mIoU on
non-members. The last line has Spearman's rank correlation over the victims."""
FIGURES = {"fig1": "Fig. 1: patch sizes", "fig2": "Fig. 2: selections of patches, and their number",
           "fig3": "Fig. 3: Argmax", "fig4": "Fig. 4: mIoU on non-members against AUC (upper left is better)",
           "fig5": "Fig. 5: maps of one member, each with its own colour scale",
           "gap": "AUC against the generalisation gap of all victims"}


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
        "have the values of the paper. Each attack reaches at least the F of calling all images members, which is "
        "above that of a coin.", "", tables.table_two(measured), *_single_patches(measured), *_windows(measured),
        "## Victims and shadows", "", tables.models(measured), "## Defenses", "",
        "Random patches, attacker seed 0. The number after a name is the variance of Gauss (the flag `-gauss` is its "
        "square root), the ratio of Dropout, or the noise variance of DPSGD. mIoU is measured on the attacked "
        "posteriors.", "",
        tables.defenses(measured), "## Fig. 5: activation maps of the attacker", "",
        "Mean Pearson correlation over images: of the class activation map (CAM) with the loss map, and of the CAM "
        "under the defense with the CAM before it. The second needs two CAMs of the same attacker.", "",
        tables.activation(measured), *(f"## {FIGURES[name]}\n\n![{FIGURES[name]}]({name}.png)\n" for name in drawn),
        "## AUC against the generalisation gap", "", GAP, "",
        tables.gap(measured), "## Where the variance comes from", "", *_variances(measured), "## Claims", "", RULE, "",
        claims(measured)])


def _single_patches(measured: Measured) -> list[str]:
    """The section about single patches, if a scale measures them with the number of patches of the paper."""
    table = tables.single_patches(measured)
    return ["## Single patches", "", "Metrics of single patches, in %, with about as many patches of both sides. The "
            "paper has 20 patches of each member and 33 of each non-member (29,760 and 30,096 in all), and prints "
            "49.85 as the F of a coin.", "", table] if table else []


def _windows(measured: Measured) -> list[str]:
    """The section about queries of windows, if a scale has such queries."""
    rows = []
    for setting in measured.scale.windows.settings:
        for method in paper.TABLE:
            for case in taken(measured, setting, method, WINDOWS):
                cells = [measured.seeds(setting, method, name)[0] for name in ("none", WINDOWS)]
                rows.append([measured.title(setting), paper.title(method),
                             *(f"{100 * measured.mean([cell]):.1f}" for cell in cells), pool([case]).show(),
                             *(f"{100 * measured.results(cell)['miou']['out']:.1f}" for cell in cells)])
    size = measured.scale.windows
    return ["## Queries about crops", "", "In the paper, the image is cropped before the victim is queried; elsewhere "
            "on this page, the victim is queried about the complete image. Here the same victim is also queried about "
            f"windows of {size.height} x {size.width} pixels and their mirror images (`--windows`). So is the shadow "
            "of the attacker. The difference is paired: complete images minus windows.", "",
            markdown(["setting", "attack", "AUC, complete images", "AUC, windows", "difference in AUC",
                      "mIoU on non-members, complete images", "mIoU on non-members, windows"], rows)] if rows else []


def _variances(measured: Measured) -> list[str]:
    return [f"{ABOUT} Attacks in the same setting are compared.", "",
            variances(of_scale(measured))]


def _missing(measured: Measured) -> str:
    """A sentence about missing cells, if any."""
    missing, cells = len(measured.missing), len(measured.scale.cells)
    return f" {missing} of {cells} cells are missing{PROVISIONAL}" if missing else ""


def _others(measured: Measured) -> str:
    """A sentence about other trainings, if any."""
    about = [(f"*{training.scale.again}*", len(training.cells), training.commits(), "")
             for training in measured.trainings]
    about += [(f"*{name}*", other["cells"], other["commits"], " (only its metrics are kept)")
              for name, other in measured.records().items()]
    others = [f"{name}, {cells} cells, commits {', '.join(commits)}{kept}" for name, cells, commits, kept in about]
    return f" Other trainings of all models: {'; '.join(others)}." if others else ""


def findings(all_measured: list[Measured]) -> str:
    """The page of findings: the rule, the claims in each scale, and what differs from the paper."""
    names = " ".join(measured.scale.name for measured in all_measured)
    lines = ["# Which claims of the paper hold here", "", f"Written by `python -m reproduce.report {names} --findings "
             "docs/findings.md` from the committed cells in `reproduce/results/`.", "", RULE, ""]
    for measured in all_measured:
        scale = measured.scale
        evidence = "" if scale.evidence else " (no evidence)"
        folder = f"../{scale.results}"
        lines += [f"## Scale {scale.name}{evidence}", "",
                  f"{scale.note.strip()} [Tables and figures]({folder}/report.md)."
                  f"{_missing(measured)}{_others(measured)}", "", claims(measured),
                  "### AUC against the generalisation gap", "", GAP, "",
                  *([f"![AUC against generalisation gap]({folder}/gap.png)", ""] if tables.victims(measured) else []),
                  tables.gap(measured), "### Where the variance comes from", "", *_variances(measured)]
    return "\n".join([*lines, (FOLDER / "notes.md").read_text(encoding="utf-8")])


def claims(measured: Measured) -> str:
    """The primary claims with their verdicts, the descriptive claims, and a foldable table of the cases of each."""
    results = measure(measured)
    decided = verdicts(results)
    lines = []
    for primary, title, last in ((True, "Primary claims", "verdict (adjusted p)"), (False, "Descriptive claims",
                                                                                  "95 % interval")):
        rows = []
        for result in (result for result in results if result.claim.primary == primary):
            verdict, p_value = decided.get(result.claim.key, (DASH, 1.0))
            shown = f"**{verdict}** ({p_value:.2g})" if verdict != DASH else DASH
            rows.append([result.claim.text, str(result.claim.asks), result.claim.printed, result.show(result.auc),
                         result.show(pool(result.enough, "tpr_at_1_fpr")), *_precision(result.auc),
                         shown if primary else result.reading])
        lines += [f"### {title}", "", markdown(["claim of the paper", "asks for", "paper", "here, AUC",
                                               "here, TPR at 1 % FPR", "detectable", "trainings", last], rows)]
    records = measured.records()
    lines += ["The settings behind each value:", ""]
    for result in results:
        rows = [[case.label, *(result.show(pool([case], metric)) for metric in ("auc", "tpr_at_5_fpr", "tpr_at_1_fpr")),
                 _noted(case), _recorded(records, result.claim.key, case.label)] for case in result.cases]
        table = markdown(["setting", "AUC", "TPR at 5 % FPR", "TPR at 1 % FPR", "note",
                          "other trainings (not counted)"], rows)
        lines += [f"<details><summary>{result.claim.text}</summary>", "", table, "</details>", ""] if rows else []
    return "\n".join(lines)


def _precision(value: Value | None) -> list[str]:
    """The detectable difference, and the degrees of freedom between trainings."""
    detectable = DASH if value is None or value.detectable is None else f"{value.detectable:.1f}"
    return [detectable, DASH if value is None else str(value.trainings)]


def _noted(case: Case) -> str:
    """The note of a case, and the mIoU that its defense costs."""
    return "; ".join([*([case.note] if case.note else []), *([f"mIoU {-case.lost:+.1f}"] if case.lost else [])]) or DASH


def _recorded(records: dict[str, dict], key: str, label: str) -> str:
    """What the records of other trainings have for a case."""
    found = {name: record["claims"].get(key, {}).get(label) for name, record in records.items()}
    return "; ".join(f"{name}: {one['metrics']}" for name, one in found.items() if one) or DASH
