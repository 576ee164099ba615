"""Results depend on the seed only: not on workers, the order of files in a folder, the locale or the hash seed."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, must, script, write_tree


@pytest.fixture
def attack_command(world, tmp_path):
    """An attack on a tree with two non-ASCII names; a test appends --out."""
    write_tree(tmp_path / "tree", names=("a", "ß", "İ", "b"))
    return ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", tmp_path / "tree"]


def assert_equal_files(first, second, names=("scores.csv", "results.json")):
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("environment", [
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Tokyo"},
    {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.ISO-8859-9", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_locale_and_hash_seed(attack_command, tmp_path, environment):
    must(script(*attack_command, "--out", tmp_path / "first"))
    command = [sys.executable, *map(str, attack_command), "--out", str(tmp_path / "second")]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert_equal_files(tmp_path / "first", tmp_path / "second")


def test_order_of_files_in_a_folder(attack_command, tmp_path, monkeypatch):
    must(script(*attack_command, "--out", tmp_path / "first"))
    original, listed = os.scandir, []

    class ReversedScan:
        """What os.scandir returns, an iterator and a context manager, with the entries in reverse order."""

        def __init__(self, path="."):
            listed.append(path)
            with original(path) as entries:
                self._entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __iter__(self):
            return self

        def __next__(self):
            return next(self._entries)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.close()

        def close(self):
            pass

    monkeypatch.setattr(os, "scandir", ReversedScan)
    monkeypatch.setattr(os, "listdir", lambda path=".": [entry.name for entry in ReversedScan(path)])
    must(script(*attack_command, "--out", tmp_path / "second"))
    monkeypatch.undo()
    assert any("pred_sgd" in str(path) for path in listed)
    assert_equal_files(tmp_path / "first", tmp_path / "second")


def test_number_of_workers(victim_command, tmp_path):
    for workers in (0, 3):
        must(script(*victim_command, "--workers", workers, "--out", tmp_path / f"workers-{workers}"))
    first, second = (torch.load(tmp_path / f"workers-{workers}" / "last.pth.tar", weights_only=True)["state_dict"]
                     for workers in (0, 3))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert_equal_files(tmp_path / "workers-0", tmp_path / "workers-3", ["log.jsonl"])
