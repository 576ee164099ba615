"""Attacks that query the target model several times about an image: warps, scores, and noise that is averaged."""

import math
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script
from hypothesis import given, settings
from hypothesis import strategies as st
from test_seams import assert_refused, write_other_model
from torch import nn

from attacks import build_attack
from attacks.queries import VIEWS, View
from attacks.sample import AttackSettings, Sample
from datasets import streets
from datasets.provenance import Images
from defenses import DefenseSpec
from defenses.gauss import gauss
from predictors.base import PredictorOptions, identify
from predictors.checkpoint import ModelPredictor
from predictors.reference import Reference
from predictors.samples import Source, live_records
from utils.cli import UserError
from utils.randomness import stream

SHAPES = st.tuples(st.integers(5, 23), st.integers(5, 23))
QUERY_ATTACKS = ("augmented", "agreement", "repeated")


# Warps


def slow_size(side, scale):
    return max(1, round(side * scale))


def slow_linear(values, at):
    """Value of a list of arrays at a real place, as float64; places outside are moved to its end."""
    at = min(max(at, 0), len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] * (1 - (at - low)) + values[high] * (at - low)


def slow_transform(view, image, stride):
    """The transformed image, pixel by pixel, before it is rounded."""
    height, width = image.shape[:2]
    new_height, new_width = slow_size(height, view.scale), slow_size(width, view.scale)
    out = np.zeros((new_height, new_width, 3))
    for y, x in product(range(new_height), range(new_width)):
        if view.mirror:  # of the last pixel that a position belongs to, which becomes pixel 0
            last = max(pixel for pixel in range(new_width) if pixel % stride == 0)
            x_seen = last - x
        else:
            x_seen = x
        y_seen, x_seen = y - stride * view.shift[0], x_seen - stride * view.shift[1]
        y_seen, x_seen = min(max(y_seen, 0), new_height - 1), min(max(x_seen, 0), new_width - 1)
        row = slow_linear(image.astype(float), (y_seen + 0.5) * height / new_height - 0.5)
        out[y, x] = slow_linear(row, (x_seen + 0.5) * width / new_width - 0.5)
    return out


def slow_restore(view, output, shape, stride):
    """The output at the positions of the image, one position at a time, and whether each is valid."""
    (height, width), (rows, columns) = shape, output.shape[1:]
    new_height, new_width = slow_size(height, view.scale), slow_size(width, view.scale)
    found, valid = {}, {}
    for i, j in product(range(math.ceil(height / stride)), range(math.ceil(width / stride))):
        row = ((i * stride + 0.5) * new_height / height - 0.5) / stride + view.shift[0]
        column = ((j * stride + 0.5) * new_width / width - 0.5) / stride + view.shift[1]
        if view.mirror:
            column = columns - 1 - column
        valid[i, j] = -0.5 <= row <= rows - 0.5 and -0.5 <= column <= columns - 0.5
        found[i, j] = slow_linear([slow_linear(list(line), column) for line in output.transpose(1, 2, 0)], row)
    return found, valid


