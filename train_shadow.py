#!/usr/bin/env python3
"""Split D^S into D_in^S and D_out^S and train the shadow S on D_in^S (algorithm 1, lines 1 to 3).

    python train_shadow.py --victim runs/victim/last.pth.tar                        # dependent: split by V's confidence
    python train_shadow.py --partition random                                       # dependent, split at random
    python train_shadow.py --train splits/streets/rain_in.txt --test splits/streets/rain_out.txt     # independent

Writes in.txt and out.txt (the split), last.pth.tar, log.jsonl, TensorBoard events and results.json into the run's
folder. train_attacker.py --shadow and attack.py --references take this folder.
"""

import argparse

import datasets
import models
import training
from training.options import SegmenterTraining
from utils.cli import UserError, add_run_flags, new_parser, pick, refuse_unused, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__)
    datasets.add_flags(flags, of_victim=True)
    flags.add_argument("--split", metavar="SPLIT", default="splits/streets/shadow.txt",
                       help="split file of D^S, which is divided into D_in^S and D_out^S")
    flags.add_argument("--partition", choices=("confidence", "random"), default="confidence", help="D_in^S is the half "
                       "of D^S on which V is more confident (the paper; default), or a random half")
    flags.add_argument("--victim", metavar="CHECKPOINT", default="weights/victim.pth.tar",
                       help="the victim V, which is queried about D^S (default: weights/victim.pth.tar)")
    flags.add_argument("--train", metavar="SPLIT", help="split file of D_in^S; needs --test; both "
                       "stand in place of --split")
    flags.add_argument("--test", metavar="SPLIT", help="split file of D_out^S; needs --train")
    flags.add_argument("--allow", nargs="+", choices=["overlap"], default=[], metavar="WHAT", help="do not refuse; "
                       "overlap: images of D^S that V was trained on, as if the attacker knows a part of the members")
    models.add_flags(flags)
    training.add_flags(flags)
    add_run_flags(flags, "shadow")
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from training import setup

    options = options_of(args)
    if args.plan:
        images = args.images or (setup.count(args.train) if args.train else setup.count(args.split) // 2)
        return print(setup.plan_segmenter(options, setup.plan_of(args), images))
    args, folder, compute = setup.begin(args, parser())
    options = options_of(args, folder)
    if folder:
        inside, outside = (setup.read_split(folder / name, args.root) for name in ("in.txt", "out.txt"))
    else:
        setup.check_model(options)
        if names_victim(args) and (args.train or args.partition == "random"):  # else the partition queries the victim
            setup.check_classes(args.victim, options.dataset)
        if args.train:
            how = "as given"
            inside, outside = (setup.read_split(path, args.root, args.strip_prefix)
                               for path in (args.train, args.test))
            setup.compare_shadow_data([*inside, *outside], options.dataset, args.victim, args.allow)
        else:
            how, victim = f"by {args.partition}, seed {args.seed}", args.victim
            pairs = setup.read_split(args.split, args.root, args.strip_prefix)
            setup.compare_shadow_data(pairs, options.dataset, victim, args.allow)
            inside, outside = setup.partition(pairs, args.split, victim if args.partition == "confidence" else None,
                                              options.dataset, args.seed, compute)
        setup.check_batch(options, len(inside))
    roles = setup.compare_sides(inside, outside, options.dataset, ("D_in^S", "D_out^S"))
    compute = setup.settle_segmenter(compute, options, folder)
    if folder:
        setup.check_unchanged(folder, roles)
    else:
        folder = setup.start_run_on_main("shadow", vars(args), args.out, compute)
        setup.write_shadow_splits(folder, inside, outside, how)
    setup.write_provenance(folder, roles)
    setup.train_and_report(options, inside, outside, folder, compute, vars(args))


def check(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect. With --continue all flags are compared with those of the run instead."""
    if bool(args.train) != bool(args.test):
        raise UserError("--train (D_in^S) and --test (D_out^S) need each other; give both or neither")
    refuse_unused(args, parser(), [] if args.continue_ else [
        (args.train, "with --train and --test, the parts of D^S; leave it out", ["--split", "--partition"]),
        (not args.plan, "without --plan; give both, or leave it out", training.PLAN_FLAGS),
        *models.unused_flags(args.model, args.aux_weight)])


def options_of(args: argparse.Namespace, folder: object = None) -> SegmenterTraining:
    """The settings of the training. The data set is that of the run in `folder`, of --dataset, or of the victim.

    With --train and --test, only a victim that was given counts.
    """
    from training.setup import dataset_of

    asked = None if args.train and not names_victim(args) else args.victim
    dataset = dataset_of(folder) if folder else datasets.chosen(args) or dataset_of(asked)
    return pick(args, SegmenterTraining, dataset=dataset)


def names_victim(args: argparse.Namespace) -> bool:
    """Whether --victim was given, with another value than its default."""
    return args.victim != parser().get_default("victim")


if __name__ == "__main__":
    run(main, parser())
