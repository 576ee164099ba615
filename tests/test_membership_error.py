"""Reconstruction error and membership error (Shafran et al.), against slow references and in whole runs."""

import json
import shutil
import stat

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script, small_scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from slow_predictability import columns, released_error, sound_error_of_image, sound_error_of_label
from test_seams import assert_refused

from attacks.membership_error import WEIGHTS, MembershipError, ReconstructionError, WeightedMembershipError
from attacks.predictability import FLOOR, RELEASED, SIDE, SOUND, describe_positions, predictability_error, prepare_image
from attacks.sample import AttackSettings, Sample
from models import FEATURES, feature_extractor
from models.features import ResNetFeatures
from predictors.predictability import VERSION


def random_maps(seed, channels=(6, 10, 20, 60)):
    """Maps of the shapes that an extractor gives; the last two have more channels than half of their positions."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 1 + index, (count, side, side)).astype(np.float32)
            for index, (count, side) in enumerate(zip(channels, (56, 28, 14, 7), strict=True))]


def order_of(positions, seed):
    return np.random.default_rng(seed).permutation(positions)


@pytest.mark.parametrize("channels", [(6, 10, 20, 60), (8, 8, 8, 8)])
def test_released_error_of_images_is_that_of_least_squares(channels):
    maps, image = random_maps(0, channels), np.random.default_rng(1).random((3, SIDE, SIDE))
    error = predictability_error([torch.from_numpy(one) for one in maps], torch.from_numpy(image).float(), RELEASED,
                                 np.random.default_rng(2))
    assert error == pytest.approx(released_error(maps, image, order_of(np.arange(SIDE**2), 2)), rel=1e-3)


@pytest.mark.parametrize("channels", [(6, 10, 20, 60), (8, 8, 8, 8)])
def test_sound_error_of_images_is_that_of_ridge_regression_in_each_fold(channels):
    maps, image = random_maps(0, channels), np.random.default_rng(1).random((3, SIDE, SIDE)).astype(np.float32)
    error = predictability_error([torch.from_numpy(one) for one in maps], torch.from_numpy(image), SOUND,
                                 np.random.default_rng(2))
    order = order_of(np.arange(SIDE**2), 2)
    assert error == pytest.approx(sound_error_of_image(maps, image, order, SOUND.ridge, SOUND.folds), rel=1e-6)


@pytest.mark.parametrize("known", [SIDE**2, 1803, 100, 4])
def test_sound_error_of_labels_is_that_of_ridge_regression_in_each_fold(known):
    """Also with fewer positions than features, with folds of unequal size, and with fewer positions than folds."""
    maps = random_maps(3)
    label = np.random.default_rng(4).integers(0, 4, SIDE**2).astype(np.uint8)
    label[:20 * SIDE] = 1
    label[np.random.default_rng(6).permutation(SIDE**2)[known:]] = 255
    label = label.reshape(SIDE, SIDE)
    error = predictability_error([torch.from_numpy(one) for one in maps], torch.from_numpy(label), SOUND,
                                 np.random.default_rng(5))
    order = order_of(np.flatnonzero(label.ravel() != 255), 5)
    folds = min(SOUND.folds, known)
    assert error == pytest.approx(sound_error_of_label(maps, label, order, SOUND.ridge, folds, FLOOR), rel=1e-6)


@pytest.mark.huge
def test_released_error_with_the_released_features():
    """3840 channels, with random weights: the paper's cannot be downloaded everywhere."""
    from torchvision.models import wide_resnet50_2

    torch.manual_seed(0)
    net = ResNetFeatures(wide_resnet50_2()).eval()
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 200, 300), np.uint8))
    with torch.inference_mode():
        maps = [one[0] for one in net(prepare_image(image, RELEASED)[None])]
    small = torch.rand(3, SIDE, SIDE)
    error = predictability_error(maps, small, RELEASED, np.random.default_rng(1))
    expected = released_error([one.numpy() for one in maps], small.double().numpy(), order_of(np.arange(SIDE**2), 1))
    assert error == pytest.approx(expected, rel=1e-3)


