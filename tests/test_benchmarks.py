"""Both versions of each measured stage compute the same result, and the benchmark commands run.

The comparisons are in float32, since `--precision auto` means bf16 on some processors.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import must, script
from PIL import Image

from attacks import ATTACKS
from attacks.predictability import SOUND
from attacks.sample import AttackSettings
from evaluation.metrics import confusion
from models import build_segmenter, feature_extractor
from tools.benchmarks import limits, peers
from tools.benchmarks.counted import POPULATIONS, references_for
from tools.benchmarks.growth import make_tree
from tools.benchmarks.million import compute_intervals, plan_cells, read_lines
from tools.benchmarks.predictability import measure as measure_predictability
from tools.benchmarks.predictability import measure_memory
from tools.benchmarks.stages import (
    PSPNET50,
    attack,
    compared_training,
    dpsgd_training,
    prepare_stage,
    querying,
    seg_mia_training,
    semseg_training,
)
from tools.benchmarks.steps import measure
from training import segmentation
from utils import VOID
from utils.cli import UserError
from utils.device import CPU, CPU_FP32

SMALL = replace(PSPNET50, backbone="resnet10t", stages=2, width=16, crop=(49, 65), batch=2)


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


@pytest.mark.parametrize("training", [semseg_training, seg_mia_training])
def test_steps_of_peers_agree(training):
    stage = training(SMALL, precision="fp32")
    losses = [(stage.simple(), stage.fast()) for _ in range(3)]
    assert stage.difference(*losses[0]) < 1e-4 and losses[0][0] > 0.5 and stage.flops > 1e7
    learned = losses[0][0] - losses[2][0]
    assert learned > 1e-4 and stage.difference(*losses[2]) < 0.1 * learned  # so the optimizers agree too


def test_step_of_semseg_leaves_void_out():
    models, images, labels = compared_training(replace(SMALL, dropout=0.0))
    labels[:, 5:30] = VOID
    optimizers = [peers.semseg_optimizer(model) for model in models]
    totals = np.zeros((3, 19), np.int64)
    theirs = peers.semseg_step(models[0], optimizers[0], images, labels, totals)
    ours = segmentation.learn(models[1], optimizers[1], images, labels, 0.4, CPU_FP32)
    assert abs(theirs - ours) < 1e-4 and totals[2].sum() == (labels != VOID).sum()
    assert [group["lr"] for group in optimizers[0].param_groups] == pytest.approx([0.01, 0.1, 0.1], rel=1e-2)


def test_areas_of_semseg():
    rng = np.random.default_rng(0)
    predicted, label = rng.integers(0, 5, (2, 2, 9, 7))
    label[:, 2:4] = VOID
    matrix = confusion(predicted, label, 5)
    agreed, true = np.diag(matrix), matrix.sum(axis=1)
    assert (peers.class_areas(predicted, label, 5) == [agreed, true + matrix.sum(axis=0) - agreed, true]).all()


def test_dice_loss_is_that_of_their_library():
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, labels = torch.randn(2, 5, 8, 9), torch.randint(0, 4, (2, 8, 9))  # one class is in no label
    assert peers.dice_loss(logits, labels).item() == pytest.approx(losses.DiceLoss("multiclass")(logits, labels).item())


def test_network_of_semseg_has_its_number_of_parameters():
    assert sum(p.numel() for p in build_segmenter(PSPNET50.spec(19)).parameters()) == 49_080_038


def test_limit_is_the_fastest_convolution(monkeypatch):
    seconds, batches = iter([3.0, 1.0, 2.0]), []

    def timed(work, device, rounds):
        batches.append(tuple(work().shape))
        return [next(seconds)]

    monkeypatch.setattr(limits, "time_calls", timed)
    shapes = [(4, 3, 8), (8, 1, 4), (4, 1, 8), (64, 3, 8)]  # the last one takes more work than allowed
    rate, shape = limits.fastest_convolution(torch.float32, CPU, shapes, 40_000)
    assert batches == [(2, 4, 8, 8), (19, 8, 4, 4), (19, 4, 8, 8)]
    assert rate == pytest.approx(19 * 2 * 8 * 8 * 4 * 4 / 1e12) and shape == "1 x 1, 8 channels, 4 x 4, batch 19"


def test_limits_have_a_rate_and_a_shape_for_each_precision(monkeypatch):
    monkeypatch.setattr(limits, "SHAPES", [(64, 3, 8)])
    monkeypatch.setattr(limits, "WORK", {"fp32": 1e7, "bf16": 1e7})
    monkeypatch.setattr(limits, "time_calls", lambda *_, **__: [1.0])
    measured = limits.measure_limits()
    assert set(measured) == {"copy"} | {f"{kind}_{precision}" for precision in ("fp32", "bf16")
                                        for kind in ("product", "convolution")} | {
        "convolution_fp32_shape", "convolution_bf16_shape"}
    assert measured["convolution_fp32_shape"] == "3 x 3, 64 channels, 8 x 8, batch 2"


def test_limits_name_their_shape():
    line = limits.describe_limits({"convolution_fp32": 0.15, "convolution_fp32_shape": "1 x 1", "copy": 18})
    assert line == "convolution fp32 0.15 (1 x 1), copy 18 (TFLOP/s; copy in GB/s)"


@pytest.mark.slow
def test_growth_prints_a_row_for_each_run(tmp_path):
    out = must(script("tools/benchmarks/growth.py", "--counts", 4, 130, "--processes", 1, 2, "--tree", tmp_path / "t",
                      "--out", tmp_path / "growth.json")).stdout
    assert "| 130 | 2 |" in out and "ms an image" in out
    rows = json.loads((tmp_path / "growth.json").read_text())
    assert [(row["images"], row["processes"]) for row in rows] == [(4, 1), (4, 2), (130, 1), (130, 2)]
    assert all(row["seconds"] > 0 < row["cpu_seconds"] and row["mib_peak"] > 100 for row in rows)


def test_a_tree_of_different_crops(tmp_path):
    """Each posterior belongs to the pixels of its image and label, and no image occurs twice."""
    tree = make_tree(tmp_path / "tree", 300)
    names = {side: sorted(path.stem for path in (tree / side / "img").iterdir()) for side in ("train", "val")}
    assert [len(names[side]) for side in names] == [150, 150]
    labels = {side: [np.asarray(Image.open(tree / side / "label" / f"{name}.png")) for name in names[side]]
              for side in names}
    posteriors = {side: [np.load(tree / side / "pred_sgd" / f"{name}.npy") for name in names[side]] for side in names}
    assert len({array.tobytes() for side in names for array in posteriors[side]}) == 300
    right = [np.mean(one.argmax(0) == label[::4, ::4]) for one, label in zip(
        posteriors["train"], labels["train"], strict=True)]
    assert np.mean(right) > 0.8
    with pytest.raises(UserError, match="different crops"):
        make_tree(tmp_path / "large", 10**6)


def test_parts_of_a_million():
    lines, intervals = read_lines(30), compute_intervals(200)
    assert (lines["number"], intervals["number"]) == (30, 200)
    assert all(one["cpu_seconds"] > 0 and one["mib_peak"] > 50 for one in (lines, intervals))


@pytest.mark.slow
def test_a_large_bed_is_planned():
    row = plan_cells()
    assert row["number"] > 1000 and row["jobs"] > 50 and row["cpu_seconds"] > 0 and row["mib_peak"] > 50


def test_a_failed_command_says_why():
    with pytest.raises(UserError, match=r"nothing stopped: .*there is no scale"):
        limits.measure_command(["-m", "reproduce.report", "nothing"])


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


@pytest.mark.slow
def test_queries_of_attacks_are_counted(tmp_path):
    """Of the target model, and of both references together; an attack that cannot run has a reason, and no row."""
    names = ["loss", "calibrated", "augmented", "gradient", "lira-online"]
    out = must(script("tools/benchmarks/attack_costs.py", "--attack", *names, "--images", 1, "--rounds", 2, "--out",
                      tmp_path / "costs.json")).stdout
    found = json.loads((tmp_path / "costs.json").read_text())
    counted = {(row["attack"], row["references"]): [row["scoring"][what] for what in (
        "queries", "other_queries", "gradients", "other_gradients")] for row in found["attacks"]}
    many = AttackSettings().queries
    assert counted == {("loss", 0): [1, 0, 0, 0], ("calibrated", 2): [1, 2, 0, 0], ("augmented", 0): [many, 0, 0, 0],
                       ("augmented", 2): [many, 2 * many, 0, 0], ("gradient", 0): [1, 0, 1, 0],
                       ("gradient", 2): [1, 2, 1, 2]}
    assert all(row["scoring"]["queries"] == ATTACKS.load(row["attack"]).queries_of_target() and row["learning"] is None
               and len(row["scoring"]["seconds"]) == 2 and min(row["scoring"]["seconds"]) > 0
               for row in found["attacks"])
    assert "| augmented | 2 | 6 | 12 |" in out and "| gradient | 2 | 1 + 1 gradient | 2 + 2 gradient |" in out
    assert list(found["not measured"]) == ["lira-online"] and "no reference model was trained on" in out


def test_queries_to_learn_are_counted_apart(tmp_path, monkeypatch):
    """An attack that is trained on the attacked images queries the models about them before it scores them."""
    monkeypatch.setattr("attacks.learned_crossfit.STEPS", 1)
    out = must(script("tools/benchmarks/attack_costs.py", "--attack", "learned-crossfit", "--images", 2, "--rounds", 1,
                      "--out", tmp_path / "costs.json")).stdout
    rows = json.loads((tmp_path / "costs.json").read_text())["attacks"]
    assert [[row["learning"][what] for what in ("queries", "other_queries")] for row in rows] == [[4, 0], [4, 8]]
    assert [row["scoring"]["queries"] for row in rows] == [1, 1] and out.count("| attacked images |") == 2
    again = ["tools/benchmarks/attack_costs.py", "--attack", "learned-crossfit", "--out", tmp_path / "costs.json"]
    monkeypatch.setattr("tools.benchmarks.counted.measure_cost", None)
    assert must(script(*again, "--images", 2, "--rounds", 1)).stdout == out
    refused = script(*again, "--images", 3, "--rounds", 1)
    assert refused.returncode == 2 and "was measured with other settings" in refused.stderr


def test_queries_about_a_population_are_those_of_its_model_and_of_the_references(world, tmp_path, monkeypatch):
    monkeypatch.setitem(POPULATIONS, "population", (str(world / "shadow"), "images of known membership"))
    must(script("tools/benchmarks/attack_costs.py", "--attack", "statistics", "--images", 1, "--rounds", 1, "--out",
                tmp_path / "costs.json"))
    rows = json.loads((tmp_path / "costs.json").read_text())["attacks"]
    assert [[row["learning"][what] for what in ("queries", "other_queries")] for row in rows] == [[0, 24], [0, 48]]
    assert [row["scoring"]["other_queries"] for row in rows] == [0, 1] and rows[0]["learning"]["seconds"] > 0


def test_every_attack_is_measured_with_the_references_that_it_reads():
    counts = {name: [len(references) for references in references_for(name)] for name in ATTACKS}
    assert counts["loss"] == counts["quantile"] == [0] and counts["lira"] == [2] and counts["correctness"] == [0, 2]
    assert counts["calibrated-weighted"] == [1] and counts["statistics"] == [0, 1]
    assert {name for name, each in counts.items() if each == [0, 2]} == {
        name for name in ATTACKS if "references" in ATTACKS.load(name).optional and name != "statistics"}
