"""Draw docs/membership-error.png: the steps of the membership error, for a hard member and an easy non-member.

    python -m examples.errors

Both are drawn street scenes of examples/: the member with the highest predictability error, and the non-member with the
lowest. Alone, the reconstruction error would call the second a member rather than the first.
"""

import argparse
from typing import TYPE_CHECKING

from examples.colours import class_colours
from utils.cli import new_parser, run

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from attacks.sample import Sample

TITLES = ("image", "label", "predicted by the\nlinear predictor", "predictability error",
          "reconstruction error\nof V", "membership error:\nthe difference")
HIGHEST = 4.0  # end of the colour scales, in nats


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "examples.errors")
    flags.add_argument("--out", metavar="FILE", default="docs/membership-error.png",
                       help="the figure (default: docs/membership-error.png)")
    return flags


def main(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from attacks.membership_error import MembershipError
    from predictors.predictability import predictability_errors
    from predictors.samples import tree_source
    from utils.device import CPU_FP32
    from utils.files import atomic_open

    source = tree_source("examples")
    errors = predictability_errors(source.records, "efficientnet_lite0", MembershipError.method, CPU_FP32)
    hard = max((one for one in source.records if one.member), key=lambda one: errors[one.name])
    easy = min((one for one in source.records if not one.member), key=lambda one: errors[one.name])
    chosen = replace(source, records=[hard, easy])
    with rc_context({"font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(9, 2.7), layout="constrained")
        draw(figure, list(chosen.samples(frozenset({"truth", "image"}))))
        with atomic_open(args.out) as file:
            figure.savefig(file, dpi=150, format="png")
    print(args.out)


def draw(figure: "Figure", samples: "list[Sample]") -> None:
    """One row for each sample; below each map of errors its mean over the image."""
    rows = figure.subplots(len(samples), len(TITLES))
    for axes, sample in zip(rows, samples, strict=True):
        axes[0].set_ylabel("hard\nmember" if sample.member else "easy\nnon-member", fontweight="bold")
        for column, (cell, (array, mean)) in enumerate(zip(axes, maps(sample), strict=True)):
            scale = {} if column < 3 else {"cmap": "cividis", "vmin": 0, "vmax": HIGHEST}
            if column == len(TITLES) - 1:
                scale = {"cmap": "PuOr_r", "vmin": -HIGHEST, "vmax": HIGHEST}
            drawn = cell.imshow(array, aspect="auto", interpolation="nearest", **scale)
            cell.set(xticks=[], yticks=[], xlabel="" if mean is None else f"mean {mean:.2f} nats")
            if sample is samples[0]:
                cell.set_title(TITLES[column])
            if sample is samples[-1] and column >= len(TITLES) - 2:
                figure.colorbar(drawn, ax=rows[:, column], location="bottom", shrink=0.8, aspect=30, label="nats")


def maps(sample: "Sample") -> "list[tuple[np.ndarray, float | None]]":
    """The six columns: an array for `imshow` each, and the mean error where there is one. White: no label."""
    import cv2
    import numpy as np
    import torch

    from attacks.membership_error import ReconstructionError
    from attacks.predictability import SIDE, SOUND, predict_positions, prepare_image
    from attacks.sample import AttackSettings
    from datasets import streets
    from models import feature_extractor
    from utils import VOID
    from utils.randomness import stream

    label = streets.draw(int(sample.name.rpartition("/")[2]))[1]
    with torch.inference_mode():
        features = [one[0].float() for one in feature_extractor("efficientnet_lite0")(
            prepare_image(sample.image, SOUND)[None])]
    found = predict_positions(features, torch.from_numpy(label), SOUND, stream(0, "predictability", sample.id))
    predicted, errors = np.full(SIDE * SIDE, VOID), np.full(SIDE * SIDE, np.nan)
    predicted[found.positions] = np.unique(label[label != VOID])[found.predicted.argmax(1)]
    errors[found.positions] = found.errors()
    lost = -ReconstructionError(AttackSettings()).evidence(sample).numpy()
    lost = np.where(sample.known.numpy(), lost, np.nan)
    small = cv2.resize(errors.reshape(SIDE, SIDE), lost.shape[::-1], interpolation=cv2.INTER_NEAREST)
    colours, means = class_colours(), (float(np.nanmean(errors)), float(np.nanmean(lost)))
    return [(sample.image.permute(1, 2, 0).numpy(), None), (colours[label], None),
            (colours[predicted.reshape(SIDE, SIDE)], None), (small, means[0]), (lost, means[1]),
            (lost - small, means[1] - means[0])]


if __name__ == "__main__":
    run(main, parser())
