"""Compare settings of the attacker by transfer: attack other shadows, with images that the training did not use.

    python -m tools.transfer --train A0/posteriors-s4 B0/posteriors-s4 --test A1/posteriors-s4 B1/posteriors-s4 \\
        --out transfer.json                                                        # 1.5 hours on one core

Each tree has the posteriors of a shadow on D^S; all have the same images. D^S is divided into folds by groups. For each
fold, an attacker of each setting is trained on the trees of --train without the images of the fold, and attacks the
trees of --test with these images alone. With shadows in both places no target model is used. Prints the AUC of random
patches and of the complete map, the mean over folds and trees, and its difference to the setting without changes of the
same representation. A stopped run resumes from --out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import UserError, natural, new_parser, number, positive, run

if TYPE_CHECKING:
    from evaluation.pooled import Stratum

LOSS, CONCATE = {"input": "loss"}, {"input": "concate"}
SETTINGS = {  # of `training.options.AttackerTraining`
    "loss": LOSS, "loss, mixed sizes": LOSS | {"mixed_sizes": 0.5},
    "loss, strong augmentation": LOSS | {"augment": "strong"}, "loss, width 0.5": LOSS | {"width": 0.5},
    "loss, rate 3e-3": LOSS | {"lr": 3e-3},
    "concate": CONCATE, "concate, width 0.5": CONCATE | {"width": 0.5}, "concate, rate 3e-4": CONCATE | {"lr": 3e-4},
    "concate, rate 3e-3": CONCATE | {"lr": 3e-3}, "concate, weight decay 0.3": CONCATE | {"weight_decay": 0.3},
    "concate, dropout 0.5": CONCATE | {"dropout": 0.5}, "concate, mixed sizes": CONCATE | {"mixed_sizes": 0.5},
    "concate, width 1": CONCATE | {"width": 1.0}, "concate, width 0.5, rate 3e-3": CONCATE | {"width": 0.5, "lr": 3e-3},
    "concate, strong augmentation": CONCATE | {"augment": "strong"}, "log-concate": {"input": "log-concate"},
    "log-concate, strong augmentation": {"input": "log-concate", "augment": "strong"}}
SELECTIONS = ("random", "full")


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.transfer")
    flags.add_argument("--train", nargs="+", required=True, metavar="TREE",
                       help="posteriors of the shadows of training")
    flags.add_argument("--test", nargs="+", required=True, metavar="TREE", help="posteriors of the attacked shadows")
    flags.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME",
                       help="settings to compare (default: all)")
    flags.add_argument("--patch-size", type=positive, default=12, help="side of a patch in positions (default: 12)")
    flags.add_argument("--steps", type=positive, default=2000, help="steps of a training (default: 2000)")
    flags.add_argument("--folds", type=number(2, 1000, int), default=2, help="(default: 2)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the folds and of the trainings (default: 0)")
    flags.add_argument("--out", metavar="FILE", type=Path, required=True, help="JSON file of the scores")
    return flags


def main(args: argparse.Namespace) -> None:
    from predictors.samples import tree_source
    from training.held_out import folds
    from utils.files import read_json, write_json

    about = {"patch_size": args.patch_size, "steps": args.steps, "folds": args.folds, "seed": args.seed,
             "trees": [len(args.train), len(args.test)]}
    known = read_json(args.out) if args.out.exists() else about | {"images": {}, "scores": {}}
    if {name: known.get(name) for name in about} != about:
        raise UserError(f"{args.out} has another patch size, steps, folds, seed or number of trees; give another --out")
    records = tree_source(args.train[0]).records
    fold = {one.group: part for one, part in zip(records, folds(records, args.folds, args.seed), strict=True)}
    for part in range(args.folds):
        for name in args.settings:
            if f"{name}/{part}" not in known["scores"]:
                test = {group for group, own in fold.items() if own == part}
                options = SETTINGS[name] | {"patch_size": args.patch_size, "steps": args.steps, "seed": args.seed}
                known["scores"][f"{name}/{part}"], images = transfer(args.train, args.test, test, options)
                known["images"] |= {f"{part}/{tree}": one for tree, one in images.items()}
                write_json(args.out, known)
    for name in args.settings:
        print(line(name, known), flush=True)


def transfer(train: Sequence[str], test: Sequence[str], groups: set[str],
             changes: dict) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """Train an attacker on images of other groups, and attack the trees of `test` with those of `groups`.

    Returns the scores of the images for each selection and tree, as `SELECTION/TREE`, and for each tree the "member" (a
    text of 0 and 1) and "group" of its images.
    """
    import tempfile
    from dataclasses import replace

    from attacks.patches import Selection
    from models import load_attacker
    from models.attacker import InputSpec
    from predictors.samples import join_trees, tree_source
    from predictors.stored import TINY
    from training.attacker import prepare, train_attacker
    from training.held_out import VALIDATION_PATCHES, score_held_out
    from training.options import AttackerTraining
    from utils.device import choose_compute

    options, compute, source = AttackerTraining(**changes), choose_compute(None), join_trees(train)
    rest = [record for record in source.records if record.group not in groups]
    data = prepare(replace(source, records=rest), options, source.defense)
    spec = InputSpec(options.input, options.patch_size, TINY, options.void, data.stride)
    with tempfile.TemporaryDirectory() as folder:
        train_attacker(options, data, spec, Path(folder), compute, {})
        attacker = load_attacker(f"{folder}/best.pth.tar")
    scores, images = {}, {}
    for tree, each in enumerate(map(tree_source, test)):
        samples = list(replace(each, records=[one for one in each.records if one.group in groups]).samples())
        for scheme in SELECTIONS:
            selection = Selection(scheme, VALIDATION_PATCHES, seed=options.seed)
            score, member, group = zip(*score_held_out(samples, attacker.model, spec, selection, compute), strict=True)
            scores[f"{scheme}/{tree}"] = [round(float(one), 5) for one in score]
            images[str(tree)] = {"member": "".join("01"[bool(one)] for one in member), "group": group}
    return scores, images


def line(name: str, known: dict) -> str:
    """The AUCs of a setting, and their differences to the setting of its representation without changes."""
    from evaluation.pooled import pooled_difference

    words, plain = [], name.partition(",")[0]
    for scheme in SELECTIONS:
        words.append(f"{scheme} {100 * pooled_difference(strata(known, name, None, scheme))['difference']:.1f}")
        if name != plain and f"{plain}/0" in known["scores"]:
            found = pooled_difference(strata(known, name, plain, scheme))
            low, high = found["interval"] or (float("nan"),) * 2
            words[-1] += f" ({100 * found['difference']:+.1f} [{100 * low:.1f}, {100 * high:.1f}])"
    return f"{name}: {', '.join(words)}"


def strata(known: dict, first: str, second: str | None, scheme: str) -> "list[Stratum]":
    """A stratum for each fold and each attacked tree; with `second`, of the difference of two settings."""
    import numpy as np

    from evaluation.pooled import Stratum, contrast

    found = []
    for place, images in known["images"].items():
        part, tree = place.split("/")
        columns = [[np.array(known["scores"][f"{name}/{part}"][f"{scheme}/{tree}"])] if name else []
                   for name in (first, second)]
        member = np.array([mark == "1" for mark in images["member"]])
        found.append(Stratum("all", [[contrast(*columns)]], member, images["group"]))
    return found


if __name__ == "__main__":
    run(main, parser())
