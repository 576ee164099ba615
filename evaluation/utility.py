"""The utility of the segmentation under a defense: mIoU of the posteriors that are attacked."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from attacks.sample import Sample
from evaluation.metrics import confusion, mean_iou
from utils.cli import UserError


def record_confusion(samples: Iterable[Sample], matrices: dict[bool, np.ndarray]) -> Iterator[Sample]:
    """Pass `samples` on, and add each to the confusion matrix (C, C) of members or non-members in `matrices`.

    Samples without a label map (h, w) are not counted.
    """
    for sample in samples:
        if sample.truth is not None and sample.truth.ndim == 2:
            matrix = confusion(sample.output.argmax(dim=0).numpy(), sample.truth.numpy(), sample.output.shape[0])
            matrices[sample.member] = add([matrices.get(sample.member, 0 * matrix), matrix])
        yield sample


def add(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of confusion matrices. Raises `UserError` if they have different numbers of classes."""
    if len(classes := sorted({len(matrix) for matrix in matrices})) > 1:
        raise UserError(f"some posteriors have {classes[0]} classes and some {classes[1]}; attack them separately")
    return np.sum(matrices, axis=0)


def miou(parts: Iterable[dict[bool, np.ndarray]]) -> dict[str, float | None]:
    """mIoU in 0..1 of members ("in") and of non-members ("out"), at the positions of the posteriors.

    A value is None if no sample of its side has a label.
    """
    parts = list(parts)
    sides = {name: [matrices[member] for matrices in parts if member in matrices]
             for name, member in (("in", True), ("out", False))}
    return {name: mean_iou(add(matrices)) if matrices else None for name, matrices in sides.items()}
