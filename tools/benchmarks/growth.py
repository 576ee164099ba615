"""Measure time and memory of attack.py on growing numbers of stored posteriors.

    python -m tools.benchmarks.growth --counts 1000 10000 100000 --processes 1 2

Each tree holds small crops of the shipped examples (images, labels and posteriors), all of them different, with as many
members as non-members. `--tree` keeps the trees; existing ones are used again. Each run of attack.py is a new process,
so the numbers contain its start, the comparison of the images, the controls, the intervals and all files that it
writes.
"""

import argparse
import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path

from utils.cli import UserError, new_parser, positive, run
from utils.files import ROOT, write_json
from utils.log import progress

STRIDE, SIDE = 4, 24  # pixels between two positions of a posterior; positions of a side of a crop, as of a patch


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks.growth")
    flags.add_argument("--counts", nargs="+", type=positive, default=[1000, 10000],
                       help="numbers of images (default: 1000 10000)")
    flags.add_argument("--processes", nargs="+", type=positive, default=[1],
                       help="numbers of processes; more than one run under torchrun (default: 1)")
    flags.add_argument("--tree", help="folder for the trees of posteriors, 25 kB an image; without it they are deleted")
    flags.add_argument("--out", default="runs/growth.json",
                       help="JSON file for the measurements (default: runs/growth.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    if min(args.counts) < 2:
        raise UserError("--counts: the two sides need two images or more")
    rows = []
    with ExitStack() as stack:
        trees = Path(args.tree or stack.enter_context(tempfile.TemporaryDirectory()))
        runs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for count in args.counts:
            tree = make_tree(trees / str(count), count)
            for processes in args.processes:
                rows.append(measure(tree, count, processes, runs / f"{count}-{processes}"))
                write_json(args.out, rows)
    print("| images | processes | seconds | seconds of processor time | peak MiB of a process |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['images']:,} | {row['processes']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
              f"{row['mib_peak']} |")
    for processes in args.processes if len(args.counts) > 1 else ():
        measured = [row for row in rows if row["processes"] == processes]
        slope, start = np.polyfit([row["images"] for row in measured], [row["cpu_seconds"] for row in measured], 1)
        print(f"processes: {processes}; processor time, linear fit: {start:.1f} s + {1000 * slope:.2f} ms an image")


def make_tree(tree: Path, count: int) -> Path:
    """Write `count` different crops of the shipped examples to a tree of posteriors, and return it.

    A tree that is complete is not written again. Raises `UserError` for more crops than there are.
    """
    import numpy as np
    from PIL import Image

    done = tree / "complete"
    if done.exists():
        return tree
    for side, number in (("train", count - count // 2), ("val", count // 2)):
        examples = ROOT / "examples" / side
        names = sorted(path.stem for path in (examples / "pred_sgd").glob("*.npy"))
        shape = np.load(examples / "pred_sgd" / f"{names[0]}.npy").shape
        crops = [*itertools.product(*(range(size - SIDE + 1) for size in shape[1:]), (1, -1), (1, -1), names)]
        if number > len(crops):
            raise UserError(f"--counts {count}: the examples have {len(crops)} different crops on each side")
        for folder in ("img", "label", "pred_sgd"):
            (tree / side / folder).mkdir(parents=True, exist_ok=True)
        loaded = {name: (np.load(examples / "pred_sgd" / f"{name}.npy"),
                         *(np.asarray(Image.open(examples / folder / f"{name}.{ending}"))
                           for folder, ending in (("img", "jpg"), ("label", "png")))) for name in names}
        for index, (y, x, down, right, name) in enumerate(progress(crops[:number], f"writing {tree.name}/{side}")):
            posterior, image, label = loaded[name]
            here, pixels = (np.s_[scale * y : scale * (y + SIDE), scale * x : scale * (x + SIDE)]
                            for scale in (1, STRIDE))
            new = f"{name}-{index:06d}"
            np.save(tree / side / "pred_sgd" / f"{new}.npy", posterior[:, *here][:, ::down, ::right])
            Image.fromarray(image[pixels][::down, ::right]).save(tree / side / "img" / f"{new}.jpg")
            Image.fromarray(label[pixels][::down, ::right]).save(tree / side / "label" / f"{new}.png")
    done.touch()
    return tree


def measure(tree: Path, count: int, processes: int, out: Path) -> dict:
    """Run attack.py on a tree, under torchrun if there are several processes: see `measure_command`."""
    from tools.benchmarks.limits import measure_command

    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    costs, _ = measure_command([*launch, "attack.py", "--examples", str(tree), "--out", str(out)])
    return {"images": count, "processes": processes} | costs


if __name__ == "__main__":
    run(main, parser())
