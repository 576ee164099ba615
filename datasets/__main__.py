"""Look at a data set, and write its split files and, with --copy, a resized copy of its images and labels.

    python -m datasets streets
    python -m datasets camvid --root CAMVID
    python -m datasets camvid --root CAMVID --short-side 240 --copy data/camvid-240
    python -m datasets folder --root DIR --classes 2      # your own data: DIR/images and DIR/masks, equal file names
    python -m datasets streets --short-side 128 --translate label-to-image \
        --copy data/streets-translation --splits splits/streets-translation   # pairs of images, for train_translator.py

Prints what it found: sizes, formats, classes, void, groups, copies, and images of one part that look like one of
another.
"""

import argparse
from pathlib import Path

from datasets import DATASETS, DIRECTIONS, IMAGES, WITHOUT_LABELS, add_class_flags, chosen, find_dataset
from utils.cli import UserError, natural, new_parser, positive, refuse_unused, run, thousands
from utils.distributed import warn_once


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "datasets")
    flags.add_argument("dataset", metavar="name", choices=DATASETS, help=f"the data set: {', '.join(DATASETS)}")
    add_class_flags(flags)
    flags.add_argument("--root", metavar="DIR",
                       help="folder of the data set; streets draws its images there (default: data/NAME)")
    flags.add_argument("--splits", metavar="DIR", help="output folder of the split files (default: splits/NAME)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of random splits, and of streets (default: 0)")
    flags.add_argument("--short-side", type=thousands, metavar="N",
                       help="shorter side of the images of the copy, in pixels")
    flags.add_argument("--copy", metavar="DIR",
                       help="output folder of the copy; the split files then list the images of the copy")
    flags.add_argument("--translate", choices=DIRECTIONS, help="the copy holds pairs of images of N x N pixels for "
                       "train_translator.py: split files list input and ground truth; labels become images in colours; "
                       "image-to-image: the image is its own ground truth, a control")
    flags.add_argument("--count", type=positive, metavar="N",
                       help="at most N images of each part, in whole groups that are drawn at random (default: all)")
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from datasets.copying import copy_pairs, copy_translation
    from datasets.pairs import at_most, check_files, fields_of, write_split
    from datasets.survey import survey, without_copies

    name = args.dataset
    root, out = Path(args.root or f"data/{name}"), Path(args.splits or f"splits/{name}")
    dataset = IMAGES if name in WITHOUT_LABELS else chosen(args)
    found = DATASETS.load(name) if name in WITHOUT_LABELS else find_dataset(dataset)
    parts = found.splits(root, args.seed)
    if args.count:
        parts = {part: at_most(args.count, pairs, args.seed) for part, pairs in parts.items()}
    check_files(root, parts)
    lines, inspected = survey(parts, dataset, found.CLASSES)
    print("\n".join(lines))
    if name == "folder":
        parts = without_copies(parts, inspected)
    check_parts(root, parts, must_have_images=name == "folder")
    for part, pairs in parts.items():
        for pair in pairs:
            fields_of(pair, out / f"{part}.txt")
    copy = (Path(args.copy), args.short_side) if args.copy else ()
    if args.translate:
        parts = {part: copy_translation(pairs, dataset, *copy, part, args.translate)
                 for part, pairs in parts.items()}
    elif copy:
        aspect = getattr(found, "ASPECT", None)
        parts = {part: copy_pairs(pairs, *copy, part, aspect) for part, pairs in parts.items()}
    for part, pairs in parts.items():
        path = out / f"{part}.txt"
        write_split(path, pairs, f"{name}, seed {args.seed}: {len(pairs)} images")
        print(f"{path}: {len(pairs)}")


def check(args: argparse.Namespace) -> None:
    """Refuse flags that need one another, or that have no effect."""
    if bool(args.short_side) != bool(args.copy):
        raise UserError("--short-side N and --copy DIR need each other; give both or neither")
    if args.translate and not args.copy:
        raise UserError("--translate writes images: give --copy DIR and --short-side N, too")
    fixed = getattr(DATASETS.load(args.dataset), "FIXED", False)
    refuse_unused(args, parser(), [
        (fixed and not args.count,
         f"on {args.dataset}, whose parts are those of its authors; leave it out", ["--seed"])])


def check_parts(root: Path, parts: dict, must_have_images: bool) -> None:
    """Raise `UserError`, or else warn, if a part has no image."""
    if empty := [part for part, pairs in parts.items() if not pairs]:
        message = f"{root} has too few groups of images that are no copies: {', '.join(empty)} would be empty"
        if must_have_images:
            raise UserError(message)
        warn_once(message)


if __name__ == "__main__":
    run(main, parser())
