"""Images and labels: split files, one module per data set, joint transforms.

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
    """The module of the data set `name`; `UserError` where `DATASETS` has no such name."""
    return DATASETS.load(name)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which images are read and how their labels are decoded."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="streets",
                       help="the data set, which gives the classes and the form of the labels (default: streets)")
    group.add_argument("--root", metavar="DIR", default="data/streets",
                       help="folder that the paths of the split files are relative to (default: data/streets)")
    group.add_argument("--strip-prefix", metavar="TEXT", default="",
                       help="cut this from the front of each path, e.g. the authors' /BS/databases10/")
