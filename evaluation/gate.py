"""Does a model segment the images at all? Asked before any metric, because a wrong input gives a wrong "no leak".

A few images of each side are queried. Their mIoU must exceed that of the best constant answer by the share `MARGIN` of
what is missing to 1: a model that gets a wrong input often answers with one or two classes, whatever it sees. A model
may pass this and still get a wrong input, such as swapped colours. So the usual repairs are tried, and one that raises
the mIoU by more than `GAIN`, on three quarters of the images, is the cause. A right input has no such repair, because
the model was trained on it.

The softmax does not change which class is largest, so no mIoU shows it. It is told from the values.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from evaluation.metrics import confusion, mean_iou
from predictors.base import Predictor, Query, Record
from predictors.classes import merge_channels
from predictors.foreign import ForeignPredictor
from predictors.preprocess import IMAGENET, TOLERANCE, Preprocess
from utils import VOID
from utils.cli import UserError

IMAGES = 4  # images of each side
MARGIN = 0.05
GAIN = 0.05  # in mIoU
WORTH = 0.02  # gain in mIoU for which a second change is made
NORMALISATIONS = {  # plain words -> entries of a `Preprocess`
    "inputs in 0..1 without normalisation": {"scale": 1, "mean": None, "std": None},
    "the normalisation of ImageNet": {"scale": 1} | IMAGENET,
    "inputs in 0..255": {"scale": 255, "mean": None, "std": None},
    "inputs in -1..1": {"scale": 1, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}}


@dataclass(frozen=True)
class Finding:
    """What the gate found.

    `miou`: of the model as it is given, in 0..1; `constant`: that of the best constant answer; `images`: how many were
    queried. `cause`: what is wrong, in plain words ("": nothing). `repair`: entries of --preprocess that mend it
    (empty: there are none); `mended`: the mIoU with them (None: it does not change, or nothing mends it).
    """

    miou: float
    constant: float
    images: int
    cause: str = ""
    repair: Mapping[str, object] = field(default_factory=dict)
    mended: float | None = None

    @property
    def bound(self) -> float:
        """The mIoU that a model must exceed."""
        return self.constant + MARGIN * (1 - self.constant)

    def __str__(self) -> str:
        text = (f"mIoU {100 * self.miou:.1f} on {self.images} images (a constant answer: {100 * self.constant:.1f})"
                f"{'; ' if self.cause else ''}{self.cause}")
        if self.mended is not None:
            text += f"; with the repair the mIoU is {100 * self.mended:.1f}"
        return text + (f"; give --preprocess FILE with {json.dumps(self.repair)}" if self.repair else "")


@dataclass(frozen=True)
class _Variant:
    """A change of what the model gets, or of the meaning of its classes. `places`: see `merge_channels`.

    `matrices`: a confusion matrix for each image.
    """

    words: tuple[str, ...]
    changes: Mapping[str, object]
    places: tuple[int, ...]
    matrices: Sequence[np.ndarray]

    @property
    def miou(self) -> float:
        return mean_iou(np.sum(self.matrices, axis=0))

    @property
    def worth(self) -> float:
        return self.miou - WORTH * len(self.words)


def check_segments(predictor: Predictor, records: Sequence[Record], count: int = IMAGES) -> Finding:
    """The finding of `examine`. Raises `UserError` with the cause and the repair if something is wrong."""
    finding = examine(predictor, records, count)
    if finding.cause:
        raise UserError(f"{predictor.where}: {finding}")
    return finding


def examine(predictor: Predictor, records: Sequence[Record], count: int = IMAGES) -> Finding:
    """Query a model about `count` images of each side, spread over `records`, and look for what is wrong.

    A model of another library is also queried with other inputs, seven times at most. Raises `UserError` for labels
    that cannot be read, and if no record has one.
    """
    queries = [Query(record, record.load_image() if predictor.reads_images else None)
               for record in _spread(records, count)]
    if not queries:
        raise UserError(f"{predictor.where}: none of the images has a label, so it cannot be checked whether the model "
                        "segments them; give masks")
    labels = [query.record.load_label() for query in queries]
    outputs = _ask(predictor, queries, predictor.preprocess) if _prepares(predictor) else []
    if not _prepares(predictor):  # the first answer may have said so
        outputs = predictor.predict(queries)
    kind = _kind(predictor, outputs)
    variants = list(_variants(predictor, queries, outputs, labels, kind[1] if kind else {}))
    given, best = variants[0], max(variants, key=lambda variant: variant.worth)
    finding = Finding(given.miou, _constant(given.matrices), len(queries))
    gains = [mean_iou(mended) > mean_iou(before)
             for mended, before in zip(best.matrices, given.matrices, strict=True)]
    if best.miou > max(given.miou + GAIN, finding.bound) and np.mean(gains) >= 0.75:
        words = [*([kind[0]] if kind else ()), *best.words]
        changes = (kind[1] if kind else {}) | _repair(predictor, best)
        return Finding(finding.miou, finding.constant, finding.images, "; and ".join(words), changes, best.miou)
    if kind:
        return Finding(finding.miou, finding.constant, finding.images, *kind)
    if finding.miou <= finding.bound:
        return Finding(finding.miou, finding.constant, finding.images,
                       "the model does not segment these images, and no usual repair of input or classes mends it. It "
                       "may have other classes than the masks, in another order, or be the wrong model")
    return finding


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` records of each side that have a label, spread evenly over them."""
    found = []
    for member in dict.fromkeys(record.member for record in records):
        side = [record for record in records if record.member is member and record.label.is_file()]
        found += side[:: max(1, len(side) // count)][:count]
    return found


def _constant(matrices: Sequence[np.ndarray]) -> float:
    """The mIoU of answering the most frequent class everywhere: its share, over the number of classes in the labels."""
    shares = np.sum(matrices, axis=0).sum(axis=1)
    return float(shares.max() / max(shares.sum(), 1) / max((shares > 0).sum(), 1))


def _prepares(predictor: Predictor) -> bool:
    """Whether a model can be shown differently prepared images."""
    return isinstance(predictor, ForeignPredictor) and predictor.prepares


def _ask(predictor: ForeignPredictor, queries: Sequence[Query], preprocess: Preprocess) -> list[torch.Tensor]:
    """The outputs of a model as they are, for images that `preprocess` prepared."""
    return [predictor.ask(query, preprocess).float() for query in queries]


def _kind(predictor: Predictor, outputs: Sequence[torch.Tensor]) -> tuple[str, dict[str, object]] | None:
    """What is wrong with the values of the outputs, in words, and the entries that repair it. None: nothing."""
    if _prepares(predictor):
        low, high = min(float(raw.min()) for raw in outputs), max(float(raw.max()) for raw in outputs)
        inside = low >= -TOLERANCE and high <= 1 + TOLERANCE
        if predictor.preprocess.output == "posterior" and not inside:
            return (f"the softmax is missing: the outputs have values from {low:.3g} to {high:.3g}, so they are "
                    "logits", {"output": "logits"})
        if predictor.preprocess.output != "posterior" and inside:
            return ("the softmax or sigmoid is applied twice: the outputs have values in 0..1 only, so they are "
                    "posteriors already", {"output": "posterior"})
        if predictor.preprocess.layout == "nhwc":
            outputs = [raw.permute(2, 0, 1) for raw in outputs]
        if predictor.preprocess.output != "posterior":
            return None
    if all(_is_flat(output) for output in outputs):
        return ("the softmax is applied twice: no posterior is more than e = 2.72 times another one of its position, "
                "as in a softmax of posteriors; remove one softmax from the model", {})
    return None


def _is_flat(posterior: torch.Tensor) -> bool:
    """Whether a posterior (C, h, w) of several classes looks like a softmax of a posterior."""
    if len(posterior) < 2:
        return False
    ratio = (posterior.amax(dim=0) / posterior.amin(dim=0).clamp_min(1e-12)).max()
    return bool(1.5 < ratio <= math.e * 1.02)


def _variants(predictor: Predictor, queries: Sequence[Query], outputs: Sequence[torch.Tensor],
              labels: Sequence[np.ndarray], changes: Mapping[str, object]) -> Iterator[_Variant]:
    """The model as it is, which gave `outputs`, and with each repair. `changes`: entries that it needs in any case."""
    if not _prepares(predictor):
        yield from _shifted((), {}, outputs, labels)
        return
    given = predictor.preprocess.changed(changes)
    for words, entries in _inputs(given):
        preprocess = given.changed(entries)
        raws = _ask(predictor, queries, preprocess) if entries else outputs
        posteriors = [preprocess.posterior(raw, query.image.shape[:2], predictor.stride).cpu()
                      for raw, query in zip(raws, queries, strict=True)]
        yield from _shifted(words, entries, posteriors, labels)


def _inputs(given: Preprocess) -> Iterator[tuple[tuple[str, ...], dict[str, object]]]:
    """Other inputs than the given one, which comes first: other normalisations, swapped colours, and both."""
    orders = [((), {})]
    if given.channels in ("rgb", "bgr"):
        order = given.channels[::-1]
        orders.append(((f"the model wants the colours in the order {order.upper()}",), {"channels": order}))
    scales = [] if len(given.channels) != 3 else [
        ((f"the normalisation is wrong: the model wants {words}",), entries)
        for words, entries in NORMALISATIONS.items() if given.changed(entries) != given]
    for words, entries in [((), {}), *scales]:
        for more, order in orders:
            yield (*words, *more), entries | order


def _shifted(words: tuple[str, ...], changes: Mapping[str, object], outputs: Sequence[torch.Tensor],
             labels: Sequence[np.ndarray]) -> Iterator[_Variant]:
    """The variants of an input with the classes as they are, and shifted by one."""
    count = len(outputs[0])
    same = tuple(range(count))
    shifts = [((), same),
              (("the classes are shifted by one: the model has one more class first, such as background",),
               (VOID, *same[:-1])),
              (("the classes are shifted by one: the first class of the model is the last one of the masks",),
               (count - 1, *same[:-1])),
              (("the classes are shifted by one: the last class of the model is the first one of the masks",),
               (*same[1:], 0)),
              (("the classes are shifted by one: the masks have one more class first, such as background; make it void "
                "and lower the other ids by one, with --label-map",), (*same[1:], count))]
    size = 1 + max(count, *(int(label[label != VOID].max(initial=0)) for label in labels))
    for more, places in shifts:
        if count == 2 and VOID in places:  # one class would be left
            continue
        kept = 1 + max(place for place in places if place != VOID)
        matrices = [_confusion(merge_channels(output, places, kept), label, size)
                    for output, label in zip(outputs, labels, strict=True)]
        yield _Variant((*words, *more), changes, places, matrices)


def _confusion(posterior: torch.Tensor, label: np.ndarray, size: int) -> np.ndarray:
    """Confusion matrix (size, size) of a posterior (C, h, w) and a label at full size."""
    stride = -(-label.shape[0] // posterior.shape[1])
    small = label[::stride, ::stride]
    if small.shape != posterior.shape[1:]:
        raise UserError(f"an output has {posterior.shape[1]} x {posterior.shape[2]} positions, and its label "
                        f"{label.shape[0]} x {label.shape[1]}; give masks of the size of the images")
    return confusion(posterior.argmax(dim=0).numpy(), small, size)


def _repair(predictor: Predictor, best: _Variant) -> dict[str, object]:
    """The entries of --preprocess for a variant. Empty if the change of the classes cannot be written as entries."""
    if not isinstance(predictor, ForeignPredictor):
        return {}
    entries = dict(best.changes)
    count = len(best.places)
    if best.places != tuple(range(count)):
        if count in best.places:  # the masks have a class that the model lacks
            return entries
        entries["classes"] = [VOID if one == VOID else best.places[one]
                              for one in predictor.preprocess.classes or range(count)]
    return entries
