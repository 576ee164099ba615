"""Images and labels: split files, one module for each data set, and augmentation.

A new data set is one module with `CLASSES`, `decode(raw, path)` (label file -> train ids, 255 = void) and
`splits(root, seed)` (name -> pairs), and one line in `DATASETS`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from utils.cli import UserError, number
from utils.tables import Entry, Table

if TYPE_CHECKING:
    import numpy as np

    from datasets.pairs import Pair

DATASETS = Table("data set", {
    "streets": Entry("datasets.streets", "street scenes that the project draws"),
    "camvid": Entry("datasets.camvid", "CamVid, 11 classes"),
    "labelmefacade": Entry("datasets.labelmefacade", "LabelMeFacade, in CamVid's classes"),
    "cityscapes": Entry("datasets.cityscapes", "Cityscapes, 19 classes"),
    "cityscapes256": Entry("datasets.cityscapes256", "Cityscapes at 256 x 256, with numbered files"),
    "bdd100k": Entry("datasets.bdd100k", "BDD100K, in Cityscapes' classes"),
    "mapillary": Entry("datasets.mapillary", "Mapillary Vistas, in Cityscapes' classes"),
    "maps": Entry("datasets.maps", "aerial images and maps, for image translation only"),
    "folder": Entry("datasets.folder:parse", "your own data, in images/ and masks/"),
})
WITHOUT_LABELS = ("maps",)  # data sets that have images in the place of labels
DIRECTIONS = ("label-to-image", "image-to-label", "image-to-image")  # of pairs for image translation
IMAGES = "images"  # in the place of a data set: the ground truth is an image, and no label


class DataSet(Protocol):
    """A data set: a module or an object with these names.

    It may also have `FIXED = True`: its parts are those of its authors, whatever the seed; and `ASPECT`, width / height
    of images that were squashed, which a resized copy restores.
    """

    CLASSES: Sequence[str]

    def decode(self, raw: "np.ndarray", path: Path) -> "np.ndarray":
        """Convert the values of a label file to train ids, 255 = void."""

    def splits(self, root: Path, seed: int = 0) -> dict[str, "list[Pair]"]:
        """The pairs of each part."""


def find_dataset(name: object) -> DataSet:
    """Return the data set `name`, or `folder:SETTINGS`.

    Raises `UserError` if `DATASETS` has no such name, or if the data set has images in the place of labels.
    """
    kind, _, settings = name.partition(":") if isinstance(name, str) else (name, "", "")
    if kind in (IMAGES, *WITHOUT_LABELS):
        raise UserError(f"{kind} has no labels, so no segmentation model can be trained on it or attacked with it; "
                        "train_translator.py trains models of image translation")
    found = DATASETS.load(kind)
    return found(settings) if callable(found) else found


def show_dataset(name: str) -> str:
    """The name of a data set without its settings, for messages."""
    return name.partition(":")[0]


def chosen(args: argparse.Namespace, of_model: bool = False, usual: str | None = None) -> str | None:
    """The data set of the flags, with its settings. Raises `UserError` for flags that contradict one another.

    `of_model`: whether a model is at hand that may say the classes: `folder` without any is then returned as it is, and
    `predictors.samples.open_victim` gives it the classes of the model. `usual`: the data set if --dataset names none.
    """
    given, name = [args.classes, args.class_names, args.label_map], args.dataset or usual
    if name != "folder":
        if any(given):
            raise UserError("--classes, --class-names and --label-map go with --dataset folder")
        if name in WITHOUT_LABELS:
            find_dataset(name)
        return name
    if of_model and not any(given):
        return name
    from datasets.folder import settings

    return f"folder:{settings(*given)}"


def add_flags(parser: argparse.ArgumentParser, of_victim: bool = False) -> None:
    """Add the flags for the paths of images and for the decoding of labels.

    `of_victim`: whether the data set is by default that in the checkpoint of the victim.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default=None if of_victim else "streets",
                       help="data set, which determines the classes and the decoding of labels (default: "
                       f"{'that of the victim, or streets' if of_victim else 'streets'})")
    add_class_flags(group)
    group.add_argument("--root", metavar="DIR", default="data/streets",
                       help="folder to which the paths in split files are relative (default: data/streets)")
    group.add_argument("--strip-prefix", metavar="TEXT", default="",
                       help="text to remove from the start of each path in split files, e.g. /BS/databases10/ in the "
                       "files of the authors")


def add_class_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say what the values in the masks of `--dataset folder` mean."""
    parser.add_argument("--classes", type=number(2, 254, int), metavar="N", help="folder: number of classes; the masks "
                        "hold 0..N-1, and 255 for void (with 2 classes, masks of 0 and 255 work, too)")
    parser.add_argument("--class-names", metavar="FILE", help="folder: names of the classes, one per line")
    parser.add_argument("--label-map", metavar="FILE", help="folder: lines `ID CLASS` or `R G B CLASS`, for masks with "
                        "other ids or with colours; CLASS is a number, a name of --class-names, or void")
