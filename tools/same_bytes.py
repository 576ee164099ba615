"""Show that two versions of the project compute the same bytes.

    git clone . ../before && git -C ../before checkout COMMIT
    python -m tools.same_bytes ../before          # runs all commands in both checkouts, and compares the results

Runs the shipped attackers (each selection, threshold, defense and score, on stored posteriors and on a live victim) and
a tiny training of each script, in float32 on one thread. Compares scores.csv and patches.npz byte by byte, and each
tensor of the trained weights. The exit code is 2 if something differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.cli import UserError, new_parser, run

CONCATE = "-resume weights/concate.pth.tar -input concate"
TINY = "--width 16 --stages 2 --epochs 2 --batch 4 --workers 0 --crop 64 128 --lr 0.001 --root {data}"
LIVE = "--victim weights/victim.pth.tar --root {data} --members {data}/in.txt --non-members {data}/out.txt"
SELECTIONS = ("random", "sliding", "rejection", "full")
SIDES = {"in": range(12), "out": range(400, 412), "d_s": range(1000, 1024)}  # scenes of streets


def attacks() -> dict[str, str]:
    """Map the name of each attack to its flags of attack.py."""
    lines = {}
    for name, flags in (("loss", ""), ("concate", CONCATE)):
        lines |= {f"{name} {select}": f"{flags} --select {select}" for select in SELECTIONS}
        lines |= {f"{name} argmax": f"{flags} -argmax", f"{name} gauss": f"{flags} -gauss 0.1",
                  f"{name} gauss, floor 0": f"{flags} -gauss 0.3 --gauss-floor 0", f"{name} dpsgd": f"{flags} -dpsgd",
                  f"{name} release score": f"{flags} --score release", f"{name} live": f"{flags} {LIVE}",
                  f"{name} live, argmax": f"{flags} {LIVE} -argmax",
                  f"{name} live, gauss": f"{flags} {LIVE} -gauss 0.1",
                  f"{name} live, dropout": f"{flags} {LIVE} -test-dropout 0.5",
                  f"{name} kept": f"{flags} {LIVE} --keep {{out}}/kept"}
    for kind in ("confidence", "loss"):
        lines |= {f"threshold {kind} {select}": f"--threshold {kind} --select {select}" for select in SELECTIONS[:3]}
        lines |= {f"threshold {kind} argmax": f"--threshold {kind} -argmax",
                  f"threshold {kind} live": f"--threshold {kind} {LIVE}"}
    return lines | {"floor": "--floor 1e-10", "seed": "--seed 3 -num-patch 20", "batch": "--batch 7"}


def trainings() -> dict[str, str]:
    """Map the name of each training to its script and flags. Later trainings read earlier runs in {runs}."""
    split, attacker = "--train {data}/in.txt --test {data}/out.txt", "--shadow {runs}/shadow --patch-size 12 --epochs 2"
    return {
        "victim": f"train_victim.py {split} {TINY}",
        "victim-dpsgd": f"train_victim.py {split} {TINY} -dpsgd",
        "victim-frozen": f"train_victim.py {split} {TINY} --freeze-norms",
        "shadow": f"train_shadow.py --split {{data}}/d_s.txt --victim {{runs}}/victim/last.pth.tar {TINY}",
        "shadow-random": f"train_shadow.py --split {{data}}/d_s.txt --partition random {TINY}",
        "loss": f"train_attacker.py {attacker} --width 0.125",
        "concate": f"train_attacker.py {attacker} --width 0.125 -input concate --void mask --dropout 0.5",
        "argmax": f"train_attacker.py {attacker} --width 0.125 -argmax",
        "dropout": f"train_attacker.py {attacker} --width 0.125 -test-dropout 0.5",
        "pixelwise": f"train_attacker.py {attacker} --arch pixelwise -input concate",
    }


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.same_bytes")
    flags.add_argument("checkout", nargs="+", metavar="CHECKOUT", help="folder with another version")
    flags.add_argument("--only", metavar="TEXT", default="", help="run only the commands with TEXT in their names")
    flags.add_argument("--out", metavar="JSON", help="file for the hashes")
    return flags


def main(args: argparse.Namespace) -> None:
    here = Path(__file__).resolve().parents[1]
    folders = [here, *(Path(path).resolve() for path in args.checkout)]
    by_folder = {str(folder): hashes(folder, args.only) for folder in folders}
    if args.out:
        Path(args.out).write_text(json.dumps(by_folder, indent=1))
    first, *others = by_folder.values()
    names = {name for digests in by_folder.values() for name in digests}
    different = sorted(name for name in names if any(other.get(name) != first.get(name) for other in others))
    print(f"{len(names)} files compared, {len(different)} different")
    if different:
        raise UserError(f"these files differ: {', '.join(different)}")


def hashes(checkout: Path, only: str) -> dict[str, str]:
    """Run all commands in a checkout. Maps each result to its SHA-256."""
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {"data": write_data(Path(folder) / "data", checkout), "runs": Path(folder) / "runs"}
        for name, line in trainings().items():
            if only in name:
                call(checkout, f"{line} --out {{runs}}/{name}", places)
                digests |= {f"{name}/{file.name}": hash_weights(checkout, file)
                            for file in sorted((places["runs"] / name).glob("*.pth.tar"))}
        for number, (name, flags) in enumerate(attacks().items()):
            if only in name:
                out = Path(folder) / str(number)
                call(checkout, f"attack.py {flags} --out {{out}}", places | {"out": out})
                digests |= {f"{name}/{file}": hashlib.sha256((out / file).read_bytes()).hexdigest()
                            for file in ("scores.csv", "patches.npz")}
    return digests


def call(checkout: Path, line: str, places: dict[str, Path]) -> None:
    """Run a script of a checkout in float32 on one thread. Raises `UserError` if it fails."""
    words = [word.format(**places) for word in line.split()]
    print(f"{checkout.name}: {' '.join(words)}", file=sys.stderr)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words, "--precision", "fp32"], cwd=checkout, env=environment,
                          capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{checkout}: {' '.join(words)}: {done.stderr.strip()}")


def write_data(root: Path, checkout: Path) -> Path:
    """Draw the scenes of `SIDES` with the code of a checkout, and write their split files."""
    code = ("import sys, pathlib; from datasets import streets; from PIL import Image\n"
            "for i in map(int, sys.argv[2:]):\n"
            "    for kind, array in zip(('img', 'label'), streets.draw(i)):\n"
            "        Image.fromarray(array).save(pathlib.Path(sys.argv[1]) / kind / f'{i}.png')")
    for kind in ("img", "label"):
        (root / kind).mkdir(parents=True)
    every = [str(index) for side in SIDES.values() for index in side]
    subprocess.run([sys.executable, "-c", code, str(root), *every], cwd=checkout, check=True)
    for name, side in SIDES.items():
        (root / f"{name}.txt").write_text("".join(f"img/{i}.png label/{i}.png {i // 2}\n" for i in side))
    return root


def hash_weights(checkout: Path, file: Path) -> str:
    """SHA-256 of the tensors of a checkpoint, by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in torch.load(file, weights_only=True)["state_dict"].items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    run(main, parser())
