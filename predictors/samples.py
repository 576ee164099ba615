"""Make samples from records: query the model, check its output, align the label, and apply the defense.

If models have different label spaces, outputs, labels and references are then restricted to shared classes. The defense
comes before, because it changes what the target model answers, and that model knows of no shared classes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from attacks.sample import Sample
from datasets import IMAGES, find_dataset, show_dataset
from datasets.folder import as_settings
from datasets.inspection import Inspection, inspect
from datasets.pairs import read_split
from defenses.base import NO_DEFENSE, Defense
from defenses.gauss import normalise
from predictors import open_predictor
from predictors.base import Answer, Predictor, PredictorOptions, Query, Record, predict_records
from predictors.classes import ClassView
from predictors.reference import Reference
from predictors.stored import SIDES, StoredPredictor, infer_stride, list_posteriors, list_records
from utils import VOID
from utils.cli import UserError


@dataclass(frozen=True)
class Source:
    """Records, the target model with its defense, and reference models, from which samples are made.

    `classes` and `stride`: those that the attack expects (None: any). `predictability`: name of a record -> its
    predictability error, for attacks that need it. `unseen`: each sample gets so many references, the first of those
    that were not trained on its image (None: all references, and whether they were). `names`: the names of the classes
    of the samples, if they are known. `view` and `label_view`: how outputs and labels are restricted to these classes
    (None: they have no others). `pseudo_labels`: the argmax of each defended posterior stands for its label, which is
    not read; all positions are known. `defend_references`: `defense` also changes the outputs of the references.
    """

    records: Sequence[Record]
    predictor: Predictor
    defense: Defense = NO_DEFENSE
    references: tuple[Reference, ...] = ()
    classes: int | None = None
    stride: int | None = None
    predictability: Mapping[str, float] = field(default_factory=dict)
    names: Sequence[str] | None = None
    unseen: int | None = None
    view: ClassView | None = None
    label_view: ClassView | None = None
    pseudo_labels: bool = False
    defend_references: bool = False

    def samples(self, needs: frozenset[str] = frozenset({"truth"}), undefended: bool = False) -> Iterator[Sample]:
        """Yield the samples of all records, in order. `undefended`: samples also hold the output before the defense.

        If "truth" is not in `needs`, a sample whose label is missing or all void has `truth` None. Raises `UserError`
        for an output that is not finite or has another number of classes or another stride, and for a label that is
        broken, or is needed but missing or all void.
        """
        for answer in self.answers("image" in needs):
            yield self._sample(answer, needs, undefended)

    def answers(self, with_images: bool = False) -> Iterator[Answer]:
        """Yield the outputs of the target model and of the references for all records, without checks."""
        references = [reference.predictor for reference in self.references]
        return predict_records(self.predictor, self.records, with_images=with_images, others=references)

    @property
    def predictors(self) -> list[Predictor]:
        """The target model and the references."""
        return [self.predictor, *(reference.predictor for reference in self.references)]

    def with_classes(self, space: Sequence[str] | None, names: Sequence[str] | None) -> "Source":
        """The source whose outputs and labels have the classes `space`, and whose samples have those of `names`."""
        view = None if space == names else ClassView.of(space, names)
        return replace(self, names=names, view=view, label_view=view)

    def form(self) -> tuple[int, int]:
        """Number of classes of the samples, and pixels per position, by the first output."""
        answer = next(replace(self, records=self.records[:1]).answers())
        classes = len(self.view.names if self.view else answer.output)
        size = inspect(*answer.record.files).size or answer.load_label().shape  # which says that it is missing
        return classes, infer_stride(size, answer.output.shape[1:])

    def inspections(self) -> list[Inspection]:
        """What the files of each record say without any model; with pseudo-labels, those of the images alone."""
        found = [inspect(*record.files) for record in self.records]
        return [one.without_label() for one in found] if self.pseudo_labels else found

    def files(self, record: Record) -> list[Path]:
        """The files from which the sample of a record is made."""
        return [record.image, record.label, *(path for one in self.predictors for path in one.files(record))]

    def _sample(self, answer: Answer, needs: frozenset[str], undefended: bool) -> Sample:
        record, output = answer.record, answer.output
        expected = len(self.view.space) if self.view else self.classes
        if expected not in (None, output.shape[0]):
            raise UserError(f"the posterior of {record.name} has {output.shape[0]} classes; the "
                            f"{'model' if self.view else 'attacker'} was trained for {expected}")
        plain, defended = self._defend(answer)
        seen = self._seen(defended)
        truth, label, stride = self._truth(answer, output, "truth" in needs and not self.pseudo_labels)
        if self.pseudo_labels:
            truth = seen.argmax(dim=0).to(torch.uint8)
        image = None
        if "image" in needs:
            image = torch.from_numpy(answer.query.image.transpose(2, 0, 1).copy())
        used, asks = self._references_of(record), "queries" in needs and self.predictor.reads_images
        gradients = partial(self._gradients, answer.query, truth) if "weights" in needs else None
        outputs = tuple(self._reference_output(index, answer.others[index], answer) for index in used)
        in_reference = tuple(self.references[index].saw(record) for index in used)
        return Sample(record.name, record.id, record.group, record.member, seen, truth, image, outputs,
                      in_reference, self._seen(plain) if undefended else None, self.predictability.get(record.name),
                      label if "label" in needs else None, stride,
                      partial(self._ask, record) if asks else None, gradients)

    def _references_of(self, record: Record) -> list[int]:
        """The indices of the references that the sample of a record gets."""
        return [index for index, one in enumerate(self.references)
                if self.unseen is None or not one.saw(record)][: self.unseen]

    def _defend(self, answer: Answer) -> tuple[torch.Tensor, torch.Tensor]:
        """The output of the target model, checked, and the same under its defense. Raises `UserError`."""
        plain = check_output(answer.output, self.predictor, answer.record.name)
        apply = self.defense.apply if self.predictor.kind == "posterior" else self.defense.apply_to_image
        defended = apply(plain, answer.query.key)
        if defended is not plain and not defended.isfinite().all():
            raise UserError(f"{answer.record.name}: the output under -{self.defense.spec.name} is not finite; give it "
                            "a smaller value")
        return plain, defended

    def _seen(self, output: torch.Tensor) -> torch.Tensor:
        """An output of the target model as its samples have it."""
        return self.view.posterior(output) if self.view else output

    def _ask(self, record: Record, image: np.ndarray, number: int) -> Iterator[torch.Tensor]:
        """`Sample.ask` of a record. Raises `UserError` for outputs that are no valid answer about `image`."""
        query, stride = Query(record, image, number), self.predictor.stride
        answer = Answer(query, self.predictor.predict([query])[0])
        expected = tuple(-(-side // stride) for side in image.shape[:2])
        if answer.output.shape[1:] != expected:
            raise UserError(f"{self.predictor.where} gives {tuple(answer.output.shape[1:])} positions for an "
                            f"image of {tuple(image.shape[:2])} pixels; expected are {expected} at stride {stride}")
        yield self._seen(self._defend(answer)[1])
        for index in self._references_of(record):
            yield self._reference_output(index, self.references[index].predictor.predict([query])[0], answer)

    def _gradients(self, query: Query, truth: torch.Tensor) -> Iterator[float]:
        """`Sample.gradients` of a query."""
        for one in (self.predictor, *(self.references[index].predictor for index in self._references_of(query.record))):
            yield one.gradient_norm(query, truth)

    def _truth(self, answer: Answer, output: torch.Tensor,
               needed: bool) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        """The label at the positions of the output, (h, w), or the image that is the ground truth; the label at full
        size, (H, W); and the number of pixels per position.

        Instead of a label it is None if it is not needed, and is missing or all void.
        """
        record = answer.record
        if not needed and not record.label.is_file():
            return None, None, self.predictor.stride
        if record.dataset == IMAGES:
            truth = torch.from_numpy(record.load_truth())
            if truth.shape != output.shape:
                raise UserError(f"the output for {record.name} is {output.shape[2]} x {output.shape[1]}, and its "
                                f"ground truth {truth.shape[2]} x {truth.shape[1]}")
            return truth, None, 1
        full = torch.from_numpy(self.load_label(answer))
        stride = self.stride or self.predictor.stride or infer_stride(full.shape, output.shape[1:])
        label = full[::stride, ::stride].clone()
        if label.shape != output.shape[1:]:
            height, width = output.shape[1:]
            reason = f"the attacker was trained at stride {stride}" if self.stride else "no stride fits"
            raise UserError(f"the posterior of {record.name} has {height} x {width} positions, its label "
                            f"{label.shape[0]} x {label.shape[1]} at stride {stride}; {reason}")
        if not (label == VOID).all():
            return label, full, stride
        if needed:
            raise UserError(f"{record.name}: its label is void everywhere, so it cannot be attacked; leave the image "
                            "out")
        return None, None, stride

    def load_label(self, answer: Answer) -> np.ndarray:
        """The label uint8 (H, W) at full size; classes that the view leaves out are void. Raises `UserError`."""
        if not self.label_view:
            return answer.load_label()
        return self.label_view.label(answer.load_label(len(self.label_view.space)))

    def _reference_output(self, index: int, output: torch.Tensor, answer: Answer) -> torch.Tensor:
        """The posterior of a reference model, as its samples have it.

        Raises `UserError` if its shape is not that of the target's posterior.
        """
        reference = self.references[index]
        classes = len(reference.view.space if reference.view else answer.output)
        if output.shape != (classes, *answer.output.shape[1:]):
            raise UserError(f"the reference {reference.predictor.where} gives {tuple(output.shape)} for "
                            f"{answer.record.name}, the target model {tuple(answer.output.shape)} (classes, height, "
                            "width)")
        valid = check_output(output, reference.predictor, answer.record.name)
        if self.defend_references:
            valid = self.defense.apply(valid, f"{answer.query.key} of reference {index}")
        return reference.view.posterior(valid) if reference.view else valid


def check_output(output: torch.Tensor, predictor: Predictor, name: str) -> torch.Tensor:
    """Check the output (C, h, w) of a predictor for the image `name`. A posterior is divided by its sum over classes.

    Raises `UserError` for NaN, infinite or negative values, and for a position where all are 0.
    """
    if predictor.kind == "posterior" and output.min() < 0:
        raise UserError(f"{predictor.where} gives negative posteriors for {name}: `predict` must return probabilities, "
                        "not logits; apply a softmax")
    valid = normalise(output) if predictor.kind == "posterior" else output
    if not valid.isfinite().all():
        raise UserError(f"{predictor.where} gives NaN or infinite posteriors for {name}, or a position where all are 0")
    return valid


def tree_source(root: str | Path, folder: str = "pred_sgd", options: PredictorOptions | None = None,
                classes: int | None = None, sides: Collection[str] = tuple(SIDES)) -> Source:
    """The source of a tree of posteriors in the layout of the release, ROOT/{train,val}/FOLDER.

    `options`: the stride that the posteriors must have (None: any), and the defense. `classes`: the number of classes
    that they must have (None: any). `sides`: the sides that are read.
    """
    options = options or PredictorOptions()
    records = list_records(root, folder, sides)
    predictor = StoredPredictor(root, options, folder, list_posteriors(Path(root), folder, sides))
    return Source(records, predictor, options.defense, (), classes, options.stride)


def join_trees(trees: Sequence[str | Path]) -> Source:
    """The source of several trees. Names of the second and later trees start with the tree's number (`1/`, ...)."""
    records, paths = [], {}
    for number, tree in enumerate(trees):
        prefix, source = f"{number}/" if number else "", tree_source(tree)
        records += [replace(record, name=f"{prefix}{record.name}") for record in source.records]
        paths |= {f"{prefix}{name}": path for name, path in source.predictor.paths.items()}
    return Source(records, StoredPredictor(trees[0], paths=paths))


