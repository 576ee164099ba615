"""Mapillary Vistas v1.2: {training,validation}/images/ID.jpg and /labels/ID.png or, in v2.0, /v1.2/labels/ID.png.

Its classes are merged into those of Cityscapes. The labels of v2.0 have other ids and are not used.
"""

from pathlib import Path

import numpy as np

from datasets.cityscapes import CLASSES
from datasets.pairs import Pair, describe_folder
from utils import VOID
from utils.cli import UserError

MERGED = ((13, 41, 24), (15, 2), (17,), (6,), (3,), (45, 47), (48,), (50,), (30,), (29,), (27,), (19,), (20, 21, 22),
          (55,), (61,), (54,), (58,), (57,), (52,))  # Vistas ids of each class; all other ids are void
LAST_ID = 65  # of v1.2
SHADOW_IN = 10000  # members of the shadow (table 1); the rest of training and all of validation are non-members

__all__ = ["CLASSES", "decode", "splits"]
FIXED = True  # the parts, whatever the seed


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Convert Vistas ids to train ids. The authors' files, in folders `cityscapes_labels`, already have train ids."""
    if raw.ndim != 2 or path.parent.name == "cityscapes_labels":
        return raw
    if (unknown := raw[(raw > LAST_ID) & (raw != VOID)]).size:
        raise UserError(f"{path} holds id {unknown[0]}; the ids of Vistas v1.2 are 0..{LAST_ID}. Labels of v2.0 have "
                        "other ids; its folders v1.2/labels have those of v1.2")
    table = np.full(256, VOID, np.uint8)
    for index, ids in enumerate(MERGED):
        table[list(ids)] = index
    return table[raw]


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return the parts of the authors' lists.

    `shadow_in` is the first 10000 of training, `shadow_out` is validation and then the other 8000 of training.
    """
    labels = "v1.2/labels" if (root / "training" / "v1.2").is_dir() else "labels"
    training, validation = ([Pair(f"{side}/images/{path.name}", f"{side}/{labels}/{path.stem}.png",
                                  f"{side}/images/{path.name}", root)
                             for path in sorted((root / side / "images").glob("*.jpg"))]
                            for side in ("training", "validation"))
    if len(training) <= SHADOW_IN:
        raise UserError(f"{root}/training/images has {len(training)} of the 18000 images of Vistas "
                        f"({describe_folder(root)}); download them from mapillary.com/dataset/vistas")
    return {"shadow_in": training[:SHADOW_IN], "shadow_out": validation + training[SHADOW_IN:]}