@given(st.integers(1, 40), st.sampled_from([7, 14, 28, 56]), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_fewer_values_than_channels_keep_the_inner_products(channels, side, seed):
    """A map with more channels than positions is replaced by one of fewer values, before it is resized."""
    channels = channels * 3 if side == 7 else min(channels, 6)
    one = np.random.default_rng(seed).normal(size=(channels, side, side)).astype(np.float32)
    own, literal = describe_positions([torch.from_numpy(one)], False).numpy(), columns([one], SIDE)
    assert own.shape[1] <= side * side and np.allclose(own @ own.T, literal @ literal.T, atol=1e-3)


def test_released_crop_is_central_and_sound_reads_the_whole_image():
    image = torch.zeros(3, 128, 256, dtype=torch.uint8)
    image[:, :, 64:192] = 255
    crop, whole = prepare_image(image, RELEASED), prepare_image(image, SOUND)
    assert crop.shape == whole.shape == (3, 224, 224)
    assert crop.min() > 0.9 and whole.mean() == pytest.approx(0.5, abs=0.01)


def test_error_without_labelled_positions_is_nan():
    maps = [torch.from_numpy(one) for one in random_maps(0)]
    label = torch.full((64, 64), 255, dtype=torch.uint8)
    assert np.isnan(predictability_error(maps, label, SOUND, np.random.default_rng(0)))


def sample(output, truth, error):
    return Sample("a", "a", "a", True, output, truth, predictability=error)


def test_scores_of_an_image_and_of_posteriors():
    output, truth = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    expected = -np.abs(np.round(output.numpy().astype(np.float64) * 255) / 255 - truth.numpy()).mean()
    [scored] = ReconstructionError(AttackSettings()).score([sample(output, truth, None)])
    assert scored.score == pytest.approx(expected, abs=1e-6)
    [better] = MembershipError(AttackSettings(weight=0.5)).score([sample(output, truth, 0.25)])
    assert better.score == pytest.approx(expected + 0.125, abs=1e-6)
    posterior, label = torch.rand(4, 5, 5).softmax(0), torch.randint(0, 4, (5, 5), dtype=torch.uint8)
    label[0] = 255
    [scored] = MembershipError(AttackSettings()).score([sample(posterior, label, 2.0)])
    known = label != 255
    true = posterior.gather(0, label.clamp_max(3).long()[None])[0]
    assert scored.score == pytest.approx(float(true[known].log().mean()) + 2, abs=1e-6)


def population(scores, errors):
    """Three members and three non-members with these reconstruction scores and predictability errors."""
    return [Sample(f"{index}", f"{index}", f"{index}", index < 3, torch.full((3, 2, 2), -score), torch.zeros(3, 2, 2),
                   predictability=error) for index, (score, error) in enumerate(zip(scores, errors, strict=True))]


def slow_auc(values):
    """The share of pairs of a member and a non-member in which the member has the higher value."""
    return np.mean([(one > other) + 0.5 * (one == other) for one in values[:3] for other in values[3:]])


@pytest.mark.parametrize("scores, errors, weight", [
    ([-0.8, -0.6, -0.4, 0.0, 0.0, -0.2], [0.6, 0.5, 0.4, 0.0, 0.0, 0.0], 1.5),  # 1.5, 2, 3 and 4 tell all apart
    ([0.0, 0.0, 0.0, -0.4, -0.4, -0.8], [0.0, 0.0, 0.0, 0.6, 0.6, 0.6], 0.5),  # so do 0, 0.25 and 0.5
    ([-0.2, -0.2, -0.2, -0.4, -0.4, -0.4], [0.2] * 6, 1)])  # all do
def test_weight_is_chosen_on_the_population(scores, errors, weight):
    attack, known = WeightedMembershipError(AttackSettings()), population(scores, errors)
    attack.fit(known)
    aucs = {one: slow_auc(np.array(scores) + one * np.array(errors)) for one in WEIGHTS}
    assert attack.chosen == {"weight": weight, "auc": max(aucs.values())}
    assert all(aucs[one] < aucs[weight] for one in WEIGHTS if abs(one - 1) < abs(weight - 1))
    expected = MembershipError(AttackSettings(weight=weight))
    assert [one.score for one in attack.score(known)] == [one.score for one in expected.score(known)]


@pytest.fixture
def attack(world, live, tmp_path):
    def run(name, *flags):
        return script("attack.py", "--attack", name, *live, "--patch-size", 6, *flags, "--out", tmp_path / name,
                      cwd=tmp_path)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["membership-error", "membership-error-released"])
def test_attack_on_a_model(attack, tmp_path, monkeypatch, name):
    """The errors are computed once, kept for later calls, and private."""
    must(attack("reconstruction"))
    must(attack(name))
    [file] = (tmp_path / "runs" / "predictability").iterdir()
    method = "released" if name.endswith("released") else "sound"
    assert file.name == f"efficientnet_lite0-{method}-{VERSION}.json"
    errors = json.loads(file.read_text())
    assert len(errors) == 16 and stat.S_IMODE(file.stat().st_mode) == 0o600
    plain, corrected = scores(tmp_path / "reconstruction"), scores(tmp_path / name)
    added = sorted(corrected[image][1] - plain[image][1] for image in plain)
    assert added == pytest.approx(sorted(errors.values()), abs=1e-5) and min(added) > 0
    monkeypatch.setattr("predictors.predictability.predictability_error", None)  # it is not computed again
    shutil.rmtree(tmp_path / name)
    must(attack(name, "--weight", 0))
    assert all(value == pytest.approx(plain[image], abs=1e-9) for image, value in scores(tmp_path / name).items())
    assert results(tmp_path / name)["attack"] == name


