"""Measure how much the random division of the positions changes the membership error.

    python -m tools.predictability_draws --scores reproduce/results/streets/reconstruction.csv

The scores of `--attack reconstruction` are corrected by the predictability errors of several random divisions: with a
single fit on 70 % of the positions, and with the folds of the sound version.
"""

import argparse

from utils.cli import natural, new_parser, number, run


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.predictability_draws")
    flags.add_argument("--scores", required=True, metavar="CSV", help="scores.csv of --attack reconstruction")
    flags.add_argument("--members", default="splits/streets/victim_in.txt", metavar="SPLIT", help="its members")
    flags.add_argument("--non-members", default="splits/streets/victim_out.txt", metavar="SPLIT",
                       help="its non-members")
    flags.add_argument("--root", default="data/streets", help="folder of the images (default: data/streets)")
    flags.add_argument("--draws", type=number(2, 1000, int), default=8, help="random divisions (default: 8)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the divisions (default: 0)")
    return flags


def main(args: argparse.Namespace) -> None:
    import csv
    from dataclasses import replace

    import numpy as np
    import torch
    from sklearn.metrics import roc_auc_score

    from attacks.predictability import SOUND, predictability_error, prepare_image
    from models import feature_extractor
    from predictors.samples import live_records
    from utils.log import progress
    from utils.randomness import stream

    with open(args.scores, encoding="utf-8") as file:
        scores = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    records = live_records(args.members, args.non_members, args.root, "", "streets")
    methods = {"a single fit": replace(SOUND, folds=1), f"{SOUND.folds} folds": SOUND}
    errors = {name: np.zeros((args.draws, len(records))) for name in methods}
    net = feature_extractor("efficientnet_lite0")
    for index, record in enumerate(progress(records, "images")):
        image = torch.from_numpy(record.load_image().transpose(2, 0, 1).copy())
        with torch.inference_mode():
            maps = [one[0] for one in net(prepare_image(image, SOUND)[None])]
        for name, method in methods.items():
            for draw in range(args.draws):
                rng = stream(args.seed, "draw", draw, record.name)
                errors[name][draw, index] = predictability_error(maps, torch.from_numpy(record.load_label()), method,
                                                                 rng)
    member, plain = [record.member for record in records], np.array([scores[record.name] for record in records])
    for name, found in errors.items():
        aucs, spread = [roc_auc_score(member, plain + row) for row in found], found.std(0, ddof=1).mean()
        print(f"{name}: AUC {np.mean(aucs):.4f} on average, {min(aucs):.4f} to {max(aucs):.4f}, standard deviation "
              f"{np.std(aucs, ddof=1):.4f}; standard deviation of the error of an image {spread:.4f}")


if __name__ == "__main__":
    run(main, parser())
