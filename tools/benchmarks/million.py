"""Measure what grows with a split file, with the number of scores, and with the number of cells.

    python -m tools.benchmarks.million                  # a million images; some three minutes

Three parts, each in a process of its own: read a split file of so many lines (the images do not exist, and are not
looked for); metrics with all intervals of so many random scores, in groups of ten images; and Snakemake's plan of a bed
of 32 models. The seconds are processor time.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

import yaml

from utils.cli import new_parser, positive, run
from utils.files import ROOT, write_json

GROUP = 10  # images of a group
SCALE, SEEDS = "rotations-camvid", 8  # a bed of 32 models


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks.million")
    flags.add_argument("--images", type=positive, default=10**6, help="lines and scores (default: 1000000)")
    flags.add_argument("--out", default="runs/million.json",
                       help="JSON file for the measurements (default: runs/million.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    from tools.benchmarks.limits import in_new_process
    from tools.benchmarks.measure import describe_machine

    rows = [in_new_process(read_lines, args.images), in_new_process(compute_intervals, args.images), plan_cells()]
    write_json(args.out, {"machine": describe_machine(), "parts": rows})
    print("| part | number | seconds of processor time | peak MiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['part']} | {row['number']:,} | {row['cpu_seconds']:.1f} | {row['mib_peak']:,} |")
    print(f"measurements: {args.out}")


def read_lines(count: int) -> dict:
    """Read a split file of `count` lines with groups."""
    from datasets.pairs import read_split
    from tools.benchmarks.limits import peak_mib

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.txt"
        path.write_text("".join(f"images/{n // GROUP}/{n}.png labels/{n // GROUP}/{n}.png {n // GROUP}\n"
                                for n in range(count)))
        started = time.process_time()
        pairs = read_split(path, folder, must_exist=False)
        seconds = time.process_time() - started
    return {"part": "reading a split file", "number": len(pairs), "cpu_seconds": seconds, "mib_peak": peak_mib()}


def compute_intervals(count: int) -> dict:
    """Metrics and intervals of `count` random scores: half are members, whose mean is higher by one half."""
    import numpy as np

    from attacks.sample import Scored
    from evaluation.report import summarise
    from tools.benchmarks.limits import peak_mib
    from utils.memory import collector_paused

    scores = np.random.default_rng(0).normal(size=count)
    with collector_paused():
        scored = [Scored(f"{n}", n // GROUP % 2 == 0, f"{n // GROUP}", float(score) + 0.5 * (n // GROUP % 2 == 0))
                  for n, score in enumerate(scores)]
    before, started = peak_mib(), time.process_time()
    summarise(scored)
    return {"part": "metrics and intervals", "number": count, "cpu_seconds": time.process_time() - started,
            "mib_before": before, "mib_peak": peak_mib()}


def plan_cells() -> dict:
    """Let Snakemake plan `SCALE` with `SEEDS` models on each part, all of which are attacked.

    Raises `UserError` if it fails, as where it is not installed.
    """
    from reproduce.rotations import read_rotations
    from tools.benchmarks.limits import measure_command

    keys = yaml.safe_load((ROOT / f"reproduce/scales/{SCALE}.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        scale = Path(folder) / "planned.yaml"
        keys |= {"seeds": SEEDS, "attacked": SEEDS, "runs": f"{folder}/runs", "results": f"{folder}/results"}
        scale.write_text(yaml.safe_dump(keys))
        costs, said = measure_command(["-m", "snakemake", "-s", "reproduce/Snakefile", "--config", f"scale={scale}",
                                       "--dry-run", "--quiet", "rules"])
        cells = len(read_rotations(scale).cells)
    jobs = int(re.search(r"^total\s+(\d+)", said, re.MULTILINE)[1])
    return {"part": "planning cells", "number": cells, "jobs": jobs} | costs


if __name__ == "__main__":
    run(main, parser())
