"""Measure time and memory of an attack on growing numbers of images.

    python -m tools.benchmarks.growth --counts 100 1000 10000

The attack reads the stored posteriors of `examples/` repeatedly, each time under new names. Each count runs in a
separate process.
"""

import argparse

from utils.cli import new_parser, positive, run
from utils.files import write_json
from utils.log import progress


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks.growth")
    flags.add_argument("--counts", nargs="+", type=positive, default=[100, 1000, 10000],
                       help="numbers of images (default: 100 1000 10000)")
    flags.add_argument("--out", default="runs/growth.json",
                       help="JSON file for the measurements (default: runs/growth.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from tools.benchmarks.limits import in_new_process
    from tools.benchmarks.stages import measure_attack

    rows = [in_new_process(measure_attack, count) for count in progress(args.counts, "counts")]
    write_json(args.out, rows)
    print("| images | seconds | ms per image | peak MiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['images']:,} | {row['seconds']:.2f} | {1000 * row['seconds'] / row['images']:.2f} | "
              f"{row['mib_peak']} |")
    if len(rows) > 1:
        slope, start = np.polyfit([row["images"] for row in rows], [row["seconds"] for row in rows], 1)
        print(f"linear fit: {start:.2f} s + {1000 * slope:.3f} ms per image; measurements: {args.out}")


if __name__ == "__main__":
    run(main, parser())