@given(st.sampled_from(VIEWS), SHAPES, st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_transformed_images(view, shape, stride, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    found = view.transform(image, stride)
    assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"]
    difference = np.abs(found - slow_transform(view, image, stride)).max()
    assert difference == 0 if view.scale == 1 else difference < 1.5


@given(st.sampled_from(VIEWS), SHAPES, st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_restored_outputs(view, shape, stride, seed):
    positions = [math.ceil(slow_size(side, view.scale) / stride) for side in shape]
    output = np.random.default_rng(seed).random((3, *positions)).astype(np.float32)
    found, valid = view.restore(torch.from_numpy(output), shape, stride)
    expected, inside = slow_restore(view, output.astype(float), shape, stride)
    assert found.dtype == torch.float32 and found.shape == (3, *valid.shape) and len(expected) == valid.numel()
    for position, value in expected.items():
        assert valid[position] == inside[position]
        np.testing.assert_allclose(found[:, *position].numpy(), value, rtol=0 if view.scale == 1 else 1e-5)


@given(st.sampled_from(VIEWS), SHAPES, st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_model_of_single_pixels_answers_the_same_about_views(view, shape, stride, seed):
    """Its output is the colour of the pixel of each position. A scaled image keeps smooth colours only."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = (rng.integers(0, 256, (*shape, 3), np.uint8) if view.scale == 1 else
             np.stack([5 * rows, 5 * columns, 3 * rows + 2 * columns], axis=-1).astype(np.uint8))

    def model(pixels):
        return torch.from_numpy(pixels[::stride, ::stride].transpose(2, 0, 1).astype(np.float32))

    found, valid = view.restore(model(view.transform(image, stride)), shape, stride)
    difference = (found - model(image)).abs().amax(dim=0)
    if view.scale == 1:
        assert not difference[valid].any()
        assert int((~valid).sum()) == (view.shift != (0, 0)) * valid.numel() // max(
            size for size, step in zip(valid.shape, view.shift, strict=True) if step or view.shift == (0, 0))
    else:
        assert valid[:-1, :-1].all() and (difference[:-1, :-1] <= 5).all()  # 5 a pixel at an edge, where it is copied
        assert (difference[1:-1, 1:-1] <= 1.5).all()


def test_views():
    """The first is the image itself, and each is another one."""
    assert VIEWS[0] == View() and VIEWS[1] == View(mirror=True) and len(set(VIEWS)) == len(VIEWS) == 18


def test_small_posteriors_do_not_change_beside_large_ones():
    output = torch.tensor([[[1.0, 1e-20, 1.0, 1e-20]], [[0.0, 1.0, 0.0, 1.0]]]).expand(2, 5, 4)
    for view in VIEWS[1:2] + VIEWS[10:]:
        restored, valid = view.restore(output, (17, 13), 4)
        assert set(restored[0][valid].tolist()) <= set(output[0].flatten().tolist())


# Scores


def ask_random(shape, stride, references, noise=0.0):
    """A sample whose models answer each query with a random posterior, and the answers by number."""
    rng, answers = np.random.default_rng(0), {}

    def draw(size):
        return torch.from_numpy(rng.random((4, *size)) ** 6 + 1e-9).softmax(dim=0).float()

    def ask(image, number):
        size = [math.ceil(side / stride) for side in image.shape[:2]]
        answers.setdefault(number, [draw(size) for _ in range(1 + references)])
        yield from answers[number]

    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    output, *others = ask(image, 0)
    truth = rng.integers(0, 4, tuple(output.shape[1:])).astype(np.uint8)
    truth[0, 1] = 255
    sample = Sample("name", "id", "group", True, output, torch.from_numpy(truth), torch.from_numpy(image).permute(
        2, 0, 1), tuple(others), tuple(number == 1 for number in range(references)), stride=stride, ask=ask)
    return sample, answers


def slow_evidence(name, target, others, label):
    """Evidence of one position, given its posteriors by the target model and by the references that did not see it."""
    if name == "agreement":
        hits = [float(np.argmax(one) == label) for one in (target, *others)]
        return hits[0] - (np.mean(hits[1:]) if others else 0)
    own = math.log(max(target[label], 1e-30))
    return own - 0.75 * math.log(np.mean([one[label] for one in others])) if others else own


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize("name", QUERY_ATTACKS)
def test_scores_by_the_number_of_queries(name, references):
    """Views that are not scaled are enough here, because restored outputs are tested above."""
    shape, stride, count = (21, 26), 4, 3 if name == "repeated" else len(VIEWS)
    sample, answers = ask_random(shape, stride, references)
    [scored] = build_attack(name, AttackSettings(queries=count, floor=1e-30)).score([sample])
    used = [0, *(1 + number for number in range(references) if number != 1)]
    totals, counts, means, found = {}, {}, [], scored.statistics["queries"]
    for number in range(count):
        if name == "repeated":
            outputs = [torch.stack([answers[past][0] for past in range(number + 1)]).double().mean(dim=0),
                       *(answers[0][one] for one in used[1:])]
            valid, totals, counts = torch.ones(outputs[0].shape[1:], dtype=torch.bool), {}, {}
        else:
            read = [answers[number][one] for one in used]
            if name == "agreement":
                read = [(one == one.amax(dim=0)).float() for one in read]
            restored = [VIEWS[number].restore(one, shape, stride) for one in read]
            outputs, valid = [one for one, _ in restored], restored[0][1]
        for position in product(*map(range, valid.shape)):
            if valid[position] and sample.truth[position] != 255:
                target, *others = (one[:, *position].double().numpy() for one in outputs)
                value = slow_evidence(name, target, others, int(sample.truth[position]))
                totals[position] = totals.get(position, 0) + value
                counts[position] = counts.get(position, 0) + 1
        means.append(sum(totals[one] / counts[one] for one in totals) / len(totals))
    assert found == pytest.approx(means, rel=1e-4, abs=1e-5) and scored.score == found[-1] and len(found) == count
    assert len(set(found)) > 1 and len(scored.patch_scores) == 6


@pytest.mark.parametrize("references", [0, 2])
def test_the_repeated_residual_reads_the_mean_answer(references):
    sample, answers = ask_random((21, 26), 4, references)
    found = build_attack("repeated-residual", AttackSettings(queries=3)).columns(sample)
    mean = sum(answers[number][0].double() for number in range(3)) / 3
    expected = build_attack("residual", AttackSettings()).columns(replace(sample, output=mean.float()))
    assert list(answers) == [0, 1, 2] and found == expected
    assert found != build_attack("residual", AttackSettings()).columns(sample)


def test_queries_that_there_are():
    with pytest.raises(UserError, match="--queries 19: there are 18 transformations"):
        build_attack("augmented", AttackSettings(queries=19))
    assert build_attack("repeated", AttackSettings(queries=100)).settings.queries == 100


class Mirrored(nn.Module):
    """Logits by a random convolution whose kernels are their own mirror images. Other pixels count if `side` > 1."""

    def __init__(self, side):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 19, side, padding=side // 2)
        with torch.no_grad():
            self.layer.weight += self.layer.weight.flip(-1)

    def forward(self, images):
        return 3 * self.layer(images)


@pytest.fixture(scope="module")
def records(world):
    return live_records(world / "victim_in.txt", world / "victim_out.txt", world / "data", "", "streets")[:3]


def source_of(records, model, stride, **settings):
    defense = settings.pop("defense", DefenseSpec()).build()
    return Source(records, ModelPredictor(model, 19, PredictorOptions(stride=stride, defense=defense)), defense,
                  **settings)


@pytest.mark.parametrize("side, stride", [(3, 1), (1, 4), (1, 3)])
def test_a_model_that_knows_no_left_and_right(records, side, stride):
    attack = build_attack("augmented", AttackSettings(queries=2))
    for scored in attack.score(source_of(records, Mirrored(side), stride).samples(attack.needs)):
        first, both = scored.statistics["queries"]
        assert both == pytest.approx(first, rel=1e-6)


# Queries under a defense, with references, and with shared classes


def references_of(records):
    """Three reference models, of which the second was trained on the first image."""
    options = PredictorOptions(stride=4)
    found = [Reference(ModelPredictor(Mirrored(side), 19, options)) for side in (1, 3, 5)]
    return (found[0], replace(found[1], trained_on=Images(identify(records[:1]))), found[2])


def test_the_same_image_gets_the_same_answers(records):
    """Also if classes are restricted, or if each sample gets one reference that did not see it."""
    references = references_of(records)
    plain = source_of(records, Mirrored(3), 4, references=references, names=streets.CLASSES)
    shared = plain.with_classes(streets.CLASSES, ("road", "car", "sky"))
    shared = replace(shared, references=tuple(replace(one, view=shared.view) for one in references))
    for source, classes, count in ((plain, 19, 3), (shared, 3, 3), (replace(plain, unseen=1), 19, 1)):
        for sample in source.samples(frozenset({"image", "queries"})):
            again = list(sample.ask(sample.image.permute(1, 2, 0).numpy(), 1))
            assert all(map(torch.equal, again, (sample.output, *sample.references)))
            assert len(again) == 1 + count == 1 + len(sample.references)
            assert again[0].shape == (classes, 16, 32) and sample.stride == 4
    assert next(plain.samples()).ask is None


def test_each_query_gets_other_noise(records):
    spec = DefenseSpec("gauss", 0.1)
    source, plain = (source_of(records, Mirrored(1), 4, defense=one) for one in (spec, DefenseSpec()))
    for sample, clear in zip(*(one.samples(frozenset({"image", "queries"})) for one in (source, plain)), strict=True):
        asked = [next(sample.ask(sample.image.permute(1, 2, 0).numpy(), number)) for number in (1, 2, 1)]
        assert torch.equal(asked[0], asked[2]) and not torch.equal(asked[0], asked[1])
        assert not torch.equal(asked[0], sample.output)
        for number, output in ((1, asked[0]), (2, asked[1])):
            rng = stream(spec.seed, "gauss", f"{sample.id}/{number}")
            assert torch.equal(output, gauss(clear.output, spec.strength, rng, spec.floor))


def test_an_output_of_a_wrong_size_is_refused(records):
    """As of a model that resizes its input."""
    class Fixed(ModelPredictor):
        def predict(self, queries):
            return [output[:, :16, :32] for output in super().predict(queries)]

    attack = build_attack("augmented", AttackSettings(queries=3))
    source = Source(records, Fixed(Mirrored(1), 19, PredictorOptions(stride=4)))
    with pytest.raises(UserError, match=r"\(16, 32\) positions for an image of \(80, 160\) pixels; .*\(20, 40\)"):
        list(attack.score(source.samples(attack.needs)))


# Through the script


def attack(live, folder, name, *flags):
    """Run an attack; returns its scores and results."""
    must(script("attack.py", "--attack", name, *live, "--patch-size", 6, *flags, "--out", folder))
    return scores(folder), results(folder)


@pytest.mark.slow
def test_the_curve_starts_at_the_attack_with_one_query(world, live, tmp_path):
    other = write_other_model(world / "victim" / "last.pth.tar", tmp_path / "other.pth.tar")
    references = ["--references", world / "shadow", other]
    for name, given_references, more in (("loss", [], ["--control", world / "shadow"]), ("calibrated", references, [])):
        one, single = attack(live, tmp_path / name, name, *given_references)
        found, result = attack(live, tmp_path / f"{name}-3", "augmented", "--queries", 3, *given_references, *more)
        curve = result["auc_by_queries"]
        assert list(curve) == ["1", "2", "3"] and curve["1"] == single["image"]["auc"]
        assert curve["3"] == result["image"]["auc"] and result["attack"] == "augmented"
        assert "auc_by_queries" not in single and found.keys() == one.keys() and result["patches"] == 96
        assert all(found[image] != one[image] for image in one) and ("model" in result["controls"]) == bool(more)


@pytest.mark.slow
def test_agreement_reads_labels_only(live, tmp_path):
    """The second run has smaller parts, too."""
    runs = [attack(live, tmp_path / name, "agreement", "--queries", 2, *flags)[0]
            for name, flags in (("plain", []), ("argmax", ["-argmax", "-num-patch", 64]))]
    assert runs[0] == runs[1] and len({score for _, score in runs[0].values()}) > 1
    assert all(0 <= score <= 1 for _, score in runs[0].values())


@pytest.mark.slow
def test_repeated_queries_average_the_noise(live, tmp_path):
    clear, noisy = (attack(live, tmp_path / name, "loss", *flags) for name, flags in (
        ("clear", []), ("noisy", ["-gauss", 0.3])))
    found, result = attack(live, tmp_path / "many", "repeated", "--queries", 8, "-gauss", 0.3)
    assert result["auc_by_queries"]["1"] == noisy[1]["image"]["auc"] and len(result["auc_by_queries"]) == 8
    far, near = ([abs(one[image][1] - score) for image, (_, score) in clear[0].items()] for one in (noisy[0], found))
    assert sum(near) < 0.8 * sum(far)


@pytest.mark.slow
def test_repeated_queries_under_dropout(world, live, tmp_path):
    flags = ["--references", world / "shadow", "-test-dropout", 0.5]
    one = attack(live, tmp_path / "one", "calibrated", *flags)
    two = attack(live, tmp_path / "two", "repeated", "--queries", 2, *flags)
    assert two[1]["auc_by_queries"]["1"] == one[1]["image"]["auc"]
    assert all(two[0][image] != one[0][image] for image in one[0])


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_scores(live, tmp_path, monkeypatch):
    flags = ["-gauss", 0.1, "--queries", 2, "-num-patch", 16]
    expected, result = attack(live, tmp_path / "run", "augmented", *flags)
    shutil.rmtree(tmp_path / "run")
    transform, calls = View.transform, []

    def stopped(self, image, stride):
        calls.append(stride)
        if len(calls) > 10:
            raise UserError("stopped")
        return transform(self, image, stride)

    monkeypatch.setattr(View, "transform", stopped)
    refused = script("attack.py", "--attack", "augmented", *live, "--patch-size", 6, *flags, "--out", tmp_path / "run")
    assert_refused(refused, "stopped")
    assert (tmp_path / "run" / "unfinished").exists()
    monkeypatch.setattr(View, "transform", lambda self, *args: calls.append("again") or transform(self, *args))
    again = attack(live, tmp_path / "run", "augmented", *flags)
    assert again[0] == expected and again[1]["auc_by_queries"] == result["auc_by_queries"]
    assert 0 < calls.count("again") < 16


@pytest.mark.parametrize("flags, message", [
    (["augmented", "--queries", 19], "there are 18 transformations of an image; give --queries 18 or less"),
    (["loss", "--queries", 2], "--queries has no effect with --attack loss"),
    (["augmented", "--c", 0.5], "--c has no effect without --references"),
    (["agreement", "--references", "SHADOW", "--c", 0.5], "--c has no effect with --attack agreement"),
    (["agreement", "--floor", 0.1], "--floor has no effect"),
    (["augmented", "--keep", "TREE"], "--keep stores one output of each image"),
    (["augmented", "--references", "SHADOW", "--keep-references", "TREE"], "--keep-references stores one output"),
    (["augmented", "--references", "stored:STORED"], "are stored: give --victim, and references"),
    (["augmented", "--control", "stored:STORED"], "are stored: give --victim, and references and a control"),
    (["repeated"], "none is drawn here"), (["repeated", "-gauss", 0], "none is drawn here"),
    (["repeated", "-argmax"], "none is drawn here")])
def test_flags_of_these_attacks(world, live, stored, tmp_path, flags, message):
    places = {"SHADOW": world / "shadow", "TREE": tmp_path / "tree", "stored:STORED": f"stored:{stored}"}
    flags = [places.get(one, one) for one in flags]
    result = script("attack.py", "--attack", *flags, *live, "--patch-size", 6, "--out", tmp_path / "run")
    assert_refused(result, message)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stored(world, live, tmp_path_factory):
    """The posteriors of the shadow about the attacked images, on disk."""
    folder = tmp_path_factory.mktemp("stored")
    must(script("attack.py", "--attack", "loss", *live, "--victim", world / "shadow", "--allow", "unseen",
                "--patch-size", 6, "--keep", folder / "tree", "--out", folder / "run"))
    return folder / "tree"


@pytest.mark.parametrize("name", QUERY_ATTACKS)
def test_stored_posteriors_are_refused(stored, tmp_path, name):
    result = script("attack.py", "--attack", name, "--examples", stored, "--out", tmp_path / "run")
    assert_refused(result, "queries the models", "give --victim")
