"""Check on some images that outputs, labels and classes belong together, before an attack begins.

The labels of other images are the control: a model fits the label of its own image better, in the order of its classes.
Members and non-members are checked separately, so that an error on one side does not hide behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import ttest_1samp

from evaluation.metrics import confusion
from predictors.base import Predictor, Record, predict_records
from predictors.samples import Source
from predictors.stored import TINY, infer_stride
from utils import VOID
from utils.cli import UserError
from utils.distributed import warn_once

PROBE = {False: 200, True: 12}  # images of each side, of stored outputs and of a model that is queried
COMPARED = 2  # images of each side on which models are compared
EQUAL = 0.005  # mean total variation; bf16 instead of float32 changes posteriors by 0.001, another training by 0.06
RUN = 4  # images in a row, of which probes consist, so that outputs of the next image can be found
POSITIONS, VALUES = 2048, 16384  # of an image, at most
SMALLEST = 4  # images; with fewer, nothing is said about their order
AGREEMENT = 0.4  # above chance, that another order of the classes or of the images must reach
MISPLACED = 0.15  # pixel accuracy by which the label of another image must fit better
CLEARLY = 0.1  # pixel accuracy by which own labels fit clearly better; few images then need no test
TURNED = 0.05  # pixel accuracy by which mirrored labels must fit better
HALF_BITS = 11  # significant bits of a float16
DISTINCT = 50  # different values; posteriors with fewer are constant over the image rather than clipped
DECIMALS = (1, 2, 3, 4, 5)  # to which posteriors may have been rounded
TURNS = {"mirrored left to right": lambda label: label[:, ::-1], "upside down": lambda label: label[::-1],
         "transposed": lambda label: label.T}


@dataclass(frozen=True)
class Probe:
    """Predicted classes and labels (n, P) of images of one side and of equal size, with their names.

    `turned`: pixel accuracy with the label as it is, and under each of `TURNS` that keeps its shape: name -> (n,).
    """

    names: list[str]
    predicted: np.ndarray
    labels: np.ndarray
    classes: int
    turned: dict[str, np.ndarray]


def check_models(source: Source, others: Sequence[tuple[str, Predictor]]) -> None:
    """Check the outputs of the target model and of other models on the same images. `others`: (name, predictor).

    Raises `UserError` if two models give equal outputs, so that one model plays two roles, and as `check_alignment`.
    """
    check_alignment(source)
    for name, predictor in others:
        check_alignment(replace(source, predictor=predictor), name)
    if not others:
        return
    names = ["the target model", *(name for name, _ in others)]
    records = [record for member in (True, False)
               for record in [one for one in source.records if one.member is member][:COMPARED]]
    outputs = zip(*((answer.output, *answer.others) for answer in predict_records(
        source.predictor, records, others=[predictor for _, predictor in others])), strict=True)
    for (first, one), (second, other) in combinations(zip(names, outputs, strict=True), 2):
        if all(map(_equal, one, other)):
            raise UserError(f"{first} and {second} give equal outputs, so they are one model; references and a control "
                            "must be other models than the target, and each is given once")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs (C, h, w) differ by no more than by the precision in which they were computed or stored."""
    return one.shape == other.shape and bool((one - other).abs().sum(0).mean() < 2 * EQUAL)


def check_alignment(source: Source, model: str = "") -> None:
    """Compare the outputs of some images of each side with their labels, and with those of other images.

    Raises `UserError` if another order of the classes or of the images, or mirrored labels, fit clearly better, or if
    the stored outputs of the two sides were rounded differently. Warns if outputs fit all labels equally. `model`: name
    of the model for messages, if it is not the target model.
    """
    if source.predictor.kind != "posterior":
        return
    rounding, whose = {}, f" ({model})" if model else ""
    for member, side in ((True, f"members{whose}"), (False, f"non-members{whose}")):
        probe, rounding[member] = read_probe(source, [record for record in source.records if record.member is member])
        if probe:
            check_classes(probe, side)
        if probe and len(probe.names) >= SMALLEST:
            fit = compare_all(probe)
            check_turned(probe, fit, side)
            check_images(probe, fit, side)
    if None not in rounding.values() and rounding[True] != rounding[False]:
        raise UserError(f"the posteriors of members{whose} are {rounding[True]}, and those of non-members "
                        f"{rounding[False]}, so an attack would recognise the rounding; store both sides alike")


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records: runs of `RUN` neighbours that are spread evenly."""
    if len(records) <= count:
        return list(records)
    starts = np.linspace(0, len(records) - RUN, count // RUN).astype(int)
    return [records[index] for index in sorted({start + step for start in starts for step in range(RUN)})]


def read_probe(source: Source, records: Sequence[Record]) -> tuple[Probe | None, str | None]:
    """Query some of the images `records`.

    Returns those of the most frequent size that have a label, and how stored outputs were rounded. Outputs with errors
    are left out: the attack reports them.
    """
    reads = source.predictor.reads_images
    found: dict[tuple, list[tuple]] = {}
    stored: list[np.ndarray] = []
    for answer in replace(source, records=choose(records, PROBE[reads]), references=()).answers():
        record, output = answer.record, answer.output.numpy()
        if not reads:
            stored.append(output.ravel()[:: -(-output.size // VALUES)])
        if not record.label.is_file() or output.ndim != 3 or not 0 <= output.min() <= output.max() < np.inf:
            continue
        label = record.load_label()
        stride = source.stride or source.predictor.stride or infer_stride(label.shape, output.shape[1:])
        label = label[::stride, ::stride]
        if label.shape == output.shape[1:] and not (label[label != VOID] >= len(output)).any():
            predicted, step = output.argmax(axis=0).astype(np.uint8), -(-label.size // POSITIONS)
            turned = {name: _accuracy(predicted, turn(label)) for name, turn in ({"": lambda a: a} | TURNS).items()
                      if turn(label).shape == label.shape}
            found.setdefault(output.shape, []).append((record.name, predicted.ravel()[::step], label.ravel()[::step],
                                                       turned))
    rounding = describe_rounding(np.concatenate(stored)) if stored else None
    if not found:
        return None, rounding
    shape, images = max(found.items(), key=lambda item: len(item[1]))
    names, predicted, labels, turned = zip(*images, strict=True)
    return Probe(list(names), np.stack(predicted), np.stack(labels), shape[0],
                 {name: np.array([one[name] for one in turned]) for name in turned[0]}), rounding


def _accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Share of the labelled positions whose prediction is right; 0 without labelled positions."""
    known = label != VOID
    return float(((predicted == label) & known).sum() / max(1, known.sum()))


