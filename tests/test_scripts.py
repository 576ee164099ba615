"""The four scripts as a user types them."""

import csv
import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, must, script, write_tree

from datasets.pairs import read_split
from models.attacker import Attacker
from utils.checkpoints import save_checkpoint


def results(folder):
    return json.loads((folder / "results.json").read_text())


def scores(folder):
    with open(folder / "scores.csv") as file:
        return {row["image"]: (int(row["member"]), float(row["score"])) for row in csv.DictReader(file)}


def test_victim_and_shadow_leave_a_whole_run(world):
    for run in ("victim", "shadow"):
        assert {"args.json", "log.jsonl", "last.pth.tar", "results.json", "events"} <= {
            p.name for p in (world / run).iterdir()}
        assert 0 < results(world / run)["miou_in"] < 1
    inside, outside = (read_split(world / "shadow" / f"{side}.txt", world / "data") for side in ("in", "out"))
    assert len(inside) == len(outside) == 12 and not {p.image for p in inside} & {p.image for p in outside}


def test_shadow_takes_what_the_victim_is_confident_about(world):
    from predictors import open_predictor
    from predictors.base import Record, predict_records

    victim, means = open_predictor(world / "victim" / "last.pth.tar"), {}
    for side in ("in", "out"):
        pairs = read_split(world / "shadow" / f"{side}.txt", world / "data")
        for answer in predict_records(victim, [Record.of_pair(pair, "streets") for pair in pairs]):
            values = answer.output.amax(dim=0).numpy()
            means.setdefault(side, []).append(values[answer.load_label() != 255].mean())
    assert min(means["in"]) > max(means["out"])


def test_attacker_holds_out_a_fifth_and_keeps_posteriors(world):
    figures = results(world / "loss")
    assert figures["held_out"] in (4, 5, 6) and 0 < figures["held_out_members"] < figures["held_out"]
    assert len(list((world / "shadow" / "posteriors-s4").rglob("*.npy"))) == 24
    checkpoint = torch.load(world / "loss" / "best.pth.tar", weights_only=True)
    assert checkpoint["view"]["size"] == 12 and checkpoint["view"]["tau"] == figures["tau"]


@pytest.mark.parametrize("kind", ["loss", "concate"])
@pytest.mark.parametrize("select", ["random", "sliding", "rejection", "full"])
def test_attack_with_every_selection(world, live, tmp_path, kind, select):
    out = must(script("attack.py", "-resume", world / kind / "best.pth.tar", "-input", kind, "--select", select,
                      "-num-patch", 4, *live, "--out", tmp_path)).stdout
    found = results(tmp_path)
    assert found["members"] == found["non_members"] == 8 and "all-member F" in out
    assert set(found) >= {"image", "patch", "chance"} and 0 <= found["image"]["auc"] <= 1
    low, high = found["image"]["auc_interval"]
    assert low <= found["image"]["auc"] <= high
    assert len(scores(tmp_path)) == 16
    with np.load(tmp_path / "patches.npz") as patches:
        assert len(patches["score"]) == found["patches"] == 16 * {"full": 1, "sliding": 6}.get(select, 4)
    assert (tmp_path / "roc.png").stat().st_size > 5000


@pytest.mark.parametrize("flags", [["-argmax"], ["-gauss", 0.3], ["--threshold", "loss"], ["--threshold", "confidence"],
                                   ["--score", "release"]])
def test_attack_variants_change_the_scores(world, live, tmp_path, flags):
    base = ["-resume", world / "loss" / "best.pth.tar", *live]
    must(script("attack.py", *base, "--out", tmp_path / "a"))
    must(script("attack.py", *base, *flags, "--out", tmp_path / "b"))
    plain, other = scores(tmp_path / "a"), scores(tmp_path / "b")
    assert plain.keys() == other.keys() and plain != other
    with np.load(tmp_path / "a" / "patches.npz") as one, np.load(tmp_path / "b" / "patches.npz") as two:
        np.testing.assert_array_equal(one["corner"], two["corner"], "the same locations serve every defense")


def test_floor_bounds_what_noise_can_do_to_a_loss(world, tmp_path):
    base = ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", write_tree(tmp_path / "tree"),
            "--threshold", "loss", "-gauss", 1, "--gauss-floor", 0]
    for name, floor in (("own", []), ("tiny", ["--floor", 2.0**-24]), ("release", ["--floor", 1e-30])):
        must(script(*base, *floor, "--out", tmp_path / name))
    own, tiny, release = (scores(tmp_path / name) for name in ("own", "tiny", "release"))
    assert own == tiny and all(release[name][1] < own[name][1] for name in own)
    refused = script(*base, "--floor", 0, "--out", tmp_path / "zero")
    assert refused.returncode == 2 and "no logarithm" in refused.stderr


