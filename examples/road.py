"""Draw docs/road.png: the steps from an image to its membership score, for one member and one non-member.

    python -m examples.road

Both are drawn street scenes of examples/, with the median score of their side under the shipped attacker. The image is
drawn again from its number, and the other steps are computed from the stored posterior of the shipped victim.
"""

import argparse
from typing import TYPE_CHECKING

from examples.colours import GROUPS, class_colours
from utils.cli import new_parser, run

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from attacks.learned import LearnedAttack
    from attacks.sample import Sample, Scored

TITLES = ("image", "posterior of V:\nmost probable class", "label", "structured loss map\n$-$log p(label)",
          "class activation map:\nevidence for $A_P$", "membership score\n(grey: other images)")
SIGNS = ("V\n→", "+", "→", "$A_P$\n→", "→")  # before the second column, the third, ...
LOSS, EVIDENCE = 5.0, 4.0  # ends of the colour scales: nats, logits
WIDTH, HEIGHT = 9.0, 2.5  # of the figure, in inches
LEFT, GAP, CELL = 0.22, 0.2, 1.3  # names of the rows, space between columns, width of a map; inches
ROWS = (1.42, 0.68)  # lower edges of the two rows, inches


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "examples.road")
    flags.add_argument("--out", metavar="FILE", default="docs/road.png", help="the figure (default: docs/road.png)")
    return flags


def main(args: argparse.Namespace) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from attacks.learned import LearnedAttack
    from attacks.sample import AttackSettings
    from models import load_attacker
    from predictors.samples import tree_source
    from utils.files import atomic_open

    attack = LearnedAttack(AttackSettings(attacker=load_attacker("weights/loss.pth.tar")))
    samples = {sample.name: sample for sample in tree_source("examples").samples(attack.needs)}
    scored = list(attack.score(samples.values()))
    with rc_context({"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.5}):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        for bottom, member in zip(ROWS, (True, False), strict=True):
            side = sorted((item for item in scored if item.member is member), key=lambda item: item.score)
            draw_row(figure, bottom, attack, samples[side[len(side) // 2].name], side[len(side) // 2], side)
        draw_keys(figure)
        with atomic_open(args.out) as file:
            figure.savefig(file, dpi=150, format="png")
    print(args.out)


def maps(attack: "LearnedAttack", sample: "Sample") -> "list[np.ndarray]":
    """The five steps as images for `imshow`: three of RGB (H, W, 3), then loss in nats and evidence in logits."""
    from attacks.activation import compute_maps
    from datasets import streets
    from utils.device import CPU_FP32

    palette = class_colours()
    image, label = streets.draw(int(sample.name.rpartition('/')[2]))
    computed = compute_maps(attack.model, sample.output, sample.truth, attack.spec, CPU_FP32)
    bias = attack.model.fc.bias.detach()
    return [image, palette[sample.output.argmax(dim=0).numpy()], palette[label], computed.loss,
            computed.cam + float(bias[1] - bias[0])]


def column(index: int) -> float:
    """The left edge of a column, in inches."""
    return LEFT + index * (CELL + GAP)


def place(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Axes at a position in inches."""
    return figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))


def draw_row(figure: "Figure", bottom: float, attack: "LearnedAttack", sample: "Sample", score: "Scored",
             side: "list[Scored]") -> None:
    """One sample: its five steps, and its score among those of its side."""
    import numpy as np

    scales = [{}] * 3 + [{"cmap": "cividis", "vmin": 0, "vmax": LOSS},
                         {"cmap": "PuOr", "vmin": -EVIDENCE, "vmax": EVIDENCE}]
    name = "member" if sample.member else "non-member"
    for index, (array, scale) in enumerate(zip(maps(attack, sample), scales, strict=True)):
        axes = place(figure, column(index), bottom, CELL, CELL / 2)
        axes.imshow(array, interpolation="nearest", aspect="auto", **scale)
        axes.set(xticks=[], yticks=[])
        if index == 0:
            axes.set_ylabel(name, fontweight="bold", fontsize=7.5, labelpad=3)
    for index, sign in enumerate(SIGNS, 1):
        figure.text((column(index) - GAP / 2) / WIDTH, (bottom + CELL / 4) / HEIGHT, sign, ha="center", va="center",
                    fontsize=9)
    axes = place(figure, column(5), bottom, WIDTH - column(5) - 0.1, CELL / 2)
    heights = np.random.default_rng(0).uniform(0.12, 0.6, len(side))
    axes.plot([item.score for item in side], heights, ".", color="#999999", markersize=3, markeredgewidth=0)
    axes.plot([score.score], [0.36], "D", color="black", markersize=5)
    axes.text(score.score, 0.95, f"{score.score:.2f}", ha="center", va="top", fontweight="bold")
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=[], xticks=[0, 0.5, 1])
    axes.tick_params(labelbottom=not sample.member, length=2, pad=1, labelsize=7)


def draw_keys(figure: "Figure") -> None:
    """Titles above the columns, and the meaning of the colours below them."""
    import numpy as np

    for index, title in enumerate(TITLES):
        width = CELL if index < 5 else WIDTH - column(5) - 0.1
        figure.text((column(index) + width / 2) / WIDTH, (ROWS[0] + CELL / 2 + 0.06) / HEIGHT, title, ha="center",
                    va="bottom")
    for index, (name, (colour, _)) in enumerate(GROUPS.items()):
        left, line = column(0.32 + (index % 5) * 0.54), 0.34 - 0.2 * (index // 5)
        place(figure, left, line, 0.14, 0.12).set(facecolor=colour, xticks=[], yticks=[])
        figure.text((left + 0.2) / WIDTH, (line + 0.06) / HEIGHT, name, va="center", fontsize=7.5)
    for index, colours, ends in ((3, "cividis", ("0", f"{LOSS:g} nats")), (4, "PuOr", ("non-member", "member"))):
        axes = place(figure, column(index), 0.42, CELL, 0.1)
        axes.imshow(np.linspace(0, 1, 200)[None], cmap=colours, aspect="auto")
        axes.set(xticks=[], yticks=[])
        for text, align, x in zip(ends, ("left", "right"), (column(index), column(index) + CELL), strict=True):
            figure.text(x / WIDTH, 0.37 / HEIGHT, text, ha=align, va="top", fontsize=7.5)


if __name__ == "__main__":
    run(main, parser())
