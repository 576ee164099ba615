"""Several processes give the results of one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, must, results, script
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.distributed import interleave, own_share


def torchrun(*args):
    """Run a script under torchrun in two processes on this machine, with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *args]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 7))
def test_interleave_restores_the_order_before_own_share(count, processes, block):
    items, shares = list(range(count)), []
    for rank in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(processes))
            shares.append(own_share(items, block))
    assert interleave(shares, block) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= block


@pytest.mark.slow
def test_victim_has_the_same_losses_on_two_processes(victim_command, tmp_path):
    command = [*victim_command, "--epochs", 3, "--batch", 5, "--freeze-norms", "--dropout", 0, "--out"]
    must(script(*command, tmp_path / "one"))
    must(torchrun(*command, tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert results(tmp_path / "two")["miou_in"] == pytest.approx(results(tmp_path / "one")["miou_in"], abs=0.01)


@pytest.fixture
def one_thread():
    """Use one thread in this process, like `torchrun`, because sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_attack_on_two_processes_writes_the_same_bytes(world, live, tmp_path, one_thread):
    command = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--batch", 12, "-num-patch", 4, "--out"]
    for run, name in ((script, "one"), (torchrun, "two")):  # 16 images in parts of 3: the processes score 9 and 7
        must(run(*command, tmp_path / name, "-cam", tmp_path / name, "--cam-images", 1))
    for file in ("scores.csv", "correlations.csv", "img_0.png", "img_100.png"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


@pytest.mark.slow
def test_attacker_trains_on_two_processes(world, tmp_path):
    must(torchrun("train_attacker.py", "--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs",
                  2, "--stride", 2, "--out", tmp_path / "two"))
    assert 0 <= results(tmp_path / "two")["validation_auc"] <= 1 and len(losses(tmp_path / "two")) == 2
    assert len(list((world / "shadow" / "posteriors-s2").rglob("*.npy"))) == 24


@pytest.mark.slow
def test_error_in_one_process_ends_the_run(world, tmp_path):
    split = tmp_path / "members.txt"
    lines = (world / "victim_in.txt").read_text().splitlines()
    split.write_text("\n".join([*lines, "broken.png broken.png"]))
    for line in lines:
        for path in line.split()[:2]:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes((world / "data" / path).read_bytes())
    Image.new("L", (8, 8)).save(tmp_path / "broken.png")
    content = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    result = torchrun("train_victim.py", "--root", tmp_path, "--train", split, "--test", split, *SMALL, "--batch", 5,
                      "--workers", 0, "--out", tmp_path / "run")
    assert result.returncode != 0 and "broken.png cannot be read" in result.stderr


def test_run_resumes_when_torchrun_restarts_its_processes(victim_command, tmp_path, monkeypatch):
    command = [*victim_command, "--out", tmp_path]
    must(script(*command))
    assert "holds a run already" in script(*command).stderr
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    must(script(*command))
