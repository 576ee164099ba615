#!/usr/bin/env python3
"""Train the per-patch attacker A_P on a shadow's posteriors (algorithm 1, lines 4 to 14).

    python train_attacker.py --shadow runs/shadow                                   # structured loss maps
    python train_attacker.py --shadow runs/shadow -input concate                    # posterior and one-hot label
    python train_attacker.py --shadow runs/shadow runs/shadow-swapped               # more shadows, more to learn from
    python train_attacker.py --posteriors TREE                                      # a shadow's posteriors from disk

The shadow is asked once about each image of D^S; its posteriors stay in RUN/posteriors-sN, in the release's layout,
and serve every attacker. A fifth of D^S is held out, by blocks, to choose the epoch and tau. Writes best.pth.tar
(highest validation AUC), last.pth.tar, log.jsonl, TensorBoard events and results.json.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import defenses
import training
from utils.cli import UserError, add_run_flags, flag, positive, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--shadow", metavar="DIR", nargs="+", default=["runs/shadow"],
                        help="runs of train_shadow.py, one or more (default: runs/shadow)")
    source.add_argument("--posteriors", metavar="TREE", help="posteriors of a shadow on disk; train/ = D_in^S")
    flag(flags, "input", choices=("loss", "concate"), default="loss", help="representation (default: loss)")
    flags.add_argument("--patch-size", type=positive, default=24,
                       help="side in positions (default: 24; the paper's 90)")
    flags.add_argument("--stride", type=positive, default=4, help="pixels per position (default: 4; the paper's 8)")
    flags.add_argument("--void", choices=("zero", "mask"), default="zero",
                       help="void positions hold 0, or an extra channel tells of them (default: zero)")
    flags.add_argument("-a", "-arch", "--arch", choices=("resnet18", "resnet50", "pixelwise"),
                       default="resnet18", help="architecture (default: resnet18; the paper's resnet50), or the "
                       "learned 1x1 baseline of Salem et al., which needs -input concate")
    flags.add_argument("--width", type=float, default=0.25, help="times the usual channels (default: 0.25; paper 1)")
    flags.add_argument("--dropout", type=float, default=0.0, help="before the last layer (default: 0)")
    flags.add_argument("--epochs", type=positive, default=40, help="(default: 40)")
    flags.add_argument("--patches-per-epoch", type=positive, default=4, metavar="N",
                       help="of each image (default: 4)")
    flags.add_argument("--batch", type=positive, default=32, help="patches in a step (default: 32)")
    flags.add_argument("--lr", type=float, default=1e-3, help="of AdamW, cosine schedule (default: 1e-3)")
    flags.add_argument("--weight-decay", type=float, default=1e-2, help="(default: 1e-2)")
    flags.add_argument("--continue", dest="continue_", metavar="DIR",
                       help="go on with the run in DIR, with the arguments it was started with")
    plan = training.add_plan_flags(flags)
    plan.add_argument("--classes", type=positive, default=19, metavar="C", help="of the data (default: 19)")
    defenses.add_flags(flags)
    add_run_flags(flags, "attacker")
    return flags


def main(args: argparse.Namespace) -> None:
    from attacks.scoring import View
    from datasets.posteriors import TINY, list_tree
    from defenses.apply import Defense
    from training.attacker import prepare, train_attacker
    from utils.device import choose_device
    from utils.distributed import is_main, print_once, run_on_main
    from utils.files import start_run, write_json
    from utils.resume import resume_arguments

    if args.plan:
        from training.plan import plan_attacker

        return print(plan_attacker(args, spec_of(args, args.classes), args.images or count_images(args)))
    if args.arch == "pixelwise" and args.input != "concate":
        raise UserError("--arch pixelwise reads posterior and label; give it -input concate")
    if args.posteriors and args.test_dropout is not None:
        raise UserError("-test-dropout changes how a shadow is asked: give --shadow DIR")
    device = choose_device(args.gpu)
    args, folder = resume_arguments(args, parser())
    trees = [Path(args.posteriors)] if args.posteriors else [ask_shadow(Path(run), args, device) for run in args.shadow]
    items = [replace(item, name=f"{number}/{item.name}" if number else item.name)
             for number, tree in enumerate(trees) for item in list_tree(tree)]
    classes, stride = items[0].classes_and_stride()
    items = [replace(item, classes=classes, stride=stride) for item in items]
    view = View(args.input, args.patch_size, TINY, args.void, stride, args.argmax)
    spec = spec_of(args, classes)
    defense = Defense(args.argmax, args.gauss, args.seed, args.gauss_floor)
    data, validation = prepare(args, items, view.size, defense)
    folder = folder or run_on_main(lambda: start_run("attacker", vars(args), args.out))
    results = train_attacker(args, data, validation, spec, view, folder, device)
    if is_main():
        write_json(folder / "results.json", {"input": args.input, **results})
    print_once(f"A_P ({args.input}): held-out AUC {results['validation_auc']:.3f} on {results['held_out']} images, "
               f"epoch {results['epoch']}, tau {results['tau']:.3f}; {folder / 'best.pth.tar'}")


def count_images(args: argparse.Namespace) -> int:
    """How many images D^S has; those of several shadows count for each."""
    from datasets.pairs import read_split
    from datasets.posteriors import list_tree

    if args.posteriors:
        return len(list_tree(args.posteriors))
    splits = [Path(run) / name for run in args.shadow for name in ("in.txt", "out.txt")]
    return sum(len(read_split(path, must_exist=False)) for path in splits)


def spec_of(args: argparse.Namespace, classes: int) -> dict:
    """The dict that rebuilds the attacker which the flags ask for."""
    from attacks.representation import channels
    from models.attacker import halvings_for

    arguments = {"arch": args.arch, "channels": channels(args.input, classes, args.void), "width": args.width,
                 "dropout": args.dropout}
    if args.arch != "pixelwise":
        arguments["halvings"] = halvings_for(args.patch_size)
    return {"name": "attacker", "classes": classes, "arguments": arguments}


def ask_shadow(folder: Path, args: argparse.Namespace, device: object) -> Path:
    """The folder of a shadow's posteriors on D^S; images that are not there yet are asked for now."""
    from functools import cache

    from datasets import find_dataset
    from datasets.pairs import read_split
    from defenses.dropout import Dropout
    from models import load_segmenter, read_segmenter
    from models.query import query_tree
    from utils.checkpoints import require

    if not (folder / "in.txt").is_file():
        raise UserError(f"{folder} is no run of train_shadow.py: it has no in.txt; give --shadow DIR")
    if not (folder / "results.json").is_file():
        raise UserError(f"{folder} is not trained to its end; go on with train_shadow.py --continue {folder}")
    checkpoint = read_segmenter(folder / "last.pth.tar")
    root = require(require(checkpoint, "args", dict, folder), "root", str, folder)
    sides = {side: read_split(folder / f"{name}.txt", root) for side, name in (("train", "in"), ("val", "out"))}

    dropout = None if args.test_dropout is None else Dropout(args.test_dropout, args.seed)
    under = f"-dropout-{dropout.ratio:g}-{dropout.seed}" if dropout else ""

    @cache
    def shadow():
        model = load_segmenter(folder / "last.pth.tar")[0].to(device)
        return dropout.switch_on(model) if dropout else model

    made_from = [folder / name for name in ("last.pth.tar", "in.txt", "out.txt")]
    dataset = find_dataset(checkpoint.get("dataset"))
    return query_tree(folder / f"posteriors-s{args.stride}{under}", shadow, sides, dataset, device, args.stride,
                      args.precision, made_from, dropout)


if __name__ == "__main__":
    run(main, parser())
