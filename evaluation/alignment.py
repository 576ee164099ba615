"""Check on some images that outputs, labels and classes belong together, before an attack begins.

The labels of other images are the control: a model fits the label of its own image better, in the order of its classes.
Members and non-members are checked separately, so that an error on one side does not hide behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.stats import ttest_1samp

from evaluation.forms import Excerpt, Form, compare_forms, find_form
from evaluation.metrics import confusion
from predictors import file_of
from predictors.base import Predictor, Record, predict_records
from predictors.classes import ClassView
from predictors.reference import Reference
from predictors.samples import Source
from predictors.stored import infer_stride
from utils import VOID
from utils.cli import UserError
from utils.distributed import warn_once
from utils.files import fingerprint

PROBE = {False: 200, True: 12}  # images of each side, of outputs on disk and of a model at hand
COMPARED = 2  # images of each side on which models are compared
EQUAL = 0.01  # mean absolute difference over all classes; bf16 changes posteriors by 0.005, another training by 0.12
SHARE, STORED = 0.05, 2e-4  # the same as a share of the uncertainty of an output; and the change by float16
RUN = 4  # images in a row, of which probes consist, so that outputs of the next image can be found
POSITIONS = 2048  # of an image, at most
FREQUENT = 20  # images of each side that must have a class, so that its outputs are compared between the sides
SMALLEST = 4  # images; with fewer, nothing is said about their order
AGREEMENT = 0.4  # above chance, that another order of the classes or of the images must reach
MISPLACED = 0.15  # pixel accuracy by which the label of another image must fit better
CLEARLY = 0.1  # pixel accuracy by which own labels fit clearly better; few images then need no test
TURNED = 0.05  # pixel accuracy by which mirrored labels must fit better
SHIFTS = tuple((axis, sign * step) for axis in (0, 1) for step in (1, 2, 4, 8) for sign in (1, -1))  # in positions
SHIFTED, SHIFTED_BOTH = 0.003, 0.02  # pixel accuracy that a shift of one side, or of both, must gain
LARGEST = 512  # rows and columns of a map that are shifted
CERTAIN = 1e-4  # p-value of that
RARE = 0.002  # share of the positions; rarer classes are not compared
THUMBNAIL = 16  # rows and columns to which translated images are reduced
BETTER = 0.8  # of the error on own ground truths, below which that on others is clearly better
TURNS = {"mirrored left to right": lambda label: label[:, ::-1], "upside down": lambda label: label[::-1],
         "transposed": lambda label: label.T}


@dataclass(frozen=True)
class Probe:
    """Predicted classes and labels (n, P) of images of one side and of equal size, with their names.

    `turned`: pixel accuracy with the label as it is, and under each of `TURNS` that keeps its shape: name -> (n,).
    `shifted`: pixel accuracy under each of `SHIFTS`, minus that without a shift, (n, 16).
    """

    names: list[str]
    predicted: np.ndarray
    labels: np.ndarray
    classes: int
    turned: dict[str, np.ndarray]
    shifted: np.ndarray


def check_models(source: Source, others: Sequence[tuple[str, Predictor, ClassView | None]]) -> None:
    """Check the outputs of the target model and of other models on the same images. `others`: (name, predictor, view).

    Raises `UserError` if two models give equal outputs, so that one model plays two roles, and as `check_alignment`.
    """
    check_alignment(source)
    for name, predictor, view in others:
        check_alignment(replace(source, predictor=predictor, view=view), name)
    if not others:
        return
    names = ["the target model", *(name for name, *_ in others)]
    outputs = _some_outputs(source, [predictor for _, predictor, _ in others])
    for (first, one), (second, other) in combinations(zip(names, outputs, strict=True), 2):
        if all(map(_equal, one, other)):
            raise UserError(f"{first} and {second} give equal outputs, so they are one model; references and a control "
                            "must be other models than the target, and each is given once")


def other_models(source: Source, references: Sequence[Reference]) -> list[Reference]:
    """The references that are another model than that of `source`: another file, and other outputs for some images."""
    file = file_of(source.predictor.where)
    others = [one for one in references if not (file and (other := file_of(one.predictor.where))
                                                and fingerprint([file]) == fingerprint([other]))]
    own, *outputs = _some_outputs(source, [one.predictor for one in others])
    return [one for one, output in zip(others, outputs, strict=True) if not all(map(_equal, own, output))]


def _some_outputs(source: Source, others: Sequence[Predictor]) -> list[tuple[torch.Tensor, ...]]:
    """Outputs of the model of `source` and of others for the first `COMPARED` images of each side, model by model."""
    records = [record for member in (True, False)
               for record in [one for one in source.records if one.member is member][:COMPARED]]
    return list(zip(*((answer.output, *answer.others) for answer in predict_records(
        source.predictor, records, others=others)), strict=True))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs (C, h, w) differ by no more than by the precision in which they were computed or stored.

    Rounding changes uncertain positions most. So the difference is compared with the uncertainty of the output: where
    most positions are certain, as those of a background, two models differ little, too.
    """
    if one.shape != other.shape:
        return False
    allowed = min(EQUAL, SHARE * float((1 - one.amax(0)).mean()) + STORED)
    return float((one - other).abs().sum(0).mean()) < allowed


