#!/usr/bin/env python3
"""Train a translator, which turns an image into another image, on pairs of input and ground truth.

    python -m datasets streets --short-side 128 --translate label-to-image \\
        --copy data/streets-translation --splits splits/streets-translation    # write the pairs of the demo
    python train_translator.py                                                 # about an hour on two cores
    python train_translator.py --root data/cityscapes-256 --train splits/cityscapes-256/official/in.txt \\
        --test splits/cityscapes-256/official/out.txt --width 64               # the paper's pix2pix, for a GPU

Writes last.pth.tar, log.jsonl, TensorBoard events, samples/ (input, output and ground truth side by side) and
results.json (L1 in and out) into the run's folder.
"""

import argparse

import training
from datasets import IMAGES
from models import TRANSLATORS
from training.options import TranslatorTraining
from utils.cli import add_run_flags, new_parser, number, pick, positive, refuse_unused, run


def parser() -> argparse.ArgumentParser:
    flags, of = new_parser(__doc__), TranslatorTraining
    flags.add_argument("--train", metavar="SPLIT", default="splits/streets-translation/victim_in.txt",
                       help="split file of the training pairs: `input truth [group]`")
    flags.add_argument("--test", metavar="SPLIT", default="splits/streets-translation/victim_out.txt",
                       help="split file of other pairs, which are used only for samples and to measure L1")
    flags.add_argument("--root", metavar="DIR", default="data/streets-translation",
                       help="folder to which the paths in split files are relative (default: data/streets-translation)")
    flags.add_argument("--model", choices=TRANSLATORS, default=of.model, help=f"{TRANSLATORS.help()} "
                       f"(default: {of.model})")
    flags.add_argument("--width", type=number(1, 1024, int), default=of.width, help="channels of the first layers "
                       f"(default: {of.width}; the paper has 64)")
    flags.add_argument("--epochs", type=positive, default=of.epochs, help="number of epochs; in the second half the "
                       f"learning rate falls to 0 (default: {of.epochs}, as in the paper)")
    flags.add_argument("--batch", type=positive, default=of.batch, help="pairs per step (default: 1, as in the paper)")
    flags.add_argument("--vgg", action="store_true", help="pix2pixhd and spade: add the perceptual loss of the papers, "
                       "whose weights of VGG19 are downloaded (default: the losses without it)")
    training.add_workers_flag(flags)
    training.add_continue_flag(flags)
    add_run_flags(flags, "translator")
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from training import setup, translation

    args, folder, compute = setup.begin(args, parser())
    options = pick(args, TranslatorTraining)
    inside, outside = (setup.read_split(path, args.root) for path in (args.train, args.test))
    translation.check_translator(options, inside)
    roles = setup.compare_sides(inside, outside, IMAGES)
    if folder:
        setup.check_unchanged(folder, roles)
    compute = setup.settle_translator(compute, options, translation.size_of(inside), folder)
    folder = folder or setup.start_run_on_main("translator", vars(args), args.out, compute)
    setup.write_provenance(folder, roles)
    translation.train_and_report(options, inside, outside, folder, compute, vars(args))


def check(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect. With --continue all flags are compared with those of the run instead."""
    refuse_unused(args, parser(), [] if args.continue_ else [
        (args.model == "pix2pix", "with --model pix2pix, whose loss has no such term; leave it out", ["--vgg"])])


if __name__ == "__main__":
    run(main, parser())
