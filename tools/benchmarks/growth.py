"""Measure time and memory of an attack on more and more images.

    python -m tools.benchmarks.growth --counts 100 1000 10000

The attack reads the stored posteriors of `examples/` repeatedly, each time under new names. Each count runs in a
separate process.
"""

import argparse
import json
import subprocess
import sys

from utils.cli import positive, run
from utils.files import ROOT


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="tools.benchmarks.growth", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--counts", nargs="+", type=positive, default=[100, 1000, 10000],
                       help="numbers of images (default: 100 1000 10000)")
    flags.add_argument("--out", default="runs/growth.json",
                       help="JSON file for the measurements (default: runs/growth.json)")
    flags.add_argument("--one", type=positive, help=argparse.SUPPRESS)
    return flags


def main(args: argparse.Namespace) -> None:
    if args.one:
        return print(json.dumps(measure_attack(args.one)))
    import numpy as np

    from utils.files import write_json
    from utils.log import progress

    rows = []
    for count in progress(args.counts, "counts"):
        command = [sys.executable, "-m", "tools.benchmarks.growth", "--one", str(count)]
        child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        rows.append(json.loads(child.stdout))
    write_json(args.out, rows)
    print("| images | seconds | ms per image | peak MiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['images']:,} | {row['seconds']:.2f} | {1000 * row['seconds'] / row['images']:.2f} | "
              f"{row['mib_peak']} |")
    if len(rows) > 1:
        slope, start = np.polyfit([row["images"] for row in rows], [row["seconds"] for row in rows], 1)
        print(f"linear fit: {start:.2f} s + {1000 * slope:.3f} ms per image; measurements: {args.out}")


def measure_attack(count: int) -> dict:
    """Attack `count` images: seconds from loading the first posterior to the metrics, and peak memory in MiB."""
    import time
    from dataclasses import replace
    from itertools import cycle, islice

    import torch

    from attacks.scoring import Selection, View, attack_patches, meet
    from datasets.posteriors import list_tree
    from defenses.apply import Defense
    from evaluation.metrics import compute_metrics
    from models.attacker import build_attacker
    from tools.benchmarks.limits import peak_mib
    from utils.checkpoints import load_checkpoint, load_weights

    checkpoint = load_checkpoint("weights/loss.pth.tar")
    model = build_attacker(**checkpoint["model"]["arguments"])
    load_weights(model, checkpoint["state_dict"], "weights/loss.pth.tar")
    stored = list_tree("examples")
    members, non_members = ([item for item in stored if item.member == side] for side in (True, False))
    alternating = cycle(item for pair in zip(members, non_members, strict=True) for item in pair)
    items = [replace(item, name=f"{item.name}-{index}") for index, item in enumerate(islice(alternating, count))]
    started = time.perf_counter()
    scored = list(attack_patches(meet(items, Defense()), model.fold_norms(), View(**checkpoint["view"]),
                                 Selection("random", 6), torch.device("cpu")))
    compute_metrics([image.score for image in scored], [image.member for image in scored])
    return {"images": count, "seconds": time.perf_counter() - started, "mib_peak": peak_mib()}


if __name__ == "__main__":
    run(main, parser())
