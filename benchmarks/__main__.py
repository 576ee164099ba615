"""Time each stage against the obvious way and against the limit of this machine.

    python -m benchmarks                                     # every stage, five rounds; let nothing else run meanwhile
    python -m benchmarks --stage "loss map" --rounds 20

Both ways of a stage run in turn, `--rounds` times; a ratio is that of one round, and the table has their median and
range. Peak memory is that of a process that does nothing but the stage the fast way.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from utils.cli import positive, run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="benchmarks", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--stage", nargs="+", metavar="NAME", help="which (default: all)")
    flags.add_argument("--rounds", type=positive, default=5, help="paired runs of each (default: 5)")
    flags.add_argument("--out", default="runs/benchmark.json", help="figures (default: runs/benchmark.json)")
    flags.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    return flags


def main(args: argparse.Namespace) -> None:
    from benchmarks.limits import limits, uses_bf16
    from benchmarks.stages import STAGES
    from utils.cli import UserError
    from utils.files import write_json
    from utils.log import progress

    if args.memory_of:
        return print(json.dumps(memory_of(args.memory_of)))
    unknown = set(args.stage or ()) - set(STAGES)
    if unknown:
        raise UserError(f"no stage {min(unknown)!r}; there are: {', '.join(STAGES)}")
    most = limits()
    found = {name: measure(name, args.rounds) for name in progress(args.stage or STAGES, "stages")}
    write_json(args.out, {"limits": most, "bf16": uses_bf16(), "machine": machine(), "stages": found})
    print(table(found, most, uses_bf16()))
    print(f"figures: {args.out}")


def measure(name: str, rounds: int) -> dict:
    """Seconds of both ways in each round, rates, agreement and peak memory of one stage."""
    from benchmarks.stages import built

    times: dict[str, list[float]] = {"plain": [], "fast": []}
    with built(name) as stage:
        results = {"plain": stage.plain(), "fast": stage.fast()}  # to warm up, and to compare
        for _ in range(rounds):
            for way, work in (("plain", stage.plain), ("fast", stage.fast)):
                begun = time.perf_counter()
                work()
                times[way].append(time.perf_counter() - begun)
        agree = stage.agree(results["plain"], results["fast"]) if stage.agree else None
        out = {"unit": stage.unit, "count": stage.count, "flops": stage.flops, "moved": stage.moved, "seconds": times,
               "difference": agree}
    command = [sys.executable, "-m", "benchmarks", "--memory-of", name]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return out | json.loads(child.stdout)


def memory_of(name: str) -> dict:
    """Peak resident memory in MiB, before and after the stage is done the fast way."""
    from benchmarks.limits import peak_mib
    from benchmarks.stages import built

    with built(name) as stage:
        before = peak_mib()
        stage.fast()
        return {"mib_before": before, "mib_peak": peak_mib()}


def machine() -> dict:
    """Cores, threads and the vector units that PyTorch uses; no names."""
    import os

    import torch

    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "vector units": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def table(found: dict, most: dict, bf16: bool) -> str:
    """Markdown: the limits, then a row a stage."""
    import numpy as np

    rate = most["convolution_bf16" if bf16 else "convolution_fp32"]
    lines = [", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in most.items())
             + " (TFLOP/s; copy in GB/s)", "",
             "| stage | obvious way | ours | times faster, median (range) | of the limit | difference | peak MiB |",
             "|---|---|---|---|---|---|---|"]
    for name, stage in found.items():
        plain, fast = (np.array(stage["seconds"][way]) for way in ("plain", "fast"))
        ratio = plain / fast
        speeds = [f"{stage['count'] / np.median(seconds):.4g} {stage['unit']}/s" for seconds in (plain, fast)]
        share = ""
        if stage["flops"]:
            share = f"{stage['flops'] / np.median(fast) / 1e12 / rate:.0%} of convolution"
        elif stage["moved"]:
            share = f"{stage['moved'] / np.median(fast) / 1e9 / most['copy']:.0%} of reading the inputs"
        difference = "" if stage["difference"] is None else f"{stage['difference']:.1g}"
        faster = f"{np.median(ratio):.1f} ({ratio.min():.1f}-{ratio.max():.1f})"
        memory = f"{stage['mib_before']} -> {stage['mib_peak']}"
        lines.append(f"| {' | '.join([name, *speeds, faster, share, difference, memory])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, parser())
