"""Check `--plan`: run steps of the training scripts and compare their time and memory with what it says.

    python -m benchmarks.planned                  # small models, for a CPU
    python -m benchmarks.planned --scale paper    # the paper's models at their crops, for a GPU

The rates of large convolutions and copies are measured first. The first setting then fixes the utilisation; the others
show how far it carries. Data are random, loading them is no part of it.
"""

import argparse
import importlib
from collections.abc import Callable

from utils.cli import positive, run

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
    flags = argparse.ArgumentParser(prog="benchmarks.planned", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--scale", choices=SCALES, default="small", help="which settings (default: small)")
    flags.add_argument("--steps", type=positive, default=10, help="timed of each (default: 10)")
    flags.add_argument("--out", default="runs/planned.json", help="figures (default: runs/planned.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    from benchmarks.limits import limits, uses_bf16
    from utils.device import choose_device
    from utils.files import write_json
    from utils.log import progress

    device = choose_device(None)
    most, bf16 = limits(device), uses_bf16(device)
    peak = most["convolution_bf16" if bf16 else "convolution_fp32"]
    found = [measure(line, device, bf16, args.steps) for line in progress(SCALES[args.scale], "settings")]
    for row in found:
        row["limit_s"] = row.pop("cost").seconds(peak, most["copy"], 1)
    utilisation = found[0]["limit_s"] / found[0]["seconds"]
    write_json(args.out, {"limits": most, "bf16": bf16, "utilisation": utilisation, "settings": found})
    print(f"convolution {peak:.3g} TFLOP/s ({'bf16' if bf16 else 'float32'}), copy {most['copy']:.3g} GB/s; "
          f"the first setting is planned with --tflops {peak:.3g} --gb-per-s {most['copy']:.3g} --utilisation "
          f"{utilisation:.2f}\n\n"
          "| a step of | TFLOP | planned s | measured s | planned / measured | planned GiB | measured GiB |\n"
          "|---|---|---|---|---|---|---|")
    for row in found:
        planned = row["limit_s"] / utilisation
        memory = "" if row["gib"] is None else f"{row['gib']:.3g}"
        print(f"| `{row['setting']}` | {row['flops'] / 1e12:.3g} | {planned:.3g} | {row['seconds']:.3g} | "
              f"{planned / row['seconds']:.2f} | {row['planned_gib']:.3g} | {memory} |")
    print(f"figures: {args.out}")


def measure(line: str, device: object, bf16: bool, steps: int) -> dict:
    """Plan and median time of a step of the command line; peak memory in GiB too, where the device counts it."""
    import statistics

    import torch

    from benchmarks.limits import times
    from training.plan import GIB, attacker_step, segmenter_step

    script, *flags = line.split()
    module = importlib.import_module(script.removesuffix(".py"))
    args = module.parser().parse_args([*flags, "--precision", "bf16" if bf16 else "fp32"])
    if script == "train_attacker.py":
        spec = module.spec_of(args, args.classes)
        cost, step, optimizer = attacker_step(args, spec), attacker(args, spec, device), "AdamW"
    else:
        cost, step, optimizer = segmenter_step(args), segmenter(args, device), "SGD"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(times(step, device, steps))
    return {"setting": line, "cost": cost, "flops": cost.flops, "traffic": cost.traffic, "seconds": seconds,
            "planned_gib": sum(cost.memory(optimizer).values()) / GIB,
            "gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None}


def segmenter(args: argparse.Namespace, device: object) -> Callable[[], object]:
    """A step of the training of a victim on random images."""
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


def attacker(args: argparse.Namespace, spec: dict, device: object) -> Callable[[], object]:
    """A step of the training of an attacker on random maps."""
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
