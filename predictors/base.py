"""A record of an image, a model that is queried about it, and the one loop that queries models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets import find_dataset
from datasets.images import load_ids, load_image
from datasets.pairs import Pair, check_label, check_sizes, load_label
from defenses.base import NO_DEFENSE, Defense
from utils import VOID
from utils.cli import UserError
from utils.device import CPU_FP32, Compute
from utils.log import progress

BATCH = 8  # images that a predictor receives together


@dataclass(frozen=True)
class Record:
    """An image and its label on disk; files are read only when they are needed.

    `id` is what random streams are derived from. `dataset` names the data set that decodes the label; without one the
    label holds train ids.
    """

    name: str
    id: str
    group: str
    member: bool | None
    image: Path
    label: Path
    dataset: str | None = None

    @classmethod
    def of_pair(cls, pair: Pair, dataset: str, member: bool | None = None) -> "Record":
        """The record of a line of a split file."""
        return cls(pair.name, pair.key, pair.group, member, pair.root / pair.image, pair.root / pair.label, dataset)

    def load_image(self) -> np.ndarray:
        """Image uint8 (H, W, 3); `UserError` where the file is missing or broken."""
        return load_image(self.image)

    def load_label(self, classes: int = VOID) -> np.ndarray:
        """Label uint8 (H, W): train ids below `classes`, 255 = void; `UserError` for any other content."""
        label = load_label(self.label, find_dataset(self.dataset)) if self.dataset else load_ids(self.label)
        return check_label(label, classes, self.label)


@dataclass(frozen=True)
class Query:
    """What a model is asked: a record and its image uint8 (H, W, 3), which is None where no predictor reads it."""

    record: Record
    image: np.ndarray | None


@dataclass(frozen=True)
class PredictorOptions:
    """How a model is queried: device and precision, pixels per position of its output, and its defense.

    `stride` None: a model gives 1 pixel per position, stored outputs have the stride that their size tells.
    """

    compute: Compute = CPU_FP32
    stride: int | None = None
    defense: Defense = NO_DEFENSE


class Predictor:
    """A model that can be queried, or stored outputs. A subclass sets `classes` and defines `predict`.

    `classes`: number of classes, None where it is not known before the first output; `stride`: pixels per position,
    None likewise; `reads_images`: whether `predict` needs the images; `kind`: "posterior" (C, h, w) or "image".
    `takes_query_defenses`: whether the subclass calls `prepare` and `query_seed` of its defense, as dropout at test
    time requires; without it, such a defense raises `UserError`.
    """

    classes: int | None = None
    stride: int | None = 1
    reads_images: bool = True
    takes_query_defenses: bool = False
    kind: str = "posterior"

    def __init__(self, where: str, options: PredictorOptions):
        self.where, self.options, self.stride = where, options, options.stride or 1
        spec = options.defense.spec
        if spec.stage == "query" and not self.takes_query_defenses:
            raise UserError(f"-{spec.name} changes how a model is queried, which {where} does not allow: give --victim "
                            "a checkpoint of train_victim.py")

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        """Outputs float32 (C, ceil(H/s), ceil(W/s)) on the CPU; position (i, j) belongs to pixel (i s, j s)."""
        raise NotImplementedError

    def files(self, record: Record) -> tuple[Path, ...]:
        """The files that the output for this record is read from, beside its image."""
        return ()


@dataclass(frozen=True)
class Answer:
    """The output of a model for a query, (C, h, w)."""

    query: Query
    output: torch.Tensor

    @property
    def record(self) -> Record:
        return self.query.record

    def load_label(self) -> np.ndarray:
        """The label uint8 (H, W) at full size; `UserError` where it does not fit the image or the classes."""
        label = self.record.load_label(self.output.shape[0])
        if self.query.image is not None:
            check_sizes(self.query.image, label, self.record.label)
        return label


def predict_records(predictor: Predictor, records: Sequence[Record], what: str = "",
                    with_images: bool = False) -> Iterator[Answer]:
    """Query a predictor about records, in order; this is the only loop in the project that does.

    `what` names the progress bar; without it there is none. Images are loaded where the predictor reads them, or where
    `with_images` asks for them; memory holds `BATCH` of them.
    """
    with progress(None, what or None, len(records), hidden=not what) as bar:
        for start in range(0, len(records), BATCH):
            queries = [Query(record, record.load_image() if with_images or predictor.reads_images else None)
                       for record in records[start : start + BATCH]]
            for query, output in zip(queries, predictor.predict(queries), strict=True):
                yield Answer(query, output)
                bar.update()
