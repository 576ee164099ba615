"""Compare the predictions of `--plan` with measured training steps, in time and memory.

    python -m tools.benchmarks.planned                  # small models, for a CPU
    python -m tools.benchmarks.planned --scale paper    # the paper's models and crops, for a GPU

First the rates of large convolutions and copies are measured. Then the utilisation is computed from the first setting,
and the times of the other settings are predicted with it. The data are random, and the loading of data is not measured.
"""

import argparse

from utils.cli import new_parser, positive, run
from utils.files import write_json
from utils.log import progress

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
    flags = new_parser(__doc__, "tools.benchmarks.planned")
    flags.add_argument("--scale", choices=SCALES, default="small", help="the settings to measure (default: small)")
    flags.add_argument("--steps", type=positive, default=10, help="measured steps per setting (default: 10)")
    flags.add_argument("--out", default="runs/planned.json",
                       help="JSON file for the measurements (default: runs/planned.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    from tools.benchmarks.limits import describe_limits, measure_limits
    from tools.benchmarks.steps import measure
    from utils.device import choose_compute

    compute = choose_compute(None)
    limits, bf16 = measure_limits(compute.device), compute.precision == "bf16"
    rate = limits["convolution_bf16" if bf16 else "convolution_fp32"]
    rows = [measure(line, compute, args.steps) for line in progress(SCALES[args.scale], "settings")]
    for row in rows:
        row["limit_s"] = row.pop("cost").seconds(rate, limits["copy"], 1)
    utilisation = rows[0]["limit_s"] / rows[0]["seconds"]
    write_json(args.out, {"limits": limits, "bf16": bf16, "utilisation": utilisation, "settings": rows})
    print(f"{describe_limits(limits)}; to get the time of the first setting "
          f"({'bf16' if bf16 else 'float32'}), give --plan the flags "
          f"--tflops {rate:.3g} --gb-per-s {limits['copy']:.3g} --utilisation {utilisation:.2f}\n\n"
          "| training step | TFLOP | planned s | measured s | planned / measured | planned GiB | measured GiB |\n"
          "|---|---|---|---|---|---|---|")
    for row in rows:
        planned = row["limit_s"] / utilisation
        memory = "" if row["gib"] is None else f"{row['gib']:.3g}"
        print(f"| `{row['setting']}` | {row['flops'] / 1e12:.3g} | {planned:.3g} | {row['seconds']:.3g} | "
              f"{planned / row['seconds']:.2f} | {row['planned_gib']:.3g} | {memory} |")
    print(f"measurements: {args.out}")


if __name__ == "__main__":
    run(main, parser())
