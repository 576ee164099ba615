"""Work that is stopped goes on to the same result, and no two processes do it at once."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, must, script, write_tree

from evaluation.journal import RunPlace, find_unfinished
from utils.files import lock_run
from utils.log import RunLog


def equal(one, two):
    """Whether two nested values are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return one == two


def interrupt(patch, module, name, after, number=signal.SIGTERM):
    """Send a signal at the `after`-th call of `module.name` (or `module.Class.name`); returns the list of calls."""
    holder, calls = importlib.import_module(module), []
    *classes, name = name.split(".")
    for one in classes:
        holder = getattr(holder, one)
    real = getattr(holder, name)

    def met(*args, **kwargs):
        calls.append(args)
        if len(calls) == after:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    patch.setattr(holder, name, met)
    return calls


def victim_flags(world):
    return ["--root", world / "data", "--train", world / "victim_in.txt", "--test", world / "victim_out.txt", *SMALL]


TRAININGS = {
    "victim": ("train_victim.py", "training.segmentation", "learn", []),
    "dpsgd": ("train_victim.py", "training.segmentation", "learn_privately", ["-dpsgd"]),
    "attacker": ("train_attacker.py", "training.attacker", "learn", ["--dropout", 0.5, "--batch", 16]),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_training_stopped_within_an_epoch_goes_on_to_the_same_weights(world, tmp_path, monkeypatch, kind):
    name, module, step, more = TRAININGS[kind]
    if name == "train_victim.py":
        args = victim_flags(world)
    else:
        args = ["--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs", 2]
    must(script(name, *args, *more, "--out", tmp_path / "whole"))
    with monkeypatch.context() as patch:
        calls = interrupt(patch, module, step, 1 if kind == "dpsgd" else 3)
        stopped = script(name, *args, *more, "--out", tmp_path / "cut")
    assert stopped.returncode == 143 and f"resume with --continue {tmp_path / 'cut'}" in stopped.stderr
    assert stopped.stderr.count("\n") == 1 and len(calls) == (1 if kind == "dpsgd" else 3)
    cut = torch.load(tmp_path / "cut" / "last.pth.tar", weights_only=True)
    assert cut["step"] > 0 and cut["epoch"] < 2 and cut["loss"] > 0
    must(script(name, "--continue", tmp_path / "cut"))
    for file in ["last.pth.tar"] + ["best.pth.tar"] * (kind == "attacker"):
        one, two = (torch.load(tmp_path / run / file, weights_only=True) for run in ("whole", "cut"))
        for key in ("epoch", "step", "loss", "state_dict", "optimizer", "bounds", "view"):
            assert (key in one) == (key in two) and equal(one.get(key), two.get(key)), key
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "cut")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 2


def test_the_second_signal_ends_at_once(world, tmp_path, monkeypatch):
    args = victim_flags(world)
    real, module = os.kill, importlib.import_module("training.run")
    interrupt(monkeypatch, "training.segmentation", "learn", 1, signal.SIGINT)
    monkeypatch.setattr(os, "kill", lambda *which: (real(*which), real(*which)))
    saved = []
    monkeypatch.setattr(module, "save_checkpoint", lambda *rest, **more: saved.append(rest))
    stopped = script("train_victim.py", *args, "--out", tmp_path / "cut")
    assert stopped.returncode == 130 and not saved and stopped.stderr.count("\n") == 1


@pytest.fixture
def attack(world, tmp_path):
    """The start of an attack on 2 x 8 images, which scores one after the other, and its score file."""
    write_tree(tmp_path / "tree", names=tuple("abcdefgh"))
    flags = ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", tmp_path / "tree", "--batch", 6,
             "--precision", "fp32"]
    must(script(*flags, "--out", tmp_path / "whole"))
    return flags


