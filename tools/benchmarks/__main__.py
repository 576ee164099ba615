"""Measure the speed of each stage. Compare it with simple code and with the limits of this machine.

    python -m tools.benchmarks                           # all stages, five rounds; run nothing else at the same time
    python -m tools.benchmarks --stage "loss map" --rounds 20

Each round runs the simple code of a stage and then the project's code. The table gives the median and the range of
the speedup over the rounds. Peak memory is measured in a separate process that runs only the project's code.
"""

import argparse

from utils.cli import UserError, new_parser, positive, run
from utils.files import write_json
from utils.log import progress


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks")
    flags.add_argument("--stage", nargs="+", metavar="NAME", help="stages to measure (default: all)")
    flags.add_argument("--rounds", type=positive, default=5, help="rounds per stage (default: 5)")
    flags.add_argument("--out", default="runs/benchmark.json",
                       help="JSON file for the measurements (default: runs/benchmark.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    from tools.benchmarks.limits import in_new_process, measure_limits, uses_bf16
    from tools.benchmarks.measure import describe_machine, measure, table
    from tools.benchmarks.stages import STAGES

    if unknown := set(args.stage or ()) - set(STAGES):
        raise UserError(f"there is no stage {min(unknown)!r}; choose from: {'; '.join(STAGES)}")
    limits = in_new_process(measure_limits)
    stages = {name: measure(name, args.rounds) for name in progress(args.stage or STAGES, "stages")}
    write_json(args.out, {"limits": limits, "bf16": uses_bf16(), "machine": describe_machine(), "stages": stages})
    print(table(stages, limits, uses_bf16()))
    print(f"measurements: {args.out}")


if __name__ == "__main__":
    run(main, parser())
