"""Translated images on disk: the input, the output of a generator, and the ground truth of each image.

    ROOT/{train,val}/input/NAME.png      the input of the generator
    ROOT/{train,val}/output/NAME.png     its output
    ROOT/{train,val}/truth/NAME.png      the ground truth, of the same size
    ROOT/groups.txt                      optional: lines `SIDE/NAME group`, the groups of the intervals

`train` holds the members, `val` the non-members. Images may have any suffix. The outputs of any generator can be
scored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets import IMAGES
from datasets.images import describe_file, load_image
from datasets.inspection import hash_array
from predictors.base import Predictor, PredictorOptions, Query, Record
from predictors.stored import SIDES, differ, read_groups
from utils.cli import UserError
from utils.files import atomic_open, files_by_name

PARTS = ("input", "output", "truth")


class TriplePredictor(Predictor):
    """Outputs in the files of a tree of triples: float32 (3, H, W) in 0..1. The name of a record gives its file."""

    reads_images = False
    kind = "image"

    def __init__(self, where: str | Path, paths: Mapping[str, Path], options: PredictorOptions | None = None):
        super().__init__(str(where), options or PredictorOptions())
        self.paths = paths

    def files(self, record: Record) -> tuple[Path, ...]:
        if record.name not in self.paths:
            raise UserError(f"{self.where} holds no output for {record.name}")
        return (self.paths[record.name],)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        return [torch.from_numpy(load_image(*self.files(query.record)).copy()).permute(2, 0, 1).float() / 255
                for query in queries]


def list_triples(root: str | Path) -> tuple[list[Record], dict[str, Path]]:
    """The records of a tree of triples, sorted by side and name, and the output of each: name -> file.

    Raises `UserError` if a side has no images, or an image lacks one of the three files.
    """
    root, records, outputs = Path(root), [], {}
    for side, member in SIDES.items():
        files = {part: files_by_name(root / side / part) for part in PARTS}
        names = sorted(set().union(*files.values()))
        if not names:
            raise UserError(f"{root / side} holds no images; give a folder with {{train,val}}/{{{','.join(PARTS)}}}")
        if lacking := [(name, part) for name in names for part in PARTS if name not in files[part]]:
            raise UserError(f"{root / side / lacking[0][1]} has no image {lacking[0][0]}, and {len(lacking) - 1} other "
                            "files are missing; each image needs an input, an output and a ground truth")
        for name in names:
            key = f"{side}/{name}"
            records.append(Record(key, key, member, files["input"][name], files["truth"][name], IMAGES, name))
            outputs[key] = files["output"][name]
    groups = read_groups(root, list(outputs), [])
    return [record.in_group(groups.get(record.name)) for record in records], outputs


def write_triple(folder: Path, name: str, image: np.ndarray, output: np.ndarray, truth: np.ndarray) -> None:
    """Write the PNG files of one image, the output last. `folder`: of one side of a tree.

    `image` uint8 (H, W, 3); `output` and `truth` float (3, H, W) in 0..1, which are rounded to 8 bits.
    """
    for part, pixels in (("input", image), ("truth", to_pixels(truth)), ("output", to_pixels(output))):
        with atomic_open(folder / part / f"{name}.png") as file:
            Image.fromarray(pixels).save(file, "PNG")


def to_pixels(image: np.ndarray) -> np.ndarray:
    """An image float (3, H, W) in 0..1, rounded to uint8 (H, W, 3)."""
    return np.round(255 * image.transpose(1, 2, 0)).astype(np.uint8)


def check_outputs(predictor: TriplePredictor, records: Sequence[Record]) -> None:
    """Raise `UserError` if the files of the outputs tell the sides apart, or if two images have the same output."""
    kinds: dict[bool | None, set[str]] = {True: set(), False: set()}
    seen: dict[str, Record] = {}
    for record in records:
        [path] = predictor.files(record)
        kind, tables, _ = describe_file(path)
        kinds[record.member].add(f"{kind}, quantisation {tables}" if tables else kind)
        pixels = load_image(path)
        earlier = seen.setdefault(hash_array(pixels), record)
        if earlier is not record and np.ptp(pixels) and differ(earlier, record):
            raise UserError(f"{predictor.where}: {earlier.name} and {record.name} have the same output, and other "
                            "images; each image needs the output that the generator gave for it")
    if not kinds[True] & kinds[False]:
        raise UserError(f"{predictor.where}: the outputs of members are {min(kinds[True])}, and those of non-members "
                        f"{min(kinds[False])}; an attack would recognise the form of a file instead of membership, so "
                        "store both sides alike")
