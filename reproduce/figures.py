"""Figures 1 to 5, drawn from the cells that are there."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics import Curves
from reproduce import paper
from reproduce.collect import unpack
from reproduce.measured import Measured
from utils.files import atomic_open

STYLE = {"font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 7, "lines.markersize": 4}
GREYS = ("0.0", "0.35", "0.55", "0.75")
DASHES = ("-", "--", "-.", ":", (0, (1, 3)))
MARKS = {"gauss": "o", "dropout": "s", "dpsgd": "^", "argmax": "D", "frozen": "x", "clip": "+", "none": "*"}
KINDS = {"loss": ("0.0", "-"), "concate": ("0.55", "--")}
PRINTED = {"markerfacecolor": "none", "linestyle": ""}  # how the paper's own figures are drawn
NAMES = {"gauss": "Gauss", "dropout": "Dropout", "dpsgd": "DPSGD", "argmax": "Argmax",
         "frozen": "frozen norms", "clip": "clipping alone"}


def draw(measured: Measured, folder: Path) -> list[str]:
    """Write the figures into `folder`; the names of those for which there are cells."""
    made = []
    with rc_context(STYLE):
        for name, figure in (("fig1", sizes), ("fig2", selections), ("fig3", argmax), ("fig4", trade),
                             ("fig5", looks)):
            if found := figure(measured):
                with atomic_open(folder / f"{name}.png") as file:
                    found.savefig(file, dpi=160, format="png")
                made.append(name)
    return made


def _axes(count: int, **options: object) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.3 * count, 3.3), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def _style(index: int) -> dict:
    """Grey and dash of the curve `index`; no two of the first twenty are alike."""
    return {"color": GREYS[index % len(GREYS)], "linestyle": DASHES[index % len(DASHES)]}


def _roc(axes: Axes, score: np.ndarray, member: np.ndarray, label: str, index: int) -> None:
    (true,), (false,) = Curves(score, member).counts()
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
        found, (member, _) = measured.figures(cell), measured.images(cell.setting)
        each = [unpack(own) for own in found["patch_scores"]]
        (true,), (false,) = Curves(np.concatenate(each), np.repeat(member, [len(own) for own in each])).counts()
        side = f"{cell.size} x {cell.size}"
        left.plot(true / true[-1], true / (true + false), label=f"{side}, F {100 * found['patch']['max_f']:.1f}",
                  **_style(index))
        _roc(right, unpack(found["scores"]), member,
             f"{side}, {cell.count} patches, AUC {100 * found['image']['auc']:.1f}", index)
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
    settings = [s for s in measured.scale.selections["settings"] if any(c.curve for c in measured.there.values()
                                                                        if c.setting == s)]
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
        counts = measured.scale.selections["counts"]
        axes.set_xticks(counts, labels=map(str, counts))
        axes.minorticks_off()
    panels[0].set(ylabel="AUC, %")
    return _keyed(figure, panels)


def selection_points(measured: Measured, setting: str, method: str) -> dict[int, list[float]]:
    """Patch count -> AUC of each seed."""
    points: dict[int, list[float]] = {}
    usual = measured.scale.size_of(setting)
    for cell in measured.there.values():
        if (cell.setting, cell.method, cell.defense, cell.size) != (setting, method, "none", usual):
            continue
        found = measured.figures(cell)
        if cell.curve:
            for count, at in found["curve"].items():
                points.setdefault(int(count), []).append(at["auc"])
        elif method.endswith("sliding"):
            points.setdefault(cell.count, []).append(found["image"]["auc"])
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


def trade(measured: Measured) -> Figure | None:
    """Fig. 4: AUC against mIoU on non-members under each defense; the ideal is on the right at an AUC of 50."""
    settings = [s for s in measured.scale.settings if len({c.defense for c in measured.there.values()
                                                           if c.setting == s}) > 1]
    if not settings:
        return None
    figure, panels = _axes(len(settings), sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        best = 0.0
        for kind, (grey, dash) in KINDS.items():
            curves: dict[str, list[tuple[float, float]]] = {}
            for defense in dict.fromkeys(cell.defense for cell in measured.there.values() if cell.setting == setting):
                for cell in measured.seeds(setting, f"{kind}-random", defense)[:1]:
                    found = measured.figures(cell)
                    point = (100 * found["miou"]["out"], 100 * found["image"]["auc"])
                    curves.setdefault(defense.partition("-")[0], []).append(point)
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
    return _keyed(figure, panels)


def looks(measured: Measured) -> Figure | None:
    """Fig. 5: loss map and class activation maps of one member, without a defense and under each."""
    cells = [cell for cell in measured.there.values() if "maps" in measured.figures(cell)]
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
        found = measured.figures(cell)["maps"]
        for row, (kind, what) in enumerate(rows):
            if cell.method.startswith(kind):
                shown = unpack(found[what]).reshape(found["shape"])
                grid[row, columns.index(cell.defense)].imshow(
                    shown, cmap="cividis", interpolation="nearest", vmax=np.nanquantile(shown, 0.99))
    return figure


def _keyed(figure: Figure, panels: list[Axes]) -> Figure:
    """One legend below, of what any panel has; hollow marks are the paper's."""
    known = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    hollow = panels[0].plot([], [], "o", color="0.3", **PRINTED)[0]
    figure.legend([*known.values(), hollow], [*known, "paper, where it prints a figure"], loc="outside lower center",
                  ncols=min(4, 2 * len(panels)), fontsize=6)
    return figure
