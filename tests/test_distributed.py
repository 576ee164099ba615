"""Several processes give what one gives."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, must, script
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.distributed import interleave, own_share


def torchrun(*args, processes=2):
    """Run a script under torchrun on the loopback, one thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, *args]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 7))
def test_shares_come_back_in_order(count, processes, block):
    items, shares = list(range(count)), []
    for rank in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(processes))
            shares.append(own_share(items, block))
    assert interleave(shares, block) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= block


def test_training_on_two_processes_gives_the_losses_of_one(world, tmp_path):
    args = ["train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
            world / "victim_out.txt", *SMALL, "--epochs", 3, "--batch", 5, "--freeze-norms", "--dropout", 0, "--out"]
    must(script(*args, tmp_path / "one"))
    must(torchrun(*args, tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two"))
    assert two["miou_in"] == pytest.approx(one["miou_in"], abs=0.01)


@pytest.fixture
def one_thread():
    """Compute in this process as torchrun's processes do: sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_attack_on_two_processes_writes_the_same_bytes(world, live, tmp_path, one_thread):
    args = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--batch", 12, "-num-patch", 4, "--out"]
    for run, name in ((script, "one"), (torchrun, "two")):  # 16 images in groups of 3: 9 and 7
        must(run(*args, tmp_path / name, "-cam", tmp_path / name, "--cam-images", 1))
    for file in ("scores.csv", "correlations.csv", "img_0.png", "img_100.png"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_attacker_trains_on_two_processes(world, tmp_path):
    must(torchrun("train_attacker.py", "--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs",
                  2, "--stride", 2, "--out", tmp_path / "two"))
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    assert 0 <= found["validation_auc"] <= 1 and len(losses(tmp_path / "two")) == 2
    assert len(list((world / "shadow" / "posteriors-s2").rglob("*.npy"))) == 24


def test_a_process_that_fails_ends_the_run(world, live, tmp_path):
    split = tmp_path / "members.txt"
    lines = (world / "victim_in.txt").read_text().splitlines()
    split.write_text("\n".join([*lines, "broken.png broken.png"]))
    for line in lines:
        for path in line.split()[:2]:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes((world / "data" / path).read_bytes())
    Image.new("L", (8, 8)).save(tmp_path / "broken.png")
    broken = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(broken[: len(broken) // 2])
    result = torchrun("train_victim.py", "--root", tmp_path, "--train", split, "--test", split, *SMALL, "--batch", 5,
                      "--workers", 0, "--out", tmp_path / "run")
    assert result.returncode != 0 and "broken.png cannot be read" in result.stderr


def test_processes_that_are_started_again_go_on(world, tmp_path, monkeypatch):
    args = ["train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
            world / "victim_out.txt", *SMALL, "--out", tmp_path]
    must(script(*args))
    assert "holds a run already" in script(*args).stderr
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    must(script(*args))
