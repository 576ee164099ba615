"""Measure the two versions of a stage, and print the measurements as a table."""

import os
import time

import numpy as np
import torch

from tools.benchmarks.limits import describe_limits, in_new_process
from tools.benchmarks.stages import measure_memory, prepare_stage
from utils.memory import keep_freed_memory


def measure(name: str, rounds: int) -> dict:
    """Measure one stage: seconds of both versions in each round, difference of their results, and peak memory.

    Freed memory is kept as in the scripts of this project; in simple code it is given back, as glibc does by default.
    Where memory limits the speed, the second of two calls counts: a process that keeps its memory asks for it once.
    """
    seconds: dict[str, list[float]] = {"simple": [], "fast": []}
    results: dict[str, object] = {}
    with prepare_stage(name) as stage:
        for number in range(1 + rounds):
            for version, work in (("simple", stage.simple), ("fast", stage.fast)):
                keep_freed_memory(stage.own or version == "fast")
                if stage.bytes_read:
                    work()
                started = time.perf_counter()
                result = work()
                seconds[version].append(time.perf_counter() - started)
                if not number:  # also warms up both versions
                    results[version] = result
                    seconds[version].clear()
        difference = stage.difference(results["simple"], results["fast"]) if stage.difference else None
        measured = {"unit": stage.unit, "count": stage.count, "flops": stage.flops, "bytes_read": stage.bytes_read,
                    "seconds": seconds, "difference": difference}
    return measured | in_new_process(measure_memory, name)


def describe_machine() -> dict:
    """Number of cores and threads, vector instructions that PyTorch uses, and version of PyTorch."""
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "vector instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def table(stages: dict, limits: dict, bf16: bool) -> str:
    """Markdown: one line with the limits of the machine, then a table with one row per stage."""
    rate = limits["convolution_bf16" if bf16 else "convolution_fp32"]
    lines = [describe_limits(limits), "",
             "| stage | simple code | this project | speedup, median (range) | share of the limit | difference | "
             "peak MiB before -> after |",
             "|---|---|---|---|---|---|---|"]
    for name, stage in stages.items():
        simple, fast = (np.array(stage["seconds"][version]) for version in ("simple", "fast"))
        ratio = simple / fast
        speeds = [f"{stage['count'] / np.median(seconds):.4g} {stage['unit']}/s" for seconds in (simple, fast)]
        share = ""
        if stage["flops"]:
            share = f"{stage['flops'] / np.median(fast) / 1e12 / rate:.0%} of convolution"
        elif stage["bytes_read"]:
            share = f"{stage['bytes_read'] / np.median(fast) / 1e9 / limits['copy']:.0%} of copying memory"
        difference = "" if stage["difference"] is None else f"{stage['difference']:.1g}"
        speedup = f"{np.median(ratio):.1f} ({ratio.min():.1f}-{ratio.max():.1f})"
        memory = f"{stage['mib_before']} -> {stage['mib_peak']}"
        lines.append(f"| {' | '.join([name, *speeds, speedup, share, difference, memory])} |")
    return "\n".join(lines)
