"""Give malformed files to complete scripts. They must succeed or exit with one line, and write only to their folder."""

import shutil
import signal
from pathlib import Path

import numpy as np
import torch

from tools.fault_campaign import hostile, inputs
from tools.fault_campaign.mutators import mutate
from tools.fault_campaign.runs import ScriptProcess, in_child
from tools.fault_campaign.workspace import LIVE
from utils.randomness import stream

MEMORY_LIMIT = 2 * 2**30  # bytes that a process may use for one input
ATTACK = "attack.py --precision fp32 --out {folder}/run "
ATTACKER = "-resume {workspace}/attacker/best.pth.tar "
SHORT = "--epochs 1 --width 8 --stages 2 --workers 0 --batch 2 --crop 32 64 --precision fp32 --out {folder}/run "
# Kind of file, path of the malformed file in {folder}, and the command line that reads it. {file} is its full path.
LINES = (
    ("checkpoint", "attacker/best.pth.tar",
     ATTACK + "-resume {file} --allow overlap --examples {workspace}/shadow/posteriors-s4"),
    ("checkpoint", "victim/last.pth.tar",
     ATTACK + ATTACKER + LIVE.replace("{workspace}/victim/last.pth.tar", "{file}")),
    ("checkpoint", "victim/last.pth.tar",
     "train_shadow.py --split {workspace}/shadow.txt --root {workspace}/data --victim {file} " + SHORT),
    ("checkpoint", "shadow/last.pth.tar",
     "train_attacker.py --shadow {folder}/shadow --patch-size 12 --width 0.125 --epochs 1 --out {folder}/run"),
    ("checkpoint", "victim/last.pth.tar", "train_victim.py --continue {folder}/victim"),
    ("checkpoint", "shadow/last.pth.tar", "train_shadow.py --continue {folder}/shadow"),
    ("checkpoint", "attacker/last.pth.tar", "train_attacker.py --continue {folder}/attacker"),
    ("split", "victim_in.txt",
     ATTACK + ATTACKER + LIVE.replace("{workspace}/victim_in.txt", "{file}") + "--keep {folder}/kept"),
    ("image", "data/img/0.png", "train_victim.py --root {folder}/data --train {workspace}/victim_in.txt "
     "--test {workspace}/victim_in.txt " + SHORT),
    ("posterior", "tree/train/pred_sgd/img/0.npy", ATTACK + ATTACKER + "--examples {folder}/tree"),
    ("archive", "examples.zip", "utils/download.py --to {folder}"),
)
WRITABLE = {"split": ("run", "kept")}  # folders in {folder} that a script may write to (default: all of {folder})


def script_trial(workspace: Path, seed: int, number: int) -> dict:
    """Run a script on a malformed file. Check its exit code, its memory, and which files it creates."""
    kind, path, line = LINES[number % len(LINES)]
    folder = workspace / "trials" / f"script {number}"
    in_child(prepare_files, kind, path, workspace, folder, stream(seed, "scripts", number))
    file, before = folder / path, other_files(kind, workspace, folder)
    written = file.stat().st_mtime
    words = [word.format(folder=folder, workspace=workspace, file=file) for word in line.split()]
    result = ScriptProcess(words, workspace).result()
    problems = result.problems(0, 2)
    if result.code == -signal.SIGKILL and file.exists() and file.stat().st_mtime > written:
        problems = []  # the checkpoint asked for very many epochs, and the training was running
    if result.peak > MEMORY_LIMIT:
        problems.append(f"{result.peak >> 20} MiB of memory")
    if created := other_files(kind, workspace, folder) - before:
        problems.append(f"created {sorted(created)}")
    if not problems:
        shutil.rmtree(folder)
    failure = {"kind": line.split()[0], "seed": seed, "index": number, "problem": problems, "file": str(folder)}
    return {"kind": f"{kind}, read by a script", "failures": [failure] if problems else [],
            "outcomes": {"failed" if problems else "refused" if result.code else "read": 1}}


def prepare_files(kind: str, path: str, workspace: Path, folder: Path, rng: np.random.Generator) -> None:
    """Copy the files that a script needs into `folder`, and write the malformed file there."""
    part = path.partition("/")[0]
    source = workspace / "shadow" / "posteriors-s4" if part == "tree" else workspace / part
    if source.is_dir():
        shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("posteriors*", "events"))
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "checkpoint":
        original = torch.load(folder / path, weights_only=True)
        data = hostile.checkpoint(rng, bool(rng.integers(2)), original)
    elif kind == "split":
        lines = (workspace / "victim_in.txt").read_bytes()
        outside = lines.replace(b"img/1", f"../../../{workspace.parent.name}/{workspace.name}/data/img/1".encode())
        data = outside if rng.random() < 0.5 else mutate(lines, rng, outside)
    else:
        data = getattr(inputs, kind)(rng)
    for name in (path, "weights.zip") if kind == "archive" else (path,):
        (folder / name).write_bytes(data)


def other_files(kind: str, workspace: Path, folder: Path) -> set[str]:
    """All files of the campaign, except those in the folders that the script may write to."""
    paths = {path.relative_to(workspace.parent).as_posix() for path in workspace.parent.rglob("*")}
    writable = tuple((folder / part).relative_to(workspace.parent).as_posix() for part in WRITABLE.get(kind, ("",)))
    return {path for path in paths if not path.startswith(writable)}
