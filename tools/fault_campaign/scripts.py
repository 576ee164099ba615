"""Files that lie, given to whole scripts: they end well or with one line, and write nowhere but where they should."""

import shutil
import signal
from pathlib import Path

import numpy as np
import torch

from reliability import hostile, inputs
from reliability.mutators import mutate
from reliability.runs import LIVE, apart, run
from utils.randomness import stream

MOST = 2 * 2**30  # bytes of memory that one input may take
ATTACK = "attack.py --precision fp32 --out {here}/run "
KNOWN = "-resume {world}/attacker/best.pth.tar "
SHORT = "--epochs 1 --width 8 --stages 2 --workers 0 --batch 2 --crop 32 64 --precision fp32 --out {here}/run "
# The kind of a file, the place that it takes, and the script that meets it.
LINES = (
    ("checkpoint", "attacker/best.pth.tar", ATTACK + "-resume {file} --examples {world}/shadow/posteriors-s4"),
    ("checkpoint", "victim/last.pth.tar", ATTACK + KNOWN + LIVE.replace("{world}/victim/last.pth.tar", "{file}")),
    ("checkpoint", "victim/last.pth.tar",
     "train_shadow.py --split {world}/shadow.txt --root {world}/data --victim {file} " + SHORT),
    ("checkpoint", "shadow/last.pth.tar",
     "train_attacker.py --shadow {here}/shadow --patch-size 12 --width 0.125 --epochs 1 --out {here}/run"),
    ("checkpoint", "victim/last.pth.tar", "train_victim.py --continue {here}/victim"),
    ("checkpoint", "shadow/last.pth.tar", "train_shadow.py --continue {here}/shadow"),
    ("checkpoint", "attacker/last.pth.tar", "train_attacker.py --continue {here}/attacker"),
    ("split", "victim_in.txt",
     ATTACK + KNOWN + LIVE.replace("{world}/victim_in.txt", "{file}") + "--keep {here}/kept"),
    ("image", "data/img/0.png",
     "train_victim.py --root {here}/data --train {world}/victim_in.txt --test {world}/victim_in.txt " + SHORT),
    ("posterior", "tree/train/pred_sgd/img/0.npy", ATTACK + KNOWN + "--examples {here}/tree"),
    ("archive", "examples.zip", "utils/download.py --to {here}"),
)
OWN = {"split": ("run", "kept")}  # folders that a script may write to; else anywhere in its own


def script(world: Path, seed: int, number: int) -> dict:
    """Let a script meet a file that lies, and say what is wrong with how it ends and what it creates."""
    kind, place, line = LINES[number % len(LINES)]
    here = world / "trials" / f"script {number}"
    apart(lay, kind, place, world, here, stream(seed, "scripts", number))
    before, begun = around(kind, world, here), (here / place).stat().st_mtime
    ended = run([part.format(here=here, world=world, file=here / place) for part in line.split()], world)
    wrong = ended.fault(0, 2)
    if ended.code == -signal.SIGKILL and (here / place).exists() and (here / place).stat().st_mtime > begun:
        wrong = []  # it was asked for very many epochs, and set out
    if ended.peak > MOST:
        wrong.append(f"{ended.peak >> 20} MiB of memory")
    if strange := around(kind, world, here) - before:
        wrong.append(f"created {sorted(strange)}")
    if not wrong:
        shutil.rmtree(here)
    failures = [{"kind": line.split()[0], "seed": seed, "index": number, "wrong": wrong, "kept": str(here)}]
    return {"kind": f"{kind}, by a script", "failures": failures if wrong else [],
            "ways": {"failed" if wrong else "refused" if ended.code else "read": 1}}


def lay(kind: str, place: str, world: Path, here: Path, rng: np.random.Generator) -> None:
    """Copy what a script needs beside the file, and put the file that lies in its place."""
    part = place.partition("/")[0]
    source = world / "shadow" / "posteriors-s4" if part == "tree" else world / part
    if source.is_dir():
        shutil.copytree(source, here / part, ignore=shutil.ignore_patterns("posteriors*", "events"))
    here.mkdir(parents=True, exist_ok=True)
    if kind == "checkpoint":
        data = hostile.checkpoint(rng, bool(rng.integers(2)), torch.load(here / place, weights_only=True))
    elif kind == "split":
        lines = (world / "victim_in.txt").read_bytes()
        outside = lines.replace(b"img/1", f"../../../{world.parent.name}/world/data/img/1".encode())
        data = outside if rng.random() < 0.5 else mutate(lines, rng, outside)
    else:
        data = getattr(inputs, kind)(rng)
    for name in (place, "weights.zip") if kind == "archive" else (place,):
        (here / name).write_bytes(data)


def around(kind: str, world: Path, here: Path) -> set[str]:
    """All files around a script but those in the folders that it may write to."""
    found = {path.relative_to(world.parent).as_posix() for path in world.parent.rglob("*")}
    own = tuple((here / part).relative_to(world.parent).as_posix() for part in OWN.get(kind, ("",)))
    return {path for path in found if not path.startswith(own)}
