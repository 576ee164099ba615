"""Images and labels: split files, one module for each data set, and augmentation.

A new data set is one module with `CLASSES`, `decode(raw, path)` (label file -> train ids, 255 = void) and
`splits(root, seed)` (name -> pairs), and one line in `DATASETS`.
"""

import argparse
from types import ModuleType

from utils.tables import Entry, Table

DATASETS = Table("data set", {
    "streets": Entry("datasets.streets", "street scenes that the project draws"),
    "camvid": Entry("datasets.camvid", "CamVid, 11 classes"),
    "labelmefacade": Entry("datasets.labelmefacade", "LabelMeFacade, in CamVid's classes"),
    "cityscapes": Entry("datasets.cityscapes", "Cityscapes, 19 classes"),
    "bdd100k": Entry("datasets.bdd100k", "BDD100K, in Cityscapes' classes"),
    "mapillary": Entry("datasets.mapillary", "Mapillary Vistas, in Cityscapes' classes"),
})


def find_dataset(name: object) -> ModuleType:
    """Return the module of the data set `name`. Raises `UserError` if `DATASETS` has no such name."""
    return DATASETS.load(name)


def add_flags(parser: argparse.ArgumentParser, of_victim: bool = False) -> None:
    """Add the flags for the paths of images and for the decoding of labels.

    `of_victim`: whether the data set is by default that in the checkpoint of the victim.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default=None if of_victim else "streets",
                       help="data set, which determines the classes and the decoding of labels (default: "
                       f"{'that of the victim, or streets' if of_victim else 'streets'})")
    group.add_argument("--root", metavar="DIR", default="data/streets",
                       help="folder to which the paths in split files are relative (default: data/streets)")
    group.add_argument("--strip-prefix", metavar="TEXT", default="",
                       help="text to remove from the start of each path in split files, e.g. /BS/databases10/ in the "
                       "files of the authors")
