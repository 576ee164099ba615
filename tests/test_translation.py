"""Image-to-image translation: pix2pix, its training, and the attack of a translator."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, must, results, scores, script
from PIL import Image
from test_distributed import torchrun
from test_stopping import equal, interrupt

from datasets import cityscapes256, maps
from datasets.copying import copy_pairs, copy_translation, palette
from datasets.images import load_image
from datasets.pairs import Pair, at_most, read_split
from datasets.transforms import TranslationPairs
from defenses import DefenseSpec
from models import load_translator
from models.translation.pix2pix import PatchDiscriminator, Pix2Pix, UNet
from predictors.triples import list_triples
from training import step
from training.options import TranslatorTraining
from training.translation import set_rates
from utils.cli import UserError

SMALL = ["--width", 4, "--epochs", 2, "--workers", 0, "--precision", "fp32"]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_pix2pix_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        assert count(UNet()) == 54_413_955 and count(PatchDiscriminator()) == 2_768_705


@pytest.mark.parametrize("downs, size", [(8, (256, 256)), (7, (128, 256)), (5, (64, 32))])
def test_shapes_and_range(downs, size):
    images = torch.rand(2, 3, *size) * 2 - 1
    out = UNet(width=4, downs=downs)(images)
    assert out.shape == images.shape and out.abs().max() <= 1
    logits = PatchDiscriminator(width=4)(torch.cat([images, out], dim=1))
    assert logits.shape == (2, 1, size[0] // 8 - 2, size[1] // 8 - 2)


def test_every_weight_of_the_generator_is_used():
    net = UNet(width=4, downs=5)
    net(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_logit_of_the_discriminator_sees_70_pixels():
    net = PatchDiscriminator(width=2)
    for index, layer in enumerate(net.layers):
        if isinstance(layer, torch.nn.BatchNorm2d):
            net.layers[index] = torch.nn.Identity()  # its statistics are those of all pixels
    images = torch.zeros(1, 6, 256, 256, requires_grad=True)
    net(images)[0, 0, 15, 15].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_losses_of_pix2pix():
    torch.manual_seed(0)
    model = Pix2Pix(width=2, size=32)
    inputs, truth, outputs = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(3))
    true, made = (torch.sigmoid(model.discriminator(torch.cat([inputs, images], 1))) for images in (truth, outputs))
    wanted = -(true.log().mean() + (1 - made).log().mean()) / 2
    assert torch.isclose(model.discriminator_loss(inputs, truth, outputs), wanted, rtol=1e-5)
    wanted = -made.log().mean() + 100 * (outputs - truth).abs().mean()
    assert torch.isclose(model.generator_loss(inputs, truth, outputs), wanted, rtol=1e-5)


@pytest.mark.parametrize("size", [16, 48, 100])
def test_pix2pix_needs_a_power_of_two(size):
    with pytest.raises(UserError, match="power of two"):
        Pix2Pix(width=2, size=size)


def test_learning_rate_falls_in_the_second_half():
    model = Pix2Pix(width=2, size=32)
    optimizers = {"generator": torch.optim.Adam(model.generator.parameters())}
    optimizers["discriminator"] = torch.optim.Adam(model.discriminator.parameters())
    rates = []
    for epoch in range(200):
        set_rates(optimizers, model, epoch, 200)
        rates.append(optimizers["generator"].param_groups[0]["lr"] / 2e-4)
    assert rates[:100] == [1] * 100
    assert np.allclose(rates[100:], [1 - step / 101 for step in range(1, 101)])


# Data

def test_colours_of_labels_differ():
    colours = palette()
    assert len(np.unique(colours, axis=0)) == 256 and not colours[255].any()
    first = colours[:20].astype(int)
    assert min(np.abs(first[one] - first[other]).max() for one in range(20) for other in range(one)) > 60


def pair_on_disk(folder, size=(40, 80)):
    """An image and a label of streets' classes on disk, as a pair."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 19, size, np.uint8)
    label[:8] = 255
    for name, array in (("img", image), ("label", label)):
        (folder / name).mkdir(parents=True)
        Image.fromarray(array).save(folder / name / "a.png")
    return Pair("img/a.png", "label/a.png", "series", folder), image, label


