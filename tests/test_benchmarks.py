"""What the benchmark compares does the same work."""

import pytest
from conftest import must, script

from benchmarks.stages import asking, attack, built


@pytest.mark.parametrize("name", ["loss map", "concatenation"])
def test_representations_agree(name):
    with built(name) as stage:
        assert stage.agree(stage.plain(), stage.fast()) == 0


@pytest.mark.parametrize("kind", ["loss", "concate"])
def test_attacks_agree(kind):
    stage = attack(kind, count=2, pictures=2)
    plain = stage.plain()
    assert stage.agree(plain, stage.fast()) < 1e-4 and 0.01 < min(plain) <= max(plain) < 0.99 and stage.flops > 1e10


def test_posteriors_agree():
    stage = asking()
    assert stage.agree(stage.plain(), stage.fast()) < 1e-4


def test_growth_counts_pictures(tmp_path):
    out = must(script("benchmarks/growth.py", "--counts", 3, 130, "--out", tmp_path / "growth.json")).stdout
    assert "| 130 |" in out and "ms a picture" in out
