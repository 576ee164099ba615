"""The functions that the three training scripts call."""

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from attacks import REPRESENTATIONS
from attacks.thresholds import mean_known
from datasets import DATASETS, find_dataset
from datasets.classes import check_shared, shared_classes
from datasets.folder import read_names
from datasets.inspection import check_labels, inspect, inspect_all
from datasets.pairs import Pair, deal, read_split, write_split
from datasets.provenance import IN, OUT, Identity, Images, copies, list_pairs, versions, write_provenance
from defenses.base import Defense
from evaluation.alignment import check_alignment
from evaluation.report import describe_groups, show_interval
from models import read_segmenter
from models.attacker import InputSpec
from predictors import file_of
from predictors.base import PredictorOptions, Record, group_repeats, identify, predict_records, tell_apart
from predictors.classes import ClassView
from predictors.reference import ShadowRun, read_shadow
from predictors.samples import Source, check_class_names, join_trees, open_victim
from predictors.stored import TINY, check_forms, list_records
from training import attacker, segmentation, translation
from training.attacker import AttackerData, prepare, train_attacker
from training.options import AttackerTraining, SegmenterTraining, TranslatorTraining
from training.plan import PlanOptions, plan_attacker, plan_segmenter
from training.references import (
    describe_references,
    judge_references,
    lend_to_shadows,
    lend_to_tree,
    share_out,
)
from training.roles import check_unchanged, compare_shadow_data, compare_sides
from training.segmentation import check_batch, check_model, train_and_report
from utils import VOID
from utils.cli import UserError, pick
from utils.device import PRECISIONS, Compute, choose_device, compute_on, has_bf16_units
from utils.distributed import gather, is_main, own_share, print_once, run_on_main, warn_once, world_size
from utils.files import read_json, start_run, write_json
from utils.precision import Step, settle
from utils.resume import resume_arguments

__all__ = ["PredictorOptions", "begin", "cache_shadows", "check_batch", "check_classes", "check_model",
           "check_unchanged", "classes_of", "compare_attacker_data", "compare_shadow_data", "compare_sides", "count",
           "count_shadow_images", "dataset_of", "join_trees", "lend_references", "partition", "plan_attacker",
           "plan_of", "plan_segmenter", "prepare", "read_split", "settle_attacker", "settle_segmenter",
           "settle_translator", "start_run_on_main", "train_and_report",
           "train_attacker_and_report", "write_provenance", "write_shadow_splits"]


def count(split: str | Path) -> int:
    """Number of images that a split file lists. The images need not exist."""
    return len(read_split(split, must_exist=False))


def count_shadow_images(shadows: Sequence[str], tree: str | None) -> int:
    """Number of images of D^S: in a tree of posteriors, or else the sum over the runs of shadows."""
    if tree:
        return len(list_records(tree))
    return sum(count(Path(run) / name) for run in shadows for name in ("in.txt", "out.txt"))


def plan_of(args: argparse.Namespace) -> PlanOptions:
    """The settings of `training.add_plan_flags`. Raises `UserError` for --continue and for -dpsgd."""
    if args.continue_:
        raise UserError("--plan reads the flags on the command line; leave --continue out")
    if getattr(args, "dpsgd", False):
        raise UserError("--plan predicts only plain SGD; leave -dpsgd out")
    return pick(args, PlanOptions, bf16=args.precision != "fp32")


def begin(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Path | None, Compute]:
    """The effective arguments, the folder of a run that is resumed (None for a new run), device and precision.

    Under torchrun, the process also joins the process group here.
    """
    device = choose_device(args.gpu)
    args, folder = resume_arguments(args, parser)
    return args, folder, compute_on(device, args.precision)


def settle_segmenter(compute: Compute, options: SegmenterTraining, folder: Path | None) -> Compute:
    """`compute` with the precision of the training of a segmentation model; `folder`: that of a resumed run."""
    spec, images = options.spec(len(find_dataset(options.dataset).CLASSES)), math.ceil(options.batch / world_size())
    about = spec, options.crop, images, options.norms_frozen, options.dpsgd
    return _settle(compute, folder, f"training of {options.describe()}", about,
                   lambda: segmentation.trial_step(options, images, compute.device))


def settle_attacker(compute: Compute, options: AttackerTraining, classes: int, folder: Path | None) -> Compute:
    """The same for an attacker on posteriors of `classes` classes."""
    patches = math.ceil(options.batch / world_size())
    return _settle(compute, folder, "training of A_P", (options.spec(classes), options.patch_size, patches),
                   lambda: attacker.trial_step(options, classes, patches, compute.device))