@pytest.mark.slow
@pytest.mark.parametrize("tree", [False, True])
def test_weight_is_chosen_on_a_shadow(world, attack, tmp_path, tree):
    """The shadow itself, or a tree of its posteriors and images."""
    known = world / "shadow"
    if tree:
        known = shutil.copytree(known / "posteriors-s4", tmp_path / "tree")
        for label in known.glob("*/label/**/*.png"):
            image = label.parents[2] / "img" / "img" / label.name
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(world / "data" / "img" / label.name, image)
    out = must(attack("membership-error-weighted", "--population", known)).stdout
    chosen = results(tmp_path / "membership-error-weighted")["chosen"]
    assert f"chosen on --population: weight {chosen['weight']:.3g}, auc {chosen['auc']:.3g}" in out
    [file] = (tmp_path / "runs" / "predictability").iterdir()
    assert chosen["weight"] in WEIGHTS and len(json.loads(file.read_text())) == 16 + 24
    must(attack("membership-error", "--weight", chosen["weight"]))
    assert scores(tmp_path / "membership-error-weighted") == scores(tmp_path / "membership-error")


def test_weight_that_is_given_or_cannot_be_chosen(world, attack, tmp_path):
    assert_refused(attack("membership-error-weighted"), "give --population")
    known = ["--population", world / "shadow"]
    assert_refused(attack("membership-error-weighted", *known, "--weight", 2), "--weight has no effect")
    assert_refused(attack("membership-error", *known), "leave --population out")
    assert_refused(attack("membership-error-weighted", "--population", world / "shadow" / "posteriors-s4"),
                   "is missing; the predictability error reads the image")
    shutil.copytree(world / "shadow", tmp_path / "shadow")
    (tmp_path / "shadow" / "results.json").unlink()
    assert_refused(attack("membership-error-weighted", "--population", tmp_path / "shadow"), "is not finished")


@pytest.mark.slow
def test_images_are_described_in_batches_of_any_size(attack, tmp_path, monkeypatch):
    must(attack("membership-error"))
    one = scores(tmp_path / "membership-error")
    shutil.rmtree(tmp_path / "runs"), shutil.rmtree(tmp_path / "membership-error")
    monkeypatch.setattr("predictors.predictability.BATCH", 3)
    must(attack("membership-error"))
    assert {name: score for name, (_, score) in scores(tmp_path / "membership-error").items()} == pytest.approx(
        {name: score for name, (_, score) in one.items()}, abs=1e-4)


def test_a_tree_without_images_is_refused(world, tmp_path):
    shutil.copytree(world / "shadow" / "posteriors-s4", tmp_path / "tree")
    result = script("attack.py", "--attack", "membership-error", "--examples", tmp_path / "tree", cwd=tmp_path)
    assert_refused(result, "is missing; the predictability error reads the image", "img/")


