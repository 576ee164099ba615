"""Work that a signal stops is resumed to the same result, and two processes never write into one run."""

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
    """Whether two nested values are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return one == two


def interrupt(patch, module, name, call, number=signal.SIGTERM):
    """Send a signal at the call with this number (0: never) of `module.name` or `module.Class.name`.

    Returns the list of calls, which grows with each call.
    """
    owner, calls = importlib.import_module(module), []
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def count_and_call(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    patch.setattr(owner, name, count_and_call)
    return calls


TRAININGS = {
    "victim": ("train_victim.py", "training.segmentation", "learn", []),
    "dpsgd": ("train_victim.py", "training.segmentation", "learn_privately", ["-dpsgd"]),
    "attacker": ("train_attacker.py", "training.attacker", "learn", ["--dropout", 0.5, "--batch", 16]),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_training_that_is_stopped_within_an_epoch_resumes_to_the_same_weights(world, victim_command, tmp_path,
                                                                             monkeypatch, kind):
    name, module, step, flags = TRAININGS[kind]
    command = victim_command if name == "train_victim.py" else [
        name, "--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs", 2]
    must(script(*command, *flags, "--out", tmp_path / "complete"))
    with monkeypatch.context() as patch:
        calls = interrupt(patch, module, step, 1 if kind == "dpsgd" else 3)
        result = script(*command, *flags, "--out", tmp_path / "stopped")
    assert result.returncode == 143 and f"resume with --continue {tmp_path / 'stopped'}" in result.stderr
    assert result.stderr.count("\n") == 1 and len(calls) == (1 if kind == "dpsgd" else 3)
    checkpoint = torch.load(tmp_path / "stopped" / "last.pth.tar", weights_only=True)
    assert checkpoint["step"] > 0 and checkpoint["epoch"] < 2 and checkpoint["loss"] > 0
    must(script(name, "--continue", tmp_path / "stopped"))
    for file in ["last.pth.tar"] + ["best.pth.tar"] * (kind == "attacker"):
        one, two = (torch.load(tmp_path / run / file, weights_only=True) for run in ("complete", "stopped"))
        for key in ("epoch", "step", "loss", "state_dict", "optimizer", "bounds", "view"):
            assert (key in one) == (key in two) and equal(one.get(key), two.get(key)), key
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("complete", "stopped")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 2


def test_second_signal_stops_without_saving(victim_command, tmp_path, monkeypatch):
    kill, saved = os.kill, []
    interrupt(monkeypatch, "training.segmentation", "learn", 1, signal.SIGINT)
    monkeypatch.setattr(os, "kill", lambda *args: (kill(*args), kill(*args)))
    monkeypatch.setattr(importlib.import_module("training.run"), "save_checkpoint",
                        lambda *args, **entries: saved.append(args))
    result = script(*victim_command, "--out", tmp_path / "stopped")
    assert result.returncode == 130 and not saved and result.stderr.count("\n") == 1


@pytest.fixture
def attack(world, tmp_path):
    """An attack on 8 members and 8 non-members, in parts of one image, without --out. complete/ has its results."""
    write_tree(tmp_path / "tree", names=tuple("abcdefgh"))
    command = ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", tmp_path / "tree", "--batch", 6,
               "--precision", "fp32"]
    must(script(*command, "--out", tmp_path / "complete"))
    return command


@pytest.mark.parametrize("out", [["--out", "stopped"], []])
def test_same_command_resumes_an_attack(attack, tmp_path, monkeypatch, out):
    """In the folder of --out, or, without --out, in the unfinished folder of runs/."""
    with monkeypatch.context() as patch:
        calls = interrupt(patch, "attacks.learned", "LearnedAttack.score", 5)
        result = script(*attack, *out, cwd=tmp_path)
    assert result.returncode == 143 and "the same command resumes" in result.stderr and len(calls) == 5
    folder = tmp_path / (out[1] if out else "runs/attack-1")
    assert not (folder / "scores.csv").exists()
    with monkeypatch.context() as patch:
        calls = interrupt(patch, "attacks.learned", "LearnedAttack.score", 0)
        must(script(*attack, *out, "-gpu", 0, cwd=tmp_path))
    assert len(calls) == 16 - 5 and not (folder / "unfinished").exists()
    for name in ("scores.csv", "results.json"):
        assert (folder / name).read_bytes() == (tmp_path / "complete" / name).read_bytes()
    must(script(*attack, "--seed", 1, *out, cwd=tmp_path))
    assert (tmp_path / (out[1] if out else "runs/attack-2") / "scores.csv").exists()


def test_resumed_attack_scores_changed_images_again(attack, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.alignment.PROBE", {False: 0, True: 0})  # otherwise it reads all images at the start
    command = [*attack, "--save-every", 0, "--out", tmp_path / "stopped"]
    broken = tmp_path / "tree" / "val" / "pred_sgd" / "c.npy"
    content = broken.read_bytes()
    np.save(broken, np.load(broken) * np.nan)
    assert script(*command).returncode == 2
    broken.write_bytes(content)
    changed = tmp_path / "tree" / "train" / "pred_sgd" / "b.npy"
    np.save(changed, np.load(changed)[::-1])
    calls = interrupt(monkeypatch, "attacks.learned", "LearnedAttack.score", 0)
    must(script(*command))
    assert len(calls) == 16 - 10 + 1  # ten images were scored before the broken one; one of the ten has changed
    must(script(*attack, "--out", tmp_path / "new"))
    written, new, complete = ((tmp_path / run / "scores.csv").read_bytes() for run in ("stopped", "new", "complete"))
    assert written == new != complete


def test_attack_with_other_flags_does_not_resume(attack, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "attacks.learned", "LearnedAttack.score", 5)
        assert script(*attack, "--out", tmp_path / "stopped").returncode == 143
    calls = interrupt(monkeypatch, "attacks.learned", "LearnedAttack.score", 0)
    must(script(*attack, "-gauss", 0.1, "--out", tmp_path / "stopped"))
    assert len(calls) == 16


def test_resumed_attack_writes_the_same_activation_maps(attack, tmp_path, monkeypatch):
    command = [*attack, "-cam", "cam", "--cam-images", 1, "--out", "run"]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    must(script(*command, cwd=tmp_path / "one"))
    with monkeypatch.context() as patch:
        interrupt(patch, "attacks.learned", "LearnedAttack.score", 12)
        assert script(*command, cwd=tmp_path / "two").returncode == 143
    must(script(*command, cwd=tmp_path / "two"))
    for name in ("run/results.json", "cam/correlations.csv", "cam/train_a.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_run_that_another_process_has_locked_is_refused(world, attack, tmp_path):
    locked = tmp_path / "locked"
    code = (f"import pathlib, utils.files; utils.files.lock_run(pathlib.Path({str(locked)!r})); "
            "print(1, flush=True); input()")
    message, pipe = f"another process is at work in {locked}", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe) as other:
        other.stdout.readline()
        (locked / "last.pth.tar").write_bytes((world / "victim" / "last.pth.tar").read_bytes())
        result = script("train_victim.py", "--continue", locked)
        assert result.returncode == 2 and message in result.stderr
        (locked / "last.pth.tar").unlink()
        for command in (attack, ["train_shadow.py", "--root", world / "data", "--split", world / "shadow.txt",
                                 "--partition", "random", *SMALL]):
            result = script(*command, "--out", locked)
            assert result.returncode == 2 and message in result.stderr
        assert [path.name for path in locked.iterdir()] == [".lock"]
        other.communicate(b"\n")
    lock_run(locked)


def test_lock_deletes_incomplete_files_of_a_killed_process(tmp_path):
    (tmp_path / "last.pth.tar.123.partial").write_bytes(b"x")
    (tmp_path / "last.pth.tar").write_bytes(b"y")
    lock_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "last.pth.tar"]


def test_log_of_a_resumed_run_drops_steps_that_are_repeated(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    RunLog(tmp_path, 1).add(2, loss=1.5)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "loss": 3},
                                                                           {"step": 2, "loss": 1.5}]


def test_unfinished_folder_without_a_stamp_is_not_resumed(attack, tmp_path):
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
            for name in ("complete", "a", "b", "c")}
    assert rows["a"] == rows["b"] and len({row["image"] for row in rows["a"]}) == 16
    assert not {row["image"] for row in rows["a"]} & {row["image"] for row in rows["c"]}
    assert sorted(row["score"] for row in rows["a"]) == sorted(row["score"] for row in rows["complete"])
    for path in [*(tmp_path / "a").iterdir(), *(tmp_path / "cam").iterdir()]:
        assert "train" not in path.name
        if path.suffix in (".csv", ".json"):
            assert "train/" not in path.read_text(), path
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                words = [*arrays, *(word for array in arrays.values() if array.dtype.kind == "U" for word in array)]
            assert not [word for word in words if "train" in word], path
    plain, hashed = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("complete", "b"))
    assert plain == hashed
    out = must(script("evaluation/compare.py", tmp_path / "a", tmp_path / "b")).stdout
    assert "b: auc 1.000" in out and "every score is that of the first run" in out
    key.write_bytes(b"short")
    result = script(*attack, "--hash-names", key, "--out", tmp_path / "d")
    assert result.returncode == 2 and "a key has 16" in result.stderr


def test_results_contain_no_pixels(attack, tmp_path):
    must(script(*attack, "--out", tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock", "args.json", "controls.csv", "patches.npz", "precision-recall.png", "provenance.json",
        "results.json", "roc.png", "scores.csv"}
    with np.load(tmp_path / "run" / "patches.npz") as arrays:
        assert set(arrays) == {"image", "member", "group", "corner", "score"}
        assert all(len(array) == 16 * 6 and array.size <= 2 * 16 * 6 for array in arrays.values())
