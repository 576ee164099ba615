"""Figures 1 to 5 of the paper, drawn from the cells of a scale."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics import Curves
from reproduce import paper
from reproduce.cells import unpack
from reproduce.measured import Measured
from utils.files import atomic_open

STYLE = {"font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 7, "lines.markersize": 4}
GREYS = ("0.0", "0.35", "0.55", "0.75")
DASHES = ("-", "--", "-.", ":", (0, (1, 3)))
MARKS = {"gauss": "o", "dropout": "s", "dpsgd": "^", "argmax": "D", "frozen": "x", "clip": "+", "none": "*"}
KINDS = {"loss": ("0.0", "-"), "concate": ("0.55", "--")}
PRINTED = {"markerfacecolor": "none", "linestyle": ""}  # the paper's values are hollow marks
NAMES = {"gauss": "Gauss", "dropout": "Dropout", "dpsgd": "DPSGD", "argmax": "Argmax",
         "frozen": "frozen norms", "clip": "clipping alone"}


def draw(measured: Measured, folder: Path) -> list[str]:
    """Write the figures into `folder`. Returns the names of those that were drawn, e.g. ["fig1", "fig3"]."""
    drawn = []
    with rc_context(STYLE):
        for name, make in (("fig1", sizes), ("fig2", selections), ("fig3", argmax), ("fig4", utility),
                           ("fig5", activation_maps)):
            if figure := make(measured):
                with atomic_open(folder / f"{name}.png") as file:
                    figure.savefig(file, dpi=160, format="png")
                drawn.append(name)
    return drawn


def _axes(count: int, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in a row."""
    figure = Figure(figsize=(3.3 * count, 3.3), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def _style(index: int) -> dict:
    """Grey and dash of curve number `index`; the first twenty curves all differ."""
    return {"color": GREYS[index % len(GREYS)], "linestyle": DASHES[index % len(DASHES)]}


def _roc(axes: Axes, score: np.ndarray, member: np.ndarray, label: str, index: int) -> None:
    curve = Curves(score, member)
    true, false = curve.true, curve.false
    axes.plot(np.append(0, false / false[-1]), np.append(0, true / true[-1]), label=label, **_style(index))


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))


def sizes(measured: Measured) -> Figure | None:
    """Fig. 1: precision and recall of patches, and ROC of images, for each patch size."""
    cells = measured.sizes()
    if not cells:
        return None
    figure, (left, right) = _axes(2)
    for index, cell in enumerate(cells):
        results, (member, _) = measured.results(cell), measured.images(cell.setting)
        by_image = [unpack(patches) for patches in results["patch_scores"]]
        curve = Curves(np.concatenate(by_image), np.repeat(member, list(map(len, by_image))))
        true, false = curve.true, curve.false
        side = f"{cell.size} x {cell.size}"
        left.plot(true / true[-1], true / (true + false), label=f"{side}, F {100 * results['patch']['max_f']:.1f}",
                  **_style(index))
        _roc(right, unpack(results["scores"]), member,
             f"{side}, {cell.count} patches, AUC {100 * results['image']['auc']:.1f}", index)
    share = member.mean()
    left.plot([0.5], [share], "k*", label=f"random guess, F {100 * share / (share + 0.5):.1f}")
    left.set(xlabel="recall", ylabel="precision", title="patches", xlim=(0, 1.01))
    right.set(title="images")
    _diagonal(right)
    left.legend()
    right.legend(loc="lower right")
    return figure


