"""One seed, one result: whatever the workers, the order of files in a folder, the locale and the hash seed."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, must, script, write_tree


@pytest.fixture
def attack(world, tmp_path):
    write_tree(tmp_path / "tree", names=("a", "ß", "İ", "b"))
    return ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", tmp_path / "tree"]


def same(one, two, names=("scores.csv", "results.json")):
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize("environment", [
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Tokyo"},
    {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.ISO-8859-9", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_locale_and_hash_seed(attack, tmp_path, environment):
    must(script(*attack, "--out", tmp_path / "here"))
    command = [sys.executable, *map(str, attack), "--out", str(tmp_path / "there")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "here", tmp_path / "there")


def test_order_of_files_in_a_folder(attack, tmp_path, monkeypatch):
    must(script(*attack, "--out", tmp_path / "here"))
    real = os.scandir
    listed = []

    @contextlib.contextmanager
    def backwards(path="."):
        with real(path) as entries:
            listed.append(path)
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", backwards)
    monkeypatch.setattr(os, "listdir", lambda path=".": [entry.name for entry in backwards(path).__enter__()])
    must(script(*attack, "--out", tmp_path / "there"))
    monkeypatch.undo()
    assert any("pred_sgd" in str(path) for path in listed)
    same(tmp_path / "here", tmp_path / "there")


def test_number_of_workers(world, tmp_path):
    args = ["train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
            world / "victim_out.txt", *SMALL]
    for workers in (0, 3):
        must(script(*args, "--workers", workers, "--out", tmp_path / f"w{workers}"))
    one, two = (torch.load(tmp_path / f"w{workers}" / "last.pth.tar", weights_only=True) for workers in (0, 3))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    same(tmp_path / "w0", tmp_path / "w3", ["log.jsonl"])
