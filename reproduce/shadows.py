"""Plot AUC against the number of shadows the attacker learned from, one panel a victim; bars span attacker seeds.

    python -m reproduce.shadows --into docs/camvid-shadows.png
"""

import argparse
from pathlib import Path

from reproduce.table import read
from utils.cli import UserError, run

SHADOWS = {"dealt": 1, "both": 2, "eight": 8}  # partition in the name of a JSON -> how many
LINES = {"loss-full": ("Loss, full", "k-o"), "concate-full": ("C+GT, full", "k--s")}
START = {"imagenet": "ImageNet weights", "scratch": "from scratch", "longer": "from scratch, longer"}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.shadows", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--results", metavar="DIR", default="reproduce/results",
                       help="collected settings (default: reproduce/results)")
    flags.add_argument("--into", metavar="PNG", required=True, help="where the plot goes")
    return flags


def main(args: argparse.Namespace) -> None:
    from matplotlib.figure import Figure

    from utils.files import whole

    victims = sorted({path.stem.rsplit("-", 1)[0] for path in Path(args.results).glob("camvid-*-*-dealt.json")})
    if not victims:
        raise UserError(f"{args.results} holds no camvid-*-dealt.json; reproduce/camvid.sh makes them")
    figure = Figure(figsize=(2.3 * len(victims), 3.1), layout="constrained")
    panels = figure.subplots(1, len(victims), sharey=True, squeeze=False)[0]
    for axes, victim in zip(panels, victims, strict=True):
        paths = {count: Path(args.results) / f"{victim}-{name}.json" for name, count in SHADOWS.items()}
        draw(axes, {count: read(path)["attacks"] for count, path in paths.items() if path.exists()})
        _, start, split = victim.split("-")
        axes.set_title(f"{START[start]},\n{split} split", fontsize=9)
        axes.set_xlabel("shadows")
    panels[0].set_ylabel("AUC")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with whole(args.into) as file:
        figure.savefig(file, dpi=130, format="png")
    print(args.into)


def draw(axes: object, settings: dict[int, dict]) -> None:
    """One panel: `settings` maps the number of shadows to the attacks of a setting."""
    threshold = next(iter(settings.values()))["threshold-loss-0"]["image"]["auc"]
    axes.axhline(threshold, color="grey", linestyle=":", label="loss threshold")
    for method, (label, style) in LINES.items():
        seeds = [[attack["image"]["auc"] for name, attack in attacks.items() if name.rpartition("-")[0] == method]
                 for attacks in settings.values()]
        means = [sum(own) / len(own) for own in seeds]
        spread = [[mean - min(own) for mean, own in zip(means, seeds, strict=True)],
                  [max(own) - mean for mean, own in zip(means, seeds, strict=True)]]
        axes.errorbar(list(settings), means, spread, fmt=style, capsize=2, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(SHADOWS.values()), [str(count) for count in SHADOWS.values()])
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    run(main, parser())
