"""Cityscapes: leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png, gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png.

The authors' release numbers the images of train and of val from 1, but does not give the order; we assume the sorted
paths. Both settings of the paper divide the images in this order, so members and non-members come from different
cities. An attack may therefore partly recognise the city; the paper has the same problem. The group of an image is its
city.
"""

from pathlib import Path

import numpy as np

from datasets.pairs import Pair, describe_folder
from utils import VOID
from utils.cli import UserError

CLASSES = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
           "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of CLASSES, in the same order
LAST_ID = 33  # of the label ids; 255 is the id -1 (license plate)
VICTIM_IN, VICTIM_OUT = 1488, 912  # members and non-members of the victim (section 2.4)
FIXED = True  # the parts, whatever the seed


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Convert label ids to train ids in files named *labelIds.png. All other files already contain train ids."""
    if raw.ndim != 2 or not path.stem.endswith("labelIds"):
        return raw
    if (unknown := raw[(raw > LAST_ID) & (raw != VOID)]).size:
        raise UserError(f"{path} holds id {unknown[0]}; the label ids of Cityscapes are 0..{LAST_ID}")
    table = np.full(256, VOID, np.uint8)
    table[list(LABEL_IDS)] = np.arange(len(CLASSES))
    return table[raw]


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return the dependent and the independent setting of section 2.4.

    dependent: 1488 members and 912 non-members from train; the shadow gets the other 575 of train and all 500 of val.
    independent: train as members, val as non-members.
    """
    train, val = (_side(root, side) for side in ("train", "val"))
    if len(train) <= VICTIM_IN + VICTIM_OUT or not val:
        raise UserError(f"{root}/leftImg8bit has {len(train)} + {len(val)} of the 2975 + 500 images of Cityscapes "
                        f"({describe_folder(root)}); unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip "
                        "of cityscapes-dataset.com there")
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
