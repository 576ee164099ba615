"""Images and labels: split files, one module per data set, joint transforms, stored posteriors.

A data set is a module with `CLASSES`, `decode(raw, path)` (label file -> train ids, 255 = void) and
`splits(root, seed)` (name -> pairs), and one entry in the table below.
"""

import argparse
import importlib
from types import ModuleType

from utils.cli import UserError

DATASETS = ("streets", "camvid", "labelmefacade", "cityscapes", "bdd100k", "mapillary")


def find_dataset(name: str) -> ModuleType:
    """The module of the data set `name`; `UserError` when it is none of `DATASETS`."""
    if name not in DATASETS:
        raise UserError(f"there is no data set {str(name)[:40]!r}; there are {', '.join(DATASETS)}")
    return importlib.import_module(f"datasets.{name}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which images and how their labels are read."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="streets",
                       help="whose classes and label files these are (default: streets)")
    group.add_argument("--root", metavar="DIR", default="data/streets",
                       help="folder that the paths of the split files are relative to (default: data/streets)")
    group.add_argument("--strip-prefix", metavar="TEXT", default="",
                       help="cut this from the front of each path, e.g. the authors' /BS/databases10/")
