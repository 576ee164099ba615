"""Measure time and memory of an attack on growing numbers of images.

    python -m tools.benchmarks.growth --counts 100 1000 10000

The attack reads the stored posteriors of `examples/` repeatedly, each time under new names. Each count runs in a
separate process.
"""

import argparse

from utils.cli import new_parser, positive, run
from utils.files import ROOT, write_json


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks.growth")
    flags.add_argument("--counts", nargs="+", type=positive, default=[100, 1000, 10000],
                       help="numbers of images (default: 100 1000 10000)")
    flags.add_argument("--out", default="runs/growth.json",
                       help="JSON file for the measurements (default: runs/growth.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from tools.benchmarks.growth import measure_attack  # a new process cannot import it from __main__
    from tools.benchmarks.limits import in_new_process
    from utils.log import progress

    rows = [in_new_process(measure_attack, count) for count in progress(args.counts, "counts")]
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

    from attacks import build_attack
    from attacks.sample import AttackSettings
    from evaluation.metrics import compute_metrics
    from models import load_attacker
    from predictors.samples import tree_source
    from predictors.stored import StoredPredictor
    from tools.benchmarks.limits import peak_mib
    from utils.device import choose_compute

    tree = str(ROOT / "examples")
    source, paths = tree_source(tree), {}
    members, non_members = ([record for record in source.records if record.member == side] for side in (True, False))
    alternating = cycle(record for pair in zip(members, non_members, strict=True) for record in pair)
    records = []
    for index, record in enumerate(islice(alternating, count)):
        records.append(replace(record, name=f"{record.name}-{index}"))
        paths[records[-1].name] = source.predictor.paths[record.name]
    source = replace(source, records=records, predictor=StoredPredictor(tree, paths=paths))
    attacker = load_attacker(str(ROOT / "weights/loss.pth.tar"))
    attack = build_attack("learned", AttackSettings(attacker=attacker, compute=choose_compute(None)))
    started = time.perf_counter()
    scored = list(attack.score(source.samples()))
    compute_metrics([image.score for image in scored], [image.member for image in scored])
    return {"images": count, "seconds": time.perf_counter() - started, "mib_peak": peak_mib()}


if __name__ == "__main__":
    run(main, parser())
