"""Time and memory of an attack as the images become more: python -m benchmarks.growth [--counts 100 1000 10000].

The shipped posteriors are read again and again under new names, each count in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from utils.cli import positive, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--counts", nargs="+", type=positive, default=[100, 1000, 10000],
                       help="images (default: 100 1000 10000)")
    flags.add_argument("--out", default="runs/growth.json", help="figures (default: runs/growth.json)")
    flags.add_argument("--one", type=positive, help=argparse.SUPPRESS)
    return flags


def main(args: argparse.Namespace) -> None:
    if args.one:
        return print(json.dumps(attack(args.one)))
    import numpy as np

    from utils.files import write_json
    from utils.log import progress

    found = []
    for count in progress(args.counts, "counts"):
        command = [sys.executable, "-m", "benchmarks.growth", "--one", str(count)]
        child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        found.append(json.loads(child.stdout))
    write_json(args.out, found)
    print("| images | seconds | ms an image | peak MiB |\n|---|---|---|---|")
    for row in found:
        print(f"| {row['images']:,} | {row['seconds']:.2f} | {1000 * row['seconds'] / row['images']:.2f} | "
              f"{row['mib_peak']} |")
    if len(found) > 1:
        slope, start = np.polyfit([row["images"] for row in found], [row["seconds"] for row in found], 1)
        print(f"fit: {start:.2f} s + {1000 * slope:.3f} ms an image; figures: {args.out}")


def attack(count: int) -> dict:
    """Seconds, from the first image to the figures, and peak memory of an attack on `count` images."""
    import time
    from dataclasses import replace
    from itertools import cycle, islice

    import torch

    from attacks.scoring import Selection, View, attack_patches, meet
    from benchmarks.limits import peak_mib
    from datasets.posteriors import list_tree
    from defenses.apply import Defense
    from evaluation.metrics import compute_metrics
    from models.attacker import build_attacker
    from utils.checkpoints import load_checkpoint, load_weights

    stored = load_checkpoint("weights/loss.pth.tar")
    model = build_attacker(**stored["model"]["arguments"])
    load_weights(model, stored["state_dict"], "weights/loss.pth.tar")
    stored_ones = list_tree("examples")
    members, others = ([item for item in stored_ones if item.member == side] for side in (True, False))
    turns = cycle(item for both in zip(members, others, strict=True) for item in both)
    items = [replace(item, name=f"{item.name}-{turn}") for turn, item in enumerate(islice(turns, count))]
    begun = time.perf_counter()
    scored = list(attack_patches(meet(items, Defense()), model.fold_norms(), View(**stored["view"]),
                                 Selection("random", 6), torch.device("cpu")))
    compute_metrics([s.score for s in scored], [s.member for s in scored])
    return {"images": count, "seconds": time.perf_counter() - begun,
            "mib_peak": peak_mib()}


if __name__ == "__main__":
    run(main, parser())
