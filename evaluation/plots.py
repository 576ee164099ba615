"""Precision-recall and ROC curves of an attack (section 2.3), and its AUC on regions of the images."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from attacks.sample import Scored
from evaluation.metrics import Curves
from utils.files import atomic_open

PANEL = 4  # inches
LONGEST = 28  # characters of a name beside a plot


def plot_curves(folder: Path, scored: Sequence[Scored], results: dict) -> None:
    """Write roc.png and precision-recall.png: curves of images (solid) and of patches (dashed).

    roc.png has a panel with linear axes and one with logarithmic axes, which show the TPR at low FPR (Carlini et al.
    2022). Random guessing is a dotted line in both, and a star in precision-recall.png.
    """
    member = np.array([s.member for s in scored])
    counts = [len(s.patch_scores) for s in scored]
    levels = [("image", [s.score for s in scored], member, "-")]
    if "patch" in results:
        levels.append(("patch", np.concatenate([s.patch_scores for s in scored]), np.repeat(member, counts), "--"))
    rates = {name: (Curves(score, inside), style) for name, score, inside, style in levels}
    with rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        lowest = min(1 / count for curve, _ in rates.values() for count in (curve.true[-1], curve.false[-1])) / 2
        figure, panels = _panels(2)
        for axes, scale, start in zip(panels, ("linear", "log"), (0.0, lowest), strict=True):
            for name, (curve, style) in rates.items():
                x, y = (np.append(start, np.maximum(c / c[-1], start)) for c in (curve.false, curve.true))
                axes.plot(x, y, style, drawstyle="steps-post" if scale == "log" else "default",
                          label=f"{name}, AUC {results[name]['auc']:.3f}")
            axes.plot([start, 1], [start, 1], ":", color="grey", label="random guess")
            axes.set(xlabel="false positive rate", ylabel="true positive rate", xscale=scale, yscale=scale,
                     xlim=(start, 1), ylim=(start, 1.01))
        _save(figure, folder / "roc.png")
        figure, [axes] = _panels(1)
        for name, (curve, style) in rates.items():
            axes.plot(curve.true / curve.true[-1], curve.true / (curve.true + curve.false), style,
                      label=f"{name}, max-F {results[name]['max_f']:.3f}")
        share = results["members"] / (results["members"] + results["non_members"])
        axes.plot([0.5], [share], "k*", label=f"random guess, F {results['chance']['image']['random_f']:.3f}")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
        _save(figure, folder / "precision-recall.png")


def plot_regions(folder: Path, exposure: dict, auc: float) -> None:
    """Write exposure.png: the AUC of each region of `evaluation.exposure` with its interval, and that of the control.

    `auc`: that of complete images, a dashed line. Regions without an AUC are left out.
    """
    rows = [(f"{kind}: {region}", one, kind, region) for kind, regions in exposure["regions"].items()
            for region, one in regions.items() if one["auc"] is not None]
    with rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(1.5 * PANEL, 0.2 * len(rows) + 1.3), layout="constrained")
        axes = figure.subplots()
        axes.plot([one["auc"] for _, one, *_ in rows], range(len(rows)), "o", label="one region", zorder=3)
        axes.hlines(*zip(*[(row, *(one["auc_interval"] or [one["auc"]] * 2)) for row, (_, one, *_) in enumerate(rows)],
                         strict=True), color="C0")
        if "control" in exposure:
            axes.plot([exposure["control"][kind][region]["auc"] for *_, kind, region in rows], range(len(rows)), "x",
                      label="the same, control")
        axes.axvline(auc, ls="--", color="C0", label=f"complete images, {auc:.3f}")
        axes.axvline(0.5, ls=":", color="grey", label="random guess")
        axes.set_yticks(range(len(rows)), [short(name) for name, *_ in rows], parse_math=False)
        axes.set(xlabel="AUC", ylim=(len(rows) - 0.5, -0.5))
        _save(figure, folder / "exposure.png", "outside lower center")


def short(name: str) -> str:
    """A name that leaves room for the plot beside it."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    """A figure with `count` square panels in a row, and room for a legend below them.

    Its margins are fixed, because a layout that measures all texts takes a third of the time of a figure.
    """
    figure = Figure(figsize=(PANEL * count, PANEL + 0.5))
    margins = {"left": 0.6 / (PANEL * count), "right": 1 - 0.15 / (PANEL * count), "wspace": 0.25,
               "bottom": 1.0 / (PANEL + 0.5), "top": 1 - 0.1 / (PANEL + 0.5)}
    return figure, figure.subplots(1, count, squeeze=False, gridspec_kw=margins)[0]


def _save(figure: Figure, path: Path, place: str = "lower center") -> None:
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc=place, ncols=len(figure.axes) + 1)
    with atomic_open(path) as file:
        figure.savefig(file, dpi=160, format="png")


def save_small(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as a PNG of at most 256 colours, a third of the usual size. For figures that are committed."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    with atomic_open(path) as file:
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
