"""BDD100K's segmentation part: images/{train,val}/NAME.jpg, labels/{train,val}/NAME_train_id.png; root = bdd100k/seg.

Its train ids are those of Cityscapes.
"""

from pathlib import Path

import numpy as np

from datasets.cityscapes import CLASSES
from datasets.pairs import Pair
from utils.cli import UserError

SHADOW_IN = 4000  # table 1; the rest of train and all of val are out

__all__ = ["CLASSES", "decode", "splits"]


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Labels are train ids already."""
    return raw


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """`shadow_in` and `shadow_out` as in the authors' lists: the first 4000 of train; val, then the other 3000."""
    train, val = ([Pair(f"images/{side}/{path.name}", f"labels/{side}/{path.stem}_train_id.png",
                        f"images/{side}/{path.name}", root) for path in sorted((root / "images" / side).glob("*.jpg"))]
                  for side in ("train", "val"))
    if len(train) <= SHADOW_IN:
        raise UserError(f"{root}/images/train holds {len(train)} images of BDD100K's 7000; is --root bdd100k/seg?")
    return {"shadow_in": train[:SHADOW_IN], "shadow_out": val + train[SHADOW_IN:]}
