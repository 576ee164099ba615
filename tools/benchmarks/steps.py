"""One training step of a script's command line: its planned cost and its measured time."""

import argparse
import statistics

import torch

import datasets
import models
import training
from tools.benchmarks.limits import time_calls
from training import attacker, segmentation
from training.options import AttackerTraining, SegmenterTraining
from training.plan import GIB, PlanOptions, attacker_step, segmenter_step
from utils.cli import pick
from utils.device import Compute


def measure(line: str, compute: Compute, steps: int) -> dict:
    """Planned cost, and measured median time, of one step of the command line of a training script.

    The entry `gib` is the peak memory in GiB on a GPU, and None on a CPU.
    """
    script, *words = line.split()
    plan = PlanOptions(bf16=compute.precision == "bf16")
    flags = argparse.ArgumentParser()
    if script == "train_attacker.py":
        training.add_attacker_flags(flags)
        args = flags.parse_args(words)
        options = pick(args, AttackerTraining)
        cost = attacker_step(options, plan, args.classes)
        step = attacker.trial_step(options, args.classes, options.batch, compute.device)
    else:
        for package in (datasets, models, training):
            package.add_flags(flags)
        options = pick(flags.parse_args(words), SegmenterTraining)
        cost = segmenter_step(options, plan)
        step = segmentation.trial_step(options, options.batch, compute.device)
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
    seconds = statistics.median(time_calls(lambda: step(compute), compute.device, steps))
    memory = cost.memory("AdamW" if script == "train_attacker.py" else "SGD")
    return {"setting": line, "cost": cost, "flops": cost.flops, "traffic": cost.traffic, "seconds": seconds,
            "planned_gib": sum(memory.values()) / GIB,
            "gib": torch.cuda.max_memory_allocated(compute.device) / GIB if compute.device.type == "cuda" else None}
