"""Print one table of all attacks on all beds, from the committed scores and the measured costs: docs/results.md has it.

    python -m reproduce.overview
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from utils.cli import new_parser, run
from utils.files import read_json

if TYPE_CHECKING:
    from reproduce.rotations_page import Bed

COSTS = Path("tools/benchmarks/results/attack-costs.json")
STREETS = Path("reproduce/results/streets-fresh/scores")
BEDS = {"CamVid": ("rotations-camvid",), "Cityscapes": ("rotations-cityscapes", "residual-cityscapes")}
ELSEWHERE = {"CamVid": ("independent-camvid",), "Cityscapes": ("independent-cityscapes",)}
DRAWN = {  # attack -> its scores on *streets*
    "loss": "loss", "loss-all-random": "loss-map", "loss-all-full": "loss-map-full", "concate-all-random": "concate",
    "concate-all-full": "concate-full", "loss-all-rejection": "loss-map-rejection",
    "concate-all-rejection": "concate-rejection", "calibrated-one": "calibrated-one", "rmia-one": "rmia-one",
    "residual-one": "residual-one", "residual": "residual", "lira-bayes": "lira-bayes", "rmia": "rmia",
    "calibrated-all": "calibrated", "residual-all": "residual-two", "references-alone": "references-alone"}
NAMES = {
    "confidence": "confidence threshold", "loss": "loss threshold", "loss-all-full": "loss map, full",
    "loss-all-random": "loss map, random", "loss-all-rejection": "loss map, rejection",
    "concate-all-full": "C+GT, full", "concate-all-random": "C+GT, random",
    "concate-all-rejection": "C+GT, rejection", "log-concate-full": "C+GT of log-posteriors, full",
    "log-concate-random": "C+GT of log-posteriors, random",
    "correctness": "correctness (label only)", "agreement": "agreement (label only)",
    "augmented": "loss, mean over 6 versions", "statistics-alone": "statistics",
    "gradient": "gradient norm (white box)", "membership-error": "membership error",
    "quantile": "quantile regression", "residual": "residual",
    "calibrated-one-pseudo": "calibrated, without ground truth", "calibrated-one": "calibrated", "rmia-one": "RMIA",
    "residual-one": "residual", "lira": "LiRA, offline", "lira-bayes": "LiRA, Student t", "rmia": "RMIA",
    "correctness-all": "correctness (label only)", "statistics": "statistics", "calibrated-all": "calibrated",
    "calibrated-weighted": "calibrated, c chosen on a shadow", "calibrated-map-full": "calibrated map, full",
    "calibrated-map-random": "calibrated map, random", "residual-all": "residual",
    "statistics-crossfit": "bound: statistics, cross-fitted", "learned-crossfit": "bound: network, cross-fitted",
    "oracle-lira-bayes": "bound: LiRA, Student t, models of the same parts",
    "oracle-lira": "bound: LiRA, models of the same parts", "references-alone": "control: references alone",
    "control": "control: loss threshold on a model that saw none of the images"}
OTHERS = {"loss-map-full": "loss map, full", "loss-map-random": "loss map, random",
          "loss-map-rejection": "loss map, rejection", "concate-full": "C+GT, full", "concate-random": "C+GT, random",
          "calibrated": "calibrated", "rmia": "RMIA", "residual": "residual"}
HEADS = ["attack", "references", "queries", "ms an image", "CamVid: AUC / TPR at 1 % FPR",
         "Cityscapes: AUC / TPR at 1 % FPR", "*streets*: AUC / TPR at 0.1 % FPR"]


def main(args: argparse.Namespace) -> None:
    from reproduce.tables import markdown

    rows = [*table(BEDS, NAMES, DRAWN), *([f"{name}; models of LabelMeFacade", *row]
                                          for name, *row in table(ELSEWHERE, OTHERS, {}))]
    print(markdown(HEADS, rows))


def table(beds: dict[str, Iterable[str]], names: dict[str, str], drawn: dict[str, str]) -> Iterator[list[str]]:
    """The rows of the attacks `names`. `beds`: data set -> its scale files; `drawn`: as `DRAWN`."""
    from reproduce.forms import read
    from reproduce.rotations_page import Bed

    found = {data: [Bed(read(scale)) for scale in scales] for data, scales in beds.items()}
    for method, name in names.items():
        measured = [next((bed for bed in each if method in bed.methods()), None) for each in found.values()]
        if any(measured):
            yield [name, *cost(next(filter(None, measured)), method), *(metrics(bed, method) for bed in measured),
                   streets(drawn.get(method))]


def cost(bed: "Bed", method: str) -> list[str]:
    """The numbers of references and of queries of an attack, and the measured ms for each image with few references."""
    from reproduce.rotations_page import queries_of
    from reproduce.tables import DASH

    cell = next(one for one in bed.cells.values() if one.method == method)
    direct, count = bed.scale.direct.get(method), len(bed.scale.references_of(cell))
    attack = direct.flags.split()[1] if direct else "learned" if count == 0 else None
    seconds = next((row["scoring"]["seconds"] for row in read_json(COSTS)["attacks"]
                    if row["attack"] == attack and (row["references"] > 0) == (count > 0)), None)
    return [str(count), str(queries_of(bed.scale, cell)), f"{1000 * median(seconds):.0f}" if seconds else DASH]


def metrics(bed: "Bed | None", method: str) -> str:
    """AUC and TPR at an FPR of 1 % of an attack on a bed."""
    from reproduce.rotations_page import show_metric
    from reproduce.tables import DASH

    return " / ".join(show_metric(bed, method, name) for name in ("auc", "tpr_at_1_fpr")) if bed else DASH


def streets(name: str | None) -> str:
    """AUC and TPR at an FPR of 0.1 % on *streets*, from the file NAME.json."""
    from reproduce.packed import read_result
    from reproduce.rotations_page import show_percent
    from reproduce.tables import DASH

    if not name:
        return DASH
    found = read_result(STREETS / f"{name}.json")["image"]
    return " / ".join(show_percent(found[key], found[f"{key}_interval"]) for key in ("auc", "tpr_at_0.1_fpr"))


def parser() -> argparse.ArgumentParser:
    return new_parser(__doc__, "reproduce.overview")


if __name__ == "__main__":
    run(main, parser())
