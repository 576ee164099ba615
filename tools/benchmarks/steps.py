"""One training step of a script's command line: its planned cost and its measured time."""

import argparse
import statistics
from collections.abc import Callable

import torch

import datasets
import models
import training
from models.attacker import build_attacker
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
        cost, step = attacker_step(options, plan, args.classes), make_attacker_step(options, args.classes, compute)
    else:
        for package in (datasets, models, training):
            package.add_flags(flags)
        options = pick(flags.parse_args(words), SegmenterTraining)
        cost, step = segmenter_step(options, plan), make_segmenter_step(options, compute)
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
    seconds = statistics.median(time_calls(step, compute.device, steps))
    memory = cost.memory("AdamW" if script == "train_attacker.py" else "SGD")
    return {"setting": line, "cost": cost, "flops": cost.flops, "traffic": cost.traffic, "seconds": seconds,
            "planned_gib": sum(memory.values()) / GIB,
            "gib": torch.cuda.max_memory_allocated(compute.device) / GIB if compute.device.type == "cuda" else None}


def make_segmenter_step(options: SegmenterTraining, compute: Compute) -> Callable[[], object]:
    """A function that runs one training step of a segmentation model on random images."""
    classes, device = len(datasets.find_dataset(options.dataset).CLASSES), compute.device
    model = models.build_segmenter(options.spec(classes)).to(device, memory_format=torch.channels_last).train()
    optimizer = segmentation.make_optimizer(model, options)
    images = torch.rand(options.batch, 3, *options.crop, device=device)
    labels = torch.randint(0, classes, (options.batch, *options.crop), device=device)
    return lambda: segmentation.learn(model, optimizer, images, labels, options.aux_weight, compute)


def make_attacker_step(options: AttackerTraining, classes: int, compute: Compute) -> Callable[[], object]:
    """A function that runs one training step of an attacker on random maps."""
    arguments, device = options.spec(classes)["arguments"], compute.device
    model = build_attacker(**arguments).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    shape = (options.batch, arguments["channels"], options.patch_size, options.patch_size)
    maps, member = torch.rand(shape, device=device), torch.randint(0, 2, (options.batch,), device=device)
    return lambda: attacker.learn(model, optimizer, maps, member, options.batch, compute)
