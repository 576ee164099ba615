"""The learned attacker on calibrated maps: its channels, its references, and its training."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import must, results, script
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_references import change_shadow, posterior, simulate, slow_boundary
from test_seams import assert_refused, calibration_cases

from attacks.calibrated import draw_references
from attacks.calibrated_map import FAR
from attacks.representation import add_context, class_distance, represent
from datasets import find_dataset
from models.pixelwise import Pixelwise
from predictors.base import PredictorOptions
from predictors.reference import read_shadow
from predictors.samples import join_trees
from predictors.stored import SIDES
from training.references import describe_references, lend_to_shadows, share_out
from utils.cli import UserError

# Channels


def slow_distance(label, far):
    """Largest of the two coordinate differences to the nearest known position of another class, at most `far`."""
    known = [at for at in product(*map(range, label.shape)) if label[at] != 255]
    out = np.zeros(label.shape)
    for i, j in known:
        others = [max(abs(i - y), abs(j - x)) for y, x in known if label[y, x] != label[i, j]]
        out[i, j] = min([far, *others])
    return out


def slow_map(sample, floor):
    label, output = sample.truth.numpy(), sample.output.tolist()
    used = [one.tolist() for one, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
    distance, out = slow_distance(label, FAR), np.zeros((7, *label.shape))
    for i, j in product(*map(range, label.shape)):
        if (c := int(label[i, j])) == 255:
            continue
        loss = -math.log(max(output[c][i][j], floor))
        losses = [-math.log(max(one[c][i][j], floor)) for one in used]
        middle = -math.log(max(sum(one[c][i][j] for one in used) / len(used), floor))
        mean = sum(losses) / len(losses)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in losses) / len(losses))
        values = [row[i][j] for row in output]
        entropy = -sum(p * math.log(p) for p in values if p)
        out[:, i, j] = loss, middle - loss, mean, deviation, max(values), entropy, distance[i, j] / FAR
    return out


def calibrated(sample, floor, void="zero"):
    sample = add_context(sample, "calibrated", floor)
    return represent("calibrated", sample.output, sample.truth, floor, void, context=sample.context)


@given(calibration_cases())
@settings(max_examples=60, deadline=None)
def test_channels(case):
    sample, _, floor = case
    found = calibrated(sample, floor)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), slow_map(sample, floor), rtol=1e-4, atol=1e-4)
    if sum(not seen for seen in sample.in_reference) == 1:
        assert not found[3].any()
    masked = calibrated(sample, floor, "mask")
    assert torch.equal(masked[:7], found) and torch.equal(masked[7] == 1, sample.truth == 255)
    assert not found[:, sample.truth == 255].any()
    one = add_context(sample, "calibrated", floor)
    assert one.references == () and add_context(one, "calibrated", floor) is one
    batch = [tensor[None].repeat(2, *[1] * tensor.ndim) for tensor in (one.output, one.truth, one.context)]
    assert torch.equal(represent("calibrated", *batch[:2], floor, context=batch[2])[1], found)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.sampled_from([0, 0.3, 0.9]))
@settings(max_examples=60, deadline=None)
def test_distance_to_another_class(seed, height, width, far, void):
    rng = np.random.default_rng(seed)
    label = np.where(rng.random((height, width)) < 0.15, 1, 0).astype(np.uint8)
    label[rng.random(label.shape) < void] = 255
    found = class_distance(torch.from_numpy(label), far).numpy()
    np.testing.assert_array_equal(found, slow_distance(label, far))
    np.testing.assert_array_equal(class_distance(torch.from_numpy(label), 2).numpy() == 1, slow_boundary(label))


def test_pixelwise_reads_the_labelled_positions_of_a_calibrated_map():
    [sample] = simulate(3, images=1)
    maps, model = calibrated(sample, 1e-30)[None], Pixelwise(7, labelled=[6, 7])
    logits, counts = model.train()(maps)
    assert counts.tolist() == [int(sample.known.sum())]
    torch.testing.assert_close(logits, model.classify(maps)[0].movedim(0, -1)[sample.known])
    for wrong in ([6, 8], [5, 5], [-1, 1]):
        with pytest.raises(ValueError, match="cannot say which positions"):
            Pixelwise(7, labelled=wrong)


# References


def test_an_image_gets_a_fixed_choice_of_references_that_did_not_see_it():
    [sample] = simulate(4, images=1, models=6)
    sample = replace(sample, in_reference=(True, False, False, False, True, False))
    choices = set()
    for name in range(40):
        drawn = draw_references(replace(sample, id=str(name)), 2, 0)
        again = draw_references(replace(sample, id=str(name)), 2, 0)
        assert all(one is other for one, other in zip(drawn.references, again.references, strict=True))
        assert drawn.in_reference == (False, False)
        choices.add(tuple(next(index for index in range(6) if sample.references[index] is one)
                          for one in drawn.references))
    assert choices == {(1, 2), (1, 3), (1, 5), (2, 3), (2, 5), (3, 5)}
    with pytest.raises(UserError, match=r"000: 4 of the references were not trained .* with 5"):
        draw_references(sample, 5, 0)


@pytest.fixture(scope="module")
def shadows(world, tmp_path_factory):
    """Three runs on one D^S of 24 images: half A, the other half, and a half of each."""
    folder = tmp_path_factory.mktemp("shadows")
    runs = [change_shadow(world / "shadow", folder / f"{number}", number, swap=number == 1) for number in range(3)]
    lines = [(runs[2] / f"{side}.txt").read_text().splitlines() for side in ("in", "out")]
    entries = [[line for line in side if not line.startswith("#")] for side in lines]
    known = json.loads((runs[2] / "provenance.json").read_text())
    for number, side in enumerate(("in", "out")):
        mixed = entries[0][number::2] + entries[1][number::2]
        (runs[2] / f"{side}.txt").write_text("\n".join(mixed) + "\n")
        names = {line.split()[0] for line in mixed}
        known[side] = [one for role in ("in", "out")
                       for one in json.loads((world / "shadow" / "provenance.json").read_text())[role]
                       if any(one["name"].split(".")[0] == name.split(".")[0] for name in names)]
    (runs[2] / "provenance.json").write_text(json.dumps(known))
    return runs


@pytest.mark.slow
def test_each_shadow_is_compared_with_those_that_did_not_see_an_image(shadows, world):
    """A choice of one: of 72 pairs of a shadow and an image, 12 are left out, because both others saw the image."""
    options = PredictorOptions(stride=8)
    folders = list(map(str, shadows))
    trees = [read_shadow(folder).cache(options) for folder in folders]
    source = replace(join_trees(trees), names=list(find_dataset("streets").CLASSES))
    lent, count = share_out(lend_to_shadows(source, folders, trees, [], options))
    assert count == 1 and len(lent.references) == 3 and len(source.records) == 72 and len(lent.records) == 60
    inside = [{pair.name for pair in read_shadow(folder).inside} for folder in folders]
    numbers = {id(one.predictor): number for number, one in enumerate(lent.references)}
    for record in source.records:
        prefix, _, name = record.name.rpartition("img/")
        own, unseen = int(prefix[0]) if prefix[0].isdigit() else 0, []
        for reference in lent.references:
            number = numbers[id(reference.predictor)]
            assert reference.saw(record) == (number == own or f"img/{name}" in inside[number])
            unseen += [number] * (not reference.saw(record))
        assert (record in lent.records) == bool(unseen)
        stored = lent.references[(own + 1) % 3].predictor.files(record)[0]  # a reference's, beside the shadow's own
        assert stored.is_relative_to(shadows[own] / "references-s8")
    with pytest.raises(UserError, match="no image of D_out"):  # half A and the other half
        share_out(lend_to_shadows(replace(join_trees(trees[:2]), names=source.names), folders[:2], trees[:2], [],
                                  options))
    with pytest.raises(UserError, match="give equal outputs, so they are one model"):
        lend_to_shadows(source, folders, trees, folders[:1], options)
    with pytest.raises(UserError, match="cannot be queried about D"):
        lend_to_shadows(source, folders, trees, [f"stored:{trees[0]}"], options)


@pytest.mark.slow
def test_training_on_shadows_and_the_attack(shadows, live, tmp_path):
    train = ["train_attacker.py", "-input", "calibrated", "--patch-size", 8, "--width", 0.125, "--steps", 3,
             "--precision", "fp32", "--stride", 8, "--shadow"]
    assert_refused(script(*train, shadows[0]), "give several --shadow DIR, or --references DIR")
    out = must(script(*train, *shadows, "--augment", "strong", "--mixed-sizes", 0.5, "--out", tmp_path / "run")).stdout
    assert "each image of D^S gets 1 of 3 models as references" in out and "12 of 72 images have fewer" in out
    best = torch.load(tmp_path / "run" / "best.pth.tar", weights_only=True)
    assert best["view"]["references"] == results(tmp_path / "run")["references"] == 1
    assert best["model"]["arguments"]["channels"] == 7 and 0 < results(tmp_path / "run")["references_alone_auc"] < 1
    attack = ["attack.py", "-resume", tmp_path / "run" / "best.pth.tar", *live]
    assert_refused(script(*attack, "--out", tmp_path / "none"), "give --references DIR")
    must(script(*attack, "--references", *shadows[:2], "-cam", tmp_path / "cam", "--cam-images", 1, "-argmax", "--out",
                tmp_path / "attack"))
    assert results(tmp_path / "attack")["input"] == "calibrated" and not (tmp_path / "none").exists()


@pytest.mark.parametrize("flags, message", [
    (["--references", "x"], "--references has no effect with -input loss"),
    (["-input", "loss", "--arch", "pixelwise"], "-input concate or log-concate or calibrated"),
    (["-input", "calibrated", "--posteriors", "x"], "give several --shadow DIR, or --references DIR")])
def test_flags(flags, message):
    assert_refused(script("train_attacker.py", *flags), message)


# Simulated models: trees of posteriors of a target, and of references that saw no image


def write_models(folder, seed, leak, first=0, images=120, deal="random"):
    """Trees of a target that gains `leak` on its members, and of three references `0`, `1`, `2`.

    Images differ in difficulty. Those of the deal "confidence" that are easy are the members.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(1, 1.5, images)
    member = rng.permutation(images) % 2 == 0 if deal == "random" else difficulty > np.median(difficulty)
    for index in range(images):
        blocks = rng.integers(0, 4, (3, 3)).astype(np.uint8)
        label = blocks.repeat(4, 0).repeat(4, 1)
        label[rng.random(label.shape) < 0.1] = 255
        side = next(name for name, inside in SIDES.items() if inside == member[index])
        for model in ("target", "0", "1", "2"):
            gain = leak * (model == "target" and member[index])
            for kind in ("label", "pred_sgd"):
                (folder / model / side / kind).mkdir(parents=True, exist_ok=True)
            np.save(folder / model / side / "pred_sgd" / f"{first + index}.npy",
                    posterior(rng, label, difficulty[index] + gain, 4).numpy())
            Image.fromarray(label).save(folder / model / side / "label" / f"{first + index}.png")
    return folder


