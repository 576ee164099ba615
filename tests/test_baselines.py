"""The attacks that the paper compares with, dropout at test time, and the mIoU under a defense."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script, write_tree
from hypothesis import given
from test_formulas import posterior_and_label, tensors
from torch import nn

from attacks.representation import concatenation
from defenses import DefenseSpec
from defenses.dropout import Dropout
from models import build_segmenter
from models.pixelwise import Pixelwise
from predictors.base import PredictorOptions, Query, Record
from predictors.checkpoint import ModelPredictor
from predictors.samples import tree_source


def slow_pixelwise(model, posterior, label):
    """Mean member probability over the labelled positions, one position at a time; 0.5 without labelled positions."""
    classes, probabilities = posterior.shape[0], []
    for y, x in zip(*np.nonzero(label != 255), strict=True):
        vector = np.zeros(2 * classes, np.float32)
        vector[:classes], vector[classes + label[y, x]] = posterior[:, y, x], 1
        logits = model.classify(torch.from_numpy(vector)[None, :, None, None])[0, :, 0, 0]
        probabilities.append(logits.softmax(0)[1].item())
    return np.mean(probabilities) if probabilities else 0.5


@given(posterior_and_label())
def test_pixelwise_score_is_the_mean_over_labelled_positions(pair):
    torch.manual_seed(0)
    model = Pixelwise(2 * pair[0].shape[0]).eval()
    with torch.no_grad():
        logits, _ = model(concatenation(*tensors(pair))[None])
        assert logits.softmax(1)[0, 1].item() == pytest.approx(slow_pixelwise(model, *pair), abs=1e-5)


@given(posterior_and_label())
def test_pixelwise_trains_on_labelled_positions_only(pair):
    torch.manual_seed(0)
    model = Pixelwise(2 * pair[0].shape[0]).train()
    maps = concatenation(*tensors(pair))[None]
    logits, counts = model(maps)
    known = torch.from_numpy(pair[1] != 255)
    assert counts.tolist() == [int(known.sum())]
    torch.testing.assert_close(logits, model.classify(maps)[0].movedim(0, -1)[known])


@pytest.fixture(scope="module")
def pixelwise(world):
    """The checkpoint of a pixelwise attacker, trained on the small shadow."""
    must(script("train_attacker.py", "--shadow", world / "shadow", "--arch", "pixelwise", "-input", "concate",
                "--patch-size", 12, "--epochs", 3, "--lr", 0.01, "--out", world / "pixelwise", "--precision", "fp32"))
    return world / "pixelwise" / "best.pth.tar"


def test_pixelwise_attack_gives_the_mean_over_the_image(live, pixelwise, tmp_path):
    tree = tmp_path / "tree"
    must(script("attack.py", "-resume", pixelwise, *live, "--keep", tree, "--out", tmp_path))
    assert results(tmp_path)["select"] == "full" and results(tmp_path)["patches"] == 16
    checkpoint = torch.load(pixelwise, weights_only=True)
    model = Pixelwise(**{k: v for k, v in checkpoint["model"]["arguments"].items() if k != "arch"}).eval()
    model.load_state_dict(checkpoint["state_dict"])
    sample = next(tree_source(tree).samples())
    with torch.no_grad():
        mean = slow_pixelwise(model, sample.output.numpy(), sample.truth.numpy())
    _, score = scores(tmp_path)[sample.name.partition("/")[2]]
    assert score == pytest.approx(mean, abs=1e-4)


def test_pixelwise_attacker_has_no_activation_map(live, pixelwise, tmp_path):
    result = script("attack.py", "-resume", pixelwise, *live, "-cam", tmp_path / "cam", "--out", tmp_path / "run")
    assert result.returncode == 2 and "no activation map" in result.stderr and not (tmp_path / "run").exists()


def test_pixelwise_attacker_needs_input_concate(world):
    result = script("train_attacker.py", "--shadow", world / "shadow", "--arch", "pixelwise")
    assert result.returncode == 2 and "-input concate" in result.stderr


def test_confidence_threshold_is_at_chance_under_argmax(world, live, tmp_path):
    must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--threshold", "confidence", "-argmax",
                "--out", tmp_path))
    assert results(tmp_path)["image"]["auc"] == 0.5


class NormAndDropout(nn.Module):
    """A batch norm and a dropout layer in the main path, and a dropout layer in the auxiliary head; outputs ones."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.auxiliary = nn.BatchNorm2d(3), nn.Dropout(0.1), nn.Sequential(nn.Dropout2d(0.1))

    def forward(self, x):
        return self.drop(torch.ones_like(self.norm(x)))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_dropout_drops_the_given_share_and_norms_stay_in_eval_mode(ratio):
    defense, image = Dropout(DefenseSpec("test-dropout", ratio)), np.zeros((64, 64, 3), np.uint8)
    model = defense.prepare(NormAndDropout())
    assert not model.norm.training and model.drop.training and not model.auxiliary[0].training
    torch.manual_seed(1)
    share = (model(torch.zeros(1, 3, 64, 64)) > 0).float().mean().item()
    assert share == pytest.approx(1 - ratio, abs=0.03)
    predictor = ModelPredictor(model, 3, PredictorOptions(defense=defense))
    queries = [Query(Record(key, key, None, Path(key), Path(key)), image) for key in "aab"]
    first, repeated, other = predictor.predict(queries)
    assert torch.equal(first, repeated) and torch.equal(first, other) == (ratio == 0)
    assert defense.query_seed("a") != Dropout(DefenseSpec("test-dropout", ratio, seed=1)).query_seed("a")


