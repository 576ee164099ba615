"""Make the shipped files from runs: weights/ in float16, and the images, labels and posteriors of examples/.

    python -m examples.ship --runs runs/demo --count 60
"""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import new_parser, positive, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets.pairs import Pair

QUALITY = 85  # of the JPEG images, at full resolution of the colours; they differ from the streets by 4 of 255 levels
REFERENCES = ("reference-*", "online-*")  # runs of reference models; those of the second kind saw half of examples/
RUN_FILES = ("in.txt", "out.txt", "results.json")  # of a run of train_shadow.py, beside its checkpoint and provenance
NOTE = "All images are drawn, so these hashes are not private."
DPSGD_SHARE = 2  # one of so many images has posteriors of the DPSGD victim, which limits the size of a checkout


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "examples.ship")
    flags.add_argument("--runs", default="runs/demo",
                       help="folder with the runs victim, victim-dpsgd, loss, concate, and those references that are "
                            "trained (default: runs/demo)")
    flags.add_argument("--count", type=positive, default=60,
                       help="images of each side, the first of the split (default: 60)")
    flags.add_argument("--root", default="data/streets", help="folder of the streets (default: data/streets)")
    return flags


def main(args: argparse.Namespace) -> None:
    from datasets.pairs import read_split
    from datasets.provenance import FILE as PROVENANCE
    from predictors.base import PredictorOptions, Record, predict_records
    from predictors.checkpoint import CheckpointPredictor
    from predictors.stored import write_posterior
    from utils.checkpoints import load_checkpoint
    from utils.files import read_json, write_json

    runs, weights = Path(args.runs), Path("weights")
    for name, file in (("victim", "last"), ("loss", "best"), ("concate", "best")):
        write_half(load_checkpoint(runs / name / f"{file}.pth.tar"), weights / f"{name}.pth.tar")
    for name in (path.name for pattern in REFERENCES for path in sorted(runs.glob(pattern))):
        trained, folder = load_checkpoint(runs / name / "last.pth.tar"), weights / name
        folder.mkdir(exist_ok=True)
        write_half(trained, folder / "last.pth.tar", args={"root": trained["args"]["root"]})
        for file in RUN_FILES:
            shutil.copyfile(runs / name / file, folder / file)
        write_json(folder / PROVENANCE, read_json(runs / name / PROVENANCE) | {"note": NOTE})
    sides = {side: read_split(f"splits/streets/{split}.txt", args.root)[: args.count]
             for side, split in (("train", "victim_in"), ("val", "victim_out"))}
    options = PredictorOptions(stride=load_checkpoint(weights / "loss.pth.tar")["view"]["stride"])
    for folder, victim, count in (("pred_sgd", weights / "victim.pth.tar", args.count),
                                  ("pred_dpsgd", runs / "victim-dpsgd/last.pth.tar", args.count // DPSGD_SHARE)):
        predictor = CheckpointPredictor(str(victim), options)
        for side, pairs in sides.items():
            records = [Record.of_pair(pair, "streets") for pair in pairs[:count]]
            for answer in predict_records(predictor, records, folder):
                write_posterior(Path("examples"), side, answer.record.image.stem, answer.output.numpy(),
                                answer.load_label(), folder)
    for side, pairs in sides.items():
        write_images(Path("examples") / side / "img", pairs)


def write_half(trained: dict, path: Path, **more: object) -> None:
    """Write what an attack reads of a checkpoint, with weights in float16, and the entries `more`."""
    from utils.checkpoints import save_checkpoint, to_half

    rest = {key: trained[key] for key in ("epoch", "view", "classes", "dataset") if key in trained}
    save_checkpoint(path, trained["model"], to_half(trained["state_dict"]), **rest, **more)


def write_images(folder: Path, pairs: "Sequence[Pair]") -> None:
    """Write the images of pairs to `folder` as JPEG."""
    from PIL import Image

    from datasets.images import load_image
    from utils.files import atomic_open

    for pair in pairs:
        with atomic_open(folder / f"{Path(pair.image).stem}.jpg") as file:
            Image.fromarray(load_image(pair.root / pair.image)).save(file, "JPEG", quality=QUALITY, subsampling=0,
                                                                     optimize=True)


if __name__ == "__main__":
    run(main, parser())
