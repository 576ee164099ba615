"""Both versions of each measured stage compute the same result, and the benchmark commands run.

The comparisons are in float32, since `--precision auto` means bf16 on some processors.
"""

import pytest
from conftest import must, script

from attacks.predictability import SOUND
from models import feature_extractor
from tools.benchmarks.predictability import measure as measure_predictability
from tools.benchmarks.predictability import measure_memory
from tools.benchmarks.stages import attack, dpsgd_training, prepare_stage, querying
from tools.benchmarks.steps import measure
from utils.device import CPU_FP32


@pytest.mark.parametrize("name", ["loss map", "concatenation"])
def test_representations_agree(name):
    with prepare_stage(name) as stage:
        assert stage.difference(stage.simple(), stage.fast()) == 0


@pytest.mark.parametrize("kind", ["loss", "concate"])
def test_attacks_agree(kind):
    stage = attack(kind, count=2, images=2, precision="fp32")
    scores = stage.simple()
    assert stage.difference(scores, stage.fast()) < 1e-4
    assert 0.01 < min(scores) <= max(scores) < 0.99 and stage.flops > 1e10


def test_posteriors_agree():
    stage = querying(precision="fp32")
    assert stage.difference(stage.simple(), stage.fast()) < 1e-4


def test_dpsgd_steps_agree():
    stage = dpsgd_training("one image at a time", count=2, precision="fp32")
    gradients = stage.simple()
    assert max(float(g.norm()) for g in gradients) > 0.1 and stage.difference(gradients, stage.fast()) < 1e-3


@pytest.mark.slow
def test_growth_prints_a_row_per_count(tmp_path):
    out = must(script("tools/benchmarks/growth.py", "--counts", 3, 130, "--out", tmp_path / "growth.json")).stdout
    assert "| 130 |" in out and "ms per image" in out


def test_cost_of_the_predictability_error():
    row = measure_predictability(feature_extractor("efficientnet_lite0"), SOUND, 1)
    assert row["difference"] < 1e-6 and min(row["seconds"] + row["seconds_features"] + row["seconds_sklearn"]) > 0
    assert measure_memory(3)["mib_peak"] > 100


@pytest.mark.parametrize("line", [
    "train_victim.py --backbone resnet10t --stages 2 --width 16 --crop 64 64 --batch 2",
    "train_attacker.py --arch resnet18 --width 0.25 --patch-size 24 --batch 4 -input concate --classes 5"])
def test_planned_steps_run(line):
    row = measure(line, CPU_FP32, steps=1)
    assert row["seconds"] > 0 and row["flops"] > 1e6 and row["planned_gib"] > 0 and row["gib"] is None
