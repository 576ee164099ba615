"""The scripts with the command lines of a user."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, SMALL, must, results, scores, script, write_tree

from attacks.sample import Scored
from datasets.pairs import read_split
from evaluation.report import write_scores
from models.attacker import Attacker
from predictors import open_predictor
from predictors.base import Record, predict_records
from utils.checkpoints import save_checkpoint


def test_victim_and_shadow_write_all_files_of_a_run(world):
    for run in ("victim", "shadow"):
        assert {"args.json", "log.jsonl", "last.pth.tar", "results.json", "events"} <= {
            p.name for p in (world / run).iterdir()}
        assert 0 < results(world / run)["miou_in"] < 1
    inside, outside = (read_split(world / "shadow" / f"{side}.txt", world / "data") for side in ("in", "out"))
    assert len(inside) == len(outside) == 12 and not {p.image for p in inside} & {p.image for p in outside}


def test_shadow_is_trained_on_the_half_on_which_the_victim_is_more_confident(world):
    victim, confidence = open_predictor(world / "victim" / "last.pth.tar"), {"in": [], "out": []}
    for side, values in confidence.items():
        pairs = read_split(world / "shadow" / f"{side}.txt", world / "data")
        for answer in predict_records(victim, [Record.of_pair(pair, "streets") for pair in pairs]):
            values.append(answer.output.amax(dim=0).numpy()[answer.load_label() != 255].mean())
    assert min(confidence["in"]) > max(confidence["out"])


def test_attacker_holds_out_a_fifth_and_caches_posteriors(world):
    metrics = results(world / "loss")
    assert metrics["held_out"] in (4, 5, 6) and 0 < metrics["held_out_members"] < metrics["held_out"]
    assert len(list((world / "shadow" / "posteriors-s4").rglob("*.npy"))) == 24
    checkpoint = torch.load(world / "loss" / "best.pth.tar", weights_only=True)
    assert checkpoint["view"]["size"] == 12 and checkpoint["view"]["tau"] == metrics["tau"]


@pytest.mark.parametrize("kind", ["loss", "concate"])
@pytest.mark.parametrize("select", ["random", "sliding", "rejection", "full"])
def test_attack_with_every_selection(world, live, tmp_path, kind, select):
    out = must(script("attack.py", "-resume", world / kind / "best.pth.tar", "-input", kind, "--select", select,
                      "-num-patch", 4, *live, "--out", tmp_path)).stdout
    metrics = results(tmp_path)
    assert metrics["members"] == metrics["non_members"] == 8 and "all-member F" in out
    assert set(metrics) >= {"image", "patch", "chance"} and 0 <= metrics["image"]["auc"] <= 1
    assert metrics["image"]["auc_interval"] is None and "no intervals: 8 groups of members and 8 of" in out
    assert len(scores(tmp_path)) == 16
    with np.load(tmp_path / "patches.npz") as patches:
        assert len(patches["score"]) == metrics["patches"] == 16 * {"full": 1, "sliding": 6}.get(select, 4)
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("roc.png", "precision-recall.png"))


@pytest.mark.parametrize("flags", [["-argmax"], ["-gauss", 0.3], ["--threshold", "loss"], ["--threshold", "confidence"],
                                   ["--score", "release"]])
def test_flags_that_change_the_scores_but_not_the_patches(world, live, tmp_path, flags):
    base = ["-resume", world / "loss" / "best.pth.tar", *live]
    must(script("attack.py", *base, "--out", tmp_path / "plain"))
    must(script("attack.py", *base, *flags, "--out", tmp_path / "changed"))
    plain, changed = scores(tmp_path / "plain"), scores(tmp_path / "changed")
    assert plain.keys() == changed.keys() and plain != changed
    with np.load(tmp_path / "plain" / "patches.npz") as one, np.load(tmp_path / "changed" / "patches.npz") as two:
        np.testing.assert_array_equal(one["corner"], two["corner"], "the patches are the same under every defense")


def test_floor_limits_the_effect_of_noise_on_the_loss(world, tmp_path):
    base = ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", write_tree(tmp_path / "tree"),
            "--threshold", "loss", "-gauss", 1, "--gauss-floor", 0]
    for name, floor in (("attacker", []), ("float16", ["--floor", 2.0**-24]), ("release", ["--floor", 1e-30])):
        must(script(*base, *floor, "--out", tmp_path / name))
    attacker, float16, release = (scores(tmp_path / name) for name in ("attacker", "float16", "release"))
    assert attacker == float16 and all(release[name][1] < attacker[name][1] for name in attacker)
    refused = script(*base, "--floor", 0, "--out", tmp_path / "zero")
    assert refused.returncode == 2 and "no logarithm" in refused.stderr


@pytest.mark.slow
def test_scores_depend_on_the_seed_but_not_on_order_or_batch(world, live, tmp_path):
    base = ["-resume", world / "loss" / "best.pth.tar", *live]
    must(script("attack.py", *base, "--out", tmp_path / "first"))
    expected = (tmp_path / "first" / "scores.csv").read_bytes()
    reversed_split = tmp_path / "members.txt"
    reversed_split.write_text("\n".join(reversed((world / "victim_in.txt").read_text().splitlines())) + "\n")
    runs = {"reversed": ["--members", reversed_split], **{f"batch-{n}": ["--batch", n] for n in (1, 7, 13)},
            "seed": ["--seed", 1]}
    for name, flags in runs.items():
        must(script("attack.py", *base, *flags, "--out", tmp_path / name))
        assert ((tmp_path / name / "scores.csv").read_bytes() == expected) == (name != "seed"), name


@pytest.mark.parametrize("name", ["train_victim.py", "train_attacker.py"])
def test_training_that_is_stopped_between_epochs_resumes_to_the_same_weights(world, victim_command, tmp_path,
                                                                            monkeypatch, name):
    command = victim_command if name == "train_victim.py" else [
        name, "--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs", 2]
    must(script(*command, "--out", tmp_path / "complete"))
    module = importlib.import_module("training.run")

    def save_and_stop(path, *args, **entries):
        save_checkpoint(path, *args, **entries)
        if path.name == "last.pth.tar":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", save_and_stop)
        stopped = script(*command, "--out", tmp_path / "stopped")
    assert stopped.returncode == 130 and not (tmp_path / "stopped" / "results.json").exists(), stopped.stderr
    must(script(name, "--continue", tmp_path / "stopped"))
    one, two = (torch.load(tmp_path / run / "last.pth.tar", weights_only=True) for run in ("complete", "stopped"))
    assert one["epoch"] == two["epoch"] == 2
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key


def test_files_in_the_form_of_the_release(tmp_path):
    """A tree of float32 posteriors (19, 128, 256), and ResNet-50 checkpoints in the stream of PyTorch before 1.6."""
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
        metrics = results(out)
        assert metrics["members"] == metrics["non_members"] == 2 and metrics["patches"] == 8


@pytest.mark.parametrize("command", [
    "-resume ./weights/loss.pth.tar -gpu 0",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0",
    "-resume ./weights/loss.pth.tar -gpu 0 -num-patch 2",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0 -argmax",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0 -gauss 0.1",
    "-resume ./weights/concate.pth.tar -input concate -gpu 0 -dpsgd"])
def test_commands_of_the_releases_readme_on_the_shipped_files(command, tmp_path):
    must(script("attack.py", *command.split(), "--out", tmp_path / "run", cwd=ROOT))
    metrics = results(tmp_path / "run")
    assert metrics["members"] == metrics["non_members"] == (30 if "-dpsgd" in command else 60)
    assert metrics["patches"] == (2 if "-num-patch" in command else 6) * 2 * metrics["members"]
    assert (metrics["defense"] or "").partition(" ")[0] == next(
        (name for name in ("argmax", "gauss", "dpsgd") if f"-{name}" in command), "")
    if not {"-argmax", "-gauss", "-dpsgd"} & set(command.split()):
        assert metrics["image"]["auc"] > 0.6
    if "-dpsgd" in command:
        assert metrics["miou"]["in"] < 0.35  # of the victim under DPSGD; without it the mIoU is 0.47


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_takes_less_than_a_second_of_cpu_time_and_does_not_import_torch(name):
    code = (f"import runpy, sys, time\nmodule = runpy.run_path('{name}', run_name='x')\n"
            "print(module['parser']().format_help())\nassert 'torch' not in sys.modules\nprint(time.process_time())")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *text, seconds = result.stdout.splitlines()
    assert "usage:" in text[0] and float(seconds) < 1
    if "/" not in name:
        assert "--seed" in result.stdout and "default" in result.stdout


def two_runs(tmp_path):
    """Folders of two equal runs with 20 members and 20 non-members."""
    scored = [Scored(f"{index}", index < 20, f"{index}", float(np.sin(index))) for index in range(40)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        write_scores(tmp_path / name, scored)
    return tmp_path / "one", tmp_path / "two"


def test_compare_gives_paired_differences(world, live, tmp_path):
    for kind in ("loss", "concate"):
        must(script("attack.py", "-resume", world / kind / "best.pth.tar", *live, "--out", tmp_path / kind))
    out = must(script("evaluation/compare.py", tmp_path / "loss", tmp_path / "concate")).stdout
    first, other, groups = out.splitlines()
    assert "," not in first and other.count(",") == 1  # 8 groups a side: no intervals
    assert groups.startswith("no intervals: 8 groups of members")
    out = must(script("evaluation/compare.py", *two_runs(tmp_path))).stdout
    assert out.splitlines()[1].endswith(", every score is that of the first run") and "intervals over 20 groups" in out
    result = script("evaluation/compare.py", *two_runs(tmp_path), "--metric", "tpr_at_1_fpr")
    assert result.returncode == 2 and "cannot be decided with 20 non-members" in result.stderr
    result = script("evaluation/compare.py", tmp_path)
    assert result.returncode == 2 and "no scores.csv" in result.stderr


def test_cached_posteriors_serve_later_attacks(world, live, tmp_path):
    attack = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *live]
    must(script(*attack, "--out", tmp_path / "live"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "made-from.1.partial").touch()  # as if another attack had just started to write there
    must(script(*attack, "--keep", tmp_path / "tree", "--out", tmp_path / "first"))
    files = sorted((tmp_path / "tree").rglob("*.npy"))
    before = {file: file.stat().st_mtime_ns for file in files}
    must(script(*attack, "--keep", tmp_path / "tree", "--out", tmp_path / "second"))
    for number, defense in enumerate((["-argmax"], ["-gauss", 0.1])):  # they change the stored posteriors afterwards
        must(script(*attack, *defense, "--keep", tmp_path / "tree", "--out", tmp_path / f"defended-{number}"))
    assert len(files) == 16 and before == {file: file.stat().st_mtime_ns for file in files}
    cached = scores(tmp_path / "second")
    assert cached == scores(tmp_path / "first")
    for name, (member, score) in scores(tmp_path / "live").items():
        assert cached[name] == (member, pytest.approx(score, abs=2e-3))


def test_cache_in_a_folder_with_other_files_is_refused(world, live, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").touch()
    result = script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--keep", tmp_path / "mine",
                    "--out", tmp_path / "run")
    assert result.returncode == 2 and "is no folder of stored outputs" in result.stderr, result.stderr
    assert (tmp_path / "mine" / "holiday.png").exists()


def test_finished_shadow_resumes_to_the_same_results(world, tmp_path):
    shutil.copytree(world / "shadow", tmp_path / "shadow")
    must(script("train_shadow.py", "--continue", tmp_path / "shadow"))
    assert results(tmp_path / "shadow")["miou_in"] == results(world / "shadow")["miou_in"]


def test_cached_posteriors_of_a_shadow_in_another_precision_are_computed_again(world, tmp_path):
    shadow = tmp_path / "shadow"
    shutil.copytree(world / "shadow", shadow, ignore=shutil.ignore_patterns("posteriors-*"))
    train = ["train_attacker.py", "--shadow", shadow, "--patch-size", 12, "--width", 0.125, "--epochs", 1]

    def posteriors(precision, out):
        must(script(*train, "--precision", precision, "--out", tmp_path / out))
        made_from = json.loads((shadow / "posteriors-s4" / "made-from").read_text())
        assert made_from["precision"] == precision and made_from["stride"] == 4
        return {file.name: file.read_bytes() for file in (shadow / "posteriors-s4").rglob("*.npy")}

    fp32 = posteriors("fp32", "one")
    assert len(fp32) == 24 and posteriors("bf16", "two") != fp32 and posteriors("fp32", "three") == fp32
    next((shadow / "posteriors-s4").rglob("*.npy")).write_bytes(b"broken")
    (shadow / "posteriors-s4" / "made-from").write_text("another training")
    assert posteriors("fp32", "four") == fp32


def test_attacker_of_several_shadows(world, tmp_path):
    args = ["--patch-size", 12, "--width", 0.125, "--epochs", 1]
    swapped = ["--root", world / "data", "--train", world / "shadow" / "out.txt", "--test", world / "shadow" / "in.txt"]
    must(script("train_shadow.py", *swapped, *SMALL, "--out", tmp_path / "swapped"))
    must(script("train_attacker.py", "--shadow", world / "shadow", tmp_path / "swapped", *args, "--out",
                tmp_path / "two"))
    metrics = results(tmp_path / "two")
    # Each image is a member of one shadow only, and both of its samples are on the same side of the split.
    assert metrics["held_out_members"] * 2 == metrics["held_out"] >= 8
