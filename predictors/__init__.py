"""Predictors give the output of a model for an image: they query a model, or read stored outputs.

A new kind of predictor is one file with a subclass of `predictors.base.Predictor`, and one line in `PREDICTORS`.
Scripts take `KIND:WHERE`, or the path of a checkpoint.
"""

from typing import TYPE_CHECKING

from utils.tables import Entry, Table

if TYPE_CHECKING:
    from predictors.base import Predictor, PredictorOptions

PREDICTORS = Table("predictor", {
    "checkpoint": Entry("predictors.checkpoint:CheckpointPredictor", "a checkpoint of train_victim.py"),
    "stored": Entry("predictors.stored:StoredPredictor", "posteriors on disk, in the layout of the release"),
})


def open_predictor(where: str, options: "PredictorOptions | None" = None) -> "Predictor":
    """Open the predictor `KIND:WHERE`. If `where` starts with no kind of `PREDICTORS`, it is the path of a checkpoint.

    Raises `UserError` if the predictor cannot be used.
    """
    from predictors.base import PredictorOptions

    kind, colon, rest = str(where).partition(":")
    if not (colon and kind in PREDICTORS):
        kind, rest = "checkpoint", str(where)
    return PREDICTORS.load(kind)(rest, options or PredictorOptions())
