"""Compare the predictions of `--plan` with measured training steps, in time and memory.

    python -m tools.benchmarks.planned                  # small models, for a CPU
    python -m tools.benchmarks.planned --scale paper    # the paper's models and crops, for a GPU

First the rates of large convolutions and copies are measured. The first setting then gives the utilisation, and the
other settings are predicted with it. The data are random, and loading data is not measured.
"""

import argparse
from collections.abc import Callable

from utils.cli import add_run_flags, flag, positive, run

PSPNET = "train_victim.py --backbone resnet101s --stages 4 --width 512 --crop 713 713 --dataset cityscapes --batch 8"
XCEPTION = "--backbone xception71 --stages 4 --output-stride 16 --width 256 --crop 769 769 --aux-weight 0"
ATTACKER = "train_attacker.py --arch resnet50 --width 1 --patch-size 90 --batch"
SCALES = {
    "small": ("train_victim.py --backbone resnet18 --crop 200 264 --dataset camvid --batch 8",
              "train_victim.py --backbone efficientnet_lite0 --stages 4 --output-stride 16 --crop 200 264 "
              "--dataset camvid --batch 4",
              "train_victim.py --model upernet --backbone resnet18 --stages 4 --output-stride 32 --crop 256 320",
              f"{ATTACKER} 16"),
    "paper": (PSPNET, f"{PSPNET} --model upernet --output-stride 32 --aux-weight 0",
              f"train_victim.py --model deeplabv3plus {XCEPTION} --dataset bdd100k --batch 8",
              f"train_victim.py --model dpc {XCEPTION} --dataset mapillary --batch 8",
              f"{ATTACKER} 128", f"{ATTACKER} 128 -input concate"),
}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="tools.benchmarks.planned", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--scale", choices=SCALES, default="small", help="the settings to measure (default: small)")
    flags.add_argument("--steps", type=positive, default=10, help="measured steps per setting (default: 10)")
    flags.add_argument("--out", default="runs/planned.json",
                       help="JSON file for the measurements (default: runs/planned.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    from tools.benchmarks.limits import measure_limits, uses_bf16
    from utils.device import choose_device
    from utils.files import write_json
    from utils.log import progress

    device = choose_device(None)
    limits, bf16 = measure_limits(device), uses_bf16(device)
    rate = limits["convolution_bf16" if bf16 else "convolution_fp32"]
    rows = [measure(line, device, bf16, args.steps) for line in progress(SCALES[args.scale], "settings")]
    for row in rows:
        row["limit_s"] = row.pop("cost").seconds(rate, limits["copy"], 1)
    utilisation = rows[0]["limit_s"] / rows[0]["seconds"]
    write_json(args.out, {"limits": limits, "bf16": bf16, "utilisation": utilisation, "settings": rows})
    print(f"convolution {rate:.3g} TFLOP/s ({'bf16' if bf16 else 'float32'}), copy {limits['copy']:.3g} GB/s; to get "
          f"the time of the first setting, give --plan the flags --tflops {rate:.3g} --gb-per-s {limits['copy']:.3g} "
          f"--utilisation {utilisation:.2f}\n\n"
          "| training step | TFLOP | planned s | measured s | planned / measured | planned GiB | measured GiB |\n"
          "|---|---|---|---|---|---|---|")
    for row in rows:
        planned = row["limit_s"] / utilisation
        memory = "" if row["gib"] is None else f"{row['gib']:.3g}"
        print(f"| `{row['setting']}` | {row['flops'] / 1e12:.3g} | {planned:.3g} | {row['seconds']:.3g} | "
              f"{planned / row['seconds']:.2f} | {row['planned_gib']:.3g} | {memory} |")
    print(f"measurements: {args.out}")


def measure(line: str, device: object, bf16: bool, steps: int) -> dict:
    """Planned cost and measured median time of one step of a training script's command line.

    The dict has the peak memory in GiB (`gib`) on a GPU, and None there on a CPU.
    """
    import statistics

    import torch

    from tools.benchmarks.limits import time_calls
    from training.plan import GIB, attacker_step, segmenter_step

    script, *words = line.split()
    words += ["--precision", "bf16" if bf16 else "fp32"]
    if script == "train_attacker.py":
        args = attacker_flags().parse_args(words)
        spec = attacker_spec(args)
        cost, step, optimizer = attacker_step(args, spec), make_attacker_step(args, spec, device), "AdamW"
    else:
        args = segmenter_flags().parse_args(words)
        cost, step, optimizer = segmenter_step(args), make_segmenter_step(args, device), "SGD"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(time_calls(step, device, steps))
    return {"setting": line, "cost": cost, "flops": cost.flops, "traffic": cost.traffic, "seconds": seconds,
            "planned_gib": sum(cost.memory(optimizer).values()) / GIB,
            "gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None}


def segmenter_flags() -> argparse.ArgumentParser:
    """The flags of train_victim.py that decide the cost of a step."""
    import datasets
    import models
    import training

    flags = argparse.ArgumentParser()
    for package in (datasets, models, training):
        package.add_flags(flags)
    add_run_flags(flags, "victim")
    return flags


def attacker_flags() -> argparse.ArgumentParser:
    """The flags of train_attacker.py that decide the cost of a step."""
    import training

    flags = argparse.ArgumentParser()
    flag(flags, "input", default="loss")
    flags.add_argument("--arch", default="resnet18")
    flags.add_argument("--width", type=float, default=0.25)
    flags.add_argument("--patch-size", type=positive, default=24)
    flags.add_argument("--batch", type=positive, default=32)
    flags.set_defaults(void="zero", dropout=0.0, lr=1e-3, weight_decay=1e-2)
    training.add_plan_flags(flags).add_argument("--classes", type=positive, default=19)
    add_run_flags(flags, "attacker")
    return flags


def attacker_spec(args: argparse.Namespace) -> dict:
    """The `spec` of a patch attacker with these flags."""
    from attacks.representation import channels
    from models.attacker import halvings_for

    return {"name": "attacker", "classes": args.classes,
            "arguments": {"arch": args.arch, "channels": channels(args.input, args.classes, args.void),
                          "width": args.width, "dropout": args.dropout, "halvings": halvings_for(args.patch_size)}}


def make_segmenter_step(args: argparse.Namespace, device: object) -> Callable[[], object]:
    """A function that runs one training step of a segmentation model on random images."""
    import torch

    from datasets import find_dataset
    from models import build_segmenter
    from training.segmentation import learn, optimizer_of, spec_of

    classes = len(find_dataset(args.dataset).CLASSES)
    model = build_segmenter(spec_of(args, classes)).to(device, memory_format=torch.channels_last).train()
    optimizer = optimizer_of(model, args)
    images = torch.rand(args.batch, 3, *args.crop, device=device)
    labels = torch.randint(0, classes, (args.batch, *args.crop), device=device)
    return lambda: learn(model, optimizer, images, labels, args.aux_weight, device, args.precision)


def make_attacker_step(args: argparse.Namespace, spec: dict, device: object) -> Callable[[], object]:
    """A function that runs one training step of an attacker on random maps."""
    import torch

    from models.attacker import build_attacker
    from training.attacker import learn

    model = build_attacker(**spec["arguments"]).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    shape = (args.batch, spec["arguments"]["channels"], args.patch_size, args.patch_size)
    maps, member = torch.rand(shape, device=device), torch.randint(0, 2, (args.batch,), device=device)
    return lambda: learn(model, optimizer, maps, member, args.batch, device, args.precision)


if __name__ == "__main__":
    run(main, parser())