def test_copy_for_translation(tmp_path):
    pair, image, label = pair_on_disk(tmp_path / "data")
    [one] = copy_translation([pair], "streets", tmp_path / "copy", 20, "train", "label-to-image")
    assert (one.image, one.label, one.group, one.root) == ("label/a.png", "img/a.png", "series", tmp_path / "copy")
    assert np.array_equal(load_image(tmp_path / "copy" / one.image), palette()[label[1::2, 2::4]])
    wanted = cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA)
    assert np.array_equal(load_image(tmp_path / "copy" / one.label), wanted)
    [other] = copy_translation([pair], "streets", tmp_path / "copy", 20, "train", "image-to-label")
    assert (other.image, other.label) == (one.label, one.image)
    [same] = copy_translation([pair], "streets", tmp_path / "copy", 20, "train", "image-to-image")
    assert same.image == same.label == one.label
    with pytest.raises(UserError, match="at this size"):
        copy_translation([pair], "streets", tmp_path / "copy", 10, "train", "label-to-image")


def test_copy_restores_the_aspect(tmp_path):
    pair, _, label = pair_on_disk(tmp_path / "data", (40, 40))
    [one] = copy_pairs([pair], tmp_path / "copy", 20, "train", cityscapes256.ASPECT)
    assert load_image(tmp_path / "copy" / one.image).shape == (20, 40, 3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "copy" / one.label)), label[1::2])


def write_numbered(folder, count, suffix=".jpg"):
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        (folder / f"{number:04d}{suffix}").touch()


def test_parts_of_cityscapes256(tmp_path):
    for side, count in (("", 2975), ("val_", 500)):
        write_numbered(tmp_path / f"{side}data", count)
    parts = cityscapes256.splits(tmp_path)
    assert {name: len(pairs) for name, pairs in parts.items() if not name.startswith("block")} == {
        "official/in": 2975, "official/out": 500, "dependent/victim_in": 1488, "dependent/victim_out": 912,
        "dependent/shadow": 1075}
    blocks = [{pair.group for pair in parts[f"block/{name}"]} for name in cityscapes256.PARTS]
    assert sum(map(len, blocks)) == len(set().union(*blocks)) == 2975 // 25
    numbers = {int(pair.image[5:9]) for name in cityscapes256.PARTS for pair in parts[f"block/{name}"]}
    assert numbers == {number for number in range(1, 2976) if (number - 1) % 25 not in (0, 24)}
    assert parts["official/out"][0].label == "val_label/0001.png"


def test_maps_are_pairs_of_images(tmp_path):
    for folder in ("aerial", "map"):
        write_numbered(tmp_path / folder, 10)
    parts = maps.splits(tmp_path)
    assert sorted(len(pairs) for pairs in parts.values()) == [2, 2, 3, 3]
    assert all(pair.image.replace("aerial", "map") == pair.label for pairs in parts.values() for pair in pairs)
    for folder in ("aerial", "map"):
        for number in range(1, 11):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            pixels = pixels[:, ::-1] if folder == "map" else pixels
            Image.fromarray(pixels).save(tmp_path / folder / f"{number:04d}.jpg")
    out = must(script("datasets/__main__.py", "maps", "--root", tmp_path, "--splits", tmp_path / "splits", "--count", 2,
                      "--short-side", 32, "--copy", tmp_path / "copy", "--translate", "label-to-image")).stdout
    assert "victim_in.txt: 2" in out
    [one, _] = read_split(tmp_path / "splits" / "victim_in.txt", tmp_path / "copy")
    assert one.image.startswith("map/") and one.label == one.image.replace("map", "aerial")
    assert load_image(tmp_path / "copy" / one.image).shape == (32, 32, 3)
    (tmp_path / "map" / "0003.jpg").unlink()
    with pytest.raises(UserError, match="images of equal names"):
        maps.splits(tmp_path)


def test_at_most_keeps_whole_groups():
    pairs = [Pair(f"{n}.png", "", f"{n // 4}") for n in range(40)]
    kept = at_most(10, pairs, 0)
    assert len(kept) == 8 and kept == [pair for pair in pairs if pair.group in {one.group for one in kept}]
    assert kept != at_most(10, pairs, 1) and at_most(40, pairs, 0) == pairs


def test_augmented_pair_is_cropped_and_mirrored_together(tmp_path):
    pair_on_disk(tmp_path, (64, 64))
    data = TranslationPairs([Pair("img/a.png", "img/a.png", "g", tmp_path)], seed=0)
    items = [data[epoch, 0] for epoch in range(8)]
    assert all(torch.equal(*item) and item[0].shape == (3, 64, 64) for item in items)
    assert all(-1 <= item[0].min() < -0.5 and 0.5 < item[0].max() <= 1 for item in items)
    assert not any(torch.equal(items[0][0], item[0]) for item in items[1:]) and equal(data[3, 0][0], items[3][0])


# Training and attack

@pytest.fixture(scope="session")
def translation(pairs):
    """A folder with small pairs of streets, their split files, and a translator of two epochs in run/."""
    must(script(*training(pairs), "--out", pairs / "run"))
    return pairs


