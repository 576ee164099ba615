"""The records of images on disk, the base class of predictors, and the loop that queries a predictor."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

from datasets import IMAGES
from datasets.images import check_turned, load_image
from datasets.inspection import Files, inspect, inspect_all
from datasets.pairs import Pair, check_label, check_sizes, load_label
from datasets.provenance import Identity
from datasets.survey import near_duplicates
from defenses.base import NO_DEFENSE, Defense
from utils import VOID
from utils.cli import UserError
from utils.device import CPU_FP32, Compute
from utils.log import progress

BATCH = 8  # images in one call of `predict`


@dataclass(frozen=True)
class Record:
    """An image and its label on disk; files are read only when they are needed.

    `dataset`: name of the data set that decodes the label; None if the label holds train ids. `member`: None if it is
    not known. `key`: what tells the image from others in its `id`, where the label does not: the name, without the side
    of a tree. `shares_label`: whether another image has the same label.
    """

    name: str
    group: str
    member: bool | None
    image: Path
    label: Path
    dataset: str | None = None
    key: str = ""
    shares_label: bool = False

    @classmethod
    def of_pair(cls, pair: Pair, dataset: str, member: bool | None = None) -> "Record":
        """The record of one line of a split file."""
        return cls(pair.name, pair.group, member, pair.root / pair.image, pair.root / pair.label, dataset, pair.name)

    def in_group(self, group: str | None) -> "Record":
        """The same record in a group (None: its own)."""
        return replace(self, group=group or self.group)

    @property
    def files(self) -> Files:
        """The arguments of `inspect`."""
        return self.image, self.label, self.dataset

    @property
    def id(self) -> str:
        """Key of the random streams of the image. It does not depend on the folder and the name of the files.

        It is the hash of the label, which a tree of posteriors keeps at full size, so stored and live attacks agree.
        Without a label, or with one that other images have, too, or that has a single class, `key` is added.
        """
        found = inspect(*self.files)
        unique = found.pattern and not self.shares_label
        return found.pattern if unique else f"{found.label or ''}{self.key or self.name}"

    @property
    def identity(self) -> Identity:
        """What identifies the image, whatever the names of its files."""
        found = inspect(*self.files)
        own = self.group in (self.name, self.image.name) or self.group.rpartition(".")[0] == self.name
        return Identity(self.name, None if own else self.group, found.image, found.pattern, found.look)

    def load_image(self) -> np.ndarray:
        """Image uint8 (H, W, 3). Raises `UserError` if the file is missing or broken, or only it is turned by EXIF."""
        if self.label.is_file():
            check_turned(self.image, self.label)
        return load_image(self.image)

    def load_truth(self) -> np.ndarray:
        """The ground truth: the label uint8 (H, W), or an image float32 (3, H, W) in 0..1. Raises `UserError`."""
        if self.dataset != IMAGES:
            return self.load_label()
        return load_image(self.label).transpose(2, 0, 1).astype(np.float32) / 255

    def load_label(self, classes: int = VOID) -> np.ndarray:
        """Label uint8 (H, W): train ids below `classes`, 255 = void. Raises `UserError` for any other content."""
        return check_label(load_label(self.label, self.dataset), classes, self.label)


def identify(records: Sequence[Record]) -> list[Identity]:
    """The identities of records. Reads every image and label once, in parallel."""
    inspect_all([record.files for record in records])
    return [record.identity for record in records]


def tell_apart(records: Sequence[Record]) -> list[Record]:
    """The records, of which those that share their label with another image know it (`shares_label`)."""
    found = [inspect(*record.files) for record in records]
    images: dict[str | None, set] = {}
    for one in found:
        images.setdefault(one.pattern, set()).add(one.image)
    return [replace(record, shares_label=len(images[one.pattern]) > 1)
            for record, one in zip(records, found, strict=True)]


def group_repeats(records: Sequence[Record], pairs: Sequence[tuple[Identity, Identity]]) -> list[Record]:
    """The records with each repeated image in the group of the earlier one. `pairs`: (image, earlier image)."""
    earlier, groups = {one.name: before.name for one, before in pairs}, {}
    for record in records:
        groups[record.name] = groups.get(earlier.get(record.name), record.group)
    return [replace(record, group=groups[record.name]) for record in records]


def look_alikes(first: Sequence[Record], second: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The images of `first` that look like an image of `second` in another group, by their perceptual hashes."""
    pairs = near_duplicates(*([inspect(*record.files).look for record in side] for side in (first, second)),
                            tuple([record.group for record in side] for side in (first, second)))
    return [(first[one], second[other]) for one, other in pairs]


@dataclass(frozen=True)
class Query:
    """One query of a model: a record and its image uint8 (H, W, 3), which is None if no predictor reads it.

    `number`: 0 for the image of the record; else that of a further query in its place, perhaps about another image.
    """

    record: Record
    image: np.ndarray | None
    number: int = 0

    @property
    def key(self) -> str:
        """Key of the random numbers that a defense draws for this query."""
        return f"{self.record.id}/{self.number}" if self.number else self.record.id


@dataclass(frozen=True)
class Access:
    """What a user says about a model of other people; each field has the name of its flag.

    `preprocess`: entries of `predictors.preprocess.Preprocess` that replace those of the format. `trust_code`: whether
    a file that can run code is loaded. `query_budget`: largest number of requests to an endpoint (None: any number).
    """

    preprocess: Mapping[str, object] = field(default_factory=dict)
    trust_code: bool = False
    query_budget: int | None = None


