"""Predictability errors of images on disk. They do not depend on a target model, so they are computed once and kept."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from attacks.predictability import METHODS, predictability_error, prepare_image
from datasets.inspection import inspect
from models import feature_extractor
from predictors.base import BATCH, Record
from utils.cli import UserError
from utils.device import Compute
from utils.distributed import gather, is_main, own_share, run_on_main
from utils.files import read_json, write_json
from utils.log import progress
from utils.randomness import stream

CACHE = Path("runs/predictability")
VERSION = 2  # to be raised when the errors of an image change
SAVE_EVERY = 500  # images between two saves


def predictability_errors(records: Sequence[Record], features: str, method: str, compute: Compute,
                          cache: Path = CACHE) -> dict[str, float]:
    """The predictability error of each record: name -> error. Images are read and described once, `BATCH` at a time.

    `features`: name in `models.FEATURES`; `method`: name in `attacks.predictability.METHODS`. Errors are kept
    in `cache`, by the pixels of image and label, for later calls. Raises `UserError` if an image is missing, or has
    less than two labelled positions.
    """
    if missing := [record for record in records if not record.image.is_file()]:
        raise UserError(f"{missing[0].image} is missing; the predictability error reads the image of each sample: give "
                        "--victim with split files, or add the images to the tree, in img/")
    file = cache / f"{features}-{method}-{VERSION}.json"
    known, keys = run_on_main(lambda: _read(file)), [_key(record) for record in records]
    todo = [(key, record) for key, record in zip(keys, records, strict=True) if key not in known]
    share, found = own_share(todo), {}
    with progress(None, "predictability errors", len(share), hidden=not share) as bar:
        for start in range(0, len(share), BATCH):
            batch = share[start : start + BATCH]
            found |= dict(zip([key for key, _ in batch], _errors([one for _, one in batch], features, method, compute),
                              strict=True))
            bar.update(len(batch))
            if start // SAVE_EVERY != (start + BATCH) // SAVE_EVERY and is_main():
                _write(file, found)
    found = dict(gather(list(found.items())))
    if found and is_main():
        _write(file, found)
    known |= found
    return {record.name: known[key] for key, record in zip(keys, records, strict=True)}


def _key(record: Record) -> str:
    """The image and its ground truth by their pixels."""
    found = inspect(*record.files)
    return f"{found.image}-{found.label}"


def _read(file: Path) -> dict[str, float]:
    """The errors that were kept; none if the file is missing or broken."""
    with suppress(OSError, ValueError, UserError):
        return {key: float(value) for key, value in read_json(file).items()}
    return {}


def _write(file: Path, found: dict[str, float]) -> None:
    """Add errors to the file, to those that another process may have written meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, _read(file) | found, private=True)


def _errors(records: Sequence[Record], features: str, method: str, compute: Compute) -> list[float]:
    chosen = METHODS[method]
    images = [torch.from_numpy(record.load_image().transpose(2, 0, 1).copy()) for record in records]
    extractor = feature_extractor(features).to(compute.device)
    with torch.inference_mode():
        maps = extractor(torch.stack([prepare_image(image, chosen) for image in images]).to(compute.device))
    maps, errors = [one.float().cpu() for one in maps], []
    for index, record in enumerate(records):
        truth = torch.from_numpy(record.load_truth())
        rng = stream(0, "predictability", _key(record))
        error = predictability_error([one[index] for one in maps], truth, chosen, rng)
        if not error == error:
            raise UserError(f"{record.name}: less than two of its 56 x 56 positions have a label, so it has no "
                            "predictability error; leave the image out")
        errors.append(error)
    return errors