@pytest.mark.slow
def test_attack_under_dropout(world, live, tmp_path):
    base = ["-resume", world / "loss" / "best.pth.tar", *live, "--seed", 3]
    runs = {"plain": [], "zero": ["-test-dropout", 0], "half": ["-test-dropout", 0.5],
            "repeated": ["-test-dropout", 0.5], "cached": ["-test-dropout", 0.5, "--keep", tmp_path / "tree"]}
    for name, flags in runs.items():
        must(script("attack.py", *base, *flags, "--out", tmp_path / name))
    files = {name: (tmp_path / name / "scores.csv").read_bytes() for name in runs}
    assert files["plain"] == files["zero"] != files["half"] == files["repeated"]
    cached, half = results(tmp_path / "cached"), results(tmp_path / "half")
    assert half["defense"] == "test_dropout 0.5" and 0 < half["miou"]["out"] < 1
    assert cached["miou"]["out"] == pytest.approx(half["miou"]["out"], abs=0.01)


def test_miou_is_that_of_the_defended_posteriors(world, tmp_path):
    base = ["-resume", world / "loss" / "best.pth.tar", "--examples", write_tree(tmp_path / "tree")]
    runs = {"plain": [], "argmax": ["-argmax"], "gauss": ["-gauss", 3]}
    for name, flags in runs.items():
        must(script("attack.py", *base, *flags, "--out", tmp_path / name))
    miou = {name: results(tmp_path / name)["miou"] for name in runs}
    assert miou["plain"] == miou["argmax"] and miou["gauss"]["in"] < miou["plain"]["in"]


def test_dropout_of_upernet_is_active_only_at_test_time():
    """It draws no random numbers in training, and without the defense the logits are those of the trained model."""
    torch.manual_seed(0)
    model = build_segmenter({"name": "upernet", "classes": 3, "backbone": "resnet18", "stages": 4, "width": 16,
                             "output_stride": 32})
    images, before = torch.rand(2, 3, 64, 64), torch.get_rng_state()
    model.train()(images)
    assert torch.equal(torch.get_rng_state(), before)
    plain = model.eval()(images)
    dropped = Dropout(DefenseSpec("test-dropout", 0.5)).prepare(model)
    one, other = dropped(images), dropped(images)
    assert not torch.equal(one, other) and not torch.equal(one, plain)
    layers = [name for name, module in dropped.named_modules() if module.training]
    assert layers == ["head.dropout"]


def test_dropout_of_stored_posteriors():
    result = script("attack.py", "-test-dropout", 0.5)
    assert result.returncode == 2 and "give --victim" in result.stderr


def test_dropout_of_more_than_all_inputs(live):
    result = script("attack.py", *live, "-test-dropout", 1.5)
    assert result.returncode == 2 and "less than 1" in result.stderr
