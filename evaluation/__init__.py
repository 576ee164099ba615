"""Metrics, intervals, plots and reports."""

import argparse
from collections.abc import Iterable

from utils.cli import flag, number

ALLOWED = {"copies": "equal images on one side, which then form one group",
           "overlap": "attacked images that the attacker was trained on (D^S)",
           "unseen": "members that the target model was not trained on",
           "unbalanced": "references that were trained on more images of one side"}


def add_allow_flag(flags: argparse.ArgumentParser, names: Iterable[str] = ALLOWED) -> None:
    """Add the flag of what is not refused. `names`: of `ALLOWED`."""
    flags.add_argument("--allow", nargs="+", choices=list(names), default=[], metavar="WHAT", help="do not refuse, but "
                       f"count in the results: {'; '.join(f'{name}: {ALLOWED[name]}' for name in names)}")


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags of what an attack can report beside its metrics."""
    maps = flags.add_argument_group("activation maps")
    flag(maps, "cam", metavar="DIR", help="output folder of class activation maps (CAM, figure 5): drawings, and "
         "correlations.csv with the correlation of CAM and loss map for each image")
    maps.add_argument("--cam-images", "--cam-pictures", type=number(0, 10**6, int), default=4, metavar="N",
                      help="draw the maps of the first N members and the first N non-members, by name (default: 4)")
    where = flags.add_argument_group("where the leak is")
    where.add_argument("--exposure", action="store_true", help="for attacks that score positions, such as loss and "
                       "calibrated: metrics of each class, of boundaries, of objects by size and of parts of the "
                       "image; and a ranking of the images, exposure.csv")
    where.add_argument("--exposure-maps", metavar="DIR", help="with --exposure: draw the eight most exposed images "
                       "into this folder, each with its loss map and its map of evidence; shows the images themselves")
