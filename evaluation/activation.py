"""Figure 5: draw activation maps beside loss maps, and write the correlations of all images."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from attacks.activation import CamResult
from evaluation.intervals import mean_interval
from utils.files import atomic_open

SIDES = {"members": True, "non_members": False}


def write_cams(folder: Path, cams: Sequence[CamResult], defense: str | None) -> dict:
    """Write correlations.csv and, for the images with maps, NAME.png and maps.npz. Returns the mean correlations.

    maps.npz has the arrays `NAME:loss` and `NAME:cam` of `CamMaps`, computed from the posterior that was attacked.

    correlations.csv has one row for each image, sorted by name, with the columns `image,member,pearson,spearman`
    (correlation of CAM and loss map). Under a defense it also has `pearson_before,spearman_before` and `cam_kept`
    (Pearson correlation of the CAM before the defense with the CAM under it). A cell is empty if a map is constant.
    """
    cams = sorted(cams, key=lambda cam: cam.name)
    columns = columns_of(cams)
    with atomic_open(folder / "correlations.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "member", *columns])
        for cam, row in zip(cams, zip(*columns.values(), strict=True), strict=True):
            writer.writerow([cam.name, int(cam.member), *("" if value is None else repr(value) for value in row)])
    drawn = {cam.name: cam for cam in cams if cam.maps}
    with atomic_open(folder / "maps.npz") as file:
        np.savez_compressed(file, **{f"{name}:{what}": getattr(cam.maps[0], what)
                                     for name, cam in drawn.items() for what in ("loss", "cam")})
    taken: set[str] = set()
    for name, cam in drawn.items():
        draw(folder / f"{file_name(name, taken)}.png", cam, defense)
    return summarise_cams(cams, columns)


def file_name(name: str, taken: set[str]) -> str:
    """The file name, without suffix, for the drawing of an image: NAME with `_` for `/`. The name is added to `taken`.

    If the name is already taken, or too long for a file, its last 40 characters and a hash of NAME are used.
    """
    flat = name.replace("/", "_")
    if flat in taken or len(flat.encode()) > 200:
        flat = f"{flat[-40:]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    taken.add(flat)
    return flat


def columns_of(cams: Sequence[CamResult]) -> dict[str, list[float | None]]:
    """The columns of correlations.csv, in the order of `cams`."""
    columns = {}
    for index, when in enumerate(("", "_before")[: len(cams[0].pearson)]):
        columns[f"pearson{when}"] = [cam.pearson[index] for cam in cams]
        columns[f"spearman{when}"] = [cam.spearman[index] for cam in cams]
    return columns | ({"cam_kept": [cam.cam_correlation for cam in cams]} if len(columns) > 2 else {})


def summarise_cams(cams: Sequence[CamResult], columns: dict[str, list[float | None]]) -> dict:
    """Mean of each column over members and over non-members, with 95 % intervals over groups.

    Images without a correlation are left out; `without_correlation` is their number. If all images of a side are left
    out, the mean and the interval are None; with few groups, the interval is None.
    """
    out: dict = {"without_correlation": sum(value is None for value in columns["pearson"])}
    for column, values in columns.items():
        name = column.replace("pearson", "correlation").replace("spearman", "rank_correlation")
        for side, member in SIDES.items():
            pairs = [(value, cam.group) for value, cam in zip(values, cams, strict=True)
                     if cam.member is member and value is not None]
            known, group = zip(*pairs, strict=True) if pairs else ((), ())
            out[f"{name}_{side}"] = float(np.mean(known)) if pairs else None
            out[f"{name}_{side}_interval"] = mean_interval(np.array(known), group) if pairs else None
    return out


def describe_cams(cam: dict) -> str:
    """The line that a run prints: the means of `summarise_cams`."""
    means = [f"{side.replace('_', '-')} " + ("none" if cam[f"correlation_{side}"] is None else
             f"{cam[f'correlation_{side}']:+.3f}" + _signed(cam[f"correlation_{side}_interval"]))
             for side in SIDES]
    return f"correlation of activation map and loss map: {', '.join(means)}"


def _signed(interval: list[float] | None) -> str:
    return "" if interval is None else " [{:+.3f}, {:+.3f}]".format(*interval)


def draw(path: Path, cam: CamResult, defense: str | None) -> None:
    """Draw the maps of one image: loss map above, CAM below; before the defense on the left, under it on the right.

    Each map has a separate colour scale, because a defense may change the mean of a CAM by more than the CAM varies.
    The scale of a loss map ends at its 99 % quantile. Void is white in loss maps. No pixel of the image is shown.
    """
    titles = ("before", f"under {defense}") if len(cam.maps) == 2 else (defense or "no defense",)
    height, width = cam.maps[0].cam.shape
    with rc_context({"font.size": 8, "axes.titlesize": 8, "image.cmap": "cividis"}):
        figure = Figure(figsize=(3.5 * len(titles) + 0.2, 5.6 * height / width + 0.9), layout="constrained")
        rows = figure.subplots(2, len(titles), squeeze=False)
        figure.suptitle(f"{cam.name}, {'member' if cam.member else 'non-member'}", fontsize=9,
                        parse_math=False)
        for (above, below), maps, title in zip(rows.T, cam.maps[::-1], titles, strict=True):
            high = float(np.nanquantile(maps.loss, 0.99)) or 1.0
            shown = above.imshow(maps.loss, vmin=0, vmax=high, interpolation="nearest")
            figure.colorbar(shown, ax=above, extend="max" if np.nanmax(maps.loss) > high else "neither",
                            extendfrac=0.04, label="loss (wrong: 1.38)" if "argmax" in title else "loss (nats)")
            figure.colorbar(below.imshow(maps.cam), ax=below, label="for member (logits)")
            above.set_title(title)
            below.set_title("no correlation" if maps.pearson is None else
                            f"Pearson {maps.pearson:+z.2f}, Spearman {maps.spearman:+z.2f}")
        rows[0, 0].set_ylabel("structured loss map")
        rows[1, 0].set_ylabel("class activation map")
        for axes in rows.flat:
            axes.set(xticks=[], yticks=[])
        with atomic_open(path) as file:
            figure.savefig(file, dpi=200, format="png")
