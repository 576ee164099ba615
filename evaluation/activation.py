"""Figure 5: drawings of activation maps beside loss maps, and how far the two go together over all images."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from attacks.activation import Look
from evaluation.intervals import mean_interval
from utils.files import atomic_open

SIDES = {"members": True, "non_members": False}


def write_looks(folder: Path, looks: Sequence[Look], defense: str | None, seed: int) -> dict:
    """Write correlations.csv and, of the images that were kept, NAME.png and maps.npz; returns the mean figures.

    maps.npz has arrays `NAME:loss` and `NAME:cam`, those of `Sight`, of the posterior that was attacked.

    correlations.csv has one row an image, sorted: `image,member,pearson,spearman` of CAM and loss map, under a defense
    also `pearson_before,spearman_before` and `cam_kept` (CAM before the defense with CAM under it). A map without
    variance has no correlation: its cell is empty.
    """
    looks = sorted(looks, key=lambda look: look.name)
    columns = figures_of(looks)
    with atomic_open(folder / "correlations.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "member", *columns])
        for look, row in zip(looks, zip(*columns.values(), strict=True), strict=True):
            writer.writerow([look.name, int(look.member), *("" if value is None else repr(value) for value in row)])
    kept = {look.name: look for look in looks if look.sights}
    with atomic_open(folder / "maps.npz") as file:
        np.savez_compressed(file, **{f"{name}:{what}": getattr(look.sights[0], what)
                                     for name, look in kept.items() for what in ("loss", "cam")})
    taken: set[str] = set()
    for name, look in kept.items():
        draw(folder / f"{file_name(name, taken)}.png", look, defense)
    return summarise(looks, columns, seed)


def file_name(name: str, taken: set[str]) -> str:
    """What the drawing of an image is called, and note it in `taken`: NAME with `_` for `/`.

    What is there already, or too long for a file, is told by the end of the name and a hash of all of it.
    """
    flat = name.replace("/", "_")
    if flat in taken or len(flat.encode()) > 200:
        flat = f"{flat[-40:]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    taken.add(flat)
    return flat


def figures_of(looks: Sequence[Look]) -> dict[str, list[float | None]]:
    """The columns of correlations.csv, in the order of `looks`."""
    columns = {}
    for index, when in enumerate(("", "_before")[: len(looks[0].pearson)]):
        columns[f"pearson{when}"] = [look.pearson[index] for look in looks]
        columns[f"spearman{when}"] = [look.spearman[index] for look in looks]
    return columns | ({"cam_kept": [look.kept for look in looks]} if len(columns) > 2 else {})


def summarise(looks: Sequence[Look], columns: dict[str, list[float | None]], seed: int) -> dict:
    """Mean of each column over members and over non-members, with 95 % intervals over blocks.

    Images without a correlation are left out and counted; where none has one, mean and interval are None.
    """
    out: dict = {"without_correlation": sum(value is None for value in columns["pearson"])}
    for column, values in columns.items():
        name = column.replace("pearson", "correlation").replace("spearman", "rank_correlation")
        for side, member in SIDES.items():
            own = [(value, look.group) for value, look in zip(values, looks, strict=True)
                   if look.member is member and value is not None]
            found, group = zip(*own, strict=True) if own else ((), ())
            out[f"{name}_{side}"] = float(np.mean(found)) if own else None
            out[f"{name}_{side}_interval"] = mean_interval(np.array(found), group, seed) if own else None
    return out


def sentence(cam: dict) -> str:
    """The figures of `summarise` as the line that a run prints."""
    means = [f"{side.replace('_', '-')} " + ("none" if cam[f"correlation_{side}"] is None else
             "{:+.3f} [{:+.3f}, {:+.3f}]".format(cam[f"correlation_{side}"], *cam[f"correlation_{side}_interval"]))
             for side in SIDES]
    return f"correlation of activation map and loss map: {', '.join(means)}"


def draw(path: Path, look: Look, defense: str | None) -> None:
    """One image: loss map above, CAM below; before the defense on the left, under it on the right.

    Each map has colours of its own, since a defense may shift a CAM by more than it varies; losses above their 99 %
    quantile look like it. Void is white in loss maps; no pixel of the photograph is shown.
    """
    titles = ("before", f"under {defense}") if len(look.sights) == 2 else (defense or "no defense",)
    height, width = look.sights[0].cam.shape
    with rc_context({"font.size": 8, "axes.titlesize": 8, "image.cmap": "cividis"}):
        figure = Figure(figsize=(3.5 * len(titles) + 0.2, 5.6 * height / width + 0.9), layout="constrained")
        rows = figure.subplots(2, len(titles), squeeze=False)
        figure.suptitle(f"{look.name}, {'member' if look.member else 'non-member'}", fontsize=9,
                        parse_math=False)
        for (above, below), sight, title in zip(rows.T, look.sights[::-1], titles, strict=True):
            high = float(np.nanquantile(sight.loss, 0.99)) or 1.0
            shown = above.imshow(sight.loss, vmin=0, vmax=high, interpolation="nearest")
            figure.colorbar(shown, ax=above, extend="max" if np.nanmax(sight.loss) > high else "neither",
                            extendfrac=0.04, label="loss (wrong: 1.38)" if "argmax" in title else "loss (nats)")
            figure.colorbar(below.imshow(sight.cam), ax=below, label="for member (logits)")
            above.set_title(title)
            below.set_title("no correlation" if sight.pearson is None else
                            f"Pearson {sight.pearson:+z.2f}, Spearman {sight.spearman:+z.2f}")
        rows[0, 0].set_ylabel("structured loss map")
        rows[1, 0].set_ylabel("class activation map")
        for axes in rows.flat:
            axes.set(xticks=[], yticks=[])
        with atomic_open(path) as file:
            figure.savefig(file, dpi=200, format="png")
