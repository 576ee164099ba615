"""Readers of each kind of file, as the project uses them.

A reader takes the path of a file and an empty folder that it may fill. It reads the file or raises `UserError`.
"""

import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import DATASETS, find_dataset
from datasets.images import load_image
from datasets.pairs import load_label, read_split
from models import load_attacker, load_segmenter
from predictors.base import PredictorOptions, Record
from predictors.samples import Source
from predictors.stored import StoredPredictor, list_records
from utils import VOID
from utils.cli import UserError
from utils.download import unpack


def read_checkpoint(path: Path, _: Path) -> None:
    """Read an attacker or a segmentation model."""
    try:
        load_attacker(str(path))
    except UserError:
        load_segmenter(path)


def read_split_file(path: Path, _: Path) -> None:
    with contextlib.suppress(UserError):
        read_split(path, path.parent)
    read_split(path, path.parent, "/BS/", must_exist=False)


def read_groups(path: Path, _: Path) -> None:
    for side in ("train", "val"):
        (path.parent / side / "pred_sgd").mkdir(parents=True, exist_ok=True)
        (path.parent / side / "pred_sgd" / "a.npy").touch()
    list_records(path.parent)


def read_posterior(path: Path, _: Path) -> None:
    label_path = path.with_name("label.png")
    if not label_path.exists():
        Image.new("L", (16, 8)).save(label_path)
    record = Record("train/a", "a", "a", True, path, label_path)
    source = Source([record], StoredPredictor(path.parent, PredictorOptions(), paths={"train/a": path}))
    sample = next(source.samples())
    assert sample.output.isfinite().all() and sample.truth.shape == sample.output.shape[1:]


def read_image(path: Path, _: Path) -> None:
    array = load_image(path)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


def read_label(path: Path, _: Path) -> None:
    """Read a label file of a data set that depends on the size of the file."""
    dataset = find_dataset(list(DATASETS)[path.stat().st_size % len(DATASETS)])
    array = load_label(path, dataset)
    assert array.dtype == np.uint8 and array.ndim == 2
    assert set(np.unique(array)) <= {*range(len(dataset.CLASSES)), VOID}


def read_archive(path: Path, folder: Path) -> None:
    unpack(path, folder)
