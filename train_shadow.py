#!/usr/bin/env python3
"""Split D^S into D_in^S and D_out^S and train the shadow S on D_in^S (algorithm 1, lines 1 to 3).

    python train_shadow.py --victim runs/victim/last.pth.tar                        # dependent: V's confidence splits
    python train_shadow.py --partition random                                       # dependent, split at random
    python train_shadow.py --train splits/streets/rain_in.txt --test splits/streets/rain_out.txt     # independent

Writes in.txt and out.txt (the split), last.pth.tar, log.jsonl, TensorBoard events and results.json into the run's
folder, which is what train_attacker.py takes.
"""

import argparse

import datasets
import models
import training
from utils.cli import UserError, add_run_flags, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    datasets.add_flags(flags)
    flags.add_argument("--split", metavar="SPLIT", default="splits/streets/shadow.txt", help="D^S, to be split")
    flags.add_argument("--partition", choices=("confidence", "random"), default="confidence",
                       help="the half of D^S on which V is more confident becomes D_in^S (the paper), or a random one")
    flags.add_argument("--victim", metavar="CHECKPOINT", default="weights/victim.pth.tar",
                       help="V, asked about D^S (default: weights/victim.pth.tar)")
    flags.add_argument("--train", metavar="SPLIT", help="D_in^S as given; with --test, nothing is split")
    flags.add_argument("--test", metavar="SPLIT", help="D_out^S as given")
    models.add_flags(flags)
    training.add_flags(flags)
    add_run_flags(flags, "shadow")
    return flags


def main(args: argparse.Namespace) -> None:
    from datasets.pairs import read_split, write_split
    from training.segmentation import train_and_report
    from utils.device import choose_device
    from utils.distributed import is_main, run_on_main
    from utils.files import start_run
    from utils.resume import resume_arguments

    if bool(args.train) != bool(args.test):
        raise UserError("--train and --test go together: D_in^S and D_out^S")
    training.check(args)
    if args.plan:
        from training.plan import plan_segmenter

        known = read_split(args.train or args.split, must_exist=False) if not args.images else ()
        return print(plan_segmenter(args, args.images or (len(known) if args.train else len(known) // 2)))
    device = choose_device(args.gpu)
    args, folder = resume_arguments(args, parser())
    if folder:
        inside, outside = (read_split(folder / name, args.root) for name in ("in.txt", "out.txt"))
    else:
        if args.train:
            inside, outside = (read_split(path, args.root, args.strip_prefix) for path in (args.train, args.test))
        else:
            inside, outside = partition(args, read_split(args.split, args.root, args.strip_prefix), device)
        folder = run_on_main(lambda: start_run("shadow", vars(args), args.out))
        how = "as given" if args.train else f"by {args.partition}, seed {args.seed}"
        if is_main():
            write_split(folder / "in.txt", inside, f"D_in^S, {how}")
            write_split(folder / "out.txt", outside, f"D_out^S, {how}")
    train_and_report(args, inside, outside, folder, device)


def partition(args: argparse.Namespace, pairs: list, device: object) -> tuple[list, list]:
    """D^S in two halves: by the victim's mean confidence over labelled positions (section 2.2), or at random,
    whole blocks at a time."""
    import numpy as np
    import torch

    from attacks.thresholds import confidence, mean_known
    from datasets import find_dataset
    from datasets.pairs import deal, load_pair
    from models import load_segmenter
    from models.query import query
    from utils.distributed import gather, own_share
    from utils.log import progress

    if len(pairs) < 2:
        raise UserError(f"{args.split} names one image; D^S needs two or more")
    if args.partition == "random":
        inside = deal([pair.group for pair in pairs], (1, 1), args.seed) == 0
    else:
        victim, dataset = load_segmenter(args.victim)[0].to(device), find_dataset(args.dataset)
        values = []
        for pair in progress(own_share(pairs), "asking V about D^S"):
            image, label = load_pair(pair, dataset)
            posterior = query(victim, image, device, precision=args.precision)
            values.append(mean_known(confidence(posterior), torch.from_numpy(label)))
        inside = np.argsort(np.argsort(-np.array(gather(values)), kind="stable")) < (len(pairs) + 1) // 2
    return tuple([pair for pair, chosen in zip(pairs, inside, strict=True) if chosen == side] for side in (True, False))


if __name__ == "__main__":
    run(main, parser())