@dataclass(frozen=True)
class PredictorOptions:
    """Settings of a predictor: device and precision, stride (pixels per position of the output), and defense.

    If `stride` is None, a model has stride 1, and the stride of stored outputs is inferred from their size. `windows`:
    True if a model is queried about windows of the size of its training crops, as by `models.windows.Windowed`, or the
    height and width of the windows.
    `classes`: number of classes of the data set, for answers that are labels (None: not known).
    """

    compute: Compute = CPU_FP32
    stride: int | None = None
    defense: Defense = NO_DEFENSE
    windows: bool | tuple[int, int] = False
    access: Access = field(default_factory=Access)
    classes: int | None = None


class Predictor:
    """The base class of predictors. A subclass sets `classes` and defines `predict`.

    `classes`: number of classes; None if it is not known before the first output. `stride`: pixels per position; None
    in the same case. `class_names`, `dataset`: names of the classes and of the data set of the training, if known.
    `reads_images`: whether `predict` needs the images; `cached`: whether the outputs are those that
    `predictors.cache` has stored for a model at hand; `kind`: "posterior" (C, h, w) or "image".
    `takes_query_defenses`: whether the subclass calls `prepare` and `query_seed` of its defense, as dropout at test
    time requires. If not, a defense with the stage "query" raises `UserError`. `takes_windows`: the same for `windows`.
    `takes`: the fields of `Access` that have an effect. `has_weights`: whether `gradient_norm` is defined. `computes`:
    whether it runs a network in the precision of `options.compute`.
    """

    classes: int | None = None
    stride: int | None = 1
    class_names: Sequence[str] | None = None
    dataset: str | None = None
    reads_images: bool = True
    cached: bool = False
    takes_query_defenses: bool = False
    takes_windows: bool = False
    takes: frozenset[str] = frozenset()
    has_weights: bool = False
    computes: bool = False
    kind: str = "posterior"

    def __init__(self, where: str, options: PredictorOptions):
        self.where, self.options, self.stride = where, options, options.stride or 1
        spec = options.defense.spec
        if spec.stage == "query" and not self.takes_query_defenses:
            raise UserError(f"-{spec.name} changes how a model is queried, which {where} does not allow: give --victim "
                            "a checkpoint of train_victim.py")
        if options.windows and not self.takes_windows:
            raise UserError(f"--windows is for checkpoints of train_victim.py and train_shadow.py, and {where} is "
                            "none; leave it out")

    def check_access(self) -> None:
        """Raise `UserError` if the user said something about the access that has no effect on this predictor."""
        unused = [name.name for name in fields(Access) if name.name not in self.takes
                  and getattr(self.options.access, name.name) != getattr(Access(), name.name)]
        if unused:
            raise UserError(f"--{unused[0].replace('_', '-')} has no effect on {self.where}; leave it out")

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        """Outputs float32 (C, ceil(H/s), ceil(W/s)) on the CPU; position (i, j) belongs to pixel (i s, j s)."""
        raise NotImplementedError

    def gradient_norm(self, query: Query, truth: torch.Tensor) -> float:
        """The L2 norm of the gradient of the mean cross-entropy in all weights.

        `truth`: uint8 (h, w), train ids at the positions of the output; the mean is over those that are not void.
        """
        raise NotImplementedError

    def files(self, record: Record) -> tuple[Path, ...]:
        """The files, besides the image, from which the output for this record is read."""
        return ()


def precision_of(models: Iterable[Predictor]) -> str | None:
    """The precision in which models answer, such as "bf16" or "bf16, fp32"; None if none of them computes here."""
    return ", ".join(sorted({one.options.compute.precision for one in models if one.computes})) or None


@dataclass(frozen=True)
class Answer:
    """The output of a model for a query, (C, h, w), and those of other models for the same query."""

    query: Query
    output: torch.Tensor
    others: tuple[torch.Tensor, ...] = ()

    @property
    def record(self) -> Record:
        return self.query.record

    def load_label(self, classes: int | None = None) -> np.ndarray:
        """The label uint8 (H, W) at full size. Raises `UserError` if it does not fit the image or the classes.

        `classes`: number of classes of the label space (None: as many as the output has).
        """
        label = self.record.load_label(classes or self.output.shape[0])
        if self.query.image is not None:
            check_sizes(self.query.image, label, self.record.label)
        return label


def predict_records(predictor: Predictor, records: Sequence[Record], what: str = "",
                    with_images: bool = False, others: Sequence[Predictor] = ()) -> Iterator[Answer]:
    """Query a predictor, and `others`, about records, and yield the answers in the same order.

    `what`: title of the progress bar; without a title there is no bar. Images are loaded only if a predictor reads them
    or `with_images` is true. At most `BATCH` images are in memory.
    """
    predictors = [predictor, *others]
    with_images = with_images or any(one.reads_images for one in predictors)
    with progress(None, what or None, len(records), hidden=not what) as bar:
        for start in range(0, len(records), BATCH):
            queries = [Query(record, record.load_image() if with_images else None)
                       for record in records[start : start + BATCH]]
            outputs = [one.predict(queries) for one in predictors]
            for query, output, *rest in zip(queries, *outputs, strict=True):
                yield Answer(query, output, tuple(rest))
                bar.update()
