"""Nothing lost, nothing let in: a short fault campaign, what its referee sees, and checkpoints that call functions."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, script

from reliability import fuzz, runs


def test_a_short_campaign(tmp_path):
    command = [sys.executable, "-m", "reliability", "--trials", "4", "--inputs", "150", "--jobs", "2", "--command",
               "victim, a worker", "attack", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in ("kills", "writes", "fuzz")}
    assert not any(one["failures"] for one in found.values()), found
    assert ended.returncode == 0 and found["kills"]["trials"] == found["writes"]["trials"] == 4
    assert found["fuzz"]["inputs"] > 140 and found["fuzz"]["most MiB"] < 2048


def test_the_referee_sees_what_is_torn_or_differs(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        torch.save({"state_dict": {"w": torch.zeros(3)}, "minutes": hash(name)}, tmp_path / name / "last.pth.tar")
        np.savez(tmp_path / name / "patches.npz", score=np.zeros(3))
        (tmp_path / name / "results.json").write_text('{"auc": 0.5}\n')
    assert runs.torn(tmp_path / "one") == runs.differences(tmp_path / "one", tmp_path / "two") == []
    tiny = torch.tensor([0, 1e-45, 0])
    torch.save({"state_dict": {"w": tiny}, "minutes": 0}, tmp_path / "two" / "last.pth.tar")
    (tmp_path / "two" / "scores.csv").write_text("image,member,score\na,1,0.")
    np.savez(tmp_path / "two" / "patches.npz", score=np.float32([0, 0, 1e-45]))
    (tmp_path / "two" / "results.json").write_text('{"auc": 0.')
    assert len(runs.torn(tmp_path / "two")) == 2
    assert len(runs.differences(tmp_path / "one", tmp_path / "two")) == 4


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_an_input_follows_from_kind_seed_and_index(kind):
    assert fuzz.make(kind, 3, 5) == fuzz.make(kind, 3, 5)
    assert len({fuzz.make(kind, 3, index) for index in range(20)}) > 10


class _Call:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


READERS = {
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
@pytest.mark.parametrize("file, line", [(file, line) for file, lines in READERS.items() for line in lines])
def test_no_script_does_what_a_checkpoint_says(world, tmp_path, file, line, zipped):
    shutil.copytree((world / file).parent, (tmp_path / file).parent)
    checkpoint = torch.load(tmp_path / file, weights_only=True)
    checkpoint["state_dict"]["more"] = _Call(tmp_path / "made")
    torch.save(checkpoint, tmp_path / file, _use_new_zipfile_serialization=zipped)
    before = sorted(tmp_path.rglob("*"))
    ended = script(*line.format(file=tmp_path / file, world=world, here=tmp_path).split(), cwd=tmp_path)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "was not opened" in ended.stderr and sorted(tmp_path.rglob("*")) == before