def training(folder):
    return ["train_translator.py", "--root", folder / "pairs", "--train", folder / "splits" / "victim_in.txt", "--test",
            folder / "splits" / "victim_out.txt", *SMALL]


def attack(folder, name="reconstruction"):
    return ["attack.py", "--attack", name, "--victim", folder / "run", "--root", folder / "pairs", "--members", folder /
            "splits" / "victim_in.txt", "--non-members", folder / "splits" / "victim_out.txt", "--precision", "fp32"]


def test_run_of_a_translator(translation):
    found = results(translation / "run")
    assert found["in"] == found["out"] == 12 and 0 < found["l1_in"] < 1 and 0 < found["l1_out"] < 1
    sheets = sorted((translation / "run" / "samples").glob("*.png"))
    assert [sheet.name for sheet in sheets] == ["epoch-0001.png", "epoch-0002.png"]
    sheet, pairs = load_image(sheets[1]), read_split(translation / "splits" / "victim_in.txt", translation / "pairs")
    assert sheet.shape == (8 * 64, 3 * 64, 3)
    for column, file in ((0, pairs[0].image), (2, pairs[0].label)):
        assert np.array_equal(sheet[:64, 64 * column : 64 * (column + 1)], load_image(translation / "pairs" / file))
    assert (translation / "run" / "provenance.json").stat().st_mode & 0o777 == 0o600
    model = load_translator(translation / "run" / "last.pth.tar")
    assert isinstance(model, Pix2Pix) and not model.training


def test_stopped_training_resumes_to_the_same_weights(translation, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "training.translation", "learn", 17)
        result = script(*training(translation), "--out", tmp_path / "stopped")
    assert result.returncode == 143 and "resume with --continue" in result.stderr
    assert torch.load(tmp_path / "stopped" / "last.pth.tar", weights_only=True)["step"] == 5
    must(script("train_translator.py", "--continue", tmp_path / "stopped"))
    one, two = (torch.load(folder / "last.pth.tar", weights_only=True)
                for folder in (translation / "run", tmp_path / "stopped"))
    for key in ("epoch", "step", "model", "state_dict", "generator", "discriminator"):
        assert equal(one[key], two[key]), key


@pytest.mark.slow
def test_two_processes_train_one_translator(translation, tmp_path):
    flags = [*training(translation), "--batch", 2, "--model", "pix2pixhd"]  # InstanceNorm does not depend on the share
    must(script(*flags, "--out", tmp_path / "one"))
    must(torchrun(*flags, "--out", tmp_path / "two"))
    one, two = (results(tmp_path / run)["l1_in"] for run in ("one", "two"))
    assert one == pytest.approx(two, rel=0.01)


def test_gradients_are_averaged_over_processes(monkeypatch):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    monkeypatch.setattr(step, "world_size", lambda: 2)
    monkeypatch.setattr(step.dist, "all_reduce", lambda gradient: gradient.add_(torch.tensor([3.0, 5.0])))
    step.average_gradients(optimizer)
    weight.grad = torch.tensor([1.0, -1.0])  # that of this process; the other has 3 and 5
    optimizer.step()
    assert weight.tolist() == [-2.0, -2.0]


def test_live_and_stored_attack_agree(translation, tmp_path):
    must(script(*attack(translation), "--keep", tmp_path / "tree", "--out", tmp_path / "live"))
    must(script("attack.py", "--attack", "reconstruction", "--triples", tmp_path / "tree", "--out",
                tmp_path / "stored"))
    live, stored = (scores(tmp_path / run) for run in ("live", "stored"))
    assert len(live) == 24 and {name.partition("/")[2]: value for name, value in stored.items()} == live
    records, outputs = list_triples(tmp_path / "tree")
    error = np.mean([np.abs(load_image(outputs[one.name]).astype(float) - load_image(one.label)).mean()
                     for one in records if one.member]) / 255
    assert error == pytest.approx(results(translation / "run")["l1_in"], abs=1e-3)


@pytest.mark.parametrize("name", ["membership-error", "membership-error-released"])
def test_membership_error_of_a_translator(translation, tmp_path, name):
    must(script(*attack(translation, name), "--out", tmp_path / "run"))
    must(script(*attack(translation), "--out", tmp_path / "plain"))
    full, plain = scores(tmp_path / "run"), scores(tmp_path / "plain")
    assert all(full[one][1] > plain[one][1] for one in plain)  # the predictability error is positive