def check_alignment(source: Source, model: str = "") -> None:
    """Compare the outputs of some images of each side with their labels, and with those of other images.

    Raises `UserError` if another order of the classes or of the images, or mirrored labels, fit clearly better, or if
    the stored outputs of the two sides were changed or shifted differently. Warns if outputs fit all labels equally.
    `model`: name of the model for messages, if it is not the target model.
    """
    whose = f" ({model})" if model else ""
    if source.predictor.kind == "image":
        for member, side in ((True, f"members{whose}"), (False, f"non-members{whose}")):
            check_translations(source, [record for record in source.records if record.member is member], side)
        return
    probes, forms = [], []
    for member, side in ((True, f"members{whose}"), (False, f"non-members{whose}")):
        probe, form = read_probe(source, [record for record in source.records if record.member is member])
        forms.append(form)
        if not probe:
            continue
        probes.append(probe)
        fit = compare_all(probe) if len(probe.names) >= SMALLEST else None
        if fit is not None:
            check_turned(probe, fit, side)
        check_classes(probe, side)
        if fit is not None:
            check_images(probe, fit, side)
            check_classes_of_images(probe, fit, side)
    if all(forms):
        compare_forms(*forms, whose)
    if len(probes) == 2:
        compare_classes(*probes, whose)
        if min(len(probe.names) for probe in probes) >= SMALLEST:
            compare_shifts(*probes, whose)


def check_translations(source: Source, records: Sequence[Record], side: str) -> None:
    """Raise `UserError` if the translated images of a side fit the ground truths of other images clearly better."""
    chosen = choose(records, PROBE[source.predictor.reads_images or source.predictor.cached])
    if len(chosen) < SMALLEST:
        return
    small = [[F.adaptive_avg_pool2d(image, THUMBNAIL).flatten() for image in images] for images in zip(*(
        (answer.output, torch.from_numpy(answer.record.load_truth()))
        for answer in replace(source, records=chosen, references=()).answers()), strict=True)]
    errors = torch.cdist(*map(torch.stack, small), p=1).numpy()
    rows, columns = linear_sum_assignment(errors)
    if 2 * (rows == columns).sum() < len(chosen) and errors[rows, columns].sum() < BETTER * errors.trace():
        raise UserError(f"the outputs of {side} fit the ground truths of other images better than their own; check "
                        "that input, output and ground truth of an image have one name")