def references(folder, count=2):
    return [f"stored:{folder / str(number)}" for number in range(count)]


@pytest.fixture(scope="module")
def beds(tmp_path_factory):
    """Models of D^S, and of the images of the victim."""
    folder = tmp_path_factory.mktemp("beds")
    return write_models(folder / "shadow", 1, 0.8), write_models(folder / "victim", 2, 0.8, 500)


def train(beds, out, *flags):
    return script("train_attacker.py", "--posteriors", beds[0] / "target", "--patch-size", 8, "--out", out, *flags)


@pytest.mark.slow
def test_an_attacker_on_calibrated_maps_is_better_than_one_on_loss_maps(beds, tmp_path):
    small = ["--arch", "pixelwise", "--lr", 0.02, "--epochs", 8, "-input", "calibrated", "--references"]
    out = must(train(beds, tmp_path / "calibrated", *small, *references(beds[0]))).stdout
    assert "each image of D^S gets 2 of 2 models" in out and "it must be near 0.5" not in out
    must(train(beds, tmp_path / "loss", "--width", 0.125, "--epochs", 8))
    found = {}
    for name, flags in (("loss", []), ("calibrated", ["--references", *references(beds[1])])):
        attack = ["attack.py", "-resume", tmp_path / name / "best.pth.tar", "--examples", beds[1] / "target", *flags]
        must(script(*attack, "--out", tmp_path / f"attack-{name}"))
        found[name] = results(tmp_path / f"attack-{name}")["image"]["auc"]
    assert found["calibrated"] > found["loss"] + 0.1
    few = ["attack.py", "-resume", tmp_path / "calibrated" / "best.pth.tar", "--examples", beds[1] / "target"]
    refused = script(*few, "--references", *references(beds[1], 1), "--out", tmp_path / "few")
    assert_refused(refused, "1 of the references were not trained on this image, and the attacker was trained with 2")
    must(script(*few, "--references", *references(beds[1], 3), "--out", tmp_path / "three"))
    assert results(tmp_path / "three")["image"]["auc"] > 0.65


def test_references_that_give_the_label_away_are_found(beds, tmp_path):
    flags = ["--width", 0.125, "--steps", 2, "-input", "calibrated", "--references"]
    trap = write_models(tmp_path / "trap", 3, 0.0, deal="confidence")
    warned = must(train([trap], tmp_path / "one", *flags, *references(trap)))
    assert "it must be near 0.5" in warned.stderr and "--partition random" in warned.stderr
    found = results(tmp_path / "one")
    assert found["references_alone_auc"] > 0.9 and found["references_alone_auc_interval"][0] > 0.85
    fair = must(train(beds, tmp_path / "two", *flags, *references(beds[0], 1)))
    low, high = results(tmp_path / "two")["references_alone_auc_interval"]
    assert low < 0.5 < high and "it must be near 0.5" not in fair.stderr
    assert "the loss of the references alone has AUC" in fair.stdout


def test_references_alone():
    assert describe_references(0, []) == {}
    rows = [(float(score), score % 2 == 0, str(score)) for score in range(40)]
    found = describe_references(3, rows)
    assert found["references"] == 3 and 0.3 < found["references_alone_auc"] < 0.7
    assert describe_references(3, rows[:6])["references_alone_auc_interval"] is None
