"""The plots of the page of an audit, as SVG text whose colours follow the page, and its small images, as PNG."""

import base64
import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.transforms import ScaledTranslation

from evaluation.plots import short

INK, GRID = "#010203", "#040506"  # replaced by colours of the page
# told apart by the colour-blind; the contrast with the light and with the dark page is 3 or more
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b565a7", "#7a6fd0", "#a87400")
STYLES = ("-", "--", "-.", ":")
WIDTH = 4.2  # inches; at 390 px of a phone its text is still large enough
LARGEST = 160  # pixels of the longer side of a small image
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "audit", "font.family": "sans-serif", "font.size": 9.5,
            "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
            "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False}


def intervals_plot(rows: Sequence[dict], title: str) -> str:
    """AUC of attacks with their intervals, one below the other, and a line at 0.5. `rows`: name, auc, auc_interval."""
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, row in enumerate(reversed(rows)):
            low, high = row["auc_interval"] or [row["auc"]] * 2
            axes.plot([low, high], [place, place], color=SERIES[0], linewidth=2)
            axes.plot(row["auc"], place, "o", color=SERIES[0], markersize=5)
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [short(row["name"]) for row in reversed(rows)], parse_math=False)
        axes.set(xlabel="AUC (0.5: no leak)", ylim=(-0.6, len(rows) - 0.4))
        axes.grid(axis="y", visible=False)

    return _svg(draw, 0.6 + 0.3 * len(rows), title)


def roc_plot(curves: dict[str, Sequence[Sequence[float]]], low: bool, title: str) -> str:
    """ROC curves, name -> points [FPR, TPR]. `low`: with logarithmic axes, which show low FPR."""
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        start = min((x for points in curves.values() for x, _ in points if x > 0), default=0.01) / 2 if low else 0.0
        for number, (name, points) in enumerate(curves.items()):
            x, y = np.maximum(np.array(points), start).T
            axes.plot(x, y, STYLES[number % len(STYLES)], color=SERIES[number % len(SERIES)], label=name,
                      drawstyle="steps-post" if low else "default")
        axes.plot([start, 1], [start, 1], ":", color=INK, linewidth=1, label="guessing")
        scale = "log" if low else "linear"
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xscale=scale, yscale=scale,
                 xlim=(start, 1), ylim=(start, 1.02))
        figure.legend(loc="outside lower center", ncols=2)

    return _svg(draw, 4.2 + 0.2 * (len(curves) // 2), title)


def frontier_plot(rows: Sequence[dict], title: str) -> str:
    """The AUC of the worst attack over the mIoU of non-members, a point for each defense."""
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = [row["interval"] or [row["auc"]] * 2 for row in rows]
        shares = [100 * row["miou"]["out"] for row in rows]
        for number, (row, (low, high)) in enumerate(zip(rows, ends, strict=True)):
            x, colour = shares[number], SERIES[number % len(SERIES)]
            aside = axes.transData + ScaledTranslation(5 * number / 72, 0, figure.dpi_scale_trans)  # hides no other
            axes.plot([x, x], [low, high], color=colour, transform=aside)
            axes.plot(x, row["auc"], "os^vDP"[number % 6], color=colour, label=row["defense"] or "no defense",
                      transform=aside)
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=":")
        axes.set(xlabel="mIoU of non-members, %", ylabel="AUC of the worst attack",
                 xlim=(min(shares) - 2, max(shares) + 2),
                 ylim=(min(0.5, *(low for low, _ in ends)) - 0.02, max(high for _, high in ends) + 0.02))
        figure.legend(loc="outside lower center", ncols=2)

    return _svg(draw, 3.4 + 0.2 * (len(rows) // 2), title)


def class_image(classes: np.ndarray) -> str:
    """A label map int (h, w), one colour for each class and black for void, as the URL of a PNG."""
    palette = np.append(colormaps["tab20"](np.arange(255) % 20)[:, :3], [[0, 0, 0]], axis=0)
    return _png(palette[np.asarray(classes, int)])


def value_image(values: np.ndarray, known: np.ndarray, limit: float) -> str:
    """A map float (h, w), from 0 (dark) to `limit` (bright) and grey where not `known`, as the URL of a PNG."""
    colours = colormaps["inferno"](np.clip(values / (limit or 1), 0, 1))[..., :3]
    return _png(np.where(known[..., None], colours, 0.5))


def signed_image(values: np.ndarray, known: np.ndarray, limit: float) -> str:
    """A map float (h, w), from -`limit` (blue) over 0 (white) to `limit` (red), as the URL of a PNG."""
    colours = colormaps["RdBu_r"](np.clip(values / (limit or 1), -1, 1) / 2 + 0.5)[..., :3]
    return _png(np.where(known[..., None], colours, 0.5))


def photograph(image: np.ndarray) -> str:
    """An image uint8 (H, W, 3), made smaller, as the URL of a PNG."""
    return _png(np.asarray(image) / 255)


def _png(colours: np.ndarray) -> str:
    step = max(1, -(-max(colours.shape[:2]) // LARGEST))
    file = io.BytesIO()
    imsave(file, colours[::step, ::step], format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _svg(draw: object, height: float, title: str) -> str:
    """Draw into a figure, and return its SVG element, whose text and grid have the colours of the page."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):].replace(INK, "currentColor").replace(GRID, "var(--line)")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W", "", title)
    text = re.sub(r'(id="|href="#|url\(#)', lambda found: found[0] + prefix, text)  # ids are unique on the page
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", lambda found: f'<svg role="img" aria-label="{title}" '
                  f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {found[1]}>', text,
                  count=1)
