"""Fixtures and helpers of the tests of the scripts. The session trains one small victim, shadow and two attackers."""

import contextlib
import csv
import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import streets
from datasets.copying import copy_translation
from datasets.pairs import Pair, read_split, write_split
from models.attacker import Attacker
from utils.checkpoints import save_checkpoint
from utils.device import CPU, OVERRIDE, resolve_precision
from utils.scripts import run_script

ROOT = Path(__file__).resolve().parents[1]
FILES = [*ROOT.glob("*.py"), *(file for init in ROOT.glob("*/__init__.py") for file in init.parent.rglob("*.py"))]
DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
os.environ.setdefault(OVERRIDE, resolve_precision("auto", DEVICE))  # nothing is measured, or kept in the user's home
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(FILES)}  # of all files except tests
SCRIPTS = [path for path, source in SOURCES.items() if '__name__ == "__main__"' in source and "\ndef parser(" in source]
SMALL = ["--width", "16", "--stages", "2", "--epochs", "2", "--batch", "4", "--workers", "0", "--crop", "64", "128",
         "--precision", "fp32"]
VIEW = {"input": "loss", "size": 12, "floor": 1e-30, "void": "zero", "stride": 4, "argmax": False, "tau": 0.9}


def script(name, *args, cwd=ROOT):
    """Run a script like `python NAME ARGS`, but in this process, which saves the time of the imports."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_script([name, *map(str, args)])
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess([name, *args], code, out.getvalue(), err.getvalue())


def must(result):
    """Return the result of `script`; fail the test if its exit code is not 0."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def results(folder):
    """The results.json of a run; fails the test on NaN and infinity, which are not JSON."""
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


def scores(folder):
    """The scores.csv of a run, {name: (member, score)}."""
    with open(folder / "scores.csv") as file:
        return {row["image"]: (int(row["member"]), float(row["score"])) for row in csv.DictReader(file)}


def small_scene(index):
    """Image (64, 128, 3) and label (64, 128) of a scene of streets, at half its size."""
    image, label = streets.draw(index)
    return image[::2, ::2], label[::2, ::2]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with data/, split files, victim/, shadow/, and the attackers loss/ and concate/ of 12 x 12 patches."""
    from PIL import Image

    world = tmp_path_factory.mktemp("world")
    parts = {"victim_in": range(8), "victim_out": range(100, 108), "shadow": range(200, 224)}
    for part, indices in parts.items():
        pairs = [Pair(f"img/{i}.png", f"label/{i}.png", f"img/{i}.png") for i in indices]
        write_split(world / f"{part}.txt", pairs)
        for pair, index in zip(pairs, indices, strict=True):
            for path, array in zip((pair.image, pair.label), small_scene(index), strict=True):
                (world / "data" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(world / "data" / path)
    root = ["--root", world / "data"]
    must(script("train_victim.py", *root, "--train", world / "victim_in.txt", "--test", world / "victim_out.txt",
                "--out", world / "victim", *SMALL))
    must(script("train_shadow.py", *root, "--split", world / "shadow.txt", "--victim",
                world / "victim" / "last.pth.tar", "--out", world / "shadow", *SMALL))
    for kind in ("loss", "concate"):
        must(script("train_attacker.py", "--shadow", world / "shadow", "-input", kind, "--patch-size", 12,
                    "--width", 0.125, "--epochs", 2, "--out", world / kind, "--precision", "fp32"))
    return world


@pytest.fixture(scope="session")
def pairs(world, tmp_path_factory):
    """A folder with 12 + 12 pairs (label in colours, image) of 64 x 64 in pairs/, and their split files in splits/."""
    folder = tmp_path_factory.mktemp("translation")
    scenes = read_split(world / "shadow.txt", world / "data")
    for name, part in (("victim_in", scenes[:12]), ("victim_out", scenes[12:])):
        write_split(folder / "splits" / f"{name}.txt",
                    copy_translation(part, "streets", folder / "pairs", 64, name, "label-to-image"))
    return folder


@pytest.fixture(scope="session")
def live(world):
    """Flags of attack.py that query the small victim about its members and non-members."""
    return ["--victim", world / "victim" / "last.pth.tar", "--root", world / "data", "--members",
            world / "victim_in.txt", "--non-members", world / "victim_out.txt", "--precision", "fp32"]


@pytest.fixture
def victim_command(world):
    """The command that trained the victim of `world`, without --out."""
    return ["train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
            world / "victim_out.txt", *SMALL]


def attacker_spec(**changes):
    """The description in a checkpoint of a small attacker, with changed arguments."""
    arguments = {"arch": "resnet18", "channels": 1, "width": 0.125} | changes
    return {"name": "attacker", "classes": 19, "arguments": arguments}


def write_attacker(path):
    """Write the checkpoint of a small attacker with random weights, which reads loss maps at stride 4."""
    torch.manual_seed(0)
    save_checkpoint(path, attacker_spec(), Attacker(**attacker_spec()["arguments"]).state_dict(), view=VIEW)
    return path


def write_tree(root, classes=19, size=(64, 128), stride=4, names=("a", "b", "c"), dtype=np.float32, folder="pred_sgd",
               seed=0):
    """Write a tree in the layout of the release. Its random posteriors are more confident on members; returns `root`.

    The top eighth of each label is void.
    """
    from PIL import Image

    from predictors.stored import SIDES

    rng = np.random.default_rng(seed)
    for side, member in SIDES.items():
        for kind in ("label", folder):
            (root / side / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            label = rng.integers(0, classes, size, np.uint8)
            label[: size[0] // 8] = 255
            Image.fromarray(label).save(root / side / "label" / f"{name}.png")
            small = torch.from_numpy(np.where(label == 255, 0, label)[::stride, ::stride].astype(np.int64))
            logits = rng.normal(0, 1, (classes, *small.shape))
            logits += (2.5 if member else 1.5) * torch.nn.functional.one_hot(small, classes).permute(2, 0, 1).numpy()
            np.save(root / side / folder / f"{name}.npy", torch.from_numpy(logits).softmax(0).numpy().astype(dtype))
    return root
