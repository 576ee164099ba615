"""Answers on disk, one file for each image: posteriors, logits or labels.

    DIR/NAME.npy      floats (C, h, w), or integers (h, w)
    DIR/NAME.png      the label of each pixel
    DIR/NAME.json     the array of a .npy file as lists, or an object that has it under one of the keys `KEYS`

NAME is the path of the image in the split file, without its suffix, or the end of this path: for `images/a/7.png` it is
`images/a/7`, `a/7` or `7`.
"""

import json
from pathlib import Path

import numpy as np

from datasets.images import load_ids
from datasets.inspection import inspect
from datasets.pairs import describe_folder
from predictors.arrays import ArrayPredictor
from predictors.base import PredictorOptions, Query, Record
from predictors.preprocess import Preprocess
from utils.arrays import read_npy
from utils.cli import UserError
from utils.files import files_by_name
from utils.untrusted import reading

KEYS = ("posterior", "logits", "labels")
JSON_LIMIT = 2**26  # largest JSON file in bytes; the lists take about ten times as much memory


def read_answer(path: Path) -> np.ndarray:
    """The array in a file: numbers with two to four dimensions. Raises `UserError` for any other content."""
    suffix = path.suffix.lower()
    array = read_npy(path) if suffix == ".npy" else read_lists(path) if suffix == ".json" else load_ids(path)
    if array.dtype.kind not in "biuf" or not 2 <= array.ndim <= 4 or 0 in array.shape or (
            suffix not in (".npy", ".json") and array.ndim > 2):
        raise UserError(f"{path} holds {array.dtype} {array.shape}; it must be posteriors or logits (classes, height, "
                        "width), or the class of each pixel (height, width)")
    return array


def read_lists(path: Path) -> np.ndarray:
    """The array of a JSON file. Raises `UserError` for any other content."""
    with reading(path, "JSON file"):
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"it has more than {JSON_LIMIT / 2**20:g} MiB; give .npy")
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            found = [content[key] for key in KEYS if key in content]
            if len(found) != 1:
                raise ValueError(f"it must have one of the keys {', '.join(KEYS)}")
            content = found[0]
        return np.array(content)


class FolderPredictor(ArrayPredictor):
    """The answers in a flat folder, or in one with the folders of the images."""

    prepares = False

    reads_images = False

    def __init__(self, where: str, options: PredictorOptions):
        super().__init__(where, options)
        self.answers = files_by_name(Path(where))
        self.used: dict[Path, str] = {}
        if not self.answers:
            raise UserError(f"folder:{where} holds no answers; {describe_folder(Path(where))}")

    def files(self, record: Record) -> tuple[Path, ...]:
        """The answer for a record. Raises `UserError` if there is none, or if it is that of another image, too."""
        parts = record.name.split("/")
        names = ("/".join(parts[start:]) for start in range(len(parts)))
        path = next((self.answers[name] for name in names if name in self.answers), None)
        if path is None:
            raise UserError(f"{self.where} holds no answer for {record.name}; add {parts[-1]}.npy or {parts[-1]}.png")
        if (other := self.used.setdefault(path, record.name)) != record.name:
            raise UserError(f"{path} would be the answer for {other} and {record.name}; put the answers into the "
                            "folders of their images")
        return (path,)

    def fetch(self, query: Query, preprocess: Preprocess) -> np.ndarray:
        return read_answer(*self.files(query.record))

    def size(self, query: Query) -> tuple[int, int]:
        size = inspect(*query.record.files).size
        if size is None:
            raise UserError(f"{query.record.image} is missing, and its label; the size of the answer depends on them")
        return size
