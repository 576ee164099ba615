"""What the benchmark compares does the same work."""

import pytest
import torch
from conftest import must, script

from benchmarks.planned import measure
from benchmarks.stages import asking, attack, built, dpsgd_training


@pytest.mark.parametrize("name", ["loss map", "concatenation"])
def test_representations_agree(name):
    with built(name) as stage:
        assert stage.agree(stage.plain(), stage.fast()) == 0


@pytest.mark.parametrize("kind", ["loss", "concate"])
def test_attacks_agree(kind):
    stage = attack(kind, count=2, images=2)
    plain = stage.plain()
    assert stage.agree(plain, stage.fast()) < 1e-4 and 0.01 < min(plain) <= max(plain) < 0.99 and stage.flops > 1e10


def test_posteriors_agree():
    stage = asking()
    assert stage.agree(stage.plain(), stage.fast()) < 1e-4


def test_dpsgd_steps_agree():
    stage = dpsgd_training("one image at a time", count=2)
    plain = stage.plain()
    assert max(float(g.norm()) for g in plain) > 0.1 and stage.agree(plain, stage.fast()) < 1e-3


def test_growth_counts_images(tmp_path):
    out = must(script("benchmarks/growth.py", "--counts", 3, 130, "--out", tmp_path / "growth.json")).stdout
    assert "| 130 |" in out and "ms an image" in out


@pytest.mark.parametrize("line", [
    "train_victim.py --backbone resnet10t --stages 2 --width 16 --crop 64 64 --batch 2",
    "train_attacker.py --arch resnet18 --width 0.25 --patch-size 24 --batch 4 -input concate --classes 5"])
def test_planned_steps_run(line):
    found = measure(line, torch.device("cpu"), bf16=False, steps=1)
    assert found["seconds"] > 0 and found["flops"] > 1e6 and found["planned_gib"] > 0 and found["gib"] is None