def selections(measured: Measured) -> Figure | None:
    """Fig. 2: AUC against the number of patches, mean and standard deviation over attacker seeds."""
    settings = [setting for setting in measured.scale.selections.settings
                if any(cell.curve for cell in measured.of_setting(setting))]
    if not settings:
        return None
    figure, panels = _axes(len(settings), sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        for kind, (grey, dash) in KINDS.items():
            for select, mark in (("random", "o"), ("rejection", "^"), ("sliding", "s")):
                points = selection_points(measured, setting, f"{kind}-{select}")
                if not points:
                    continue
                x = sorted(points)
                y, spread = (np.array([f(points[n]) for n in x]) for f in (np.mean, np.std))
                axes.errorbar(x, 100 * y, 100 * spread, color=grey, linestyle=dash, marker=mark, capsize=2,
                              label=f"{paper.INPUTS[kind]}, {select}")
                if select != "sliding" and setting in paper.COLUMNS:
                    axes.plot([10], [paper.auc(f"{kind}-{select}", setting)], mark, color=grey, **PRINTED)
        axes.set(xlabel="patches of an image", title=measured.title(setting), xscale="log")
        counts = measured.scale.selections.counts
        axes.set_xticks(counts, labels=map(str, counts))
        axes.minorticks_off()
    panels[0].set(ylabel="AUC, %")
    return _with_legend(figure, panels)


def selection_points(measured: Measured, setting: str, method: str) -> dict[int, list[float]]:
    """Map the number of patches to the AUC of each seed."""
    points: dict[int, list[float]] = {}
    usual = measured.scale.size_of(setting)
    for cell in measured.of_setting(setting):
        if (cell.method, cell.defense, cell.size) != (method, "none", usual):
            continue
        results = measured.results(cell)
        if cell.curve:
            for count, metrics in results["curve"].items():
                points.setdefault(int(count), []).append(metrics["auc"])
        elif method.endswith("sliding"):
            points.setdefault(cell.count, []).append(results["image"]["auc"])
    return points


def argmax(measured: Measured) -> Figure | None:
    """Fig. 3: ROC of all attackers and baselines under Argmax."""
    settings = [s for s in measured.scale.settings if measured.seeds(s, "loss-random", "argmax")]
    if not settings:
        return None
    figure, panels = _axes(len(settings), sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        member, _ = measured.images(setting)
        for index, method in enumerate(m for m in paper.TABLE if measured.seeds(setting, m, "argmax")):
            cell = measured.seeds(setting, method, "argmax")[0]
            label = f"{paper.title(method)}, {100 * measured.mean([cell]):.1f}"
            _roc(axes, measured.scores(cell), member, label, index)
        _diagonal(axes)
        axes.set(title=f"Argmax, {measured.title(setting)}")
        axes.legend(loc="lower right", title="AUC, %", fontsize=5.5, title_fontsize=6)
    return figure


def utility(measured: Measured) -> Figure | None:
    """Fig. 4: AUC against mIoU on non-members under each defense. The ideal point is far right at an AUC of 50."""
    settings = [s for s in measured.scale.settings if len({cell.defense for cell in measured.of_setting(s)}) > 1]
    if not settings:
        return None
    figure, panels = _axes(len(settings), sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        best = 0.0
        for kind, (grey, dash) in KINDS.items():
            curves = utility_points(measured, setting, f"{kind}-random")
            start = curves.pop("none", [])[:1]
            for x, y in start:
                axes.plot([x], [y], MARKS["none"], color=grey, markersize=8, label=f"{paper.INPUTS[kind]}, no defense")
                best = max(best, x)
            for name, points in curves.items():
                line = [*(start if name in ("gauss", "dropout") else []), *points]
                axes.plot(*zip(*line, strict=True), marker=MARKS[name], color=grey,
                          linestyle=dash if len(points) > 1 else "", label=f"{paper.INPUTS[kind]}, {NAMES[name]}")
            if setting == "psp-psp":
                axes.plot(*zip(*paper.GAUSS[kind], strict=True), MARKS["gauss"], color=grey, **PRINTED)
        axes.plot([best], [50], "kP", markersize=7, label="ideal", clip_on=False)
        axes.set(xlabel="mIoU on non-members, %", title=measured.title(setting))
    panels[0].set(ylabel="AUC, %")
    return _with_legend(figure, panels)


def utility_points(measured: Measured, setting: str, method: str) -> dict[str, list[tuple[float, float]]]:
    """Map each kind of defense to (mIoU on non-members, AUC) in % at each strength, for the first attacker seed."""
    points: dict[str, list[tuple[float, float]]] = {}
    for defense in dict.fromkeys(cell.defense for cell in measured.of_setting(setting)):
        for cell in measured.seeds(setting, method, defense)[:1]:
            results = measured.results(cell)
            point = (100 * results["miou"]["out"], 100 * results["image"]["auc"])
            points.setdefault(defense.partition("-")[0], []).append(point)
    return points


def activation_maps(measured: Measured) -> Figure | None:
    """Fig. 5: loss map and class activation maps of one member, without a defense and under each defense."""
    cells = [cell for cell in measured.cells.values() if "maps" in measured.results(cell)]
    if not cells:
        return None
    rows = {("loss", "loss"): "loss map", ("loss", "cam"): "CAM, Loss", ("concate", "cam"): "CAM, C+GT"}
    columns = list(dict.fromkeys(cell.defense for cell in cells))
    figure = Figure(figsize=(1.5 * len(columns), 0.9 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for axes, name in zip(grid[:, 0], rows.values(), strict=True):
        axes.set_ylabel(name)
    for axes, defense in zip(grid[0], columns, strict=True):
        axes.set_title(defense if defense != "none" else "no defense")
    for cell in cells:
        maps = measured.results(cell)["maps"]
        for row, (attacker, kind) in enumerate(rows):
            if cell.method.startswith(attacker):
                values = unpack(maps[kind]).reshape(maps["shape"])
                grid[row, columns.index(cell.defense)].imshow(
                    values, cmap="cividis", interpolation="nearest", vmax=np.nanquantile(values, 0.99))
    return figure


def _with_legend(figure: Figure, panels: list[Axes]) -> Figure:
    """Add one legend for all panels below them, with a hollow mark for the paper's values."""
    handles = {label: handle for axes in panels
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    hollow = panels[0].plot([], [], "o", color="0.3", **PRINTED)[0]
    figure.legend([*handles.values(), hollow], [*handles, "value printed in the paper"], loc="outside lower center",
                  ncols=min(4, 2 * len(panels)), fontsize=6)
    return figure
