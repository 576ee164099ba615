"""Preprocessing of models of other libraries, against slow references."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.preprocess import IMAGENET, Preprocess, read_changes
from utils.cli import UserError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (7, 10, 3), np.uint8)


def test_input_by_hand():
    """BGR in 0..255, minus the mean, over the std, padded, channels last."""
    found = Preprocess("bgr", 255, (10, 20, 30), (2, 4, 5), multiple=4, layout="nhwc").prepare(IMAGE)
    assert found.shape == (8, 12, 3) and found.dtype == torch.float32
    assert not found[7:].any() and not found[:, 10:].any()
    for y, x, c in ((0, 0, 0), (6, 9, 2), (3, 5, 1)):
        assert found[y, x, c] == pytest.approx((float(IMAGE[y, x, 2 - c]) - (10, 20, 30)[c]) / (2, 4, 5)[c], rel=1e-6)
    plain = torch.from_numpy(IMAGE.transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(Preprocess().prepare(IMAGE), plain)
    assert Preprocess("rgbr").prepare(IMAGE).shape == (4, 7, 10)


def test_input_is_resized_as_pillow_does():
    from PIL import Image

    image = RNG.integers(0, 256, (60, 90, 3), np.uint8)
    found = Preprocess(size=(20, 32), scale=255).prepare(image)
    expected = np.asarray(Image.fromarray(image).resize((32, 20), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1.01


@given(height=st.integers(1, 9), width=st.integers(1, 9), stride=st.integers(1, 4), multiple=st.integers(1, 5),
       channels=st.integers(1, 4), output=st.sampled_from(("logits", "posterior", "sigmoid")),
       layout=st.sampled_from(("nchw", "nhwc")))
@settings(max_examples=60, deadline=None)
def test_posterior_of_full_size(height, width, stride, multiple, channels, output, layout):
    """Position (i, j) is that of pixel (i s, j s), whatever is padded."""
    preprocess = Preprocess(multiple=multiple, output=output, layout=layout)
    raw = torch.from_numpy(RNG.normal(0, 2, (channels, *preprocess.input_size((height, width)))).astype(np.float32))
    raw = raw.sigmoid() if output == "posterior" else raw
    found = preprocess.posterior(raw if layout == "nchw" else raw.permute(1, 2, 0), (height, width), stride)
    assert found.shape == (max(channels, 2), -(-height // stride), -(-width // stride))
    for i in range(found.shape[1]):
        for j in range(found.shape[2]):
            values = raw[:, i * stride, j * stride].double()
            p = values if output == "posterior" else values.sigmoid()
            if channels == 1:
                p = torch.tensor([1 - p[0], p[0]])
            elif output == "logits":
                p = values.exp() / values.exp().sum()
            torch.testing.assert_close(found[:, i, j].double(), p / p.sum(), rtol=1e-4, atol=1e-6)


def test_smaller_logits_are_resized_before_the_softmax():
    raw = torch.from_numpy(RNG.normal(0, 3, (5, 2, 3)).astype(np.float32))
    full = F.interpolate(raw[None], (8, 12), mode="bilinear", align_corners=False)[0]
    padded = Preprocess(multiple=4).posterior(raw, (7, 10), 2)
    assert torch.equal(padded, full[:, :7:2, :10:2].softmax(0))
    both = Preprocess(size=(5, 9), multiple=4).posterior(raw, (7, 10))
    assert torch.equal(both, F.interpolate(full[None, :, :5, :9], (7, 10), mode="bilinear")[0].softmax(0))
    resized = Preprocess(size=(8, 12)).posterior(raw, (7, 10))
    expected = F.interpolate(raw[None], (7, 10), mode="bilinear", align_corners=False)[0].softmax(0)
    assert torch.equal(resized, expected)


@pytest.mark.parametrize("size, longest, expected", [(20, None, (20, 41)), (20, 30, (15, 30)), ((3, 4), None, (3, 4)),
                                                     (None, None, (39, 80))])
def test_sizes(size, longest, expected):
    preprocess = Preprocess(size=size, longest=longest, multiple=8)
    assert preprocess.resized((39, 80)) == expected
    padded = preprocess.prepare(np.zeros((39, 80, 3), np.uint8)).shape[1:]
    assert all(side % 8 == 0 and 0 <= side - own < 8 for side, own in zip(padded, expected, strict=True))


def test_classes_are_merged_and_dropped():
    raw = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None].expand(4, 2, 2)
    found = Preprocess(output="posterior", classes=(1, 255, 0, 1)).posterior(raw, (2, 2))
    assert found[:, 0, 0].tolist() == pytest.approx([0.3 / 0.8, 0.5 / 0.8])
    binary = Preprocess(output="posterior", classes=(1, 0)).posterior(raw[3:], (2, 2))
    assert binary[:, 1, 1].tolist() == pytest.approx([0.4, 0.6])
    with pytest.raises(UserError, match="has 3 entries, and the model gives 4 classes"):
        Preprocess(classes=(0, 1, 2)).posterior(9 * raw, (2, 2))


def test_confident_binary_logits_keep_their_precision():
    found = Preprocess().posterior(torch.full((1, 1, 1), 30.0), (1, 1))
    assert 0 < found[0].item() < 1e-12 and found[1].item() == 1


@pytest.mark.parametrize("raw, message", [
    (torch.full((2, 3, 3), -0.5), "values from -0.5 to -0.5, so it is no posterior"),
    (torch.full((2, 3, 3), 7.0), "no posterior"), (torch.zeros(3, 3), r"shape \(3, 3\)"),
    (torch.zeros(0, 3, 3), "shape")])
def test_outputs_that_are_refused(raw, message):
    with pytest.raises(UserError, match=message):
        Preprocess(output="posterior").posterior(raw, (3, 3))
    with pytest.raises(UserError, match=r'softmax would be applied twice.*"output": "posterior"'):
        Preprocess().posterior(torch.randn(3, 4, 4).softmax(0), (4, 4))


@pytest.mark.parametrize("content, message", [
    ('{"channel": "bgr"}', "there is no entry 'channel'; there are channels, scale"),
    ('{"channels": "bgx"}', "letters r, g and b"), ('{"channels": ""}', "letters"), ('{"scale": 0}', "positive"),
    ('{"scale": true}', "positive"), ('{"scale": 1e999}', "positive"), ('{"mean": 0.5}', "a list"),
    ('{"mean": [0.5, "x", 1]}', "a list"), ('{"std": [1, 0, 1]}', "a list"), ('{"size": [512]}', "HEIGHT, WIDTH"),
    ('{"size": [512, 99999999]}', "HEIGHT"), ('{"size": 512.5}', "HEIGHT"), ('{"longest": []}', "long side"),
    ('{"size": [1.5, 2]}', "HEIGHT"),
    ('{"multiple": 0}', "whole number"), ('{"layout": "chw"}', "nchw"), ('{"output": "softmax"}', "logits"),
    ('{"output": ["logits"]}', "logits"), ('{"classes": [0, 256]}', "train id"), ('{"classes": []}', "train id"),
    ("[]", "one JSON object"), ("{", "cannot be read as a JSON file"), ("[" * 100_000, "cannot be read")])
def test_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        read_changes(path)
    assert str(path) in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_file_changes_what_was_guessed(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"channels": "bgr", "size": [4, 6], "classes": [0, 1, 1, 255], "mean": None}))
    guessed = Preprocess(multiple=32, **IMAGENET)
    found = guessed.changed(read_changes(path))
    expected = Preprocess("bgr", std=IMAGENET["std"], size=(4, 6), multiple=32, classes=(0, 1, 1, 255))
    assert found == expected and found.kept == 2
    assert guessed.changed({}) == guessed


@pytest.mark.parametrize("changes, message", [
    ({"mean": (1, 2)}, "has 2 numbers for the 3 channels"), ({"channels": "rgbb", "std": (1, 1, 1)}, "3 numbers"),
    ({"size": (8, 8), "longest": 20}, "the short side"), ({"classes": (0, 2)}, "each train id"),
    ({"classes": (0, 0)}, "two or more"), ({"classes": (255, 255)}, "found none")])
def test_changes_that_contradict_one_another(changes, message):
    with pytest.raises(UserError, match=message):
        Preprocess().changed(changes)
