"""Compute the outputs of a model once, and store them: posteriors in the layout of the release, images as triples."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datasets.inspection import inspect, inspect_all
from predictors.base import Predictor, PredictorOptions, Record, predict_records
from predictors.stored import SIDES, StoredPredictor, write_groups, write_posterior
from predictors.triples import PARTS, TriplePredictor, write_triple
from utils.cli import UserError
from utils.distributed import barrier, own_share, run_on_main
from utils.files import fingerprint, write_json

MARKER = "made-from"


def cache_outputs(tree: Path, predictor: Predictor, records: Sequence[Record], made_from: Sequence[Path],
                  compute: bool = True, classes: int | None = None) -> Predictor:
    """Store the outputs of `predictor` in `tree`, and return the predictor that reads them.

    Without `compute` nothing is queried: if an output is missing, `predictor` itself is returned. `classes`: number of
    classes of the labels, if it is another one than that of the outputs.

    Posteriors become float16, and translated images PNG of 8 bits. What is already stored is not computed again, so a
    second call resumes an interrupted one. `made_from`: the files of the model. If these files, the records, the pixels
    of an image or a label, the precision, the stride, the windows, the preprocessing or the defense at query time have
    changed, all outputs are deleted and computed again. Raises `UserError` if `tree` is a folder that this function did
    not make, and as `check_stride`.
    """
    contents = [(found.image, found.label) for found in inspect_all([record.files for record in records])]
    check_stride(records, predictor.stride)
    run_on_main(lambda: _prepare(tree, predictor, records, contents, made_from))
    sides = {member: side for side, member in SIDES.items()}
    translated, options = predictor.kind == "image", PredictorOptions(stride=predictor.stride)
    place = "output/{}.png" if translated else "pred_sgd/{}.npy"
    paths = {record.name: tree / sides[record.member] / place.format(record.name) for record in records}
    missing = {name for name, path in paths.items() if not path.exists()}
    barrier()  # so that all processes have looked before one of them writes
    if missing and not compute:
        return predictor
    own = [record for record in own_share(records) if record.name in missing]
    for answer in predict_records(predictor, own, "computing outputs"):
        side, name, output = sides[answer.record.member], answer.record.name, answer.output.numpy()
        if translated:
            write_triple(tree / side, name, answer.query.image, output, answer.record.load_truth())
        else:
            write_posterior(tree, side, name, output, answer.load_label(classes))
    barrier()
    kept = TriplePredictor(tree, paths, options) if translated else StoredPredictor(tree, options, paths=paths)
    kept.cached = True
    return kept


def check_stride(records: Sequence[Record], stride: int | None) -> None:
    """Raise `UserError` if outputs at this stride have fewer than 2 x 2 positions for an image."""
    for record in records if stride and stride > 1 else ():
        if (size := inspect(*record.files).size) and min(size) <= stride:
            raise UserError(f"{record.name} is {size[1]} x {size[0]}, so its output at stride {stride} has fewer than "
                            "2 x 2 positions; give a smaller --stride, or larger images")


def _prepare(tree: Path, predictor: Predictor, records: Sequence[Record], contents: Sequence[tuple],
             made_from: Sequence[Path]) -> None:
    """Delete outputs that were made from other inputs, and record the present inputs in the file `MARKER`."""
    spec, precision = predictor.options.defense.spec, predictor.options.compute.precision
    defense = [spec.describe(), spec.seed] if spec.stage == "query" else None  # others change the output afterwards
    about = {"precision": precision, "stride": predictor.stride, "defense": defense}
    if windows := predictor.options.windows:
        about["windows"] = windows if windows is True else list(windows)
    if predictor.options.access.preprocess:
        about["preprocess"] = repr(sorted(predictor.options.access.preprocess.items()))
    if not made_from:
        about["where"] = predictor.where
    queried = [(record.member, str(record.image.absolute()), str(record.label.absolute()), record.dataset)
               for record in records]
    about["fingerprint"] = fingerprint(list(made_from), about, queried, contents)
    marker, before = tree / MARKER, None
    if not marker.is_file() and tree.exists() and any(path.suffix != ".partial" for path in tree.iterdir()):
        raise UserError(f"{tree} is no folder of stored outputs; give a folder that does not exist yet")
    with suppress(OSError, ValueError):
        before = json.loads(marker.read_text(encoding="utf-8"))
    if marker.is_file() and before != about:
        for stale in (tree / side / kind for side in SIDES for kind in ("label", "pred_sgd", *PARTS)):
            if stale.exists():
                shutil.rmtree(stale)
    write_json(marker, about)
    sides = {member: side for side, member in SIDES.items()}
    names = [f"{sides[record.member]}/{record.name}" for record in records]
    write_groups(tree, [(name, record.identity.group or name) for name, record in zip(names, records, strict=True)])
