"""LabelMeFacade (Fröhlich, Rodner, Denzler): images/NAME.jpg and colour labels labels/NAME.png.

Its classes are merged into six of the eleven classes of CamVid. Building, door and window become building; `various`
(black) becomes void. Images that were enlarged from 256 x 256 are left out. Images of one photo
series form one group.
"""

from pathlib import Path

import numpy as np

from datasets.camvid import CLASSES
from datasets.pairs import Pair, deal, describe_folder
from utils import VOID
from utils.cli import UserError

COLOURS = {(128, 0, 0): "building", (128, 128, 0): "building", (0, 0, 128): "building", (128, 0, 128): "car",
           (128, 128, 128): "pavement", (128, 64, 0): "road", (0, 128, 128): "sky", (0, 128, 0): "tree"}
ENLARGED = "spatial_envelope_256x256"


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Convert colours (H, W, 3) to train ids (H, W) of CamVid; black is void.

    Raises `UserError` for a label without colours, or with an unknown colour.
    """
    if raw.ndim != 3:
        raise UserError(f"{path}: expected a colour image, as all labels of LabelMeFacade are")
    code = raw.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    label, known = np.full(code.shape, VOID, np.uint8), code == 0
    for (red, green, blue), name in COLOURS.items():
        here = code == 65536 * red + 256 * green + blue
        label[here], known = CLASSES.index(name), known | here
    if not known.all():
        raise UserError(f"{path} has the colour {tuple(raw[~known][0].tolist())}, which is none of LabelMeFacade's")
    return label


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return two halves, `shadow_in` and `shadow_out`. A group is a photo series: the part of the name before `__`."""
    names = sorted(path.stem for path in (root / "images").glob("*.jpg"))
    if not names:
        raise UserError(f"{root}/images contains no .jpg images ({describe_folder(root)}); download them from "
                        "github.com/cvjena/labelmefacade")
    pairs = [Pair(f"images/{name}.jpg", f"labels/{name}.png", name.partition("__")[0], root)
             for name in names if not name.startswith(ENLARGED)]
    part = deal([pair.group for pair in pairs], (1, 1), seed)
    return {name: [pair for pair, p in zip(pairs, part, strict=True) if p == index]
            for index, name in enumerate(("shadow_in", "shadow_out"))}