def settle_translator(compute: Compute, options: TranslatorTraining, size: int, folder: Path | None) -> Compute:
    """The same for a translator of images of `size` x `size` pixels."""
    images = math.ceil(options.batch / world_size())
    return _settle(compute, folder, f"training of {options.model}", (options.spec(size), images),
                   lambda: translation.trial_step(options, size, images, compute.device))


def _settle(compute: Compute, folder: Path | None, what: str, about: tuple, make_step: Callable[[], Step]) -> Compute:
    """`utils.precision.settle` for a new training. A resumed one goes on in the precision that its args.json names."""
    if not folder:
        return settle(compute, what, about, make_step)
    known = None
    with suppress(UserError):
        known = read_json(folder / "args.json").get("precision")
    if known == "bf16" and not has_bf16_units(compute.device):
        warn_once(f"{folder} was started in bf16, and goes on in it; this processor only emulates bf16, and is slow")
    return replace(compute, precision=known if known in PRECISIONS else compute.precision, measure=False)


def start_run_on_main(stage: str, arguments: dict, out: str | None, compute: Compute) -> Path:
    """Make the folder of a new run in the main process, and return it in all processes."""
    return run_on_main(lambda: start_run(stage, arguments, out, compute))


def partition(pairs: Sequence[Pair], split: str, victim: str | None, dataset: str, seed: int,
              compute: Compute) -> tuple[list[Pair], list[Pair]]:
    """Split D^S into two halves by the victim's mean confidence over labelled positions (section 2.2).

    D_in^S is the half with the higher confidence. Without a victim, the groups are divided at random. `split`: name of
    the split file, for messages. Raises `UserError` for fewer than two images.
    """
    if len(pairs) < 2:
        raise UserError(f"{split} lists one image; D^S needs two or more")
    if victim is None:
        inside = deal([pair.group for pair in pairs], (1, 1), seed) == 0
    else:
        predictor, _ = open_victim(victim, dataset, PredictorOptions(compute))
        records, confidences = [Record.of_pair(pair, dataset) for pair in own_share(pairs)], []
        for answer in predict_records(predictor, records, "querying V about D^S"):
            known = torch.from_numpy(answer.load_label() != VOID)
            if not known.any():
                raise UserError(f"{answer.record.name}: its label is void everywhere, so V has no confidence on it; "
                                f"leave the image out of {split}")
            confidences.append(mean_known(answer.output.amax(dim=0), known))
        order = np.argsort(-np.array(gather(confidences)), kind="stable")
        inside = np.argsort(order) < (len(pairs) + 1) // 2
    return tuple([pair for pair, chosen in zip(pairs, inside, strict=True) if chosen == side] for side in (True, False))


def write_shadow_splits(folder: Path, inside: Sequence[Pair], outside: Sequence[Pair], how: str) -> None:
    """Write in.txt and out.txt of a shadow. `how`: how D^S was split, for the comments in these files."""
    if is_main():
        write_split(folder / "in.txt", inside, f"D_in^S, {how}")
        write_split(folder / "out.txt", outside, f"D_out^S, {how}")


def cache_shadows(folders: Sequence[str], stride: int, defense: Defense, compute: Compute,
                  windows: bool | tuple[int, int] = False) -> list[Path]:
    """The trees of the shadows' posteriors on D^S. Missing posteriors are computed.

    `windows`: as in `PredictorOptions`. Raises `UserError` if a shadow is given twice, or if shadows have other classes
    than the first.
    """
    defense.check_kind("posterior")
    shadows = [read_shadow(folder) for folder in folders]
    known: dict[str, Path] = {}
    for shadow in shadows if len(shadows) > 1 else ():
        if (first := known.setdefault(shadow.weights(), shadow.folder)) is not shadow.folder:
            raise UserError(f"{first} and {shadow.folder} hold the same shadow; give each shadow once")
    for shadow in shadows[1:]:
        check_class_names(str(shadow.folder), find_dataset(shadow.dataset).CLASSES, str(shadows[0].folder),
                          find_dataset(shadows[0].dataset).CLASSES)
    return [shadow.cache(PredictorOptions(compute, stride, defense, windows)) for shadow in shadows]


