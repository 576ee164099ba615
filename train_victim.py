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
from utils.cli import add_run_flags, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    datasets.add_flags(flags)
    flags.add_argument("--train", metavar="SPLIT", default="splits/streets/victim_in.txt", help="D_in^V")
    flags.add_argument("--test", metavar="SPLIT", default="splits/streets/victim_out.txt",
                       help="D_out^V, for the mIoU after training only")
    models.add_flags(flags)
    training.add_flags(flags)
    add_run_flags(flags, "victim")
    return flags


def main(args: argparse.Namespace) -> None:
    from datasets.pairs import read_split
    from training.segmentation import train_and_report
    from utils.device import choose_device
    from utils.distributed import run_on_main
    from utils.files import start_run
    from utils.resume import resume_arguments

    training.check(args)
    if args.plan:
        from training.plan import plan_segmenter

        return print(plan_segmenter(args, args.images or len(read_split(args.train, must_exist=False))))
    device = choose_device(args.gpu)
    args, folder = resume_arguments(args, parser())
    inside = read_split(args.train, args.root, args.strip_prefix)
    outside = read_split(args.test, args.root, args.strip_prefix)
    folder = folder or run_on_main(lambda: start_run("victim", vars(args), args.out))
    train_and_report(args, inside, outside, folder, device)


if __name__ == "__main__":
    run(main, parser())