def live_records(members: str, non_members: str, root: str, strip_prefix: str, dataset: str,
                 labels: bool = True) -> list[Record]:
    """The records of two split files, sorted by name. Raises `UserError` if an image is in both files.

    `labels`: whether the label files must exist.
    """
    sides = [read_split(path, root, strip_prefix, labels=labels) for path in (members, non_members)]
    if both := {pair.name for pair in sides[0]} & {pair.name for pair in sides[1]}:
        raise UserError(f"{min(both)} is in both {members} and {non_members}")
    records = [Record.of_pair(pair, dataset, side is sides[0]) for side in sides for pair in side]
    return sorted(records, key=lambda record: record.name)


def open_victim(where: str, dataset: str | None, options: PredictorOptions,
                kinds: Collection[str] = ("posterior",)) -> tuple[Predictor, str]:
    """Open the target model. Returns it, and the data set: `dataset`, or else that of the model, or else streets.

    `folder` without its classes becomes `folder` with those of the model. `kinds`: what its outputs may be. Raises
    `UserError` for other outputs, and if it has not the classes of the data set, or does not say how many it has.
    """
    predictor = open_predictor(where, options)
    predictor.check_access()
    if predictor.kind not in kinds:
        raise UserError(f"{where} gives translated images, and posteriors are needed here; give a segmentation model")
    if predictor.kind == "image":
        return predictor, IMAGES
    dataset = dataset or predictor.dataset or "streets"
    if dataset == "folder":
        dataset = folder_of(predictor)
    names, own = list(find_dataset(dataset).CLASSES), predictor.class_names
    predictor.options = replace(predictor.options, classes=len(names))
    if predictor.classes is None:
        return predictor, dataset
    if len(names) != predictor.classes:
        raise UserError(f"{where} has {predictor.classes} classes; the data set {show_dataset(dataset)} has "
                        f"{len(names)}; give the right --dataset, or --preprocess with the train id of each class as "
                        '"classes"')
    check_class_names(where, own, f"the data set {show_dataset(dataset)}", names)
    return predictor, dataset


def folder_of(predictor: Predictor) -> str:
    """The data set `folder` with the classes of a model: those of its training, or as many as its output has.

    Raises `UserError` if the model does not say how many they are.
    """
    if str(predictor.dataset).startswith("folder:"):
        return predictor.dataset
    if predictor.classes is None:
        raise UserError(f"{predictor.where} does not say how many classes it has; give --dataset folder --classes N, "
                        "with the number of its classes as N")
    names = predictor.class_names
    known = isinstance(names, (list, tuple)) and len(names) == predictor.classes
    return f"folder:{as_settings(predictor.classes, names if known else ())}"


def check_class_names(first: str, names: object, second: str, others: object) -> None:
    """Raise `UserError` if two lists of class names, as long as one another, differ. Other values are not compared."""
    known = all(isinstance(one, (list, tuple)) for one in (names, others)) and len(names) == len(others)
    if known and (wrong := [index for index, name in enumerate(names) if name != others[index]]):
        raise UserError(f"class {wrong[0]} of {first} is {names[wrong[0]]!r}, and that of {second} is "
                        f"{others[wrong[0]]!r}; give models, and a --dataset, of the same classes")
