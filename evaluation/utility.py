"""What a defense leaves of the segmentation: mIoU of the posteriors that an attack meets."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from attacks.scoring import Example
from evaluation.metrics import confusion, mean_iou
from utils.cli import UserError


def watch(examples: Iterable[Example], matrices: dict[bool, np.ndarray]) -> Iterator[Example]:
    """Pass `examples` on, each counted in the confusion matrix (C, C) of members or of non-members."""
    for example in examples:
        predicted = example.posterior.argmax(dim=0).numpy()
        matrix = confusion(predicted, example.label.numpy(), example.posterior.shape[0])
        matrices[example.member] = add([matrices.get(example.member, 0 * matrix), matrix])
        yield example


def add(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of confusion matrices; `UserError` where they are of different numbers of classes."""
    if len(classes := sorted({len(matrix) for matrix in matrices})) > 1:
        raise UserError(f"some posteriors have {classes[0]} classes and some {classes[1]}; attack them one by one")
    return np.sum(matrices, axis=0)


def miou(parts: Iterable[dict[bool, np.ndarray]]) -> dict[str, float]:
    """{"in", "out"}: mIoU of members and of non-members in 0..1, on the posteriors' positions."""
    parts = list(parts)
    return {name: mean_iou(add([matrices[member] for matrices in parts if member in matrices]))
            for name, member in (("in", True), ("out", False))}