def test_outputs_of_other_images_are_refused(translation, tmp_path):
    must(script(*attack(translation), "--keep", tmp_path / "tree", "--out", tmp_path / "live"))
    folder = tmp_path / "tree" / "train"
    truths = sorted((folder / "truth").rglob("*.png"))
    for path, after in zip(truths, [*truths[1:], truths[0]], strict=True):  # a perfect generator, exchanged names
        shutil.copy(path, folder / "output" / after.relative_to(folder / "truth"))
    result = script("attack.py", "--attack", "reconstruction", "--triples", tmp_path / "tree")
    assert result.returncode == 2 and "outputs of members fit the ground truths of other images" in result.stderr


@pytest.mark.parametrize("flags, message", [
    (["--attack", "loss"], "reads posteriors"), (["-argmax"], "-argmax changes posteriors"),
    (["--stride", 4], "--stride has no effect"), (["--dataset", "camvid"], "was trained on the data set images"),
    (["--jpeg", 0], "quality must be a whole number"), (["--rounding", 0], "step must be above 0")])
def test_flags_that_do_not_suit_a_translator(translation, flags, message):
    result = script(*attack(translation), *flags)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_translator_is_no_segmentation_model(world, translation, tmp_path):
    victim = translation / "run" / "last.pth.tar"
    result = script("train_shadow.py", "--victim", victim, "--root", world / "data", "--split", world / "shadow.txt",
                    "--out", tmp_path / "shadow")
    assert result.returncode == 2 and "holds no segmentation model" in result.stderr, result.stderr
    result = script("attack.py", "-resume", victim)
    assert result.returncode == 2 and "is no attacker but a pix2pix" in result.stderr
    result = script("attack.py", "--jpeg", 50)
    assert result.returncode == 2 and "-jpeg changes translated images" in result.stderr


def test_images_of_other_sizes_are_refused(translation, tmp_path):
    shutil.copytree(translation / "pairs", tmp_path / "pairs")
    [first, *_] = read_split(translation / "splits" / "victim_in.txt", translation / "pairs")
    for file in (first.image, first.label):
        Image.fromarray(load_image(tmp_path / "pairs" / file)[:32]).save(tmp_path / "pairs" / file)
    result = script(*training(translation), "--root", tmp_path / "pairs", "--out", tmp_path / "run")
    assert result.returncode == 2 and "must be square and of one size" in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()
    result = script(*attack(translation), "--root", tmp_path / "pairs", "--allow", "unseen")
    assert result.returncode == 2 and "must be multiples of 64" in result.stderr, result.stderr


def test_pairs_of_images_train_no_segmentation_model(tmp_path):
    for command in (["train_victim.py", "--out", tmp_path / "run"], ["attack.py", "--victim", "v", "--members", "a",
                                                                     "--non-members", "b"]):
        result = script(*command, "--dataset", "maps")
        assert result.returncode == 2 and "maps has no labels" in result.stderr, result.stderr


# Defenses

@pytest.mark.parametrize("name, strength", [("gauss", 0.1), ("rounding", 0.25), ("jpeg", 30)])
def test_defenses_of_images(name, strength):
    image = torch.rand(3, 32, 32)
    defense = DefenseSpec(name, strength).build()
    out = defense.apply_to_image(image, "a")
    assert out.shape == image.shape and out.min() >= 0 and out.max() <= 1 and not torch.equal(out, image)
    assert torch.equal(out, defense.apply_to_image(image, "a"))
    if name == "rounding":
        assert len(out.unique()) == 5 and (out - image).abs().max() <= 0.125 + 1e-6


def test_rounded_posteriors_are_probabilities():
    posterior = torch.rand(5, 4, 4).softmax(0)
    out = DefenseSpec("rounding", 0.3).build().apply(posterior, "a")
    assert torch.allclose(out.sum(0), torch.ones(4, 4)) and (out >= 0).all()


@pytest.mark.slow
def test_defended_translator(translation, tmp_path):
    found = {}
    for name, flags in (("plain", []), ("gauss", ["-gauss", 0.2]), ("rounding", ["--rounding", 0.5]),
                        ("jpeg", ["--jpeg", 5])):
        must(script(*attack(translation), *flags, "--out", tmp_path / name))
        found[name] = scores(tmp_path / name)
        assert results(tmp_path / name)["defense"] in (None, "gauss 0.2", "rounding 0.5", "jpeg 5")
    assert len({tuple(found[name].values()) for name in ("plain", "gauss", "rounding")}) == 3


def test_commands_of_the_docstring_are_those_of_the_defaults():
    defaults = TranslatorTraining()
    assert defaults.width == 16 and defaults.epochs == 200
    text = (ROOT / "train_translator.py").read_text()
    assert "--copy data/streets-translation --splits splits/streets-translation" in text
