"""Posteriors on disk, with their labels: the tree of the release.

    ROOT/{train,val}/img/NAME.png          optional: the image
    ROOT/{train,val}/label/NAME.png        train ids (H, W), 255 = void
    ROOT/{train,val}/pred_sgd/NAME.npy     posterior (C, ceil(H/s), ceil(W/s)), float16 or float32
    ROOT/groups.txt                        optional: lines `SIDE/NAME group`, the groups of the intervals

SIDE is `train` for members and `val` for non-members. NAME may contain folders. Images and labels may have any format
that `datasets.images` reads, and any suffix.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.inspection import inspect
from datasets.pairs import describe_folder, quoted, read_fields, set_once
from datasets.provenance import Images
from predictors.base import Predictor, PredictorOptions, Query, Record
from utils import VOID
from utils.arrays import read_npy
from utils.cli import UserError
from utils.distributed import warn_once
from utils.files import atomic_open, files_by_name, walk_files
from utils.untrusted import reading

SIDES = {"train": True, "val": False}
KINDS = ("img", "label")  # folders beside that of the posteriors
SUM_ERROR = 0.01  # largest distance of the sum of the classes from 1; rounding to float16 changes it by under 0.001
TINY = 2.0**-24  # smallest positive float16; it replaces a 0 that was stored as float16


class StoredPredictor(Predictor):
    """Posteriors in the files of a tree. The name of a record gives its file."""

    reads_images = False

    def __init__(self, where: str | Path, options: PredictorOptions | None = None, folder: str = "pred_sgd",
                 paths: Mapping[str, Path] | None = None):
        """`paths`: name of a record -> file. Default: the files in `where`/{train,val}/`folder`, named SIDE/NAME."""
        options = options or PredictorOptions()
        super().__init__(str(where), options)
        self.stride = options.stride
        self.paths = list_posteriors(Path(where), folder) if paths is None else paths

    def files(self, record: Record) -> tuple[Path, ...]:
        if record.name not in self.paths:
            raise UserError(f"{self.where} holds no posterior of {record.name}")
        return (self.paths[record.name],)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        return [torch.from_numpy(read_posterior(*self.files(query.record))) for query in queries]


def infer_stride(label: tuple[int, int], positions: tuple[int, int]) -> int:
    """The stride s with (ceil(H/s), ceil(W/s)) = `positions`, for a label (H, W).

    Returns 1 if no stride fits, or several. The label then has another shape than the posterior, which the caller
    reports.
    """
    fits = [s for s in range(1, max(label) + 1) if (-(-label[0] // s), -(-label[1] // s)) == tuple(positions)]
    return fits[0] if len(fits) == 1 else 1


def read_posterior(path: Path) -> np.ndarray:
    """Read class posteriors (C, H, W) as float32. Raises `UserError` for any other content."""
    stored = _open_posterior(path)
    with reading(path, "posterior"), np.errstate(all="ignore"):
        array = np.array(stored, np.float32)  # a number that is too large becomes infinite
    low, high = array.min(), array.max()  # NaN if the array has a NaN
    if not (low >= 0 and high < np.inf and array.any(axis=0).all()):
        raise UserError(f"{path} holds NaN, infinite or negative posteriors, or a position where all are 0")
    sums = array.sum(axis=0)
    if not (abs(sums - 1) <= SUM_ERROR).all():
        raise UserError(f"{path}: the classes of a position sum to {sums.min():.3g} to {sums.max():.3g}, but "
                        "posteriors sum to 1; store the softmax over the classes, not logits, losses or sigmoids")
    return np.maximum(array, TINY, out=array) if stored.dtype == np.float16 else array


def _open_posterior(path: Path) -> np.ndarray:
    """Map the array of a posterior into memory. Raises `UserError` if it has another form than (C, H, W) of floats."""
    stored = read_npy(path)
    if stored.ndim != 3 or stored.dtype.kind != "f" or 0 in stored.shape or len(stored) > VOID:
        raise UserError(f"{path}: expected float posteriors (C, H, W) of at most {VOID} classes, found "
                        f"{stored.dtype} {stored.shape}")
    return stored


def list_records(root: str | Path, folder: str = "pred_sgd", sides: Collection[str] = tuple(SIDES)) -> list[Record]:
    """The records of all posteriors `ROOT/{train,val}/FOLDER/*.npy`, sorted by side and name.

    Raises `UserError` if one of `sides` has no posterior, because the metrics need members and non-members; if a folder
    of posteriors holds other files; or if groups.txt does not fit the tree.
    """
    root = Path(root)
    names = list(list_posteriors(root, folder, sides))
    files = {(side, kind): files_by_name(root / side / kind) for side in SIDES for kind in KINDS}
    groups = read_groups(root, names, [f"{side}/{rest}" for side in SIDES for rest in files[side, "label"]])
    records = []
    for name in names:
        side, _, rest = name.partition("/")
        image, label = (files[side, kind].get(rest, root / side / kind / f"{rest}.png") for kind in KINDS)
        records.append(Record(name, groups.get(name, name), SIDES[side], image, label, key=rest))
    return records


def list_posteriors(root: Path, folder: str, sides: Collection[str] = tuple(SIDES)) -> dict[str, Path]:
    """Map SIDE/NAME to the file of each posterior of `sides`, sorted by side and name. Raises `UserError`."""
    found = {}
    for side in sides:
        files = files_by_name(root / side / folder)
        if other := [file for file in files.values() if file.suffix.lower() != ".npy"]:
            raise UserError(f"{root / side / folder} holds {len(other)} files that are not .npy posteriors, such as "
                            f"{other[0].name}; save them as .npy, or move them to another folder")
        if not files:
            raise UserError(f"{root / side / folder} holds no .npy posteriors; {describe_folder(root / side)}")
        for name, file in files.items():
            if not name.isprintable():
                raise UserError(f"{file}: its name is not UTF-8, or has characters that cannot be printed; rename it")
            found[f"{side}/{name}"] = file
    return found


def read_groups(root: Path, names: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Map SIDE/NAME to the group in ROOT/groups.txt; empty without this file.

    `names`, `labels`: SIDE/NAME of all posteriors and of all labels. Raises `UserError` if the file names an image that
    the tree does not have, lacks one of `names`, or gives an image two groups.
    """
    path = root / "groups.txt"
    if not path.exists():
        files = sorted(file for file in root.iterdir() if not file.is_dir())
        if other := [file for file in files if file.stem.lower() == "groups"]:
            raise UserError(f"{other[0]} is not read; name it groups.txt, with lines `SIDE/NAME group`")
        return {}
    groups: dict[str, str] = {}
    for number, (name, group) in read_fields(path, "SIDE/NAME group"):
        set_once(groups, name, group, f"{path}, line {number}")
    known = {*names, *labels}
    for name in groups:
        side = name.partition("/")[0]
        if name not in known and (side in SIDES or not (root / side).is_dir()):
            raise UserError(f"{path} names {name}, which is not in the tree; its lines are `SIDE/NAME group`, for "
                            f"example `{names[0]} GROUP`")
    if missing := [name for name in names if name not in groups]:
        raise UserError(f"{path} has no group for {len(missing)} of {len(names)} images, such as {missing[0]}; add "
                        "them, or remove the file if each image is its own group")
    return groups


