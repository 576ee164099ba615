"""Figures 1 to 5 of the paper, and AUC against the generalisation gap, drawn from the cells of a scale."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics import Curves
from evaluation.plots import save_small
from reproduce import paper, tables
from reproduce.cells import unpack, unpack_patches
from reproduce.measured import Measured

STYLE = {"font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 7, "lines.markersize": 4,
         "legend.handlelength": 3}
# Colours of Okabe and Ito, which the colour-blind can tell apart; a colour for each kind of attack, a dash for each
# selection of patches.
COLOURS = {"loss": "#0072B2", "concate": "#E69F00", "pixelwise": "#CC79A7", "threshold-confidence": "0.55",
           "threshold-loss": "0.0"}
DASHES = {"full": "-", "random": "--", "rejection": ":", "sliding": "-."}
MARKS = {"random": "o", "rejection": "^", "sliding": "s"}
OPTIMUM = "#D55E00"
COLUMNS = {"gauss": "Gauss (and Argmax)", "dropout": "Dropout", "dpsgd": "DPSGD"}  # of fig. 4
SINGLE = {"gauss": {"argmax": ("D", "Argmax")}, "dpsgd": {"frozen": ("x", "SGD with the steps of DPSGD"),
                                                         "clip": ("+", "clipping alone")}}
PRINTED = {"markerfacecolor": "none", "linestyle": ""}  # the paper's values are hollow marks


def draw(measured: Measured, folder: Path) -> list[str]:
    """Write the figures into `folder`. Returns the names of those that were drawn, e.g. ["fig1", "fig3"]."""
    drawn = []
    with rc_context(STYLE):
        for name, make in (("fig1", sizes), ("fig2", selections), ("fig3", argmax), ("fig4", utility),
                           ("fig5", activation_maps), ("gap", generalisation)):
            if figure := make(measured):
                save_small(figure, folder / f"{name}.png", 160)
                drawn.append(name)
    return drawn


def _axes(rows: int, columns: int, beside: float = 0.3, **options: object) -> tuple[Figure, np.ndarray]:
    """A figure with panels (rows, columns) of 3 x 2.7 inches. `beside`: inches for what is beside the panels."""
    figure = Figure(figsize=(3 * columns + beside, 2.7 * rows + 0.5), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _look(method: str) -> dict:
    """Colour and dash of an attack of table 2."""
    kind, _, select = method.partition("-")
    return {"color": COLOURS.get(method) or COLOURS[kind], "linestyle": DASHES.get(select, "-")}


def _roc(panels: tuple[Axes, Axes], score: np.ndarray, member: np.ndarray, label: str, **look: object) -> None:
    """A ROC curve with linear and with logarithmic axes."""
    curve = Curves(score, member)
    for axes, start, steps in zip(panels, (0, _lowest(member)), ("default", "steps-post"), strict=True):
        x, y = (np.append(start, np.maximum(counts / counts[-1], start)) for counts in (curve.false, curve.true))
        axes.plot(x, y, label=label, drawstyle=steps, **look)


def _lowest(member: np.ndarray) -> float:
    """Half of the smallest rate above 0, where logarithmic axes start."""
    return 0.5 / max(member.sum(), (~member).sum())


def _finish_roc(panels: tuple[Axes, Axes], member: np.ndarray, title: str) -> None:
    """The diagonal and the labels of the axes, and a legend beside the second panel."""
    for axes, scale, start in zip(panels, ("linear", "log"), (0, _lowest(member)), strict=True):
        axes.plot([start, 1], [start, 1], color="0.8", linewidth=0.8, zorder=1)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xscale=scale, yscale=scale,
                 xlim=(start, 1), ylim=(start, 1.01), title=title if scale == "linear" else "the same, log-log")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="AUC, %")


def sizes(measured: Measured) -> Figure | None:
    """Fig. 1: precision and recall of patches, and ROC of images, for each patch size."""
    cells = measured.sizes()
    if not cells:
        return None
    figure, [[left, *right]] = _axes(1, 3, beside=2)
    for index, cell in enumerate(cells):
        results, (member, _) = measured.results(cell), measured.images(cell.setting)
        look = {"color": colormaps["viridis"](0.85 * index / max(len(cells) - 1, 1)),
                "linestyle": ("-", "--", "-.", ":", (0, (1, 3)))[index % 5]}
        by_image = unpack_patches(results)
        curve = Curves(np.concatenate(by_image), np.repeat(member, list(map(len, by_image))))
        side = f"{cell.size} x {cell.size}"
        left.plot(curve.true / curve.true[-1], curve.true / (curve.true + curve.false),
                  label=f"{side}, F {100 * results['patch']['max_f']:.1f}", **look)
        _roc(right, unpack(results["scores"]), member,
             f"{side}, {cell.count} patches, {100 * results['image']['auc']:.1f}", **look)
    share = member.mean()
    left.plot([0.5], [share], "k*", label=f"random guess, F {100 * share / (share + 0.5):.1f}")
    left.set(xlabel="recall", ylabel="precision", title="patches", xlim=(0, 1.01))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    _finish_roc(right, member, "images")
    return figure


def selections(measured: Measured) -> Figure | None:
    """Fig. 2: AUC against the number of patches, mean and standard deviation over attacker seeds."""
    settings = [setting for setting in measured.scale.selections.settings
                if any(cell.curve for cell in measured.of_setting(setting))]
    if not settings:
        return None
    figure, [panels] = _axes(1, len(settings), sharex=True, sharey=True)
    for axes, setting in zip(panels, settings, strict=True):
        for kind in ("loss", "concate"):
            for select, mark in MARKS.items():
                points, look = selection_points(measured, setting, f"{kind}-{select}"), _look(f"{kind}-{select}")
                if not points:
                    continue
                x = sorted(points)
                y, spread = (np.array([f(points[n]) for n in x]) for f in (np.mean, np.std))
                axes.errorbar(x, 100 * y, 100 * spread, marker=mark, capsize=2,
                              label=f"{paper.INPUTS[kind]}, {select}", **look)
                if select != "sliding" and setting in paper.COLUMNS:
                    axes.plot([10], [paper.auc(f"{kind}-{select}", setting)], mark, color=look["color"], **PRINTED)
        axes.set(xlabel="patches of an image", title=measured.title(setting), xscale="log")
        counts = measured.scale.selections.counts
        axes.set_xticks(counts, labels=map(str, counts))
        axes.minorticks_off()
    panels[0].set(ylabel="AUC, %")
    hollow = panels[0].plot([], [], "o", color="0.3", label="value printed in the paper", **PRINTED)
    return _with_legend(figure, panels, hollow)


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
            points.setdefault(measured.windows(cell) or cell.count, []).append(results["image"]["auc"])
    return points


def argmax(measured: Measured) -> Figure | None:
    """Fig. 3: ROC of all attackers and baselines under Argmax, with linear and with logarithmic axes."""
    settings = [s for s in measured.scale.settings if measured.seeds(s, "loss-random", "argmax")]
    if not settings:
        return None
    figure, rows = _axes(len(settings), 2, beside=2.6)
    for panels, setting in zip(rows, settings, strict=True):
        member, _ = measured.images(setting)
        for method in paper.TABLE:
            for cell in measured.seeds(setting, method, "argmax")[:1]:
                label = f"{paper.title(method)}, {100 * measured.mean([cell]):.1f}"
                _roc(panels, measured.scores(cell), member, label, **_look(method))
        _finish_roc(panels, member, f"Argmax, {measured.title(setting)}")
    return figure


def utility(measured: Measured) -> Figure | None:
    """Fig. 4: mIoU on non-members against AUC under each defense. The optimum is the red diamond at an AUC of 50."""
    settings = [setting for setting in measured.scale.settings if len(measured.defenses(setting)) > 1]
    if not settings:
        return None
    figure, grid = _axes(len(settings), len(COLUMNS), sharex=True, sharey="row")
    for row, setting in zip(grid, settings, strict=True):
        for axes, (defense, title) in zip(row, COLUMNS.items(), strict=True):
            for kind in ("loss", "concate"):
                if "none" in (points := utility_points(measured, setting, f"{kind}-random")):
                    _draw_defense(axes, points, defense, kind)
            axes.set(title=f"{measured.title(setting)}: {title}")
            axes.label_outer()
            axes.margins(y=0.1)
        row[0].set(ylabel="mIoU on non-members, %")
    for axes in grid[-1]:
        axes.set(xlabel="AUC, %")
    return _with_legend(figure, grid.flat)


def _draw_defense(axes: Axes, points: dict[str, dict[str, tuple[float, float]]], defense: str, kind: str) -> None:
    """The curve of one defense and one attacker, from no defense to the strongest, with the strength at each point."""
    start, strengths = points["none"][""], points.get(defense, {})
    colour, name = COLOURS[kind], paper.INPUTS[kind]
    if strengths:
        line = strengths.values() if defense == "dpsgd" else [start, *strengths.values()]
        axes.plot(*zip(*line, strict=True), color=colour, marker="o", linestyle="-" if kind == "loss" else "--",
                  label=name)
        for strength, point in strengths.items():
            axes.annotate(strength, point, xytext=(4, -7), textcoords="offset points", fontsize=5.5, color="0.3")
    axes.plot(*start, "*", color=colour, markersize=9, label=f"{name}, no defense")
    for other, (mark, label) in SINGLE.get(defense, {}).items():
        for point in points.get(other, {}).values():
            axes.plot(*point, mark, color=colour, markersize=6, label=f"{name}, {label}")
    if not strengths:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, horizontalalignment="center")
    axes.plot(50, start[1], "D", color=OPTIMUM, markersize=6, label="optimum")


def utility_points(measured: Measured, setting: str, method: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Map each kind of defense to strength -> (AUC, mIoU on non-members) in %, for the first attacker seed."""
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for defense in measured.defenses(setting):
        for cell in measured.seeds(setting, method, defense)[:1]:
            results, (kind, _, strength) = measured.results(cell), defense.partition("-")
            points.setdefault(kind, {})[strength] = (100 * results["image"]["auc"], 100 * results["miou"]["out"])
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


def generalisation(measured: Measured) -> Figure | None:
    """AUC against the generalisation gap of each victim, with the number of the victim beside its point."""
    victims = tables.victims(measured)
    if not victims:
        return None
    figure, [[axes]] = _axes(1, 1, beside=1.5)
    for attack, mark in zip(tables.GAP_ATTACKS, "so", strict=True):
        for number, values in enumerate(victims.values(), 1):  # the numbers of the table
            if attack in values:
                point = values["gap"], values[attack]
                axes.plot(*point, mark, label=paper.title(attack), color=_look(attack)["color"])
                axes.annotate(str(number), point, xytext=(5, -6), textcoords="offset points")
    axes.axhline(50, color="0.8", linewidth=0.8, zorder=1)
    axes.set(xlabel="mIoU on members minus mIoU on non-members, points", ylabel="AUC, %")
    return _with_legend(figure, [axes])


def _with_legend(figure: Figure, panels: Iterable[Axes], extra: Sequence[Artist] = ()) -> Figure:
    """Add one legend for all panels below them."""
    handles = {label: handle for axes in panels
               for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    handles |= {artist.get_label(): artist for artist in extra}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=6)
    return figure
