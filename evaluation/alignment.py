"""Check on a few images that outputs, labels and classes belong together, before an attack begins.

The labels of other images are the control: a model fits the label of its own image better, in the order of its classes.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import ttest_1samp

from evaluation.metrics import confusion
from predictors.samples import Source
from predictors.stored import infer_stride
from utils import VOID
from utils.cli import UserError
from utils.distributed import is_main

PROBE = {False: 32, True: 8}  # images of each side, of stored outputs and of a model that is queried
POSITIONS, VALUES = 4096, 16384  # of an image, at most
SMALLEST = 4  # images; with fewer, nothing is said about their order
AGREEMENT = 0.4  # above chance, that another order of the classes or of the images must reach
HALF_BITS = 11  # significant bits of a float16
DECIMALS = (1, 2, 3, 4, 5)  # to which posteriors may have been rounded


@dataclass(frozen=True)
class Probe:
    """Predicted classes and labels (n, P) of images of equal size, with their names."""

    names: list[str]
    predicted: np.ndarray
    labels: np.ndarray
    classes: int


def check_alignment(source: Source) -> None:
    """Compare the outputs of the first images of each side with their labels, and with those of other images.

    Raises `UserError` if another order of the classes, or of the images, fits clearly better, or if the stored outputs
    of the two sides were rounded differently. Warns if the outputs fit their own labels no better than others.
    """
    if source.predictor.kind != "posterior":
        return
    probe, rounding = read_probe(source)
    if rounding.keys() == {True, False} and rounding[True] != rounding[False]:
        raise UserError(f"the posteriors of members are {rounding[True]}, and those of non-members {rounding[False]}, "
                        "so an attack would recognise the rounding; store both sides in the same way")
    if not probe:
        return
    check_classes(probe)
    if len(probe.names) >= SMALLEST:
        check_images(probe)


def read_probe(source: Source) -> tuple[Probe | None, dict[bool, str]]:
    """Query the first images of each side.

    Returns those of the most frequent size that have a label, and how the stored outputs of each side were rounded.
    Outputs with errors are left out: the attack reports them.
    """
    count, reads = PROBE[source.predictor.reads_images], source.predictor.reads_images
    chosen = [record for side in (True, False) for record in [r for r in source.records if r.member is side][:count]]
    found: dict[tuple, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    stored: dict[bool, list[np.ndarray]] = {}
    for answer in replace(source, records=chosen, references=()).answers():
        record, output = answer.record, answer.output.numpy()
        if not reads:
            stored.setdefault(record.member, []).append(output.ravel()[:: -(-output.size // VALUES)])
        if not record.label.is_file() or output.ndim != 3 or not 0 <= output.min() <= output.max() < np.inf:
            continue
        label = record.load_label()
        stride = source.stride or source.predictor.stride or infer_stride(label.shape, output.shape[1:])
        label = label[::stride, ::stride]
        if label.shape == output.shape[1:] and not (label[label != VOID] >= len(output)).any():
            step = -(-label.size // POSITIONS)
            found.setdefault(output.shape, []).append((record.name, output.argmax(axis=0).ravel()[::step],
                                                       label.ravel()[::step]))
    rounding = {side: describe_rounding(np.concatenate(values)) for side, values in stored.items()}
    if not found:
        return None, rounding
    shape, images = max(found.items(), key=lambda item: len(item[1]))
    names, predicted, labels = zip(*images, strict=True)
    return Probe(list(names), np.stack(predicted), np.stack(labels), shape[0]), rounding


def check_classes(probe: Probe) -> None:
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
        raise UserError(f"the classes of outputs and labels seem to be in different orders: label {row} mostly has "
                        f"output {column}; check that the labels hold the train ids of the model")


def check_images(probe: Probe) -> None:
    """Raise `UserError` if the outputs fit the labels of other images, and not their own.

    Warns if they fit their own labels no better than those of other images.
    """
    known = probe.labels != VOID
    fit = np.stack([((one == probe.labels) & known).sum(1) / np.maximum(1, known.sum(1)) for one in probe.predicted])
    rows, columns = linear_sum_assignment(-fit)
    own, moved = np.diag(fit), rows != columns
    others = (fit.sum(1) - own) / (len(own) - 1)
    chance = others.mean()
    if fit[rows, columns].mean() - chance > max(AGREEMENT * (1 - chance), 2 * (own.mean() - chance)):
        first = int(np.flatnonzero(moved)[0])
        raise UserError(f"the outputs seem to belong to other images: that of {probe.names[first]} fits the label of "
                        f"{probe.names[columns[first]]}; check the order in which outputs and labels were stored")
    if not ttest_1samp(own - others, 0, alternative="greater").pvalue < 0.01 and is_main():
        print(f"warning: the outputs fit the labels of their own images (pixel accuracy {100 * own.mean():.1f} %) no "
              f"better than those of other images ({100 * others.mean():.1f} %); check that model, labels and classes "
              "belong together", file=sys.stderr)


def significant_bits(values: np.ndarray) -> int:
    """The largest number of bits that a value float32 needs for its significand: 11 or fewer if all are float16."""
    whole = np.ldexp(np.frexp(values.astype(np.float32))[0], 24).astype(np.int64)
    lowest = np.bitwise_or.reduce(whole, axis=None)
    return 24 - (int(lowest & -lowest).bit_length() - 1) if lowest else 0


def describe_rounding(values: np.ndarray) -> str:
    """How float32 values (n,) were rounded: to half precision or less, to decimals, or not."""
    for decimals in DECIMALS:
        scaled = values.astype(float) * 10**decimals
        if (abs(scaled - scaled.round()) < 0.01).all():
            return f"rounded to {decimals} decimals"
    bits = significant_bits(values)
    return f"rounded to {bits} bits" if bits <= HALF_BITS else "not rounded"
