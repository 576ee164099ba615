"""The mIoU gate: each fault of input, classes or softmax is caught and named, and its repair mends it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_scene
from PIL import Image

from evaluation.gate import Finding, check_segments, examine
from predictors.base import Predictor, PredictorOptions, Record
from predictors.foreign import ForeignModel
from predictors.preprocess import IMAGENET, Preprocess
from utils.cli import UserError

CLASSES = 6
COLOURS = np.array([(60 + 28 * k, 110, 200 - 28 * k) for k in range(CLASSES)])  # in a row: a wrong scale mixes them
RIGHT = {"none": Preprocess(), "imagenet": Preprocess(**IMAGENET), "255": Preprocess(scale=255),
         "one": Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), "bgr": Preprocess("bgr", **IMAGENET)}


class NearestColour(torch.nn.Module):
    """Logits: minus the squared distance to the colour of each class, as its input shows it."""

    def __init__(self, right, colours=COLOURS):
        super().__init__()
        shown = right.prepare(np.uint8(colours)[None]).permute(1, 2, 0)[0]
        self.register_buffer("colours", shown)
        self.scale = 40 / float((shown[:, None] - shown[None]).square().sum(-1).max())

    def forward(self, inputs):
        distance = (inputs[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return -self.scale * distance


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Four images of each side: the labels of streets, painted in the colours of the classes."""
    folder, found = tmp_path_factory.mktemp("painted"), []
    for index in range(8):
        label = small_scene(index)[1]
        label = np.where(label == 255, 255, label % CLASSES).astype(np.uint8)
        rng = np.random.default_rng(index)
        image = COLOURS[np.where(label == 255, 0, label)] + rng.normal(0, 6, (*label.shape, 3))
        Image.fromarray(np.uint8(image.clip(0, 255))).save(folder / f"{index}.png")
        Image.fromarray(label).save(folder / f"{index}_label.png")
        found.append(Record(str(index), str(index), index % 2 == 0, folder / f"{index}.png",
                            folder / f"{index}_label.png"))
    return found


def model(right="imagenet", wrap=None, colours=COLOURS, stride=4, **given):
    """The toy model, which wants the input `right`, and is given `given` instead."""
    network = NearestColour(RIGHT[right], colours)
    if wrap:
        network = torch.nn.Sequential(network, wrap)
    preprocess = RIGHT[right].changed(given)
    return ForeignModel("toy", PredictorOptions(stride=stride), preprocess, network, len(colours))


def mended(predictor, finding):
    """The predictor with the repair, as the user would give it in a file."""
    given = json.loads(json.dumps(finding.repair))
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return ForeignModel("toy", predictor.options, predictor.preprocess.changed(changes), predictor.model,
                        len(COLOURS))


@pytest.mark.parametrize("right", RIGHT)
def test_a_healthy_model_passes(records, right):
    finding = check_segments(model(right), records)
    assert finding.miou > 0.9 and not finding.cause and not finding.repair and finding.images == 8
    assert 0.02 < finding.constant < 0.2 and finding.constant < finding.bound < finding.constant + 0.05


NORMALISATION = {"none": "without normalisation", "imagenet": "the normalisation of ImageNet", "255": "0..255",
                 "one": r"-1\.\.1"}
PLAIN = {"scale": 1, "mean": None, "std": None}


@pytest.mark.parametrize("right, given, cause", [
    *((right, {"scale": RIGHT[wrong].scale, "mean": RIGHT[wrong].mean, "std": RIGHT[wrong].std}, NORMALISATION[right])
      for right, wrong in (("none", "255"), ("none", "one"), ("imagenet", "none"), ("imagenet", "255"),
                           ("255", "none"), ("255", "imagenet"), ("one", "none"))),
    ("imagenet", {"channels": "bgr"}, "order RGB"), ("bgr", {"channels": "rgb"}, "order BGR"),
    ("255", {"channels": "bgr"} | PLAIN, "0..255; and .*order RGB"),
    ("none", {"classes": (1, 2, 3, 4, 5, 0)}, "shifted by one"),
    ("none", {"classes": (5, 0, 1, 2, 3, 4)}, "shifted by one")])
def test_faults_are_named_and_mended(records, right, given, cause):
    predictor = model(right, **given)
    finding = examine(predictor, records)
    assert finding.miou < finding.mended - 0.05 and finding.mended > 0.9
    assert re.match(f"mIoU .*{cause}.*; give --preprocess FILE with {{", str(finding)) and "\n" not in str(finding)
    assert check_segments(mended(predictor, finding), records, 1).miou > 0.9


def test_the_cause_is_raised_in_one_line(records):
    with pytest.raises(UserError, match=r'^toy: mIoU .* RGB; .*; give --preprocess FILE with {"channels": "rgb"}$'):
        check_segments(model("imagenet", channels="bgr"), records)


def test_background_first(records):
    """The model has a class more than the masks, and it is the first."""
    colours = np.concatenate([[(255, 0, 255)], COLOURS])
    predictor = model("none", colours=colours)
    finding = examine(predictor, records)
    assert finding.repair == {"classes": [255, 0, 1, 2, 3, 4, 5]} and "one more class first" in finding.cause
    assert check_segments(mended(predictor, finding), records).miou > 0.9