@pytest.mark.parametrize("out", [["--out", "cut"], []])
def test_attack_goes_on_where_it_was(attack, tmp_path, monkeypatch, out):
    """In the folder that is named, or else in the unfinished one of runs/ that the same command had."""
    with monkeypatch.context() as patch:
        calls = interrupt(patch, "attacks.learned", "LearnedAttack.score", 5)
        stopped = script(*attack, *out, cwd=tmp_path)
    assert stopped.returncode == 143 and "the same command resumes" in stopped.stderr and len(calls) == 5
    folder = tmp_path / (out[1] if out else "runs/attack-1")
    assert not (folder / "scores.csv").exists()
    with monkeypatch.context() as patch:
        calls = interrupt(patch, "attacks.learned", "LearnedAttack.score", 0)
        must(script(*attack, *out, "-gpu", 0, cwd=tmp_path))
    assert len(calls) == 16 - 5 and not (folder / "unfinished").exists()
    for name in ("scores.csv", "results.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    must(script(*attack, "--seed", 1, *out, cwd=tmp_path))
    assert (tmp_path / (out[1] if out else "runs/attack-2") / "scores.csv").exists()


def test_attack_scores_anew_what_is_another_now(attack, tmp_path, monkeypatch):
    flags = [*attack, "--save-every", 0, "--out", tmp_path / "cut"]
    broken = tmp_path / "tree" / "val" / "pred_sgd" / "c.npy"
    good = broken.read_bytes()
    broken.write_bytes(b"junk")
    assert script(*flags).returncode == 2
    broken.write_bytes(good)
    other = tmp_path / "tree" / "train" / "pred_sgd" / "b.npy"
    np.save(other, np.load(other)[::-1])
    calls = interrupt(monkeypatch, "attacks.learned", "LearnedAttack.score", 0)
    must(script(*flags))
    assert len(calls) == 16 - 10 + 1  # ten images lay before the broken one; one of them has changed
    must(script(*attack, "--out", tmp_path / "fresh"))
    assert (tmp_path / "cut" / "scores.csv").read_bytes() == (tmp_path / "fresh" / "scores.csv").read_bytes()
    assert (tmp_path / "cut" / "scores.csv").read_bytes() != (tmp_path / "whole" / "scores.csv").read_bytes()


def test_attack_with_other_flags_does_not_go_on(attack, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "attacks.learned", "LearnedAttack.score", 5)
        assert script(*attack, "--out", tmp_path / "cut").returncode == 143
    calls = interrupt(monkeypatch, "attacks.learned", "LearnedAttack.score", 0)
    must(script(*attack, "-gauss", 0.1, "--out", tmp_path / "cut"))
    assert len(calls) == 16


def test_activation_maps_survive_a_stop(attack, tmp_path, monkeypatch):
    cam = ["-cam", "cam", "--cam-images", 1]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    must(script(*attack, *cam, "--out", "run", cwd=tmp_path / "one"))
    with monkeypatch.context() as patch:
        interrupt(patch, "attacks.learned", "LearnedAttack.score", 12)
        assert script(*attack, *cam, "--out", "run", cwd=tmp_path / "two").returncode == 143
    must(script(*attack, *cam, "--out", "run", cwd=tmp_path / "two"))
    for name in ("run/results.json", "cam/correlations.csv", "cam/train_a.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_second_process_on_a_run_is_refused(world, attack, tmp_path):
    held = tmp_path / "held"
    code = (f"import pathlib, utils.files; utils.files.lock_run(pathlib.Path({str(held)!r})); "
            "print(1, flush=True); input()")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe) as other:
        other.stdout.readline()
        (held / "last.pth.tar").write_bytes((world / "victim" / "last.pth.tar").read_bytes())
        result = script("train_victim.py", "--continue", held)
        assert result.returncode == 2 and f"another process is at work in {held}" in result.stderr
        (held / "last.pth.tar").unlink()
        for command in (attack, ["train_shadow.py", "--root", world / "data", "--split", world / "shadow.txt",
                                 "--partition", "random", *SMALL]):
            result = script(*command, "--out", held)
            assert result.returncode == 2 and f"another process is at work in {held}" in result.stderr
        assert [path.name for path in held.iterdir()] == [".lock"]
        other.communicate(b"\n")
    lock_run(held)


def test_what_a_killed_process_began_to_write_is_cleared(tmp_path):
    (tmp_path / "last.pth.tar.123.partial").write_bytes(b"x")
    (tmp_path / "last.pth.tar").write_bytes(b"y")
    lock_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "last.pth.tar"]


def test_log_drops_what_is_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    RunLog(tmp_path, 1).add(2, loss=1.5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "loss": 3},
                                                                           {"step": 2, "loss": 1.5}]


def test_default_folders_of_attacks_that_begin_at_once(attack, tmp_path):
    (tmp_path / "runs" / "attack-1" / "unfinished").mkdir(parents=True)
    must(script(*attack, cwd=tmp_path))
    assert (tmp_path / "runs" / "attack-2" / "scores.csv").exists()
    assert find_unfinished(RunPlace(None, "x", lambda record: ())) is None


def test_hashed_names(attack, tmp_path):
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_bytes(bytes(range(32)))
    other.write_bytes(bytes(range(1, 33)))
    cam = ["-cam", tmp_path / "cam", "--cam-images", 1]
    for name, flags in (("a", [key, *cam]), ("b", [key]), ("c", [other])):
        must(script(*attack, "--hash-names", *flags, "--out", tmp_path / name))
    rows = {name: list(csv.DictReader((tmp_path / name / "scores.csv").read_text().splitlines()))
            for name in ("whole", "a", "b", "c")}
    assert rows["a"] == rows["b"] and len({row["image"] for row in rows["a"]}) == 16
    assert not {row["image"] for row in rows["a"]} & {row["image"] for row in rows["c"]}
    assert sorted(row["score"] for row in rows["a"]) == sorted(row["score"] for row in rows["whole"])
    for path in [*(tmp_path / "a").iterdir(), *(tmp_path / "cam").iterdir()]:
        assert "train" not in path.name
        if path.suffix in (".csv", ".json"):
            assert "train/" not in path.read_text(), path
        if path.suffix == ".npz":
            with np.load(path) as stored:
                words = [*stored, *(word for array in stored.values() if array.dtype.kind == "U" for word in array)]
            assert not [word for word in words if "train" in word], path
    whole, hidden = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "b"))
    assert whole == hidden
    out = must(script("evaluation/compare.py", tmp_path / "a", tmp_path / "b")).stdout
    assert "+0.000 [+0.000, +0.000]" in out
    key.write_bytes(b"short")
    result = script(*attack, "--hash-names", key, "--out", tmp_path / "d")
    assert result.returncode == 2 and "a key has 16" in result.stderr


def test_results_hold_no_pixels(attack, tmp_path):
    must(script(*attack, "--out", tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock", "args.json", "patches.npz", "precision-recall.png", "results.json", "roc.png", "scores.csv"}
    with np.load(tmp_path / "run" / "patches.npz") as stored:
        assert set(stored) == {"image", "member", "group", "corner", "score"}
        assert all(len(array) == 16 * 6 and array.size <= 2 * 16 * 6 for array in stored.values())
