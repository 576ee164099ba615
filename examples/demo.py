"""Attack the shipped examples in six ways, and audit them: `make demo`.

    python -m examples.demo

All commands run in this process, which imports the libraries once. Each is printed, so that it can be typed.
"""

import argparse
import shlex

from utils.cli import new_parser, run
from utils.scripts import run_script

STEPS = {
    "attack 1 of 6: learned, on structured loss maps": "attack.py --out runs/demo-loss",
    "attack 2 of 6: learned, on posterior and label concatenated (C+GT)":
        "attack.py -resume weights/concate.pth.tar -input concate --out runs/demo-concate",
    "attack 3 of 6: a threshold on the loss, which learns nothing": "attack.py --attack loss --out runs/demo-threshold",
    "attack 4 of 6: membership error, which corrects the loss by how hard the image is to predict":
        "attack.py --attack membership-error --out runs/demo-error",
    "attack 5 of 6: the loss, compared with that of two reference models":
        "attack.py --attack calibrated --references weights/reference-0 weights/reference-1 --out runs/demo-calibrated",
    "attack 6 of 6: the loss, compared with what image, label and two reference models lead to expect":
        "attack.py --attack residual --references weights/reference-0 weights/reference-1 --out runs/demo-residual",
    "audit: the answer on one page, with controls and under a defense":
        "audit.py --attacks loss confidence --try argmax --out runs/demo-audit"}


def parser() -> argparse.ArgumentParser:
    return new_parser(__doc__, "examples.demo")


def main(args: argparse.Namespace) -> None:
    for title, command in STEPS.items():
        print(f"== {title}\n$ python {command}", flush=True)
        run_script(shlex.split(command))
    print("== curves: roc.png and precision-recall.png in runs/demo-{loss,concate,threshold,error,calibrated,residual}")


if __name__ == "__main__":
    run(main, parser())
