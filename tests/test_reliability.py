"""A short fault campaign, its comparison of results, and checkpoints that call functions when they are loaded."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, script

from tools.fault_campaign import compare, fuzz


@pytest.mark.slow
def test_a_short_campaign_finds_no_failure(tmp_path):
    command = [sys.executable, "-m", "tools.fault_campaign", "--trials", "4", "--inputs", "150", "--jobs", "2",
               "--command", "victim, 1 worker", "attack", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    parts = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in ("kills", "writes", "fuzz")}
    assert not any(part["failures"] for part in parts.values()), parts
    assert ended.returncode == 0 and parts["kills"]["trials"] == parts["writes"]["trials"] == 4
    assert parts["fuzz"]["inputs"] > 140 and parts["fuzz"]["peak MiB"] < 2048


def test_incomplete_files_and_differences_are_found(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        torch.save({"state_dict": {"w": torch.zeros(3)}, "minutes": hash(folder)}, folder / "last.pth.tar")
        np.savez(folder / "patches.npz", score=np.zeros(3))
        (folder / "results.json").write_text('{"auc": 0.5}\n')
    assert compare.broken_files(first) == compare.differences(first, second) == []
    smallest = torch.tensor([0, 1e-45, 0])
    torch.save({"state_dict": {"w": smallest}, "minutes": 0}, second / "last.pth.tar")
    (second / "scores.csv").write_text("image,member,score\na,1,0.")
    np.savez(second / "patches.npz", score=np.float32([0, 0, 1e-45]))
    (second / "results.json").write_text('{"auc": 0.')
    assert len(compare.broken_files(second)) == 2
    assert len(compare.differences(first, second)) == 4


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_an_input_depends_on_kind_seed_and_number(kind):
    assert fuzz.make_input(kind, 3, 5) == fuzz.make_input(kind, 3, 5)
    assert len({fuzz.make_input(kind, 3, number) for number in range(20)}) > 10


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# Checkpoint -> command lines that load it. {file} is the hostile checkpoint, {here} its folder.
COMMANDS = {
    "victim/last.pth.tar": ["attack.py --victim {file} --root {world}/data --members {world}/victim_in.txt "
                            "--non-members {world}/victim_out.txt -resume {world}/loss/best.pth.tar --out {here}/run",
                            "train_shadow.py --split {world}/shadow.txt --root {world}/data --victim {file} "
                            "--out {here}/run",
                            "train_victim.py --continue {here}/victim"],
    "shadow/last.pth.tar": ["train_attacker.py --shadow {here}/shadow --patch-size 12 --out {here}/run",
                            "train_shadow.py --continue {here}/shadow"],
    "loss/last.pth.tar": ["train_attacker.py --continue {here}/loss"],
    "loss/best.pth.tar": ["attack.py -resume {file} --examples {world}/shadow/posteriors-s4 --out {here}/run"],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("file, line", [(file, line) for file, lines in COMMANDS.items() for line in lines])
def test_no_script_calls_a_function_from_a_checkpoint(world, tmp_path, file, line, zipped):
    shutil.copytree((world / file).parent, (tmp_path / file).parent)
    checkpoint = torch.load(tmp_path / file, weights_only=True)
    checkpoint["state_dict"]["more"] = MakesFolder(tmp_path / "made")
    torch.save(checkpoint, tmp_path / file, _use_new_zipfile_serialization=zipped)
    before = sorted(tmp_path.rglob("*"))
    ended = script(*line.format(file=tmp_path / file, world=world, here=tmp_path).split(), cwd=tmp_path)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "was not opened" in ended.stderr and sorted(tmp_path.rglob("*")) == before
