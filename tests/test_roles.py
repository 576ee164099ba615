"""A model or an image that plays two roles under other names, and the choice of an attacker's weights."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL, must, results, script, small_scene, write_tree
from PIL import Image, ImageOps
from test_seams import assert_refused, write_other_model

from attacks.sample import Sample
from datasets.inspection import look_of
from datasets.pairs import Pair, write_split
from datasets.provenance import Identity, Images, read_provenance, write_provenance
from models.attacker import Attacker
from training.attacker import DECAY, Learner
from training.held_out import candidate_taus
from training.options import AttackerTraining
from training.run import TrainingRun
from utils.cli import UserError
from utils.device import CPU_FP32


@pytest.fixture
def calibrated(live):
    return ["attack.py", "--attack", "calibrated", *live, "--patch-size", 6]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("role", ["reference", "control", "twice"])
def test_a_model_with_two_roles(world, live, calibrated, tmp_path, role, copied):
    """Also if it is a copy of the checkpoint, whose training images are not known."""
    victim, shadow = world / "victim" / "last.pth.tar", world / "shadow"
    first, second = ({"twice": (shadow, shadow / "last.pth.tar")}.get(role) or (shadow, victim))
    if copied:
        second = shutil.copy(second if second.is_file() else second / "last.pth.tar", tmp_path / "copy.pth.tar")
    flags = {"reference": [*calibrated, "--references", second], "twice": [*calibrated, "--references", first, second],
             "control": ["attack.py", "--attack", "loss", *live, "--control", second]}[role]
    known = {"control": "was trained on 8 of the attacked images",
             "reference": "was trained on 8 of 8 members and on 0 of 8 non-members"}
    message = "give equal outputs" if copied else known.get(role, "give equal outputs")
    assert_refused(script(*flags, "--out", tmp_path / "run"), message)


def test_a_reference_that_is_the_target_in_another_precision(live, tmp_path):
    for precision in ("fp32", "bf16"):
        must(script("attack.py", "--attack", "loss", *live, "--precision", precision, "--keep", tmp_path / precision,
                    "--out", tmp_path / f"run-{precision}"))
    paths = [tmp_path / precision / "train" / "pred_sgd" / "img" / "0.npy" for precision in ("fp32", "bf16")]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    result = script("attack.py", "--attack", "calibrated", "--examples", tmp_path / "fp32", "--references",
                    f"stored:{tmp_path / 'bf16'}", "--patch-size", 6, "--out", tmp_path / "run")
    assert_refused(result, "give equal outputs")


def test_a_reference_without_provenance_is_said(world, calibrated, tmp_path):
    other = write_other_model(world / "shadow" / "last.pth.tar", tmp_path / "other.pth.tar")
    result = must(script(*calibrated, "--references", other, "--out", tmp_path / "run"))
    assert "the training images of the reference" in result.stderr and "are not known" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("role", ["--control", "--victim"])
def test_a_control_or_a_victim_without_provenance_is_said(world, live, tmp_path, role):
    source = world / ("shadow" if role == "--control" else "victim") / "last.pth.tar"
    model = shutil.copy(source, tmp_path / "model.pth.tar")
    result = must(script("attack.py", "--attack", "loss", *live, role, model, "--out", tmp_path / "run"))
    known = must(script("attack.py", "--attack", "loss", *live, role, source, "--out", tmp_path / "known"))
    assert (f"the training images of {role} {model} are not known; it is assumed that it was trained on "
            in (result.stderr if role == "--control" else result.stdout))
    assert "are not known" not in known.stdout + known.stderr
    assert role == "--control" or result.stderr == known.stderr


@pytest.mark.slow
def test_the_demo_says_nothing_about_training_images(tmp_path):
    result = must(script("attack.py", "--attack", "loss", "--out", tmp_path / "run"))
    assert "not known" not in result.stdout + result.stderr


def write_binary(folder):
    """24 images with masks 0 and 1, a split file in.txt of 12 of them, and out.txt of the others."""
    pairs = [Pair(f"i{index}.png", f"l{index}.png", f"i{index}.png") for index in range(24)]
    for index, pair in enumerate(pairs):
        image, label = small_scene(index)
        Image.fromarray(image).save(folder / pair.image)
        Image.fromarray((label == 0).astype(np.uint8)).save(folder / pair.label)
    for name, part in (("in", pairs[:12]), ("out", pairs[12:]), ("all", pairs)):
        write_split(folder / f"{name}.txt", part)
    return ["--root", folder, "--train", folder / "in.txt", "--test", folder / "out.txt"]


@pytest.mark.slow
def test_the_data_set_of_a_shadow_is_that_of_the_victim(world, tmp_path):
    given, folder = write_binary(tmp_path), ["--dataset", "folder", "--classes", 2]
    must(script("train_victim.py", *given, *folder, *SMALL, "--out", tmp_path / "victim"))
    victim, split = ["--victim", tmp_path / "victim" / "last.pth.tar"], ["--split", tmp_path / "all.txt"]
    root = given[:2]
    modes = {"train": given, "random": [*root, *split, "--partition", "random"], "confidence": [*root, *split]}
    (tmp_path / "names.txt").write_text("road\nother\n")
    others = {"has 2 classes; the data set streets has 19": ["--dataset", "streets"],
              "class 0 of": [*folder, "--class-names", tmp_path / "names.txt"]}
    for mode, flags in modes.items():
        command = ["train_shadow.py", *flags, *victim, "--allow", "overlap", *SMALL]
        must(script(*command, "--out", tmp_path / mode))
        checkpoint = torch.load(tmp_path / mode / "last.pth.tar", weights_only=True)
        assert checkpoint["model"]["classes"] == 2 and checkpoint["dataset"].startswith("folder:")
        for message, wrong in others.items():
            assert_refused(script(*command, *wrong, "--out", tmp_path / "other"), message)
    missing = ["--victim", tmp_path / "none.pth.tar", "--dataset", "streets"]
    assert_refused(script("train_shadow.py", *given, *missing, *SMALL, "--out", tmp_path / "run"), "none.pth.tar")


def test_a_shadow_on_another_data_set_needs_no_victim(world, tmp_path, monkeypatch):
    """The default victim has 19 classes. With --dataset, or where its file is missing, it does not count."""
    given, folder = write_binary(tmp_path), ["--dataset", "folder", "--classes", 2]
    must(script("train_shadow.py", *given, *folder, *SMALL, "--out", tmp_path / "train"))
    split = ["--split", tmp_path / "all.txt", "--partition", "random"]
    must(script("train_shadow.py", *given[:2], *split, *folder, *SMALL, "--out", tmp_path / "random"))
    streets = ["--root", world / "data", "--train", world / "victim_in.txt", "--test", world / "victim_out.txt"]
    (tmp_path / "empty").mkdir()
    must(script("train_shadow.py", *streets, *SMALL, "--out", tmp_path / "run", cwd=tmp_path / "empty"))


def test_classes_that_never_occur_are_reported(world, victim_command, tmp_path):
    given = write_binary(tmp_path)
    result = must(script("train_victim.py", *given, *SMALL, "--out", tmp_path / "run"))
    assert "17 of the 19 classes of streets occur in no label of --train: building" in result.stderr
    assert "check --dataset" in result.stderr
    assert "occur in no label" not in must(script(*victim_command, "--out", tmp_path / "streets")).stderr


@pytest.mark.parametrize("bits, colour, message", [(12, False, "have at most 16 levels"), (16, False, ""),
                                                   (12, True, "have at most 16 levels"), (8, False, "they are black")])
def test_images_of_16_bits_with_lower_values(tmp_path, bits, colour, message):
    given = write_binary(tmp_path)
    for path in tmp_path.glob("i*.png"):
        grey = np.array(Image.open(path).convert("L")).astype(np.uint16) << (bits - 8)
        cv2.imwrite(str(path), np.repeat(grey[..., None], 3, axis=2) if colour else grey)
    result = script("train_victim.py", *given, "--dataset", "folder", "--classes", 2, *SMALL, "--out", tmp_path / "run")
    assert message in result.stderr and (message or "16 bits a channel" not in result.stderr)
    assert result.returncode == (2 if bits == 8 else 0)


def test_outputs_of_a_reference_do_not_fit_the_labels(tmp_path):
    target, reference = (write_tree(tmp_path / name, names=tuple("abcdef"), seed=seed)
                         for name, seed in (("target", 0), ("reference", 1)))
    for side in ("train", "val"):
        shutil.copytree(target / side / "label", reference / side / "label", dirs_exist_ok=True)
    for path in target.rglob("*.npy"):  # of the model that the reference is, for the labels of `target`
        moved = np.roll(np.load(path), 1, axis=0)
        np.save(reference / path.relative_to(target), moved)
    result = script("attack.py", "--attack", "calibrated", "--examples", target, "--references", f"stored:{reference}",
                    "--out", tmp_path / "run")
    assert_refused(result, "in different orders", "(the reference ")


def test_a_shadow_twice(world, tmp_path):
    shutil.copytree(world / "shadow", tmp_path / "copy")
    for second in (world / "shadow", tmp_path / "copy"):
        result = script("train_attacker.py", "--shadow", world / "shadow", second, "--patch-size", 12, "--out",
                        tmp_path / "run")
        assert_refused(result, "hold the same shadow", "give each shadow once")


def write_images(folder, versions_of):
    """Write 8 + 8 images and their splits; `versions_of` 6 of each side are changed versions of the first."""
    for side, first in (("in", 0), ("out", 100)):
        pairs = []
        for index in range(first, first + 8):
            image, label = small_scene(index)
            if versions_of and 0 < index - first < 7:
                image, label = versions_of(first, index - first)
            pair = Pair(f"img/{index}.png", f"label/{index}.png", f"{index}")
            for path, array in ((pair.image, image), (pair.label, label)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / path)
            pairs.append(pair)
        write_split(folder / f"{side}.txt", pairs)
    return ["--root", folder, "--members", folder / "in.txt", "--non-members", folder / "out.txt", "--allow", "unseen"]


def brighter(first, step):
    image, label = small_scene(first)
    return np.clip(image.astype(int) + step, 0, 255).astype(np.uint8), label


def shifted(first, step):
    image, label = brighter(first, step)
    return image, np.roll(label, step, axis=1)


def one_mask(first, step):
    """Another image with the label of the first, as of images with one template as their mask."""
    return small_scene(first + 500 + step)[0], small_scene(first)[1]


@pytest.mark.parametrize("change, groups, message", [
    (one_mask, 8, ""),
    (brighter, 2, "12 attacked images have the label of an earlier one of their side"),
    (shifted, 8, "14 of 16 attacked images look like one of another group, 0 of them like one of the other side"),
    (None, 8, "")])
def test_versions_of_an_image(world, tmp_path, change, groups, message):
    flags = write_images(tmp_path / "data", change)
    victim = ["--victim", world / "victim" / "last.pth.tar", "--precision", "fp32"]
    result = must(script("attack.py", "--attack", "loss", *victim, *flags, "--out", tmp_path / "run"))
    assert message in result.stderr and results(tmp_path / "run")["groups"]["members"] == groups
    assert message or "look like" not in result.stderr


def test_versions_on_the_two_sides_of_a_training(tmp_path):
    flags = write_images(tmp_path / "data", None)
    Image.fromarray(brighter(0, 20)[0]).save(tmp_path / "data" / "img" / "100.png")
    result = must(script("train_victim.py", *flags[:2], "--train", flags[3], "--test", flags[5], *SMALL, "--out",
                         tmp_path / "run"))
    assert "1 images of --train look like one of --test in another group" in result.stderr


def write_versions(world, folder, function):
    """Versions of the 8 members of `world`, the images and their labels; returns their split file."""
    pairs = []
    for index in range(8):
        paths = [f"v{kind}{index}.png" for kind in "il"]
        for kind, path in zip(("img", "label"), paths, strict=True):
            function(Image.open(world / "data" / kind / f"{index}.png")).save(folder / path)
        pairs.append(Pair(*paths, paths[0]))
    write_split(folder / "versions.txt", pairs)
    return folder / "versions.txt"


def resized(image):
    return image.resize((96, 48), Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.BILINEAR)


@pytest.mark.slow
@pytest.mark.parametrize("function", [resized, ImageOps.mirror])
def test_versions_of_images_in_two_roles(world, live, tmp_path, function):
    """Other pixels and another label than the original: found by the perceptual hash in each role."""
    versions, victim = write_versions(world, tmp_path, function), world / "victim" / "last.pth.tar"
    shutil.copytree(world / "data", tmp_path, dirs_exist_ok=True)
    others = (world / "shadow.txt").read_text().splitlines(keepends=True)
    (tmp_path / "in.txt").write_text(versions.read_text() + "".join(others[-16:-8]))
    (tmp_path / "out.txt").write_text("".join(others[:-16]))
    split = ["--root", tmp_path, "--train", tmp_path / "in.txt", "--test", tmp_path / "out.txt"]
    found = must(script("train_shadow.py", *split, "--victim", victim, *SMALL, "--out", tmp_path / "shadow"))
    assert f"8 of {len(others)} images of D^S look like training images of the victim" in found.stderr
    must(script("train_attacker.py", "--shadow", tmp_path / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs",
                1, "--out", tmp_path / "loss", "--precision", "fp32"))
    found = must(script("attack.py", *live, "-resume", tmp_path / "loss" / "best.pth.tar", "--out", tmp_path / "run"))
    assert "8 of 16 attacked images look like images of D^S" in found.stderr
    flags = ["--control", tmp_path / "shadow", "--references", world / "shadow", tmp_path / "shadow" / "last.pth.tar"]
    found = must(script("attack.py", *live, "--attack", "calibrated", *flags[:2], *flags[2:4], "--out", tmp_path / "c"))
    assert "8 of 16 attacked images look like training images of --control" in found.stderr
    found = must(script("attack.py", *live, "--attack", "calibrated", *flags[2:], "--out", tmp_path / "calibrated"))
    assert "8 of 16 attacked images look like training images of the reference " in found.stderr
    live = ["--victim", victim, "--root", tmp_path, "--members", world / "victim_out.txt", "--non-members", versions,
            "--allow", "unseen", "--precision", "fp32"]
    found = must(script("attack.py", *live, "--attack", "loss", "--out", tmp_path / "non"))
    assert "8 of 8 attacked non-members look like training images of the target model" in found.stderr


def test_images_without_contrast_and_of_one_group_do_not_look_alike():
    black = look_of(np.zeros((64, 128, 3), np.uint8))
    looks = [look_of(image) for image in (small_scene(0)[0], np.ascontiguousarray(small_scene(0)[0][:, ::-1]))]
    known = Images([Identity("a", "drive", "1", "1", looks[0]), Identity("b", None, "2", None, black)])
    others = [Identity("c", group, "3", "3", looks[1]) for group in ("drive", None)] + [
        Identity("d", None, "4", None, black), Identity("e", None, "5", None, None)]
    assert black is None and [(one.name, one.group, own.name) for one, own in known.near(others)] == [("c", None, "a")]


def test_provenance_of_earlier_versions_and_with_keys_has_no_perceptual_hash(tmp_path):
    look = look_of(small_scene(0)[0])
    one = Identity("a", None, "1" * 32, "2" * 32, look)
    write_provenance(tmp_path, {"in": [one], "out": [one.hashed(str.upper)]})
    assert [read_provenance(tmp_path)[role].all[0].look for role in ("in", "out")] == [look, None]
    written = json.loads((tmp_path / "provenance.json").read_text())
    del written["in"][0]["look"]
    (tmp_path / "provenance.json").write_text(json.dumps(written))
    assert read_provenance(tmp_path)["in"].all == [replace(one, look=None)]
    written["in"][0]["look"] = "no hash"
    (tmp_path / "provenance.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="is damaged"):
        read_provenance(tmp_path)


def test_an_image_of_two_shadows_is_in_one_part(world, tmp_path):
    """Two shadows that share D^S with exchanged sides: each image is either trained on or held out."""
    shadow = world / "shadow"
    must(script("train_shadow.py", "--root", world / "data", "--train", shadow / "out.txt", "--test", shadow / "in.txt",
                *SMALL, "--out", tmp_path / "swapped"))
    from datasets.provenance import Images
    from defenses.base import NO_DEFENSE
    from predictors.base import identify
    from training.held_out import hold_out
    from training.setup import cache_shadows, compare_attacker_data, join_trees

    runs = [shadow, tmp_path / "swapped"]
    source, _ = compare_attacker_data(runs, join_trees(cache_shadows(runs, 4, NO_DEFENSE, CPU_FP32)))
    rest, held = hold_out(source.records, 0)
    assert len(rest) + len(held) == 48 and len(held) >= 8
    assert not Images(identify(rest)).shared(identify(held))


# The weights of an attacker


def test_best_is_the_average_of_the_weights(tmp_path):
    options = AttackerTraining(width=0.125, patch_size=12)
    learner = Learner.prepare(options, options.spec(19), TrainingRun(tmp_path, {}), CPU_FP32)
    expected = None
    for step in range(3):
        with torch.no_grad():
            for weight in learner.model.parameters():
                weight.add_(1)
        learner.average.update_parameters(learner.model)
        weight, decay = next(learner.model.parameters()).clone(), min(DECAY, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert torch.allclose(next(learner.average.module.parameters()), expected, atol=1e-5)
    assert learner.state()["averaged"] == 3 and isinstance(learner.model, Attacker)


def test_the_held_out_auc_is_that_of_the_last_epoch(world):
    """It has an interval or the reason why not, and neither the log nor the choice of tau changes it."""
    found = results(world / "loss")
    last = [json.loads(line) for line in (world / "loss" / "log.jsonl").read_text().splitlines()][-1]
    assert found["epoch"] == 2 and found["validation_auc"] == last["validation_auc"]
    groups = found["held_out_groups"]
    assert min(groups["members"], groups["non_members"]) < 10 and found["validation_auc_interval"] is None
    checkpoint = torch.load(world / "loss" / "best.pth.tar", weights_only=True)
    current = torch.load(world / "loss" / "last.pth.tar", weights_only=True)
    assert checkpoint["state_dict"].keys() == current["average"].keys()
    assert all(torch.equal(value, current["average"][name]) for name, value in checkpoint["state_dict"].items())
    assert not all(torch.equal(value, current["state_dict"][name]) for name, value in checkpoint["state_dict"].items())


@pytest.mark.parametrize("name", ["train_victim.py", "train_attacker.py"])
def test_weights_that_become_infinite_in_the_last_step(world, victim_command, tmp_path, monkeypatch, name):
    import importlib

    module = importlib.import_module("training.segmentation" if name == "train_victim.py" else "training.attacker")
    learn = module.learn

    def overshoot(model, *args, **kwargs):
        loss = learn(model, *args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return loss

    command = [*victim_command, "--epochs", 1, "--batch", 8] if name == "train_victim.py" else [
        name, "--shadow", world / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs", 1, "--patches-per-epoch",
        1, "--precision", "fp32"]
    monkeypatch.setattr(module, "learn", overshoot)
    assert_refused(script(*command, "--out", tmp_path / "run"), "weights became NaN or infinite in epoch 1", "--lr")


@pytest.mark.slow
def test_an_attacker_that_reads_other_classes_is_said(world, live, tmp_path):
    for kind, warns in (("loss", False), ("concate", True)):
        checkpoint = torch.load(world / kind / "best.pth.tar", weights_only=True)
        assert checkpoint["classes"][0] == "road"
        torch.save(checkpoint | {"classes": checkpoint["classes"][::-1]}, tmp_path / f"{kind}.pth.tar")
        for place, other in ((world / kind / "best.pth.tar", False), (tmp_path / f"{kind}.pth.tar", True)):
            result = must(script("attack.py", "-resume", place, *live, "--out", tmp_path / f"{kind}-{other}"))
            assert ("reads the classes in their order" in result.stderr) is (warns and other)


@pytest.mark.slow
def test_the_last_checkpoint_of_an_attacker_is_said(world, live, tmp_path):
    found = must(script("attack.py", "-resume", world / "loss" / "last.pth.tar", *live, "--out", tmp_path / "last"))
    assert "has the weights of the last step" in found.stderr and "stopped after" not in found.stderr
    checkpoint = torch.load(world / "loss" / "last.pth.tar", weights_only=True)
    torch.save(checkpoint | {"epoch": 1}, tmp_path / "last.pth.tar")
    found = must(script("attack.py", "-resume", tmp_path / "last.pth.tar", *live, "--out", tmp_path / "unfinished"))
    assert "stopped after 1 of 2 epochs" in found.stderr
    found = must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--out", tmp_path / "best"))
    assert "last step" not in found.stderr and "stopped after" not in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("trained, others", [("argmax", ["gauss 0.1"]), ("gauss 0.3", ["gauss 0.1", "argmax"]),
                                             ("test_dropout 0.5", [])])
def test_an_attacker_of_another_defense_is_said(world, live, tmp_path, trained, others):
    def flags(defense):
        name, *strength = defense.split()
        return [f"-{name.replace('_', '-')}", *strength]

    checkpoint = torch.load(world / "loss" / "best.pth.tar", weights_only=True)
    name, *strength = trained.split()
    checkpoint["args"][name] = float(strength[0]) if strength else True
    torch.save(checkpoint, tmp_path / "best.pth.tar")
    for number, defense in enumerate(["none", trained, *others]):
        attacker = ["-resume", tmp_path / "best.pth.tar", *live, *(flags(defense) if number else [])]
        found = must(script("attack.py", *attacker, "--out", tmp_path / str(number)))
        assert (f"was trained under the defense {trained}, and the attack is" in found.stderr) is (defense != trained)
    found = must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, *flags(trained), "--out",
                        tmp_path / "undefended"))
    assert "was trained under" not in found.stderr


def test_held_out_patches_without_labels_are_refused_before_the_training(tmp_path):
    sample = Sample("a", "a", "a", True, torch.full((2, 8, 8), 0.5), torch.full((8, 8), 255, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"no patch of the held-out part of D\^S has a labelled position"):
        candidate_taus([sample], 4, 0)
