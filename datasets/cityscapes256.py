"""Cityscapes as pix2pix has it: 256 x 256 pixels, numbered in the order of the paths, as in the lists of the authors.

    data/0001.jpg ... data/2975.jpg, label/0001.png ...            train, labels as train ids
    val_data/0001.jpg ... val_data/0500.jpg, val_label/0001.png    val

The parts `official/` and `dependent/` are those of Cityscapes and of section 2.4 of the first paper: their two sides
are of different cities. `block/` divides train into sequences of `BLOCK` images, of which the first and the last are
left out, and deals the sequences at random without regard to their city, so a part lacks some small cities. The group
of an image is its sequence.
"""

from pathlib import Path

from datasets.cityscapes import CLASSES, VICTIM_IN, VICTIM_OUT
from datasets.pairs import Pair, deal, describe_folder
from utils.cli import UserError

__all__ = ["ASPECT", "CLASSES", "decode", "splits"]

ASPECT = 2.0  # width / height of the original images, which were squashed
BLOCK = 25  # images
PARTS = ("victim_in", "victim_out", "shadow_in", "shadow_out")


def decode(raw, path: Path):
    """The labels hold train ids."""
    return raw


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return the parts `official/`, `dependent/` and `block/`; `seed` deals the sequences of `block/`."""
    train, val = _side(root, ""), _side(root, "val_")
    if len(train) <= VICTIM_IN + VICTIM_OUT or not val:
        raise UserError(f"{root} has {len(train)} + {len(val)} of the 2975 + 500 images ({describe_folder(root)}); it "
                        "needs data/, label/, val_data/ and val_label/ with numbered images")
    end = VICTIM_IN + VICTIM_OUT
    inner = [pair for before, pair, after in zip(train, train[1:], train[2:], strict=False)
             if before.group == pair.group == after.group]
    part = deal([pair.group for pair in inner], (1, 1, 1, 1), seed)
    return {"official/in": train, "official/out": val,
            "dependent/victim_in": train[:VICTIM_IN], "dependent/victim_out": train[VICTIM_IN:end],
            "dependent/shadow": train[end:] + val,
            **{f"block/{name}": [pair for pair, p in zip(inner, part, strict=True) if p == index]
               for index, name in enumerate(PARTS)}}


def _side(root: Path, side: str) -> list[Pair]:
    """The pairs of train (`side` "") or val ("val_"), in the order of their numbers."""
    paths = sorted((root / f"{side}data").glob("[0-9]*.*"))
    return [Pair(f"{side}data/{path.name}", f"{side}label/{path.stem}.png", f"{side}{index // BLOCK:03d}", root)
            for index, path in enumerate(paths)]
