"""The segmentation part of BDD100K, in the present layout or in that of 2018, which the authors' lists have.

Present: images/10k/{train,val}/NAME.jpg and labels/sem_seg/masks/{train,val}/NAME.png. 2018 (folder bdd100k/seg):
images/{train,val}/NAME.jpg and labels/{train,val}/NAME_train_id.png. The train ids are those of Cityscapes.
"""

from pathlib import Path

import numpy as np

from datasets.cityscapes import CLASSES
from datasets.pairs import Pair, describe_folder
from utils.cli import UserError

SHADOW_IN = 4000  # members of the shadow (table 1); the rest of train and all of val are non-members

__all__ = ["CLASSES", "decode", "splits"]
FIXED = True  # the parts, whatever the seed


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Return the label unchanged: it already contains train ids."""
    return raw


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return the parts of the authors' lists.

    `shadow_in` is the first 4000 of train, `shadow_out` is val and then the other 3000 of train.
    """
    present = (root / "images" / "10k").is_dir()
    images, labels, end = (("images/10k", "labels/sem_seg/masks", "") if present else ("images", "labels", "_train_id"))
    train, val = ([Pair(f"{images}/{side}/{path.name}", f"{labels}/{side}/{path.stem}{end}.png",
                        f"{images}/{side}/{path.name}", root)
                   for path in sorted((root / images / side).glob("*.jpg"))] for side in ("train", "val"))
    if len(train) <= SHADOW_IN:
        raise UserError(f"{root}/{images}/train has {len(train)} of the 7000 images of BDD100K "
                        f"({describe_folder(root)}); --root must be the folder that holds images/10k and "
                        "labels/sem_seg, or bdd100k/seg")
    return {"shadow_in": train[:SHADOW_IN], "shadow_out": val + train[SHADOW_IN:]}
