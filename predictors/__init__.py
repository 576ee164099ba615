"""Models that can be queried, and outputs on disk: from an image to the output of a model.

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
    """The predictor `KIND:WHERE`; a text that starts with no kind of `PREDICTORS` is the path of a checkpoint.

    `UserError` where it cannot be used.
    """
    from predictors.base import PredictorOptions

    kind, colon, rest = str(where).partition(":")
    if not (colon and kind in PREDICTORS):
        kind, rest = "checkpoint", str(where)
    return PREDICTORS.load(kind)(rest, options or PredictorOptions())
