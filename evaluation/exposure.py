"""Where the leak is: an attack on parts of each image, and a ranking of the images.

An attack whose score is the mean of a map (`MapAttack`) can also be scored on the positions of one region only: a
class, class boundaries, objects of one size, a part of the image. Of each image only the sum of the map and the number
of positions of each region are kept.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from attacks.representation import boundary
from attacks.sample import Attack, Sample, Scored
from attacks.thresholds import MapAttack
from evaluation.intervals import intervals
from evaluation.metrics import METRICS, compute_metrics
from evaluation.report import show_interval
from utils.files import atomic_open

NEEDS = frozenset({"truth", "label"})  # of `attacks.sample.Attack`, beside those of the attack
REGIONS = {"zone": ("boundary", "interior"), "distance": ("1 to 2 pixels", "3 to 8 pixels", "over 8 pixels"),
           "size": ("small", "medium", "large"), "row": ("top", "middle", "bottom"),
           "column": ("left", "centre", "right")}  # beside the classes; each kind divides the known positions
BAND, NEAR = 2, 8  # pixels to another class: where labels are unreliable, and where a boundary ends
SIZES = (32**2 / (480 * 640), 96**2 / (480 * 640))  # share of the image; COCO's small and medium objects
SHOWN = ("auc", "tpr_at_1_fpr")
ROWS = 20  # of the table that is printed
Regions = dict[str, dict[str, dict]]  # kind -> region -> metrics


def has_map(attack: Attack) -> bool:
    """Whether the score of an attack is the mean of a map."""
    return type(attack).score is MapAttack.score


def score_regions(attack: MapAttack, samples: Iterable[Sample]) -> Iterator[Scored]:
    """Score samples as `attack.score` does; `statistics` also has the sum of the map, and the number of positions, of
    each region. Samples need a label at full size.
    """
    for sample in samples:
        values = attack.evidence(sample)
        scored = attack.score_map(sample, values)
        yield replace(scored, statistics=scored.statistics | region_sums(values, sample))


def region_sums(values: torch.Tensor, sample: Sample) -> dict[str, list]:
    """"sums" and "counts" of the known positions of a map (h, w) in each class, then in each of `REGIONS`."""
    known = sample.known.numpy()
    inside, sums, counts = values.double().numpy()[known], [], []
    sizes = [len(sample.output), *map(len, REGIONS.values())]
    for index, size in zip(region_maps(sample).values(), sizes, strict=True):
        sums += np.bincount(index[known], inside, size).tolist()
        counts += np.bincount(index[known], minlength=size).tolist()
    return {"sums": sums, "counts": counts}


def region_maps(sample: Sample) -> dict[str, np.ndarray]:
    """For the classes and each of `REGIONS`: the number of the region of each position, int (h, w).

    "zone": whether one of the eight neighbouring positions has another class, as in `attacks.statistics`. "distance":
    rows or columns, whichever is more, from the pixel of a position to the nearest pixel of another class. "size": area
    of the connected pixels of one class (eight neighbours), as a share of the image. The last two are measured at full
    size, because positions lie `stride` pixels apart. Void positions have a number without a meaning.
    """
    label, (height, width), stride = sample.label, sample.truth.shape, sample.stride
    far = [~boundary(label, distance)[::stride, ::stride] for distance in (BAND, NEAR)]
    area = object_areas(label.numpy())[::stride, ::stride] / label.numel()
    rows, columns = (np.arange(side) * 3 // side for side in (height, width))
    return {"class": sample.truth.numpy(), "zone": (~boundary(sample.truth)).long().numpy(),
            "distance": sum(one.long() for one in far).numpy(), "size": np.digitize(area, SIZES),
            "row": np.repeat(rows[:, None], width, 1), "column": np.repeat(columns[None], height, 0)}


def object_areas(label: np.ndarray) -> np.ndarray:
    """Number of pixels of the object of each pixel: label uint8 (H, W) -> int (H, W)."""
    areas = np.zeros(label.shape, int)
    for value in np.unique(label):
        mask = (label == value).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = slice(top, top + height), slice(left, left + width)
        _, objects, found, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
        inside = objects > 0
        areas[box][inside] = found[objects[inside], cv2.CC_STAT_AREA]
    return areas


def measure(scored: Sequence[Scored], names: Sequence[str] | None = None) -> Regions:
    """Metrics of each region that has a position, from the results of `score_regions`. `names`: those of the classes,
    which have numbers without them.

    Each has "share", that of the region in all known positions; "members" and "non_members", the numbers of images with
    such positions, which are scored by the mean of the map over them; AUC, TPR at 1 % FPR, and their 95 % intervals
    over groups of images. A metric is None if a side has no such image.
    """
    sums, counts = (np.array([one.statistics[key] for one in scored], float) for key in ("sums", "counts"))
    member, group = np.array([one.member for one in scored]), np.array([one.group for one in scored])
    classes = counts.shape[1] - sum(map(len, REGIONS.values()))
    if not names or len(set(names)) != classes:
        names = list(map(str, range(classes)))
    total, column, found = counts[:, :classes].sum(), 0, {}
    for kind, regions in {"class": tuple(names), **REGIONS}.items():
        found[kind] = {}
        for region in regions:
            if (kept := counts[:, column] > 0).any():
                found[kind][region] = {"share": float(counts[:, column].sum() / total)} | _metrics(
                    sums[kept, column] / counts[kept, column], member[kept], group[kept])
            column += 1
    return found


def _metrics(score: np.ndarray, member: np.ndarray, group: np.ndarray) -> dict:
    both = member.any() and not member.all()
    values, bounds = ((function(score, member, *rest) if both else dict.fromkeys(METRICS))
                      for function, rest in ((compute_metrics, ()), (intervals, (group,))))
    out: dict = {"members": int(member.sum()), "non_members": int((~member).sum())}
    for name in SHOWN:
        out |= {name: values[name], f"{name}_interval": bounds[name]}
    return out


def shown_regions(regions: Regions, rows: int = ROWS) -> list[tuple[str, str]]:
    """Kind and region of at most `rows` rows: the classes with most positions, and all regions of the other kinds."""
    others = [(kind, region) for kind in REGIONS for region in regions[kind]]
    classes = sorted(regions["class"], key=lambda name: -regions["class"][name]["share"])[: rows - len(others)]
    return [("class", name) for name in regions["class"] if name in classes] + others


def table(regions: Regions, control: Regions | None = None) -> str:
    """The table that a run prints: `shown_regions`, with the AUC of the same attack on a control model, if any."""
    shown = shown_regions(regions)
    width = max(len(f"{kind}: {region}") for kind, region in shown) + 2
    lines = [f"{'only positions of':{width}}{'share':>7}{'AUC':>8}  {'95 % interval':16}{'TPR at 1 % FPR':>14}  "
             f"{'95 % interval':16}{'images':>10}" + ("  AUC of control" if control else "")]
    for kind, region in shown:
        one = regions[kind][region]
        auc, rate = (("-" if one[name] is None else f"{one[name]:.3f}") for name in SHOWN)
        bounds, rate_bounds = (show_interval(one[f"{name}_interval"]) for name in SHOWN)
        line = (f"{f'{kind}: {region}':{width}}{100 * one['share']:5.1f} %{auc:>8}  {bounds:16}{rate:>14}  "
                f"{rate_bounds:16}{one['members']:>4} +{one['non_members']:>4}")
        other = control and control[kind][region]["auc"]
        lines.append(line + (f"{'-' if other is None else f'{other:.3f}':>16}" if control else ""))
    if hidden := sum(map(len, regions.values())) - len(shown):
        lines.append(f"{hidden} classes with fewer positions are in results.json")
    return "\n".join(lines)


def write_ranking(path: Path, scored: Sequence[Scored], write_name: Callable[[str], str]) -> list[str]:
    """Write exposure.csv, the images from the highest score to the lowest, and return their names in this order.

    The columns are `rank,image,member,score,false_positives,fpr`; equal scores share a rank. `false_positives` is the
    number of non-members that score as high or higher, and `fpr` their share: the lowest FPR at which the attack calls
    this image a member. `write_name` converts the names.
    """
    ranked = sorted((-one.score, write_name(one.name), one) for one in scored)
    scores = np.array([score for score, *_ in ranked])
    others = np.array([score for score, _, one in ranked if not one.member])
    ranks, false = np.searchsorted(scores, scores) + 1, np.searchsorted(others, scores, "right")
    with atomic_open(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "image", "member", "score", "false_positives", "fpr"])
        writer.writerows([rank, name, int(one.member), repr(one.score), alarms, repr(alarms / len(others))]
                         for rank, alarms, (_, name, one) in zip(ranks.tolist(), false.tolist(), ranked, strict=True))
    return [one.name for *_, one in ranked]
