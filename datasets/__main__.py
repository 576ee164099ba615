"""Write the split files of a data set, and, if asked, a copy of it at another size.

    python -m datasets streets
    python -m datasets camvid --root CAMVID
    python -m datasets camvid --root CAMVID --short-side 240 --copy data/camvid-240
"""

import argparse
from dataclasses import replace
from pathlib import Path

from datasets import DATASETS, find_dataset
from utils.cli import UserError, positive, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="datasets", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("name", choices=DATASETS, help="the data set")
    flags.add_argument("--root", metavar="DIR", help="where it lies; streets are drawn there (default: data/NAME)")
    flags.add_argument("--splits", metavar="DIR", help="where the split files go (default: splits/NAME)")
    flags.add_argument("--seed", type=int, default=0, help="of the parts that are dealt at random (default: 0)")
    flags.add_argument("--short-side", type=positive, metavar="N",
                       help="pixels of the shorter side of the copy's images")
    flags.add_argument("--copy", metavar="DIR", help="write the copy here; the split files then name its images")
    return flags


def main(args: argparse.Namespace) -> None:
    from datasets.pairs import write_split

    if bool(args.short_side) != bool(args.copy):
        raise UserError("--short-side N and --copy DIR go together")
    root, out = Path(args.root or f"data/{args.name}"), Path(args.splits or f"splits/{args.name}")
    for name, pairs in find_dataset(args.name).splits(root, args.seed).items():
        if args.copy:
            pairs = resized(pairs, Path(args.copy), args.short_side, name)
        path = out / f"{name}.txt"
        write_split(path, pairs, f"{args.name}, seed {args.seed}: {len(pairs)} images")
        print(f"{path}: {len(pairs)}")


def resized(pairs: list, copy: Path, side: int, what: str) -> list:
    """Write pairs under `copy` with shorter sides of `side` pixels (area mean; labels nearest), those not there yet."""
    import cv2
    from PIL import Image

    from datasets.images import PIXELS, load_ids, load_image, opened
    from utils.files import atomic_open
    from utils.log import progress

    out = []
    for pair in progress(pairs, f"resizing {what}"):
        image = str(Path(pair.image).with_suffix(".png"))
        group = image if pair.group == pair.image else pair.group
        for source, load, target, how in ((pair.image, load_image, image, cv2.INTER_AREA),
                                          (pair.label, load_ids, pair.label, cv2.INTER_NEAREST_EXACT)):
            if (copy / target).exists():
                with opened(copy / target) as there:
                    if min(there.size) != side:
                        raise UserError(f"{copy} holds images of another size; give --copy another folder")
                continue
            array = load(pair.root / source)
            height, width = array.shape[:2]
            factor = side / min(height, width)
            if height * width * factor**2 > PIXELS:
                raise UserError(f"{pair.root / source} is {width} x {height}; --short-side {side} would make it larger "
                                f"than {PIXELS:,} pixels")
            array = cv2.resize(array, (round(width * factor), round(height * factor)), interpolation=how)
            with atomic_open(copy / target) as file:
                Image.fromarray(array).save(file, "PNG")
        out.append(replace(pair, image=image, group=group, root=copy))
    return out


if __name__ == "__main__":
    run(main, parser())
