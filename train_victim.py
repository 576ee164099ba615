#!/usr/bin/env python3
"""Train the victim V on D_in^V.

    python train_victim.py                                                          # the demo's victim, on streets
    python train_victim.py --dataset camvid --root CAMVID --train splits/camvid/block/victim_in.txt \\
        --test splits/camvid/block/victim_out.txt --backbone efficientnet_lite0 --pretrained

Writes last.pth.tar, log.jsonl, TensorBoard events and results.json (mIoU in and out) into the run's folder.
"""

import argparse

import datasets
import models
import training
from training.options import SegmenterTraining
from utils.cli import add_run_flags, new_parser, pick, refuse_unused, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__)
    datasets.add_flags(flags)
    flags.add_argument("--train", metavar="SPLIT", default="splits/streets/victim_in.txt",
                       help="split file of D_in^V, the training images")
    flags.add_argument("--test", metavar="SPLIT", default="splits/streets/victim_out.txt",
                       help="split file of D_out^V, which is used only to measure mIoU after the training")
    models.add_flags(flags)
    training.add_flags(flags)
    add_run_flags(flags, "victim")
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from training import setup

    options = pick(args, SegmenterTraining, dataset=datasets.chosen(args))
    if args.plan:
        return print(setup.plan_segmenter(options, setup.plan_of(args), args.images or setup.count(args.train)))
    args, folder, compute = setup.begin(args, parser())
    dataset = setup.dataset_of(folder) if folder else datasets.chosen(args)
    options = pick(args, SegmenterTraining, dataset=dataset)
    inside, outside = (setup.read_split(path, args.root, args.strip_prefix) for path in (args.train, args.test))
    setup.check_batch(options, len(inside))
    if not folder:
        setup.check_model(options)
    roles = setup.compare_sides(inside, outside, options.dataset)
    if folder:
        setup.check_unchanged(folder, roles)
    compute = setup.settle_segmenter(compute, options, folder)
    folder = folder or setup.start_run_on_main("victim", vars(args), args.out, compute)
    setup.write_provenance(folder, roles)
    setup.train_and_report(options, inside, outside, folder, compute, vars(args))


def check(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect. With --continue all flags are compared with those of the run instead."""
    refuse_unused(args, parser(), [] if args.continue_ else [
        (not args.plan, "without --plan; give both, or leave it out", training.PLAN_FLAGS),
        *models.unused_flags(args.model, args.aux_weight)])


if __name__ == "__main__":
    run(main, parser())
