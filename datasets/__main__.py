"""Look at a data set, and write its split files and, with --copy, a resized copy of its images and labels.

    python -m datasets streets
    python -m datasets camvid --root CAMVID
    python -m datasets camvid --root CAMVID --short-side 240 --copy data/camvid-240
    python -m datasets folder --root DIR --classes 2      # your own data: DIR/images and DIR/masks, equal file names

Prints what it found: sizes, formats, classes, void, groups, copies, and images of one part that look like one of
another.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from datasets import DATASETS, add_class_flags, chosen, find_dataset
from utils.cli import UserError, natural, new_parser, refuse_unused, run, thousands
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
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from datasets.pairs import check_files, fields_of, write_split
    from datasets.survey import survey, without_copies

    name = args.dataset
    root, out, dataset = Path(args.root or f"data/{name}"), Path(args.splits or f"splits/{name}"), chosen(args)
    found = find_dataset(dataset)
    parts = found.splits(root, args.seed)
    check_files(root, parts)
    lines, inspected = survey(parts, dataset, found.CLASSES)
    print("\n".join(lines))
    if name == "folder":
        parts = without_copies(parts, inspected)
    check_parts(root, parts, must_have_images=name == "folder")
    for part, pairs in parts.items():
        for pair in pairs:
            fields_of(pair, out / f"{part}.txt")
    if args.copy:
        parts = {part: resized(pairs, Path(args.copy), args.short_side, part) for part, pairs in parts.items()}
    for part, pairs in parts.items():
        path = out / f"{part}.txt"
        write_split(path, pairs, f"{name}, seed {args.seed}: {len(pairs)} images")
        print(f"{path}: {len(pairs)}")


def check(args: argparse.Namespace) -> None:
    """Refuse flags that need one another, or that have no effect."""
    if bool(args.short_side) != bool(args.copy):
        raise UserError("--short-side N and --copy DIR need each other; give both or neither")
    fixed = getattr(DATASETS.load(args.dataset), "FIXED", False)
    refuse_unused(args, parser(), [
        (fixed, f"on {args.dataset}, whose parts are those of its authors; leave it out", ["--seed"])])


def check_parts(root: Path, parts: dict, must_have_images: bool) -> None:
    """Raise `UserError`, or else warn, if a part has no image."""
    if empty := [part for part, pairs in parts.items() if not pairs]:
        message = f"{root} has too few groups of images that are no copies: {', '.join(empty)} would be empty"
        if must_have_images:
            raise UserError(message)
        warn_once(message)


def resized(pairs: list, copy: Path, side: int, part: str) -> list:
    """Write resized copies of pairs below `copy` and return the new pairs. Files that exist are not written again.

    The shorter side gets `side` pixels. Images are resized by area averaging, labels by nearest neighbour. Raises
    `UserError` if a file that exists has other pixels.
    """
    import cv2
    import numpy as np
    from PIL import Image

    from datasets.images import PIXELS, load_ids, load_image
    from utils.files import atomic_open
    from utils.log import progress

    out = []
    for pair in progress(pairs, f"resizing {part}"):
        image = str(Path(pair.image).with_suffix(".png"))
        group = image if pair.group == pair.image else pair.group
        for source, load, target, method in ((pair.image, load_image, image, cv2.INTER_AREA),
                                             (pair.label, load_ids, pair.label, cv2.INTER_NEAREST_EXACT)):
            array = load(pair.root / source)
            height, width = array.shape[:2]
            factor = side / min(height, width)
            if height * width * factor**2 > PIXELS:
                raise UserError(f"{pair.root / source} is {width} x {height}; --short-side {side} would give it "
                                f"more than {PIXELS:,} pixels; lower it")
            array = cv2.resize(array, (round(width * factor), round(height * factor)), interpolation=method)
            if not (copy / target).exists():
                with atomic_open(copy / target) as file:
                    Image.fromarray(array).save(file, "PNG")
            elif not np.array_equal(load(copy / target), array):
                raise UserError(f"{copy / target} is not {pair.root / source} at this size: it was made from another "
                                "file, or the file has changed since; remove the folder of the copy, or give --copy "
                                "another one")
        out.append(replace(pair, image=image, group=group, root=copy))
    return out


if __name__ == "__main__":
    run(main, parser())