def check_turned(probe: Probe, fit: np.ndarray, side: str) -> None:
    """Raise `UserError` if mirrored or transposed labels fit well, and clearly better than the labels as they are.

    `fit`: result of `compare_all`.
    """
    name = max(probe.turned, key=lambda turn: probe.turned[turn].mean())
    best, chance = probe.turned[name].mean(), _others(fit).mean()
    if best > probe.turned[""].mean() + TURNED and best - chance > AGREEMENT * (1 - chance):
        raise UserError(f"the outputs of {side} fit their labels better if one of both is {name}; store both as the "
                        "image is seen, as (C, H, W) and (H, W)")


def check_classes(probe: Probe, side: str) -> None:
    """Raise `UserError` if another order of the classes agrees with the labels, and the present one does not.

    The agreement is that of Cohen's kappa: the accuracy above chance, divided by the highest possible.
    """
    matrix = confusion(probe.predicted, probe.labels, probe.classes)
    share = matrix / max(1, matrix.sum())
    above = share - np.outer(share.sum(1), share.sum(0))
    rows, columns = linear_sum_assignment(-above)
    perfect = 1 - (share.sum(1) ** 2).sum()
    best, own = above[rows, columns].sum(), np.trace(above)
    if best > AGREEMENT * perfect and best > 2 * own:
        moved = [(row, column) for row, column in zip(rows, columns, strict=True) if row != column]
        row, column = max(moved, key=lambda pair: above[pair])
        raise UserError(f"the classes of outputs and labels seem to be in different orders: label {row} of {side} "
                        f"mostly has output {column}; check that the labels hold the train ids of the model")


def _others(fit: np.ndarray) -> np.ndarray:
    """Mean pixel accuracy (n,) of each output with the labels of the other images."""
    return (fit.sum(1) - np.diag(fit)) / (len(fit) - 1)


def check_images(probe: Probe, fit: np.ndarray, side: str) -> None:
    """Raise `UserError` if several outputs fit the labels of other images, and not their own.

    `fit`: result of `compare_all`. Warns if the outputs fit their own labels no better than those of other images.
    """
    rows, columns = linear_sum_assignment(-fit)
    own, best, others = np.diag(fit), fit[rows, columns], _others(fit)
    misplaced = (best > own + MISPLACED) & (best - others > AGREEMENT * (1 - others))
    if misplaced.sum() >= max(3, 0.05 * len(own)):
        first = int(np.flatnonzero(misplaced)[0])
        raise UserError(f"{misplaced.sum()} of {len(own)} outputs of {side} seem to belong to other images: that of "
                        f"{probe.names[first]} fits the label of {probe.names[columns[first]]}; check the order in "
                        "which outputs and labels were stored")
    clearer = own.mean() - others.mean() > CLEARLY
    if not clearer and not ttest_1samp(own - others, 0, alternative="greater").pvalue < 0.01:
        warn_once(f"the outputs of {side} fit the labels of their own images (pixel accuracy {100 * own.mean():.1f} %) "
                  f"no better than those of other images ({100 * others.mean():.1f} %); check that model, labels and "
                  "classes belong together")


def compare_all(probe: Probe) -> np.ndarray:
    """Pixel accuracy (n, n) of each output with each label."""
    hits = np.zeros((len(probe.names),) * 2, np.float32)
    for number in range(probe.classes):
        hits += (probe.predicted == number).astype(np.float32) @ (probe.labels == number).T.astype(np.float32)
    return hits / np.maximum(1, (probe.labels != VOID).sum(1))


def significant_bits(values: np.ndarray) -> int:
    """The largest number of bits that a value float32 needs for its significand: 11 or fewer if all are float16."""
    whole = np.ldexp(np.frexp(values.astype(np.float32))[0], 24).astype(np.int64)
    lowest = np.bitwise_or.reduce(whole, axis=None)
    return 24 - (int(lowest & -lowest).bit_length() - 1) if lowest else 0


def describe_rounding(values: np.ndarray) -> str:
    """How posteriors float32 (n,) were changed: set to 0 or 1, rounded, clipped from below, mostly set to 0, or not."""
    values = np.where(values <= TINY, 0, values)  # the smallest float16 stands for a 0 that was stored as float16
    if ((values == 0) | (values == 1)).all():
        return "one-hot"
    for decimals in DECIMALS:
        scaled = values.astype(float) * 10**decimals
        if (abs(scaled - scaled.round()) < 0.01).all():
            return f"rounded to {decimals} decimals"
    bits, smallest = significant_bits(values), values.min()
    changes = [f"rounded to {bits} bits"] if bits <= HALF_BITS else []
    if smallest > 1e-6 and (values == smallest).mean() > 0.05 and len(np.unique(values)) > DISTINCT:
        changes.append(f"clipped at {smallest:.2g}")
    if (values == 0).mean() > 0.5:
        changes.append("mostly 0")
    return " and ".join(changes) or "not rounded"
