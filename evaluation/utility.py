"""What a defense leaves of the segmentation: mIoU of the posteriors that an attack meets."""

from collections.abc import Iterable, Iterator

import numpy as np

from attacks.scoring import Example
from evaluation.metrics import confusion, mean_iou
from utils.distributed import gather


class Utility:
    """Confusion matrices of members and of non-members, filled while their posteriors pass by."""

    def __init__(self) -> None:
        self._matrices: dict[bool, np.ndarray] = {}

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples, each counted."""
        for example in examples:
            predicted = example.posterior.argmax(dim=0).numpy()
            matrix = confusion(predicted, example.label.numpy(), example.posterior.shape[0])
            self._matrices[example.member] = self._matrices.get(example.member, 0) + matrix
            yield example

    def miou(self) -> dict[str, float]:
        """{"in", "out"}: mIoU of members and non-members in 0..1 over all processes, on the posteriors' positions."""
        shares = gather([self._matrices])
        return {name: mean_iou(sum(share[member] for share in shares if member in share))
                for name, member in (("in", True), ("out", False))}