def describe_tree(root: str | Path, folder: str, records: Sequence[Record]) -> str:
    """One line: how many posteriors are used, and how many labels have none, or posteriors no image or label."""
    root = Path(root)
    used = {side: sum(record.member is member for record in records) for side, member in SIDES.items()}
    line = f"{root}: {used['train']} + {used['val']} posteriors in {folder}"
    for kind, files in zip(KINDS, zip(*(record.files[:2] for record in records), strict=True), strict=True):
        found = sum(len(walk_files(root / side / kind)) for side in SIDES)
        fit = sum(file.is_file() for file in files)
        if kind == "label" and found > fit:
            line += f"; labels without a posterior there, which are left out: {found - fit}"
        if found and fit < len(files):
            line += f"; {fit} of them have a file of the same name in {kind}/"
    return line


def warn_of_folders(root: str | Path, folder: str) -> None:
    """Warn of folders of a tree that are not read, such as the side test/ or images in train/images/."""
    for side in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        inner = {path.name for path in side.iterdir() if path.is_dir()}
        if side.name not in SIDES and inner & {*KINDS, folder}:
            warn_once(f"{side} is left out: the sides of a tree are {' and '.join(SIDES)}")
        other = sorted(name for name in inner - {*KINDS, folder} if not name.startswith((".", "pred_")))
        if side.name in SIDES and other:
            warn_once(f"{side / other[0]} is left out: images belong in img/, and labels in label/")


