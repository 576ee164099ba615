"""Reference models in the training of an attacker: each shadow is compared with the others, and with further models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.calibrated import unseen_outputs
from attacks.representation import loss_map
from attacks.sample import Sample
from attacks.thresholds import mean_known
from evaluation.alignment import check_alignment, other_models
from evaluation.intervals import intervals
from evaluation.report import show_interval
from predictors import file_of
from predictors.base import PredictorOptions, Record
from predictors.cache import cache_outputs
from predictors.reference import Reference, ShadowRun, open_references, read_shadow
from predictors.samples import Source, check_class_names, join_trees
from predictors.stored import TINY
from training.held_out import auc_of
from utils.cli import UserError
from utils.distributed import print_once, warn_once
from utils.files import fingerprint

SHARE = 2 / 3  # of the images of D^S: at least so many have as many references as are used


def lend_to_shadows(source: Source, shadows: Sequence[str], trees: Sequence[Path], places: Sequence[str],
                    options: PredictorOptions) -> Source:
    """D^S of several shadows with references: for each image the other shadows, and the models of `places`.

    Their posteriors are computed once, and are stored in the folders of the shadows. `trees`: the posteriors of each
    shadow on its own D^S, joined in `source`; `options`: how references are queried, without a defense. Raises
    `UserError` if a model cannot be queried, has other classes, or is given twice.
    """
    runs, references = [read_shadow(folder) for folder in shadows], []
    models = open_references([*shadows, *places], options)
    for number, model in enumerate(models):
        if number >= len(runs):
            check_class_names(f"the reference {model.predictor.where}", model.predictor.class_names,
                              f"the shadow {shadows[0]}", models[0].predictor.class_names)
        stored = [trees[index] if index == number else store_reference(run, model, options)
                  for index, run in enumerate(runs)]
        predictor = join_trees(stored).predictor
        own = frozenset(name for name, path in predictor.paths.items()
                        if number < len(runs) and path.is_relative_to(trees[number]))
        references.append(replace(model, predictor=predictor, view=source.view, own=own))
    check_models(source, references, [*shadows, *places])
    return replace(source, references=tuple(references))


def store_reference(shadow: ShadowRun, model: Reference, options: PredictorOptions) -> Path:
    """The tree of a reference's posteriors on D^S of a shadow, below the folder of the shadow."""
    file = file_of(model.predictor.where)
    if not file or not model.predictor.reads_images:
        raise UserError(f"the reference {model.predictor.where} cannot be queried about D^S: give runs of "
                        "train_shadow.py or checkpoints")
    folder = shadow.folder / f"references-s{options.stride}{'-windows' if options.windows else ''}"
    tree = folder / f"{file.parent.name}-{fingerprint([file])[:8]}"
    cache_outputs(tree, model.predictor, shadow.records(), [file])
    return tree


def lend_to_tree(source: Source, places: Sequence[str], options: PredictorOptions) -> Source:
    """D^S of a tree of posteriors with the models of `places` as references, which may be trees of equal names.

    Raises `UserError` if a model cannot be queried about the images, is given twice, or is that of the tree.
    """
    references = open_references(places, options)
    if any(one.predictor.reads_images for one in references) and not source.records[0].image.is_file():
        raise UserError(f"{source.records[0].image} is missing, so --references cannot be queried about it; give "
                        "--shadow DIR, or references that are posteriors on disk (stored:TREE)")
    check_models(source, [Reference(source.predictor), *references], [source.predictor.where, *places])
    return replace(source, references=references)


def check_models(source: Source, models: Sequence[Reference], names: Sequence[str]) -> None:
    """Check the outputs of models for the images of `source`.

    Raises `UserError` if two models are one, and as `check_alignment`.
    """
    for number, (model, name) in enumerate(zip(models, names, strict=True)):
        target = replace(source, predictor=model.predictor)
        check_alignment(target, f"the model {name}")
        others = other_models(target, models[:number])
        if same := [other for one, other in zip(models[:number], names, strict=False) if one not in others]:
            raise UserError(f"{same[0]} and {name} give equal outputs, so they are one model; give each model once")


def share_out(source: Source) -> tuple[Source, int]:
    """D^S with the images that have enough references which were not trained on them, and the number that each gets.

    It is the highest number that at least `SHARE` of the images have, or 1. It must be the same for all images, or it
    would tell members from non-members; so images that have fewer are left out. Raises `UserError` if a side has no
    image left.
    """
    unseen = np.array([sum(not one.saw(record) for one in source.references) for record in source.records])
    count = max((number for number in range(1, len(source.references) + 1) if (unseen >= number).mean() >= SHARE),
                default=1)
    kept: list[Record] = [one for one, number in zip(source.records, unseen, strict=True) if number >= count]
    for member, side in ((True, "D_in^S"), (False, "D_out^S")):
        if not any(one.member is member for one in kept):
            raise UserError(f"no image of {side} has a reference model that was not trained on it: give more --shadow, "
                            "whose halves of D^S were dealt at random with other seeds, or --references that were "
                            "trained on other images")
    left = len(unseen) - len(kept)
    print_once(f"each image of D^S gets {count} of {len(source.references)} models as references, which were not "
               "trained on it" + (f"; {left} of {len(unseen)} images have fewer, and are left out" if left else ""))
    return replace(source, records=kept), count


def reference_score(sample: Sample) -> float:
    """Minus the mean loss of the references of a sample over the known positions; their posteriors are averaged."""
    losses = loss_map(unseen_outputs(sample).mean(dim=0), sample.truth, TINY).squeeze(-3)
    return -mean_known(losses, sample.known)


def describe_references(count: int, alone: Sequence[tuple]) -> dict:
    """Number of references, and AUC of their loss alone on D^S with its 95 % interval; {} without references.

    `alone`: (`reference_score`, member, group) of each image. Nothing is fitted, so all of D^S counts as held out.
    """
    if not alone:
        return {}
    score, member, group = map(np.array, zip(*alone, strict=True))
    return {"references": count, "references_alone_auc": auc_of(alone),
            "references_alone_auc_interval": intervals(score, member, group)["auc"]}


def judge_references(described: dict) -> None:
    """Print the AUC of the references alone, and a warning if its interval excludes 0.5."""
    if not described:
        return
    auc, interval = described["references_alone_auc"], described["references_alone_auc_interval"]
    shown = f"the loss of the references alone has AUC {auc:.3f} {show_interval(interval)} on D^S"
    if interval and not interval[0] <= 0.5 <= interval[1]:
        warn_once(f"{shown}, and it must be near 0.5: it says which image is which side, the attacker learns it, and "
                  "on the victim's images it is worth nothing. Deal D^S at random (train_shadow.py --partition random)"
                  ", or give references that had no part in it")
    else:
        print_once(shown + ("" if interval else "; the groups are too few for an interval, so it cannot be judged"))
