"""Plot AUC of the attacks on each victim of CamVid, with one shadow and with eight; bars span attacker seeds.

    python -m reproduce.shadows.plot --into docs/camvid-shadows.png
"""

import argparse
from pathlib import Path

from utils.cli import UserError, run
from utils.files import read_json

SHADOWS = {"dealt": "one shadow", "eight": "eight"}  # partition in the name of a JSON -> legend
ATTACKS = {"concate-full": ("C+GT, full", "s"), "loss-full": ("Loss, full", "o")}
THRESHOLDS = {"threshold-confidence": ("confidence threshold", "|"), "threshold-loss": ("loss threshold", "x")}
START = {"imagenet": "ImageNet weights", "scratch": "from scratch", "longer": "from scratch, longer"}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.shadows.plot", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--results", metavar="DIR", default="reproduce/results/shadows",
                       help="collected settings (default: reproduce/results/shadows)")
    flags.add_argument("--into", metavar="PNG", required=True, help="where the plot goes")
    return flags


def main(args: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    from utils.files import atomic_open

    victims = sorted({path.stem.removesuffix("-eight") for path in Path(args.results).glob("camvid-*-*-eight.json")})
    if not victims:
        raise UserError(f"{args.results} holds no camvid-*-eight.json; reproduce/shadows/camvid.sh makes them")
    figure = Figure(figsize=(7.5, 1 + 0.7 * len(victims)), layout="constrained")
    axes = figure.subplots()
    for row, victim in enumerate(victims):
        for shadows in SHADOWS:
            path = Path(args.results) / f"{victim}-{shadows}.json"
            if path.exists():
                draw(axes, row, read_json(path)["attacks"], shadows)
    axes.set_yticks(range(len(victims)), [title(victim) for victim in victims])
    axes.set(xlabel="AUC", ylim=(len(victims) - 0.5, -0.5))
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    with atomic_open(args.into) as file:
        figure.savefig(file, dpi=130, format="png")
    print(args.into)


def title(victim: str) -> str:
    _, start, split = victim.split("-")
    return f"{START[start]},\n{split} split"


def draw(axes: object, row: int, attacks: dict, shadows: str) -> None:
    """The marks of one setting: open for one shadow, filled for eight; thresholds know no shadow."""
    for method, (label, mark) in THRESHOLDS.items():
        axes.plot(mean_and_range(attacks, method)[0], row, f"k{mark}", label=label, markersize=9)
    for offset, (method, (label, mark)) in zip((0.18, -0.18), ATTACKS.items(), strict=True):
        mean, spread = mean_and_range(attacks, method)
        axes.errorbar(mean, row + offset, xerr=spread, fmt=f"k{mark}", capsize=2, label=f"{label}, {SHADOWS[shadows]}",
                      markerfacecolor="white" if shadows == "dealt" else "black")


def mean_and_range(attacks: dict, method: str) -> tuple[float, list[list[float]]]:
    """Mean AUC over attacker seeds, and how far the lowest and the highest are from it."""
    aucs = [attack["image"]["auc"] for name, attack in attacks.items() if name.rpartition("-")[0] == method]
    mean = sum(aucs) / len(aucs)
    return mean, [[mean - min(aucs)], [max(aucs) - mean]]


if __name__ == "__main__":
    run(main, parser())
