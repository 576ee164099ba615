"""Posteriors laid against their labels, from disk: the tree of the release.

    ROOT/{train,val}/img/NAME.png          the image (not read by an attack)
    ROOT/{train,val}/label/NAME.png        train ids (H, W), 255 = void
    ROOT/{train,val}/pred_sgd/NAME.npy     posterior (C, ceil(H/s), ceil(W/s)), float16 or float32
    ROOT/groups.txt                        optional: `NAME group` lines, the blocks of a bootstrap

`train` holds members, `val` non-members. NAME may contain folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.pairs import load_label, read_fields
from utils import VOID
from utils.arrays import read_npy
from utils.cli import UserError
from utils.files import atomic_open
from utils.untrusted import reading

SIDES = {"train": True, "val": False}
TINY = 2.0**-24  # smallest positive float16: what a stored 0 stands for


@dataclass(frozen=True)
class Stored:
    """A posterior on disk and what is known about its image. `load` reads it."""

    name: str
    member: bool
    group: str
    posterior: Path
    label: Path
    classes: int | None = None
    stride: int | None = None

    @property
    def key(self) -> str:
        """What the random streams of the image are derived from."""
        return Path(self.name).name

    @property
    def files(self) -> tuple[Path, Path]:
        """What `load` reads."""
        return self.posterior, self.label

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior float32 (C, h, w) and label uint8 (h, w) on the same positions.

        Raises `UserError` for a broken file, NaN, negative values, other than `classes` classes (None: any number),
        or shapes that no stride, or another than `stride` (None: any), connects.
        """
        posterior = read_posterior(self.posterior)
        if self.classes not in (None, posterior.shape[0]):
            raise UserError(f"{self.posterior} has {posterior.shape[0]} classes; the attacker was trained for "
                            f"{self.classes}")
        label = load_label(self.label, _TrainIds(posterior.shape[0]))
        step = self.stride or infer_stride(label.shape, posterior.shape[1:])
        label_here = label[::step, ::step]
        if label_here.shape != posterior.shape[1:]:
            raise UserError(f"{self.posterior} has {posterior.shape[1]} x {posterior.shape[2]} positions, its label "
                            f"{label.shape[0]} x {label.shape[1]} pixels; "
                            + (f"the attacker was trained at stride {step}" if self.stride else "no stride fits"))
        return posterior, label_here

    def classes_and_stride(self) -> tuple[int, int]:
        """Number of classes and pixels per position, both as found."""
        posterior, here = self.load()
        label = load_label(self.label, _TrainIds(posterior.shape[0]))
        return posterior.shape[0], infer_stride(label.shape, here.shape)


class _TrainIds:
    """Stands for a data set whose labels already are train ids of `classes` classes."""

    def __init__(self, classes: int):
        self.CLASSES = range(classes)

    @staticmethod
    def decode(raw: np.ndarray, path: Path) -> np.ndarray:
        return raw


def infer_stride(label: tuple[int, int], positions: tuple[int, int]) -> int:
    """Stride s with ceil(H/s), ceil(W/s) = positions; 1 when none or more than one fits, so that shapes differ."""
    fits = [s for s in range(1, max(label) + 1) if (-(-label[0] // s), -(-label[1] // s)) == tuple(positions)]
    return fits[0] if len(fits) == 1 else 1


def read_posterior(path: Path) -> np.ndarray:
    """Read (C, H, W) class posteriors as float32; `UserError` when they are none."""
    stored = read_npy(path)
    if stored.ndim != 3 or stored.dtype.kind != "f" or 0 in stored.shape or len(stored) > VOID:
        raise UserError(f"{path}: expected float posteriors (C, H, W) of at most {VOID} classes, found "
                        f"{stored.dtype} {stored.shape}")
    with reading(path, "posterior"), np.errstate(all="ignore"):
        array = np.array(stored, np.float32)  # too large a number becomes infinite; of too large a map there is no copy
    low, high = array.min(), array.max()  # NaN if there is one
    if not (low >= 0 and high < np.inf and array.any(axis=0).all()):
        raise UserError(f"{path} holds NaN, infinite or negative posteriors, or a position where all are 0")
    return np.maximum(array, TINY, out=array) if stored.dtype == np.float16 else array


def list_tree(root: str | Path, folder: str = "pred_sgd", classes: int | None = None,
              stride: int | None = None) -> list[Stored]:
    """All posteriors `ROOT/{train,val}/FOLDER/*.npy`, by side and name, to be of `classes` and `stride` (None: any).

    Raises `UserError` when a side has none: an attack is measured on both.
    """
    root = Path(root)
    groups = _read_groups(root / "groups.txt")
    found = []
    for side, member in SIDES.items():
        files = sorted((root / side / folder).rglob("*.npy"))
        if not files:
            raise UserError(f"{root / side / folder} holds no .npy posteriors")
        for file in files:
            own = file.relative_to(root / side / folder).with_suffix("")
            if not own.as_posix().isprintable():
                raise UserError(f"{file}: its name is not UTF-8, or holds what cannot be printed; rename it")
            name = f"{side}/{own.as_posix()}"
            label = root / side / "label" / own.with_name(f"{own.name}.png")
            found.append(Stored(name, member, groups.get(name, name), file, label, classes, stride))
    return found


def _read_groups(path: Path) -> dict[str, str]:
    return {name: group for _, (name, group) in read_fields(path, "NAME group")} if path.exists() else {}


def write_posterior(root: Path, side: str, name: str, posterior: np.ndarray, label: np.ndarray,
                    image: np.ndarray | None = None, folder: str = "pred_sgd") -> None:
    """Write one image into the tree: posterior as float16, full-size label and, if given, the image."""
    for kind, array in (("label", label), ("img", image)):
        if array is not None:
            with atomic_open(root / side / kind / f"{name}.png") as file:
                Image.fromarray(array).save(file, "PNG")
    with atomic_open(root / side / folder / f"{name}.npy") as file:
        np.save(file, posterior.astype(np.float16))


def write_groups(root: Path, groups: Sequence[tuple[str, str]]) -> None:
    """Write the block of each image, (`side/NAME`, group)."""
    with atomic_open(root / "groups.txt", "w") as file:
        file.writelines(f"{name} {group}\n" for name, group in groups)