def test_same_seed_same_bytes_whatever_the_order_and_the_batch(world, live, tmp_path):
    base = ["-resume", world / "loss" / "best.pth.tar", *live]
    must(script("attack.py", *base, "--out", tmp_path / "a"))
    shuffled = tmp_path / "members.txt"
    shuffled.write_text("\n".join(reversed((world / "victim_in.txt").read_text().splitlines())) + "\n")
    must(script("attack.py", *base, "--members", shuffled, "--out", tmp_path / "b"))
    assert (tmp_path / "a" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes()
    for batch in (1, 7, 13):
        must(script("attack.py", *base, "--batch", batch, "--out", tmp_path / f"c{batch}"))
        assert (tmp_path / "a" / "scores.csv").read_bytes() == (tmp_path / f"c{batch}" / "scores.csv").read_bytes()
    must(script("attack.py", *base, "--seed", 1, "--out", tmp_path / "d"))
    assert (tmp_path / "a" / "scores.csv").read_bytes() != (tmp_path / "d" / "scores.csv").read_bytes()


@pytest.mark.parametrize("name", ["train_victim.py", "train_attacker.py"])
def test_training_continues_to_the_same_weights(world, tmp_path, monkeypatch, name):
    if name == "train_victim.py":
        args = ["--root", world / "data", "--train", world / "victim_in.txt", "--test", world / "victim_out.txt",
                *SMALL]
    else:
        args = ["--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs", 2]
    must(script(name, *args, "--out", tmp_path / "whole"))
    module = importlib.import_module("training.run")

    def stop_after_one_epoch(path, *rest, **more):
        save_checkpoint(path, *rest, **more)
        if path.name == "last.pth.tar":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", stop_after_one_epoch)
        stopped = script(name, *args, "--out", tmp_path / "cut")
    assert stopped.returncode == 130 and not (tmp_path / "cut" / "results.json").exists(), stopped.stderr
    must(script(name, "--continue", tmp_path / "cut"))
    one, two = (torch.load(tmp_path / run / "last.pth.tar", weights_only=True) for run in ("whole", "cut"))
    assert one["epoch"] == two["epoch"] == 2
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key


def test_release_files_work_unpacked_in_place(tmp_path):
    """A tree and checkpoints of the release's form: ResNet-50, 19 x 128 x 256 float32, old-style pickle stream."""
    write_tree(tmp_path / "examples", size=(1024, 2048), stride=8, names=("a", "b"))
    write_tree(tmp_path / "examples", size=(1024, 2048), stride=8, names=("a", "b"), folder="pred_dpsgd", seed=1)
    (tmp_path / "weights").mkdir()
    for kind, channels in (("loss", 1), ("concate", 38)):
        torch.manual_seed(0)
        state = {"state_dict": {f"module.{k}": v for k, v in Attacker(channels=channels).state_dict().items()}}
        torch.save(state, tmp_path / "weights" / f"{kind}.pth.tar", _use_new_zipfile_serialization=False)
    for flags in ([], ["-resume", "weights/concate.pth.tar", "-input", "concate", "-argmax"], ["-gauss", "0.1"],
                  ["-num-patch", "1", "-dilation"], ["-dpsgd", "-num-patch", "1"]):
        out = tmp_path / ("run" + "".join(flags).replace("/", ""))
        must(script("attack.py", *flags, "-num-patch", 2, "-gpu", 0, "--out", out, cwd=tmp_path))
        found = results(out)
        assert found["members"] == found["non_members"] == 2 and found["patches"] == 8


@pytest.mark.parametrize("command", [
    "-resume ./weights/loss.pth.tar -gpu 0",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0",
    "-resume ./weights/loss.pth.tar -gpu 0 -num-patch 2",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0 -argmax",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0 -gauss 0.1",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0 -dpsgd"])
def test_what_is_shipped_answers_the_commands_of_the_releases_readme(command, tmp_path):
    must(script("attack.py", *command.split(), "--out", tmp_path / "run", cwd=ROOT))
    found = results(tmp_path / "run")
    assert found["members"] == found["non_members"] == (30 if "-dpsgd" in command else 60)
    assert found["patches"] == (2 if "-num-patch" in command else 6) * 2 * found["members"]
    assert (found["defense"] or "").partition(" ")[0] == next(
        (name for name in ("argmax", "gauss", "dpsgd") if f"-{name}" in command), "")
    if not {"-argmax", "-gauss", "-dpsgd"} & set(command.split()):
        assert found["image"]["auc"] > 0.6
    if "-dpsgd" in command:
        assert found["miou"]["in"] < 0.35  # the DPSGD victim's; that of the other is .47


@pytest.mark.parametrize("name", ["attack.py", "train_victim.py", "train_shadow.py", "train_attacker.py"])
def test_help_names_every_flag_without_importing_torch(name):
    code = (f"import runpy, sys\nmodule = runpy.run_path('{name}', run_name='x')\n"
            "print(module['parser']().format_help())\nassert 'torch' not in sys.modules")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--seed" in out and "default" in out


def test_compare_is_paired(world, live, tmp_path):
    for kind in ("loss", "concate"):
        must(script("attack.py", "-resume", world / kind / "best.pth.tar", *live, "--out", tmp_path / kind))
    out = must(script("evaluation/compare.py", tmp_path / "loss", tmp_path / "loss", tmp_path / "concate")).stdout
    first, same, other = out.splitlines()
    assert same.endswith("+0.000 [+0.000, +0.000]") and "[" not in first and "[" in other
    result = script("evaluation/compare.py", tmp_path)
    assert result.returncode == 2 and "no scores.csv" in result.stderr


def test_kept_posteriors_serve_later_attacks(world, live, tmp_path):
    attack = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *live]
    must(script(*attack, "--out", tmp_path / "live"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "made-from.1.partial").touch()  # another attack has just begun there
    must(script(*attack, "--keep", tmp_path / "tree", "--out", tmp_path / "first"))
    files = sorted((tmp_path / "tree").rglob("*.npy"))
    before = {file: file.stat().st_mtime_ns for file in files}
    must(script(*attack, "--keep", tmp_path / "tree", "--out", tmp_path / "second"))
    assert len(files) == 16 and before == {file: file.stat().st_mtime_ns for file in files}
    fresh, again = scores(tmp_path / "live"), scores(tmp_path / "second")
    assert again == scores(tmp_path / "first")
    for name, (member, score) in fresh.items():
        assert again[name] == (member, pytest.approx(score, abs=2e-3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").touch()
    result = script(*attack, "--keep", tmp_path / "mine", "--out", tmp_path / "third")
    assert result.returncode == 2 and "is no cache" in result.stderr and (tmp_path / "mine/holiday.png").exists()


def test_shadow_resumes(world, tmp_path):
    shutil.copytree(world / "shadow", tmp_path / "shadow")
    must(script("train_shadow.py", "--continue", tmp_path / "shadow"))
    assert results(tmp_path / "shadow")["miou_in"] == results(world / "shadow")["miou_in"]


def test_stale_posteriors_and_those_of_another_precision_are_computed_again(world, tmp_path):
    shadow = tmp_path / "shadow"
    shutil.copytree(world / "shadow", shadow, ignore=shutil.ignore_patterns("posteriors-*"))
    train = ["train_attacker.py", "--shadow", shadow, "--patch-size", 12, "--width", 0.125, "--epochs", 1]

    def cached(precision, out):
        must(script(*train, "--precision", precision, "--out", tmp_path / out))
        about = json.loads((shadow / "posteriors-s4" / "made-from").read_text())
        assert about["precision"] == precision and about["stride"] == 4
        return {file.name: file.read_bytes() for file in (shadow / "posteriors-s4").rglob("*.npy")}

    exact = cached("fp32", "one")
    assert len(exact) == 24 and cached("bf16", "two") != exact and cached("fp32", "three") == exact
    next((shadow / "posteriors-s4").rglob("*.npy")).write_bytes(b"stale")
    (shadow / "posteriors-s4" / "made-from").write_text("another training")
    assert cached("fp32", "four") == exact


def test_attacker_learns_from_several_shadows(world, tmp_path):
    args = ["--patch-size", 12, "--width", 0.125, "--epochs", 1]
    swapped = ["--root", world / "data", "--train", world / "shadow" / "out.txt", "--test", world / "shadow" / "in.txt"]
    must(script("train_shadow.py", *swapped, *SMALL, "--out", tmp_path / "swapped"))
    must(script("train_attacker.py", "--shadow", world / "shadow", tmp_path / "swapped", *args, "--out",
                tmp_path / "two"))
    found = results(tmp_path / "two")
    assert found["held_out_members"] * 2 == found["held_out"] >= 8  # each image once in, once out, held out together
