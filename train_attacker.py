#!/usr/bin/env python3
"""Train the per-patch attacker A_P on a shadow's posteriors (algorithm 1, lines 4 to 14).

    python train_attacker.py --shadow runs/shadow                                   # structured loss maps
    python train_attacker.py --shadow runs/shadow -input concate                    # posterior and one-hot label
    python train_attacker.py --shadow runs/shadow runs/shadow-swapped              # several shadows, more training data
    python train_attacker.py --posteriors TREE                                      # a shadow's posteriors on disk
    python train_attacker.py --shadow runs/shadow-1 runs/shadow-2 -input calibrated # each compared with the other

The shadow is queried once about each image of D^S. Its posteriors are stored in SHADOW/posteriors-sN (stride N), in the
layout of the release, and later trainings read them. A fifth of D^S is held out, by groups: the AUC of the attacker is
measured on it, and tau is chosen on it. Writes best.pth.tar (the average of the weights over the last steps),
last.pth.tar (for --continue), log.jsonl, TensorBoard events and results.json.
"""

import argparse

import defenses
import training
from attacks import REPRESENTATIONS
from predictors import add_windows_flag
from training.options import STRIDE, AttackerTraining
from utils.cli import UserError, add_run_flags, new_parser, pick, refuse_unused, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__)
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--shadow", metavar="DIR", nargs="+", default=["runs/shadow"],
                        help="one or more folders that train_shadow.py wrote (default: runs/shadow)")
    source.add_argument("--posteriors", metavar="TREE", help="posteriors of a shadow on disk, those of "
                        "D_in^S in train/")
    flags.add_argument("--shared-with", metavar="NAME", help="with --shadow: use only the classes that the data set "
                       "NAME has (or a file NAME, with one class per line), and that occur in the training labels of "
                       "the shadows")
    add_windows_flag(flags, "each shadow")
    flags.add_argument("--references", metavar="DIR", nargs="+", default=[], help="-input calibrated: further models "
                       "to compare each shadow with, runs of train_shadow.py or [KIND:]WHERE; the shadows of --shadow "
                       "are compared with one another without this flag")
    training.add_attacker_flags(flags)
    defenses.add_flags(flags)
    add_run_flags(flags, "attacker")
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from training import setup

    options = pick(args, AttackerTraining)
    if args.plan:
        images = args.images or setup.count_shadow_images(args.shadow, args.posteriors)
        return print(setup.plan_attacker(options, setup.plan_of(args), images, args.classes))
    args, folder, compute = setup.begin(args, parser())
    options, defense = pick(args, AttackerTraining), defenses.chosen(args).build()
    stride = None if args.posteriors else options.stride or STRIDE
    shadows = [] if args.posteriors else args.shadow
    space, names = setup.classes_of(shadows, args.shared_with)
    trees = setup.cache_shadows(shadows, stride, defense, compute, args.windows) if shadows else [args.posteriors]
    source, roles = setup.compare_attacker_data(shadows, setup.join_trees(trees))
    queries = setup.PredictorOptions(compute, stride, windows=args.windows)
    source, count = setup.lend_references(source.with_classes(space, names), options.input, shadows, trees,
                                          args.references, queries)
    data = setup.prepare(source, options, defense, count)
    if folder:
        setup.check_unchanged(folder, roles)
    compute, arguments = setup.settle_attacker(compute, options, data.classes, folder), vars(args) | {"stride": stride}
    folder = folder or setup.start_run_on_main("attacker", arguments, args.out, compute)
    setup.write_provenance(folder, roles)
    setup.train_attacker_and_report(options, data, defense, folder, compute, arguments)


def check(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect. With --continue all flags are compared with those of the run instead."""
    if args.posteriors and args.test_dropout is not None:
        raise UserError("-test-dropout changes how a shadow is queried: give --shadow DIR instead of --posteriors")
    compares = "references" in REPRESENTATIONS.load(args.input).needs
    if compares and not (args.continue_ or args.plan or args.references or (args.shadow[1:] and not args.posteriors)):
        raise UserError(f"-input {args.input} compares a shadow with reference models: give several --shadow DIR, or "
                        "--references DIR")
    refuse_unused(args, parser(), [] if args.continue_ else [
        (not compares, f"with -input {args.input}, which reads no reference models; leave it out", ["--references"]),
        (args.plan, "with --plan; leave it out", ["--references"]),
        (args.posteriors, "with --posteriors, which have their own stride; leave it out", ["--stride"]),
        (args.posteriors or args.plan, "without a shadow that is queried; leave it out", ["--windows"]),
        (args.posteriors, "with --posteriors, whose classes have no names; give --shadow DIR", ["--shared-with"]),
        (args.plan, "with --plan; give the number of classes by --classes", ["--shared-with"]),
        (not args.plan, "without --plan; give both, or leave it out", [*training.PLAN_FLAGS, "--classes"]),
        (args.gauss is None, "without -gauss STD; give both, or leave it out", ["--gauss-floor"])])


if __name__ == "__main__":
    run(main, parser())