def classes_of(shadows: Sequence[str], shared_with: str | None) -> tuple[list[str] | None, list[str] | None]:
    """The class names of shadows, which have the same, and those of the classes that an attacker uses.

    `shared_with`: a data set, or a file with one class name per line. The attacker then uses the classes that it has,
    and that occur in the training labels of every shadow, because a shadow learns no others. Without it, the attacker
    uses all classes. Both are None without shadows. Raises `UserError` if fewer than two classes are left.
    """
    if not shadows:
        return None, None
    runs = [read_shadow(folder) for folder in shadows]
    space = list(find_dataset(runs[0].dataset).CLASSES)
    if not shared_with:
        return space, space
    if shared_with == "folder":
        raise UserError("--shared-with folder says no classes; give a file with the names of its classes, one per line")
    others = list(find_dataset(shared_with).CLASSES) if shared_with in DATASETS else read_names(shared_with)
    names = shared_classes(*map(learned_classes, runs), others)
    check_shared(names, f"--shared-with {shared_with}", str(shadows[0]))
    print_once(f"classes of {shadows[0]}: {ClassView.of(space, names)}")
    return space, names


def learned_classes(shadow: ShadowRun) -> list[str]:
    """The names of the classes that occur in the labels on which a shadow was trained. Reads all of them, once."""
    found = inspect_all([record.files for record in shadow.records() if record.member], "reading labels")
    ids = {number for one in found for number in one.ids}
    return [name for number, name in enumerate(find_dataset(shadow.dataset).CLASSES) if number in ids]


def check_classes(victim: str, dataset: str) -> None:
    """Raise `UserError` if a victim cannot be opened, or has other classes than a data set."""
    open_victim(victim, dataset, PredictorOptions())


def dataset_of(model: str | Path | None) -> str:
    """The data set that the checkpoint of a model names; streets if there is no checkpoint, or it names none."""
    path = file_of(model and str(model))
    return (path and read_segmenter(path).get("dataset")) or "streets"


def compare_attacker_data(shadows: Sequence[str], source: Source) -> tuple[Source, dict[str, list[Identity]]]:
    """Compare the images of D^S with one another. Returns `source` with each image in one group, and the images.

    An image that several shadows share, perhaps on different sides, is in one group, so that it is not both trained on
    and held out. The images are those of the runs `shadows` or, without runs, those of `source`. Raises `UserError` if
    a tree has an image on both sides, or posteriors of different forms, or outputs that do not fit their labels.
    """
    found = identify(source.records)
    again, twice = versions(found), copies(found)
    source = replace(source, records=tell_apart(group_repeats(source.records, [*again, *twice])))
    check_labels([inspect(*record.files) for record in source.records], "D^S", None)
    if shadows:
        known = [read_shadow(folder).images() for folder in shadows]
        return source, {role: [one for images in known for one in images[role].all] for role in (IN, OUT)}
    check_forms(source.predictor, source.records)
    check_alignment(source)
    sides = [identify([record for record in source.records if record.member is side]) for side in (True, False)]
    if both := Images(sides[0]).shared(sides[1]):
        raise UserError(f"the same image is a member and a non-member of D^S: {list_pairs(both)}; remove it from one")
    if repeated := [*twice, *again]:
        warn_once(f"D^S holds {len(repeated)} copies or versions of images: {list_pairs(repeated)}; each is in the "
                  "group of its original")
    return source, dict(zip((IN, OUT), sides, strict=True))


def lend_references(source: Source, kind: str, shadows: Sequence[str], trees: Sequence[str | Path],
                    places: Sequence[str], options: PredictorOptions) -> tuple[Source, int]:
    """D^S with reference models for the representation `kind`, and how many each image gets (0: it reads none).

    `trees`: the posteriors of `shadows`, or a single tree without shadows; `places`: further models; `options`: how
    they are queried.
    """
    if "references" not in REPRESENTATIONS.load(kind).needs:
        return source, 0
    if shadows:
        return share_out(lend_to_shadows(source, shadows, trees, places, options))
    return share_out(lend_to_tree(source, places, replace(options, stride=source.form()[1])))


def train_attacker_and_report(options: AttackerTraining, data: AttackerData, defense: Defense, folder: Path,
                              compute: Compute, arguments: dict) -> None:
    """Train A_P, write results.json, and print the result."""
    spec = InputSpec(options.input, options.patch_size, TINY, options.void, data.stride, defense.one_hot,
                     references=data.references)
    alone = describe_references(data.references, data.alone)
    judge_references(alone)
    results = train_attacker(options, data, spec, folder, compute, arguments)
    if is_main():
        write_json(folder / "results.json", {"input": options.input, **results, **alone})
    interval, groups = results["validation_auc_interval"], results["held_out_groups"]
    print_once(f"A_P ({options.input}): held-out AUC {results['validation_auc']:.3f} {show_interval(interval)} on "
               f"{results['held_out']} images ({describe_groups(groups)}), tau {results['tau']:.3f}; "
               f"{folder / 'best.pth.tar'}")
