"""The report of a scale of table 1 of the second paper, from its committed cells."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from evaluation.intervals import cross_fitted, paired_difference, split_groups
from evaluation.metrics import Curves
from evaluation.plots import save_small
from evaluation.pooled import Contrast, Stratum, contrast, pooled_difference
from reproduce.cells import unpack
from reproduce.packed import has_result, read_result
from reproduce.shafran import TABLE_ONE
from reproduce.table_one import ATTACKS, DEFENDED, ErrorCell, TableOne
from reproduce.tables import DASH, markdown
from reproduce.verdicts import ABOVE, UNKNOWN
from utils.cli import UserError

ALONE = "predictability"
TITLES = {"reconstruction": "reconstruction error", "membership-error-released": "membership error, released",
          "membership-error": "membership error, sound", "confidence": "confidence threshold"}
COLUMNS = len(TITLES) + 3  # of a target in the table


class Errors:
    """The committed cells of a scale of table 1. Each file is read once."""

    def __init__(self, scale: TableOne):
        self.scale, self._read = scale, cache(read_result)
        self.cells = {name: cell for name, cell in scale.cells.items() if has_result(self._path(cell))}

    def _path(self, cell: ErrorCell) -> Path:
        return self.scale.results / f"{cell.name}.json"

    def results(self, cell: ErrorCell) -> dict:
        """The JSON file of a cell."""
        return self._read(self._path(cell))

    def model(self, name: str) -> dict | None:
        """results.json of a training."""
        path = self.scale.results / "models" / f"{name}.json"
        return self._read(path) if has_result(path) else None

    def seeds(self, target: str, attack: str, defense: str = "") -> list[ErrorCell]:
        """The cells of an attack on a target, one for each training."""
        return [cell for cell in self.cells.values()
                if (cell.target, cell.attack, cell.defense) == (target, attack, defense)]

    def difference(self, first: list[ErrorCell], second: list[ErrorCell]) -> dict:
        """Mean AUC of `first` minus that of `second` over the trainings that have both, paired by image.

        With an empty `second`, AUC of `first` minus 0.5. Returns {"difference", "interval": [low, high]} in 0..1.
        """
        images = self._images(first[0].target)
        member = np.array([mark == "1" for mark in images["member"]])
        columns = [[self.scores(cell) for cell in cells] for cells in (first, second)]
        return paired_difference(columns[0], columns[1] or [np.zeros(len(member))], member, images["group"])

    def stratum(self, first: list[ErrorCell], second: list[ErrorCell]) -> Stratum:
        """All trainings of `first` and `second`. Attacks on one target are compared within each training."""
        images = self._images(first[0].target)
        if first[0].target == second[0].target:
            seeds = {cell.seed: self.scores(cell) for cell in second}
            arms = [[contrast([self.scores(cell)], [seeds[cell.seed]]) for cell in first if cell.seed in seeds]]
        else:
            arms = [[Contrast([self.scores(cell)], [sign]) for cell in cells]
                    for sign, cells in ((1.0, first), (-1.0, second))]
        member = np.array([mark == "1" for mark in images["member"]])
        return Stratum(self.scale.targets[first[0].target].root, arms, member, images["group"])

    def accuracy(self, cells: list[ErrorCell]) -> float:
        """Mean accuracy of attacks on one target, 0..1, at thresholds that other groups of images chose."""
        images = self._images(cells[0].target)
        member = np.array([mark == "1" for mark in images["member"]])
        sides = split_groups(images["group"], member)
        found = [cross_fitted(self.scores(cell), member, sides, Curves.accuracies) for cell in cells]
        return float(np.mean([(hit.sum() + (~alarm).sum()) / len(member) for hit, alarm in found]))

    def _images(self, target: str) -> dict:
        """images.json of a target, whose images are in the order of the scores of its cells."""
        return self._read(self.scale.results / target / "images.json")

    def check_paired(self, *targets: str) -> None:
        """Raise `UserError` if the images of two targets are not the same; only their folders may differ."""
        one, other = ((images["member"], [Path(name).name for name in images["images"]])
                      for images in map(self._images, targets))
        if one != other:
            raise UserError(f"{' and '.join(targets)} do not have the same images, so they cannot be compared; change "
                            "`compared` in the scale file")

    def scores(self, cell: ErrorCell) -> np.ndarray:
        """Scores (n,) of the images; of `ALONE`, the predictability error, by which two committed scores differ."""
        if cell.attack != ALONE:
            return unpack(self.results(cell)["scores"])
        sound, plain = (replace(cell, attack=attack) for attack in ("membership-error", "reconstruction"))
        return self.scores(sound) - self.scores(plain)

    def dimension(self, name: str) -> dict[str, dict] | None:
        """The metrics for each size of the output of a training: name of the size -> metrics."""
        path = self.scale.results / "dimension" / f"{name}.json"
        return self._read(path)["sizes"] if has_result(path) else None

    def commits(self) -> list[str]:
        """The commits of all attacks and models."""
        return sorted({commit for cell in map(self.results, self.cells.values())
                       for commit in (cell["commit"], cell["victim"]["commit"])})


def page(errors: Errors) -> str:
    """The report: table 1 with ours beside the paper's, the trainings, and the defenses.

    Raises `UserError` if the scale has no cells.
    """
    scale = errors.scale
    if not errors.cells:
        raise UserError(f"{scale.results} has no cells; run make reproduce SCALE={scale.name}")
    missing = len(scale.cells) - len(errors.cells)
    return "\n".join([
        f"# Scale {scale.name}: table 1 of Shafran et al.", "",
        f"{scale.note.strip()} The commands are those of `make reproduce SCALE={scale.name}`. They ran at commits "
        f"{', '.join(errors.commits())} (`+`: with uncommitted changes)."
        + (f" {missing} of {len(scale.cells)} cells are missing." if missing else ""), "",
        "## Table 1", "",
        "AUC in %, mean over the trainings with a 95 % interval over the groups of images. In the columns of the "
        "membership error the second line is the paired difference to the reconstruction error; bold: the interval "
        "excludes 0. The accuracy, in %, is that of thresholds which other groups of images chose. The last two "
        "columns see no model, and are controls: the predictability error alone, where a higher error counts as a "
        "member, and a classifier of images and ground truths.", "", table(errors),
        "## Beside the table", "", table(errors, beside=True),
        *(["## Certain and uncertain tasks", "",
           "AUC in % of two models on the same images, and the difference of the second to the first, paired by image. "
           "Bold: the interval excludes 0.", "", comparisons(errors)] if scale.compared else []),
        *(["## Pooled over data sets", "",
           "Mean difference in AUC in % over targets, each with the mean of its trainings. The interval covers the "
           "groups of images (those of all targets with the same images at once) and, if any target has a second "
           "training, the variance between trainings. A claim *holds* if the interval is above 0, and *does not "
           "hold* if it is below. *Detectable*: the smallest difference that would have been found with a probability "
           "of 80 %.", "",
           pooled(errors)] if scale.pooled else []),
        "## Trainings", "", trainings(errors), "## Defenses", "",
        "AUC under a defense, and the paired difference to the same attack without it.", "", defenses(errors),
        "## Smaller outputs", "",
        "AUC in % of the reconstruction error when the same model answers with less (`python -m reproduce.dimension`): "
        "every k-th row and column, averages of k x k pixels or grey values of images, or merged classes. Bold: the "
        "paired difference to the full output has an interval that excludes 0.", "", dimensions(errors),
        *(["![AUC against the number of values of an output](dimension.png)", ""] if draw_dimensions(errors) else [])])


def table(errors: Errors, beside: bool = False) -> str:
    """Table 1, or the targets that are none of its rows."""
    rows = []
    for row, printed in ({None: None} if beside else TABLE_ONE).items():
        paper = [row, f"{printed[0]:.2f} → {printed[1]:.2f}"] if printed else []
        targets = [name for name, target in errors.scale.targets.items() if target.row == row]
        for name in targets:
            rows.append([*paper, errors.scale.targets[name].about, *measured(errors, name)])
        if not targets and printed:
            rows.append([*paper, errors.scale.missing[row], *[DASH] * COLUMNS])
    heads = [] if beside else ["model and data of the paper", "paper: reconstruction → membership error"]
    return markdown([*heads, "here", "trainings", *TITLES.values(), "predictability error alone", "blind"], rows)


def measured(errors: Errors, target: str) -> list[str]:
    """The last columns of the table for one target: number of trainings, AUC of each attack, and the control."""
    plain = errors.seeds(target, "reconstruction")
    if not plain:
        return [DASH] * COLUMNS
    row = [str(len(plain))]
    for attack in TITLES:
        cells = errors.seeds(target, attack)
        row.append("<br>".join([auc(errors, cells), *([change(errors, cells, plain)] if attack in ATTACKS[1:] else []),
                                f"accuracy {100 * errors.accuracy(cells):.1f}"]) if cells else DASH)
    alone = [replace(cell, attack=ALONE) for cell in errors.seeds(target, "membership-error")[:1]]
    blind = errors.results(plain[0])["controls"].get("blind")
    return [*row, auc(errors, alone) if alone else DASH, f"{100 * blind['auc']:.1f}" if blind else DASH]


def comparisons(errors: Errors) -> str:
    """The pairs of targets that the scale compares: AUC of each attack on both, and the paired difference."""
    rows = []
    for pair in errors.scale.compared:
        for attack in ATTACKS:
            certain, uncertain = (errors.seeds(target, attack) for target in pair)
            if certain and uncertain:
                errors.check_paired(*pair)
                rows.append([*(errors.scale.targets[target].about for target in pair), TITLES[attack],
                             auc(errors, certain), auc(errors, uncertain), change(errors, uncertain, certain)])
    return markdown(["more certain", "less certain", "score", "AUC, more certain", "AUC, less certain", "difference"],
                    rows)


def pooled(errors: Errors) -> str:
    """One verdict on each claim over all targets, or pairs of targets, that the scale pools."""
    rows = []
    for name, entries in errors.scale.pooled.items():
        pairs = isinstance(entries[0], list)
        for attack in ATTACKS if pairs else ATTACKS[1:]:
            cells = [[errors.seeds(target, attack) for target in reversed(one)] if pairs
                     else [errors.seeds(one, attack), errors.seeds(one, "reconstruction")] for one in entries]
            cells = [(first, second) for first, second in cells if first and second]
            if cells:
                found = pooled_difference([errors.stratum(*one) for one in cells])
                low, high = found["interval"] or UNKNOWN
                detectable = DASH if found["detectable"] is None else f"{100 * found['detectable']:.1f}"
                claim = "the less certain task leaks more" if pairs else "above the reconstruction error"
                rows.append([claim, name, TITLES[attack], f"{len(cells)} of {len(entries)}", str(found["trainings"]),
                             f"{100 * found['difference']:+.1f}{_interval(found['interval'], 0, '+')}", detectable,
                             f"**{ABOVE.judge(low, high)}**"])
    return markdown(["claim", "over", "score", "targets or pairs measured", "degrees of freedom between trainings",
                     "difference", "detectable", "verdict"], rows)


def auc(errors: Errors, cells: list[ErrorCell]) -> str:
    """Mean AUC in % with its interval."""
    found = errors.difference(cells, [])
    interval = found["interval"] and np.clip(found["interval"], -0.5, 0.5)  # an AUC has no bound beyond 0 or 100
    return f"{50 + 100 * found['difference']:.1f}{_interval(interval, 50)}"


def change(errors: Errors, cells: list[ErrorCell], others: list[ErrorCell]) -> str:
    """Paired difference in AUC in %, bold if its interval excludes 0."""
    found = errors.difference(cells, others)
    low, high = found["interval"] or (0, 0)
    mark = "**" if low > 0 or high < 0 else ""
    return f"{mark}{100 * found['difference']:+.1f}{mark}{_interval(found['interval'], 0, '+')}"


def _interval(interval: Sequence[float] | None, center: float, sign: str = "") -> str:
    if interval is None:
        return ""
    return " [{}]".format(", ".join(f"{center + 100 * end:{sign}.1f}" for end in interval))


def trainings(errors: Errors) -> str:
    """What each model reaches on its training images and on others."""
    rows = []
    for name in errors.scale.models:
        if found := errors.model(name):
            errors_of = [f"{found[f'l1_{side}']:.4f}" if "l1_in" in found else f"{100 * found[f'miou_{side}']:.1f}"
                         for side in ("in", "out")]
            rows.append([name, "L1 in 0..1" if "l1_in" in found else "mIoU in %", *errors_of, str(found["in"]),
                         str(found["out"]), str(found["epochs"]), str(found["minutes"])])
    return markdown(["training", "measure", "training images", "other images", "number of training images", "of others",
                     "epochs", "minutes"], rows)


def dimensions(errors: Errors) -> str:
    """AUC for each size of the output of each training."""
    found = {name: sizes for name in errors.scale.models if (sizes := errors.dimension(name))}
    names = list(dict.fromkeys(size for sizes in found.values() for size in sizes))
    rows = []
    for name, sizes in found.items():
        row = [name]
        for size in names:
            low, high = sizes.get(size, {}).get("minus_full_interval") or (0, 0)
            mark = "**" if low > 0 or high < 0 else ""
            row.append(f"{mark}{100 * sizes[size]['auc']:.1f}{mark}" if size in sizes else DASH)
        rows.append(row)
    return markdown(["training", *names], rows)


def draw_dimensions(errors: Errors) -> bool:
    """Draw dimension.png: AUC against the number of values of an output. Returns whether there is anything to draw."""
    found = {name: sizes for name in errors.scale.models if (sizes := errors.dimension(name))}
    if not found:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, sizes) in enumerate(found.items()):
        for start, style in (("1/", "-o"), ("averages", "--s")):
            points = [(one["values"], 100 * one["auc"]) for size, one in sizes.items()
                      if size.startswith((start, "full"))]
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), style, color=f"C{number % 10}", markersize=3,
                          label=f"{name}, {'positions' if start == '1/' else 'averages'}")
    axes.set(xscale="log", xlabel="values of an output", ylabel="AUC, %")
    axes.axhline(50, color="grey", linestyle=":", linewidth=1)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    save_small(figure, errors.scale.results / "dimension.png", 130)
    return True


def defenses(errors: Errors) -> str:
    """AUC under each defense, and its change."""
    rows = []
    for name, target in errors.scale.targets.items():
        for defense in target.defenses:
            row = [name, f"`{defense}`"]
            for attack in DEFENDED:
                cells, plain = errors.seeds(name, attack, defense), errors.seeds(name, attack)
                row.append(f"{auc(errors, cells)}<br>{change(errors, cells, plain)}" if cells and plain else DASH)
            rows.append(row)
    return markdown(["target", "defense", *(TITLES[attack] for attack in DEFENDED)], rows)
