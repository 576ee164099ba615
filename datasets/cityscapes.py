"""Cityscapes: leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png, gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png.

The release numbers the images of train and of val, each from 1, without saying in which order; we assume the sorted
path. Both of the paper's settings cut that order, so their parts are of different cities: part of what an attack
measures may be the city, which the paper shares. The city is the block of our intervals.
"""

from pathlib import Path

import numpy as np

from datasets.pairs import Pair
from utils import VOID
from utils.cli import UserError

CLASSES = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
           "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes, in order
VICTIM_IN, VICTIM_OUT = 1488, 912  # section 2.4


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Label ids of files called *_labelIds.png to train ids; any other file holds train ids already."""
    if not path.stem.endswith("labelIds"):
        return raw
    table = np.full(256, VOID, np.uint8)
    table[list(LABEL_IDS)] = np.arange(len(CLASSES))
    return table[raw]


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """`dependent/` (1488 in, 912 out, D^S of 575 + 500) and `independent/` (train in, val out), as in section 2.4."""
    train, val = (_side(root, side) for side in ("train", "val"))
    if len(train) <= VICTIM_IN + VICTIM_OUT or not val:
        raise UserError(f"{root} holds {len(train)} + {len(val)} images of Cityscapes' 2975 + 500 under leftImg8bit; "
                        "get leftImg8bit_trainvaltest.zip from cityscapes-dataset.com")
    end = VICTIM_IN + VICTIM_OUT
    return {"dependent/victim_in": train[:VICTIM_IN], "dependent/victim_out": train[VICTIM_IN:end],
            "dependent/shadow": train[end:] + val, "independent/victim_in": train, "independent/victim_out": val}


def _side(root: Path, side: str) -> list[Pair]:
    pairs = []
    for path in sorted((root / "leftImg8bit" / side).glob("*/*_leftImg8bit.png")):
        city, name = path.parent.name, path.name.removesuffix("_leftImg8bit.png")
        label = f"gtFine/{side}/{city}/{name}_gtFine_labelIds.png"
        pairs.append(Pair(f"leftImg8bit/{side}/{city}/{path.name}", label, city, root))
    return pairs
