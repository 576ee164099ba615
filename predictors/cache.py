"""Compute the posteriors of a model once, and store them in the layout of the release."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datasets.inspection import inspect, inspect_all
from predictors.base import Predictor, PredictorOptions, Record, predict_records
from predictors.stored import SIDES, StoredPredictor, write_groups, write_posterior
from utils.cli import UserError
from utils.distributed import barrier, own_share, run_on_main
from utils.files import fingerprint, write_json

MARKER = "made-from"


def cache_posteriors(tree: Path, predictor: Predictor, records: Sequence[Record],
                     made_from: Sequence[Path]) -> StoredPredictor:
    """Store the posteriors of `predictor` in `tree` as float16, and return the predictor that reads them.

    Posteriors that are already stored are not computed again, so a second call resumes an interrupted one. `made_from`:
    the files of the model. If these files, the records, the pixels of an image or a label, the precision, the stride or
    the defense at query time have changed, all posteriors are deleted and computed again. Raises `UserError` if `tree`
    is a folder that this function did not make, and as `check_stride`.
    """
    contents = [(found.image, found.label) for found in inspect_all([record.files for record in records])]
    check_stride(records, predictor.stride)
    run_on_main(lambda: _prepare(tree, predictor, records, contents, made_from))
    sides = {member: side for side, member in SIDES.items()}
    paths = {record.name: tree / sides[record.member] / "pred_sgd" / f"{record.name}.npy" for record in records}
    missing = [record for record in own_share(records) if not paths[record.name].exists()]
    for answer in predict_records(predictor, missing, "computing posteriors"):
        record = answer.record
        write_posterior(tree, sides[record.member], record.name, answer.output.numpy(), answer.load_label())
    barrier()
    return StoredPredictor(tree, PredictorOptions(stride=predictor.stride), paths=paths)


def check_stride(records: Sequence[Record], stride: int | None) -> None:
    """Raise `UserError` if outputs at this stride have fewer than 2 x 2 positions for an image."""
    for record in records if stride and stride > 1 else ():
        if (size := inspect(*record.files).size) and min(size) <= stride:
            raise UserError(f"{record.name} is {size[1]} x {size[0]}, so its output at stride {stride} has fewer than "
                            "2 x 2 positions; give a smaller --stride, or larger images")


def _prepare(tree: Path, predictor: Predictor, records: Sequence[Record], contents: Sequence[tuple],
             made_from: Sequence[Path]) -> None:
    """Delete posteriors that were made from other inputs, and record the present inputs in the file `MARKER`."""
    spec, precision = predictor.options.defense.spec, predictor.options.compute.precision
    defense = [spec.describe(), spec.seed] if spec.stage == "query" else None  # others change the output afterwards
    about = {"precision": precision, "stride": predictor.stride, "defense": defense}
    queried = [(record.member, str(record.image.absolute()), str(record.label.absolute()), record.dataset)
               for record in records]
    about["fingerprint"] = fingerprint(list(made_from), about, queried, contents)
    marker, before = tree / MARKER, None
    if not marker.is_file() and tree.exists() and any(path.suffix != ".partial" for path in tree.iterdir()):
        raise UserError(f"{tree} is no cache of posteriors; give a folder that does not exist yet")
    with suppress(OSError, ValueError):
        before = json.loads(marker.read_text(encoding="utf-8"))
    if marker.is_file() and before != about:
        for stale in (tree / side / kind for side in SIDES for kind in ("label", "pred_sgd")):
            if stale.exists():
                shutil.rmtree(stale)
    write_json(marker, about)
    sides = {member: side for side, member in SIDES.items()}
    names = [f"{sides[record.member]}/{record.name}" for record in records]
    write_groups(tree, [(name, record.identity.group or name) for name, record in zip(names, records, strict=True)])