def test_features_that_cannot_be_downloaded(attack, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no")))
    monkeypatch.setenv("TORCH_HOME", "/nowhere")
    result = attack("membership-error", "--features", "wide_resnet50_2")
    assert_refused(result, "could not be downloaded", "leave --features out")


def test_extractors_give_four_maps():
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        maps = feature_extractor("efficientnet_lite0")(image)
    assert [tuple(one.shape[2:]) for one in maps] == [(56, 56), (28, 28), (14, 14), (7, 7)]
    assert set(FEATURES) == {"efficientnet_lite0", "wide_resnet50_2"}


@pytest.mark.slow
def test_a_broken_cache_is_computed_again(attack, tmp_path):
    must(attack("membership-error"))
    [file] = (tmp_path / "runs" / "predictability").iterdir()
    before = file.read_text()
    file.write_text("{")
    shutil.rmtree(tmp_path / "membership-error")
    must(attack("membership-error"))
    assert file.read_text() == before


def test_predictability_is_lower_where_the_label_follows_the_image():
    """A label that is the brightness of the image is predictable, and noise is not."""
    pattern = np.kron(np.random.default_rng(0).integers(0, 2, (7, 7)), np.ones((32, 32)))
    image = torch.from_numpy((np.stack([pattern] * 3) * 200 + 20).astype(np.uint8))
    with torch.inference_mode():
        maps = [one[0] for one in feature_extractor("efficientnet_lite0")(prepare_image(image, SOUND)[None])]
    same, noise = torch.from_numpy(pattern.astype(np.uint8)), torch.randint(0, 2, (224, 224), dtype=torch.uint8)
    errors = [predictability_error(maps, label, SOUND, np.random.default_rng(0)) for label in (same, noise)]
    assert errors[0] < 0.2 and errors[1] > 0.6


# Translated images on disk


def write_triples(root, count=12, noise=(0.02, 0.1)):
    """Write triples of drawn streets; the outputs of members are closer to the ground truth than those of others."""
    rng = np.random.default_rng(0)
    for side, first, level in (("train", 0, noise[0]), ("val", 100, noise[1])):
        for index in range(first, first + count):
            image, label = small_scene(index)
            output = np.clip(image / 255 + rng.normal(0, level, image.shape), 0, 1)
            for part, array in (("input", np.repeat(label[..., None], 3, 2)), ("output", np.round(255 * output)),
                                ("truth", image)):
                path = root / side / part / f"{index:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return root


def triples(root, *flags, attack="reconstruction"):
    return script("attack.py", "--attack", attack, "--triples", root, *flags, "--out", root.parent / attack,
                  cwd=root.parent)


def test_reconstruction_error_of_triples(tmp_path):
    root = write_triples(tmp_path / "triples")
    out = must(triples(root)).stdout
    assert "12 + 12 translated images" in out and "mIoU" not in out and "control without a model" in out
    found = scores(tmp_path / "reconstruction")
    for name, (member, score) in found.items():
        side, image = name.split("/")
        output, truth = (np.array(Image.open(root / side / part / f"{image}.png")) for part in ("output", "truth"))
        assert score == pytest.approx(-np.abs(output / 255 - truth / 255).mean(), abs=1e-6)
        assert member == name.startswith("train")
    assert results(tmp_path / "reconstruction")["image"]["auc"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["membership-error", "membership-error-released"])
def test_membership_error_of_triples(tmp_path, name):
    root = write_triples(tmp_path / "triples")
    must(triples(root))
    must(triples(root, attack=name))
    plain, corrected = scores(tmp_path / "reconstruction"), scores(tmp_path / name)
    added = [corrected[image][1] - plain[image][1] for image in plain]
    assert all(0.001 < error < 0.3 for error in added) and len(set(added)) == 24


def test_images_with_groups_and_other_suffixes(tmp_path):
    root = write_triples(tmp_path / "triples")
    for path in root.glob("*/input/*.png"):
        path.rename(path.with_suffix(".PNG"))
    names = [f"{path.parts[-3]}/{path.stem}" for path in sorted(root.glob("*/truth/*.png"))]
    (root / "groups.txt").write_text("".join(f"{name} {name[:-1]}\n" for name in names))
    must(triples(root))
    assert results(tmp_path / "reconstruction")["groups"]["members"] == 2


@pytest.mark.parametrize("damage, message", [
    (lambda root: (root / "val" / "truth" / "00103.png").unlink(), "val/truth has no image 00103"),
    (lambda root: shutil.rmtree(root / "val"), "val holds no images"),
    (lambda root: shutil.copy(root / "train" / "output" / "00003.png", root / "val" / "output" / "00103.png"),
     "train/00003 and val/00103 have the same output"),
    (lambda root: Image.new("RGB", (64, 64)).save(root / "val" / "output" / "00103.png"), "is 64 x 64, and its ground"),
    (lambda root: [(Image.open(path).save(path.with_suffix(".jpg")), path.unlink())
                   for path in (root / "val" / "output").glob("*.png")], "the outputs of members are PNG RGB"),
    (lambda root: [shutil.copy(root / "train" / part / "00003.png", root / "val" / part / "00103.png")
                   for part in ("input", "output", "truth")], "the same image is a member and a non-member")])
def test_triples_that_cannot_be_meant(tmp_path, damage, message):
    root = write_triples(tmp_path / "triples")
    damage(root)
    assert_refused(triples(root), message)


@pytest.mark.parametrize("flags, message", [
    (["--attack", "loss"], "reads posteriors"), (["-argmax"], "changes posteriors"),
    (["--examples", "tree"], "--examples has no effect with --triples"),
    (["--select", "rejection"], "reads posteriors"), (["--control", "x"], "--control has no effect with --triples"),
    (["--victim", "v", "--members", "a", "--non-members", "b"], "--triples has no effect with --victim")])
def test_flags_beside_triples(tmp_path, flags, message):
    assert_refused(triples(write_triples(tmp_path / "triples"), *flags), message)
