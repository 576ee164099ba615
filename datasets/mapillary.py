"""Mapillary Vistas v1.2: {training,validation}/images/ID.jpg and /labels/ID.png, merged into Cityscapes' classes."""

from pathlib import Path

import numpy as np

from datasets.cityscapes import CLASSES
from datasets.pairs import Pair
from utils import VOID
from utils.cli import UserError

MERGED = ((13, 41, 24), (15, 2), (17,), (6,), (3,), (45, 47), (48,), (50,), (30,), (29,), (27,), (19,), (20, 21, 22),
          (55,), (61,), (54,), (58,), (57,), (52,))  # Vistas ids of each class; the others are void
SHADOW_IN = 10000  # table 1; the rest of training and all of validation are out

__all__ = ["CLASSES", "decode", "splits"]


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Vistas ids to train ids; files in a folder `cityscapes_labels` are the authors' and hold train ids already."""
    if path.parent.name == "cityscapes_labels":
        return raw
    table = np.full(256, VOID, np.uint8)
    for index, ids in enumerate(MERGED):
        table[list(ids)] = index
    return table[raw]


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """`shadow_in` and `shadow_out` as in the authors' lists: the first 10000; validation, then the other 8000."""
    training, validation = ([Pair(f"{side}/images/{path.name}", f"{side}/labels/{path.stem}.png",
                                  f"{side}/images/{path.name}", root)
                             for path in sorted((root / side / "images").glob("*.jpg"))]
                            for side in ("training", "validation"))
    if len(training) <= SHADOW_IN:
        raise UserError(f"{root}/training/images holds {len(training)} images of Vistas' 18000; get v1.2 from "
                        "mapillary.com/dataset/vistas")
    return {"shadow_in": training[:SHADOW_IN], "shadow_out": validation + training[SHADOW_IN:]}
