"""Check on a few images that outputs, labels and classes belong together, before an attack computes anything.

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
POSITIONS = 4096  # of an image, at most
SMALLEST = 4  # images; with fewer, nothing is said about their order
AGREEMENT = 0.4  # kappa that another order of the classes must reach
IMAGE_GAIN = 0.05  # pixel accuracy that another order of the images must gain
HALF_BITS = 11  # significant bits of a float16


@dataclass(frozen=True)
class Probe:
    """Predicted classes and labels (n, P) of images of equal size, the precision of the outputs, and their sides."""

    names: list[str]
    predicted: np.ndarray
    labels: np.ndarray
    classes: int


def check_alignment(source: Source) -> None:
    """Compare the outputs of the first images of each side with their labels, and with those of other images.

    Raises `UserError` if another order of the classes, or of the images, fits clearly better, or if the outputs of only
    one side were rounded to half precision. Warns if the outputs fit their own labels no better than others.
    """
    probe, bits = read_probe(source)
    if bits.keys() == {True, False} and min(bits.values()) <= HALF_BITS < max(bits.values()):
        side, other = ("members", "non-members") if bits[True] < bits[False] else ("non-members", "members")
        raise UserError(f"the posteriors of the {side} were rounded to {min(bits.values())} bits, and those of the "
                        f"{other} were not, so an attack would recognise the rounding; store both in the same way")
    if not probe:
        return
    check_classes(probe)
    if len(probe.names) >= SMALLEST:
        check_images(probe)


def read_probe(source: Source) -> tuple[Probe | None, dict[bool, int]]:
    """Query the first images of each side.

    Returns those of the most frequent size that have a label, and the significant bits of the stored outputs of each
    side. Outputs with errors are left out: the attack reports them.
    """
    count, reads = PROBE[source.predictor.reads_images], source.predictor.reads_images
    chosen = [record for side in (True, False) for record in [r for r in source.records if r.member is side][:count]]
    found: dict[tuple, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    bits: dict[bool, int] = {}
    for answer in replace(source, records=chosen, references=()).answers():
        record, output = answer.record, answer.output.numpy()
        if not reads:
            bits[record.member] = max(bits.get(record.member, 0), significant_bits(output))
        if not record.label.is_file() or output.ndim != 3 or not 0 <= output.min() <= output.max() < np.inf:
            continue
        label = record.load_label()
        stride = source.stride or source.predictor.stride or infer_stride(label.shape, output.shape[1:])
        label = label[::stride, ::stride]
        if label.shape == output.shape[1:] and not (label[label != VOID] >= len(output)).any():
            step = -(-label.size // POSITIONS)
            found.setdefault(output.shape, []).append((record.name, output.argmax(axis=0).ravel()[::step],
                                                       label.ravel()[::step]))
    if not found:
        return None, bits
    shape, images = max(found.items(), key=lambda item: len(item[1]))
    names, predicted, labels = zip(*images, strict=True)
    return Probe(list(names), np.stack(predicted), np.stack(labels), shape[0]), bits


def check_classes(probe: Probe) -> None:
    """Raise `UserError` if another order of the classes agrees with the labels, and the present one does not.

    The agreement is that above chance, i.e. above that of predictions which do not depend on the label, as a share of
    that of perfect predictions (as in Cohen's kappa).
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
    """Raise `UserError` if the outputs fit the labels of other images better. Warns if they fit all labels equally."""
    known = probe.labels != VOID
    fit = np.stack([((one == probe.labels) & known).sum(1) / np.maximum(1, known.sum(1)) for one in probe.predicted])
    rows, columns = linear_sum_assignment(-fit)
    own, moved = np.diag(fit), rows != columns
    if fit[rows, columns].mean() > own.mean() + IMAGE_GAIN and 2 * moved.sum() > len(own):
        first = int(np.flatnonzero(moved)[0])
        raise UserError(f"the outputs seem to belong to other images: that of {probe.names[first]} fits the label of "
                        f"{probe.names[columns[first]]}; check the order in which outputs and labels were stored")
    others = (fit.sum(1) - own) / (len(own) - 1)
    if not ttest_1samp(own - others, 0, alternative="greater").pvalue < 0.01 and is_main():
        print(f"warning: the outputs fit the labels of their own images (pixel accuracy {100 * own.mean():.1f} %) no "
              f"better than those of other images ({100 * others.mean():.1f} %); check that model, labels and classes "
              "belong together", file=sys.stderr)


def significant_bits(values: np.ndarray) -> int:
    """The largest number of bits that a value float32 needs for its significand: 11 or fewer if all are float16."""
    whole = np.ldexp(np.frexp(values.astype(np.float32))[0], 24).astype(np.int64)
    lowest = np.bitwise_or.reduce(whole, axis=None)
    return 24 - (int(lowest & -lowest).bit_length() - 1) if lowest else 0