def choose(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` records: runs of `RUN` neighbours that are spread evenly."""
    if len(records) <= count:
        return list(records)
    starts = np.linspace(0, len(records) - RUN, count // RUN).astype(int)
    return [records[index] for index in sorted({start + step for start in starts for step in range(RUN)})]


def read_probe(source: Source, records: Sequence[Record]) -> tuple[Probe | None, Form | None]:
    """Query some of the images `records`.

    Returns those of the most frequent size that have a label, and the form of stored outputs. Outputs with errors are
    left out: the attack reports them.
    """
    reads = source.predictor.reads_images or source.predictor.cached
    found: dict[tuple, list[tuple]] = {}
    stored: list[Excerpt] = []
    for answer in replace(source, records=choose(records, PROBE[reads]), references=()).answers():
        record, output = answer.record, answer.output.numpy()
        if not reads and output.ndim == 3 and output.size:
            stored.append(Excerpt.of(output))
        if not record.label.is_file() or output.ndim != 3 or not 0 <= output.min() <= output.max() < np.inf:
            continue
        label = record.load_label()
        stride = source.stride or source.predictor.stride or infer_stride(label.shape, output.shape[1:])
        label = label[::stride, ::stride]
        if source.view and source.label_view and len(output) == len(source.view.space):
            output, label = source.view.posterior(answer.output).numpy(), source.label_view.label(label)
        if label.shape == output.shape[1:] and not (label[label != VOID] >= len(output)).any():
            predicted, step = output.argmax(axis=0).astype(np.uint8), -(-label.size // POSITIONS)
            turned = {name: _accuracy(predicted, turn(label)) for name, turn in ({"": lambda a: a} | TURNS).items()
                      if turn(label).shape == label.shape}
            shifted = [_gain(predicted, label, axis, by) for axis, by in SHIFTS]
            found.setdefault(output.shape, []).append((record.name, predicted.ravel()[::step], label.ravel()[::step],
                                                       turned, shifted))
    form = find_form(stored) if stored else None
    if not found:
        return None, form
    shape, images = max(found.items(), key=lambda item: len(item[1]))
    names, predicted, labels, turned, shifted = zip(*images, strict=True)
    return Probe(list(names), np.stack(predicted), np.stack(labels), shape[0],
                 {name: np.array([one[name] for one in turned]) for name in turned[0]}, np.array(shifted)), form


def _gain(predicted: np.ndarray, label: np.ndarray, axis: int, by: int) -> float:
    """Pixel accuracy of predictions (h, w) that are shifted, minus that of the same positions without a shift."""
    predicted, label = (np.moveaxis(array[:LARGEST, :LARGEST], axis, 0) for array in (predicted, label))
    if abs(by) >= len(label):
        return 0.0
    kept = slice(max(by, 0), len(label) + min(by, 0))
    moved = predicted[max(-by, 0) : len(label) - max(by, 0)]
    return _accuracy(moved, label[kept]) - _accuracy(predicted[kept], label[kept])


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
    """Raise `UserError` if another order of the classes agrees with the labels, and the present one does not."""
    matrix = confusion(probe.predicted, probe.labels, probe.classes)
    if moved := exchanged(matrix, together=True) or exchanged(matrix):
        raise UserError(f"the classes of outputs and labels seem to be in different orders: label {moved[0]} of {side} "
                        f"mostly has output {moved[1]}; check that the labels hold the train ids of the model")


def check_classes_of_images(probe: Probe, fit: np.ndarray, side: str) -> None:
    """Raise `UserError` if, in several images, another order of the classes agrees with the label.

    `fit`: result of `compare_all`.
    """
    moved = {name: found for name, predicted, label in zip(probe.names, probe.predicted, probe.labels, strict=True)
             if (found := exchanged(confusion(predicted, label, probe.classes), together=True))}
    if many(np.array([name in moved for name in probe.names]), np.diag(fit) - _others(fit)):
        name, (label, output) = next(iter(moved.items()))
        raise UserError(f"the classes of outputs and labels seem to be in different orders in {len(moved)} of "
                        f"{len(probe.names)} images of {side}: label {label} of {name} mostly has output {output}; "
                        "check that each label holds the train ids of the model, and not the indices of a palette")


def many(wrong: np.ndarray, clear: np.ndarray) -> bool:
    """Whether so many images are wrong that it cannot be chance: 5 % (and three), if the others are clearly right.

    A weak model gives outputs of which some fit another label by chance. `wrong` bool (n,); `clear` (n,): by how much
    the outputs fit their own label better than those of other images.
    """
    if 2 * wrong.sum() > len(wrong):
        return True
    return wrong.sum() >= max(3, 0.05 * len(wrong)) and clear[~wrong].mean() > CLEARLY


def exchanged(matrix: np.ndarray, together: bool = False) -> tuple[int, int] | None:
    """A label and the output that it mostly has, if another order of the classes agrees with the labels.

    `matrix`: confusion matrix, labels in rows. `together`: compare all classes at once, for few positions; else each
    cycle of the best order, in which all classes that are not rare must agree. The agreement is that of Cohen's kappa:
    the accuracy above chance, divided by the highest possible.
    """
    share = matrix / max(1, matrix.sum())
    labels = share.sum(1)
    above, perfect = share - np.outer(labels, share.sum(0)), labels * (1 - labels)
    order = linear_sum_assignment(-above)[1]
    new, own = above[np.arange(len(order)), order], np.diag(above)
    for cycle in [np.arange(len(order))] if together else _cycles(order):
        kept = cycle[labels[cycle] >= RARE]
        agrees = together or (new[kept] > AGREEMENT / 2 * perfect[kept]).all()
        best = new[kept].sum()
        if len(kept) > 1 and agrees and best > AGREEMENT * perfect[kept].sum() and best > 2 * own[kept].sum():
            row = kept[new[kept].argmax()]
            return int(row), int(order[row])
    return None


def _cycles(order: np.ndarray) -> list[np.ndarray]:
    """The cycles of a permutation (n,)."""
    left, cycles = set(range(len(order))), []
    while left:
        cycle = [min(left)]
        while order[cycle[-1]] != cycle[0]:
            cycle.append(int(order[cycle[-1]]))
        left -= set(cycle)
        cycles.append(np.array(cycle))
    return cycles


def compare_classes(members: Probe, others: Probe, whose: str) -> None:
    """Warn if a class that is usually right on one side usually is another class on the other side."""
    matrices = [confusion(probe.predicted, probe.labels, probe.classes) for probe in (members, others)]
    shares = [matrix / np.maximum(1, matrix.sum(1, keepdims=True)) for matrix in matrices]
    for label in range(members.classes):
        outputs, own = [int(share[label].argmax()) for share in shares], [share[label, label] for share in shares]
        frequent = all((probe.labels == label).any(1).sum() >= FREQUENT for probe in (members, others))
        certain = min(share[label].max() for share in shares) > 0.6 and max(own) > 0.6 and min(own) < 0.02
        if frequent and certain:
            warn_once(f"label {label} mostly has output {outputs[0]} for members and {outputs[1]} for "
                      f"non-members{whose}; check the order of the classes on both sides")


def compare_shifts(members: Probe, others: Probe, whose: str) -> None:
    """Raise `UserError` if the outputs of one side fit their labels better after a shift, and those of the other worse.

    Warns if both fit much better. A small gain on both sides is usual: with a coarse stride, or a network of a coarse
    output stride, positions and labels differ by a part of a position.
    """
    gains = [probe.shifted.mean(0) for probe in (members, others)]
    for probe, own, other, side in ((members, *gains, "members"), (others, *gains[::-1], "non-members")):
        best = int(own.argmax())
        values = probe.shifted[:, best]
        certain = values.std() > 0 and ttest_1samp(values, 0, alternative="greater").pvalue < CERTAIN
        if certain and own[best] > SHIFTED and other[best] < -SHIFTED:
            raise UserError(f"the outputs of {side}{whose} fit their labels better if they are shifted "
                            f"{_show_shift(best)}, and those of the other side worse; store both sides in the same way")
    both = np.minimum(*gains)
    if both.max() > SHIFTED_BOTH:
        warn_once(f"the outputs{whose} fit their labels better if they are shifted {_show_shift(int(both.argmax()))}; "
                  "check how outputs and labels were resized")


def _show_shift(index: int) -> str:
    axis, by = SHIFTS[index]
    return f"by {abs(by)} position{'s' if abs(by) > 1 else ''} {(('up', 'down'), ('left', 'right'))[axis][by > 0]}"


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
    if many(misplaced, own - others):
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
