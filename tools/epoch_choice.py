"""Compare two rules for the weights of an attacker: those of the best held-out epoch, or their average.

    python train_attacker.py --shadow runs/shadow --epochs 1       # stores the shadow's posteriors on D^S
    python -m tools.epoch_choice runs/shadow/posteriors-s4 --input loss         # half an hour on one core

D^S is divided into folds by groups. Each fold is the test part once for each seed; a fifth of the rest is held out, as
in train_attacker.py. So the test images are seen neither by the training nor by the choice. Writes the AUC on the
held-out and the test part after each epoch, of the current and of the averaged weights.
"""

import argparse
from pathlib import Path

from utils.cli import natural, new_parser, number, positive, run

RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.epoch_choice")
    flags.add_argument("tree", help="posteriors of a shadow on D^S")
    flags.add_argument("--input", choices=("loss", "concate"), default="loss", help="(default: loss)")
    flags.add_argument("--epochs", type=positive, default=40, help="(default: 40)")
    flags.add_argument("--folds", type=number(2, 1000, int), default=5, help="(default: 5)")
    flags.add_argument("--seeds", type=positive, default=2, help="trainings of each fold (default: 2)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the folds (default: 0)")
    flags.add_argument("--out", metavar="FILE", type=Path,
                       help="(default: results/epoch-choice-INPUT-SEED.json beside this tool)")
    return flags


def main(args: argparse.Namespace) -> None:
    from predictors.samples import tree_source
    from training.held_out import folds
    from utils.files import write_json

    records = tree_source(args.tree).records
    fold = folds(records, args.folds, args.seed)
    trainings = []
    for seed in range(args.seeds):
        for part in range(args.folds):
            test = {r.name for r, own in zip(records, fold, strict=True) if own == part}
            trainings.append({"seed": seed, "fold": part,
                              "epochs": train(args.tree, test, args.input, args.epochs, args.folds * seed + part)})
    metrics = summarise(trainings)
    write_json(args.out or RESULTS / f"epoch-choice-{args.input}-{args.seed}.json",
               {"input": args.input, "seed": args.seed, **metrics, "trainings": trainings})
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")


def train(tree: str, test: set[str], kind: str, epochs: int, seed: int) -> list[dict[str, float]]:
    """Train an attacker on the images of `tree` that are not in `test`. Returns the AUCs after each epoch."""
    import tempfile
    from dataclasses import replace

    import torch

    from attacks.patches import Selection
    from models.attacker import InputSpec
    from predictors.samples import tree_source
    from predictors.stored import TINY
    from training.attacker import Learner, prepare, train_epoch
    from training.held_out import VALIDATION_PATCHES, auc_of, score_held_out
    from training.options import AttackerTraining
    from training.patches import Patches
    from training.run import TrainingRun
    from utils.device import Compute, choose_device, resolve_precision

    options, source = AttackerTraining(input=kind, epochs=epochs, seed=seed), tree_source(tree)
    device = choose_device(None)
    compute = Compute(device, resolve_precision("auto", device))
    data = prepare(replace(source, records=[r for r in source.records if r.name not in test]), options, source.defense)
    unseen = list(replace(source, records=[r for r in source.records if r.name in test]).samples())
    spec = InputSpec(kind, options.patch_size, TINY, options.void, data.stride, False)
    patches, rows = Patches(data.training, options.patch_size, seed, options.patches_per_epoch), []
    random = Selection("random", VALIDATION_PATCHES, seed=seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder, TrainingRun(Path(folder), {}) as run:
        learner = Learner.prepare(options, options.spec(data.classes), run, compute)
        for epoch in range(epochs):
            train_epoch(learner.model, learner, patches, options, spec, run, lambda: None, compute)
            run.finish_epoch()
            rows.append({f"{name}-{part}": auc_of(score_held_out(samples, model, spec, random, compute))
                         for name, model in (("current", learner.model), ("average", learner.average.module))
                         for part, samples in (("held_out", data.held_out), ("test", unseen))})
            print(f"{kind}, training {seed}, epoch {epoch + 1}: {rows[-1]}", flush=True)
    return rows


def summarise(trainings: list[dict]) -> dict[str, float]:
    """Mean AUCs over the trainings, and the difference of the two rules with its standard error over trainings."""
    import numpy as np

    runs = [training["epochs"] for training in trainings]
    best = [max(rows, key=lambda row: row["current-held_out"]) for rows in runs]
    difference = np.array([rows[-1]["average-test"] - row["current-test"]
                           for rows, row in zip(runs, best, strict=True)])
    return {"best_epoch_held_out": float(np.mean([row["current-held_out"] for row in best])),
            "best_epoch_test": float(np.mean([row["current-test"] for row in best])),
            "average_held_out": float(np.mean([rows[-1]["average-held_out"] for rows in runs])),
            "average_test": float(np.mean([rows[-1]["average-test"] for rows in runs])),
            "difference": float(difference.mean()),
            "standard_error": float(difference.std(ddof=1) / len(difference) ** 0.5)}


if __name__ == "__main__":
    run(main, parser())