def test_background_first_in_the_masks(records, tmp_path):
    """The masks have a class that the model lacks; only --label-map can mend this."""
    shifted = []
    for record in records:
        label = np.asarray(Image.open(record.label))
        Image.fromarray(np.where(label == 255, 255, label + 1).astype(np.uint8)).save(tmp_path / record.label.name)
        shifted.append(replace(record, label=tmp_path / record.label.name))
    finding = examine(model("none"), shifted)
    assert "--label-map" in finding.cause and not finding.repair and finding.mended > 0.9


@pytest.mark.parametrize("wrap, given, cause, repair", [
    (None, {"output": "posterior"}, "softmax is missing", {"output": "logits"}),
    (torch.nn.Softmax(dim=1), {}, "softmax or sigmoid is applied twice", {"output": "posterior"}),
    (torch.nn.Sigmoid(), {}, "softmax or sigmoid is applied twice", {"output": "posterior"})])
def test_softmax_missing_or_twice(records, wrap, given, cause, repair):
    """The mIoU does not show it; the values do."""
    predictor = model("none", wrap, **given)
    finding = examine(predictor, records)
    assert finding.repair == repair and cause in finding.cause and finding.mended is None and finding.miou > 0.9
    assert not examine(mended(predictor, finding), records).cause


def test_two_faults_at_once(records):
    predictor = model("255", torch.nn.Softmax(dim=1), scale=1)
    finding = examine(predictor, records)
    assert "twice" in finding.cause and "0..255" in finding.cause
    assert check_segments(mended(predictor, finding), records).miou > 0.9


def test_two_softmaxes_inside_the_model(records):
    predictor = model("none", torch.nn.Sequential(torch.nn.Softmax(dim=1), torch.nn.Softmax(dim=1)),
                      output="posterior")
    finding = examine(predictor, records)
    assert "remove one softmax" in finding.cause and not finding.repair


@pytest.mark.parametrize("wrap, given, repair", [
    (None, {}, None), (torch.nn.Sigmoid(), {"output": "posterior"}, None),
    (torch.nn.Sigmoid(), {}, {"output": "posterior"}), (None, {"output": "posterior"}, {"output": "logits"})])
def test_binary_models(records, tmp_path, wrap, given, repair):
    """One channel: class 1 is what is nearer to the colour of class 1 than to the others."""
    binary = []
    for record in records:
        label = np.asarray(Image.open(record.label))
        Image.fromarray(np.where(label == 255, 255, label == 1).astype(np.uint8)).save(tmp_path / record.label.name)
        binary.append(replace(record, label=tmp_path / record.label.name))

    class One(torch.nn.Module):
        def forward(self, logits):
            other = logits[:, [0, 2, 3, 4, 5]].amax(1, keepdim=True)
            value = logits[:, 1:2] - other
            return wrap(value) if wrap else value

    predictor = ForeignModel("toy", PredictorOptions(stride=2), Preprocess().changed(given),
                             torch.nn.Sequential(NearestColour(RIGHT["none"]), One()), 1)
    finding = examine(predictor, binary)
    assert (finding.repair or None) == repair
    if not repair:
        assert finding.miou > 0.9 and not finding.cause


def test_a_model_without_use_is_refused(records):
    class Blind(torch.nn.Module):
        def forward(self, inputs):
            return torch.arange(CLASSES, 0, -1.0)[None, :, None, None].expand(1, CLASSES, *inputs.shape[2:]) * 3

    predictor = ForeignModel("blind", PredictorOptions(stride=4), Preprocess(), Blind(), CLASSES)
    with pytest.raises(UserError, match="does not segment these images, and no usual repair"):
        check_segments(predictor, records)


class Stored(Predictor):
    """A predictor that cannot be asked in another way, such as posteriors on disk."""

    def __init__(self, inner, change):
        super().__init__("stored", PredictorOptions(stride=inner.stride))
        self.inner, self.change = inner, change

    def predict(self, queries):
        return [self.change(output) for output in self.inner.predict(queries)]


def test_other_predictors_are_checked_without_other_queries(records):
    assert not examine(Stored(model("none"), lambda output: output), records).cause
    finding = examine(Stored(model("none"), lambda output: output.roll(1, 0)), records)
    assert "shifted by one" in finding.cause and not finding.repair and finding.mended > 0.9
    finding = examine(Stored(model("none"), lambda output: output.softmax(0)), records)
    assert "applied twice" in finding.cause


def test_images_without_labels_are_refused(records, tmp_path):
    with pytest.raises(UserError, match="none of the images has a label"):
        examine(model("none"), [replace(record, label=tmp_path / "none.png") for record in records])


def test_the_bound_by_hand():
    finding = Finding(0.5, 0.45, 8)
    assert finding.bound == pytest.approx(0.45 + 0.05 * 0.55)
    assert str(Finding(0.1, 0.05, 8, "x", {"channels": "bgr"}, 0.7)) == (
        'mIoU 10.0 on 8 images (a constant answer: 5.0); x; with the repair the mIoU is 70.0; give --preprocess FILE '
        'with {"channels": "bgr"}')