def check_forms(predictor: Predictor, records: Sequence[Record]) -> None:
    """Raise `UserError` unless all posteriors of a predictor, if it stores them, have one precision and one stride.

    Otherwise they may tell members from non-members by their form. Also raised if two images have the same posterior,
    unless it is constant over the positions.
    """
    if not isinstance(predictor, StoredPredictor):
        return
    forms: dict[str, dict[object, list[str]]] = {"precision": {}, "stride": {}}
    seen: dict[bytes, Record] = {}
    for record in records:
        stored = _open_posterior(*predictor.files(record))
        earlier = seen.setdefault(_excerpt(stored), record)
        if (earlier.name != record.name and differ(earlier, record) and (stored != stored[:, :1, :1]).any()
                and np.array_equal(_open_posterior(*predictor.files(earlier)), stored)):
            raise UserError(f"{predictor.where}: {earlier.name} and {record.name} have the same posterior, and other "
                            "images or labels; each image needs the posterior that the model gave for it")
        forms["precision"].setdefault(stored.dtype.name, []).append(record.name)
        if record.label.is_file():
            size = inspect(*record.files).size
            stride = infer_stride(size, stored.shape[1:])
            if -(-size[0] // stride) == stored.shape[1]:
                forms["stride"].setdefault(stride, []).append(record.name)
    for what, names in forms.items():
        if len(names) > 1:
            shown = " and ".join(f"{value} ({len(found)}, such as {found[0]})" for value, found in names.items())
            raise UserError(f"{predictor.where}: the posteriors differ in {what}: {shown}; an attack would recognise "
                            "the form of a file instead of membership, so store all of them in the same way")


def _excerpt(stored: np.ndarray) -> bytes:
    """Hash of the shape of a posterior and of its row in the middle."""
    row = stored[:, stored.shape[1] // 2].astype(np.float32)
    return hashlib.sha256(repr(stored.shape).encode() + row.tobytes()).digest()


def differ(one: Record, other: Record) -> bool:
    """Whether two records are of different images, as far as images or labels are at hand."""
    first, second = one.identity, other.identity
    return bool(second.image or second.label) and Images([first]).find(second) is None


def write_posterior(root: Path, side: str, name: str, posterior: np.ndarray, label: np.ndarray,
                    folder: str = "pred_sgd") -> Path:
    """Write the posterior (as float16) and the full-size label of one image. Returns the path of the posterior."""
    with atomic_open(root / side / "label" / f"{name}.png") as file:
        Image.fromarray(label).save(file, "PNG")
    path = root / side / folder / f"{name}.npy"
    with atomic_open(path) as file:
        np.save(file, posterior.astype(np.float16))
    return path


def write_groups(root: Path, groups: Sequence[tuple[str, str]]) -> None:
    """Write groups.txt from pairs (`SIDE/NAME`, group)."""
    with atomic_open(root / "groups.txt", "w") as file:
        file.writelines(f"{quoted(name)} {quoted(group)}\n" for name, group in groups)
