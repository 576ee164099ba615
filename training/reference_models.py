"""Train reference models on a user's images: in the way of the target model, if its checkpoint says which it is."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from datasets.inspection import inspect
from datasets.pairs import Pair, deal, read_split, write_split
from datasets.provenance import IN, OUT, Images, list_pairs, write_provenance
from evaluation.attack_setup import LiveData
from models import read_segmenter
from predictors import file_of, kind_of
from predictors.base import PredictorOptions, Record, identify
from predictors.samples import open_victim
from training.options import SegmenterTraining
from training.roles import check_unchanged, compare_sides
from training.segmentation import check_batch, check_model, train_and_report
from training.setup import settle_segmenter
from utils.cli import UserError
from utils.device import Compute
from utils.files import lock_run, write_json

CROP = (256, 512)  # largest crop of a reference whose target model is of other people
# A reference whose target model is of other people: it starts from weights of ImageNet that need no download.
USUAL = {"backbone": "efficientnet_lite0", "stages": 4, "output_stride": 16, "pretrained": True, "head_factor": 10.0,
         "lr": 0.005, "blur": 0.0, "epochs": 30}


def for_audit(model: str, data: LiveData, listed: str | Path, count: int, seed: int, folder: Path, compute: Compute,
              say: Callable[[str], None]) -> list[str]:
    """Train the references of an audit of `model` on the images that a split file lists; returns their folders.

    `data`: the attacked images; `say`: gets a line that says how much there is to train, unless all are trained.
    """
    _, dataset = open_victim(model, data.dataset, PredictorOptions(compute, access=data.access))
    pairs, *apart = (read_split(path, data.root, data.strip_prefix)
                     for path in (listed, data.members, data.non_members))
    height, width = inspect(*Record.of_pair(pairs[0], dataset).files).size
    options = options_like(model, dataset, (height, width), seed)
    check_images(pairs, [pair for side in apart for pair in side], dataset)
    if not all((folder / str(number) / "results.json").is_file() for number in range(count)):
        half = len(pairs) // 2
        say(f"training {count} references: {options.describe()}, {options.epochs} epochs on {half} images each, "
            f"{count * options.epochs * half:,} images in all; a stopped audit goes on with the same command")
    return train_references(pairs, count, options, data.root, folder, compute)


def options_like(model: str, dataset: str, size: tuple[int, int], seed: int) -> SegmenterTraining:
    """The settings of a reference: those of a checkpoint of train_victim.py or train_shadow.py, else `USUAL`.

    `size`: height and width of the images. Raises `UserError` if a checkpoint is no segmentation model.
    """
    own = {"dataset": dataset, "seed": seed}
    if kind_of(model) != "checkpoint":
        return SegmenterTraining(**USUAL, crop=(min(size[0], CROP[0]), min(size[1], CROP[1])), **own)
    checkpoint = read_segmenter(file_of(model) or model)
    stored = checkpoint.get("args") or {}
    if "epochs" not in stored:
        raise UserError(f"{model} does not say how it was trained; train references by train_shadow.py")
    known = {one.name: stored[one.name] for one in fields(SegmenterTraining) if one.name in stored}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return replace(SegmenterTraining(), **known | own)


def check_images(pairs: Sequence[Pair], attacked: Sequence[Pair], dataset: str) -> None:
    """Raise `UserError` if an attacked image is among `pairs`, by content, or if `pairs` have fewer than two groups."""
    known, own = (identify([Record.of_pair(pair, dataset) for pair in side]) for side in (attacked, pairs))
    if both := Images(known).shared(own):
        raise UserError(f"{len(both)} of the {len(pairs)} images for the references are attacked, too: "
                        f"{list_pairs(both)}; give other images")
    if len({pair.group for pair in pairs}) < 2:
        raise UserError("the images for the references have one group; each reference is trained on half of the "
                        "groups, so give two or more")


def train_references(pairs: Sequence[Pair], count: int, options: SegmenterTraining, root: str, folder: Path,
                     compute: Compute) -> list[str]:
    """Train `count` references in folder/0, folder/1, ..., each on half of the groups of `pairs`; returns the folders.

    References 0 and 1 have the two halves of one deal, 2 and 3 those of another, and so on; so each image is in the
    training of half of the references. A finished
    reference is not trained again, and one that was stopped resumes.
    """
    check_model(options)
    folders = [folder / str(number) for number in range(count)]
    for number, place in enumerate(folders):
        _train(pairs, replace(options, seed=options.seed + number), number, root, place, compute)
    return list(map(str, folders))


def _train(pairs: Sequence[Pair], options: SegmenterTraining, number: int, root: str, folder: Path,
           compute: Compute) -> None:
    """Train reference `number` in `folder`, unless it is finished."""
    part = deal([pair.group for pair in pairs], (1, 1), options.seed - number % 2)
    inside, outside = ([pair for pair, side in zip(pairs, part, strict=True) if side == wanted]
                       for wanted in (number % 2, 1 - number % 2))
    check_batch(options, len(inside))
    roles = compare_sides(inside, outside, options.dataset, ("the half of a reference", "the other half"))
    check_unchanged(folder, roles)
    if (folder / "results.json").is_file():
        return
    lock_run(folder)
    compute = settle_segmenter(compute, options, folder if (folder / "last.pth.tar").exists() else None)
    write_json(folder / "args.json", {"device": compute.device.type, "precision": compute.precision})
    for name, side in (("in", inside), ("out", outside)):
        write_split(folder / f"{name}.txt", side, f"images of reference {number}")
    write_provenance(folder, {IN: roles[IN], OUT: roles[OUT]})
    arguments = {one.name: getattr(options, one.name) for one in fields(options)} | {"root": root}
    train_and_report(options, inside, outside, folder, compute, arguments)

