"""Inputs that would give a wrong metric: each is refused, or reported beside the metric."""

import functools
import json
import os
import shutil
import stat

import numpy as np
import pytest
import torch
from conftest import SMALL, must, results, scores, script, small_scene
from PIL import Image
from test_seams import assert_refused

from datasets import streets
from datasets.inspection import inspect
from datasets.pairs import Pair, read_split, write_split
from evaluation.alignment import Probe, check_images
from evaluation.controls import CROSS_FITTED, blind_scores, judge, verdict
from evaluation.forms import significant_bits
from predictors.base import Record
from predictors.samples import tree_source
from predictors.stored import write_groups
from utils.cli import UserError
from utils.files import ROOT

COUNT = 12  # images of each side of the tree


@pytest.fixture
def tree(tmp_path):
    """A copy of the first images of examples/."""
    for side in ("train", "val"):
        for kind, suffix in (("label", "png"), ("pred_sgd", "npy")):
            (tmp_path / "tree" / side / kind).mkdir(parents=True)
            for path in sorted((ROOT / "examples" / side / kind).glob(f"*.{suffix}"))[:COUNT]:
                shutil.copy(path, tmp_path / "tree" / side / kind)
    return tmp_path / "tree"


def attack(tree, *flags, out="run"):
    return script("attack.py", "--attack", "loss", "--examples", tree, *flags, "--out", tree.parent / out)


def posteriors(tree, *sides):
    return [path for side in sides or ("train", "val") for path in sorted((tree / side / "pred_sgd").iterdir())]


def change(paths, function):
    """Replace each array by `function` of it."""
    for path in paths:
        np.save(path, function(np.load(path)))


def change_labels(tree, function):
    for path in tree.glob("*/label/*.png"):
        Image.fromarray(function(np.array(Image.open(path))).astype(np.uint8)).save(path)


# Images that play two roles


def copy_all(tree):
    shutil.rmtree(tree / "val")
    shutil.copytree(tree / "train", tree / "val")


def link_all(tree):
    shutil.rmtree(tree / "val")
    (tree / "val").symlink_to(tree / "train")


def copy_one(tree):
    shutil.copy(tree / "train" / "label" / "00000.png", tree / "val" / "label" / "other.png")
    shutil.copy(posteriors(tree, "train")[0], tree / "val" / "pred_sgd" / "other.npy")


@pytest.mark.parametrize("damage", [copy_all, link_all, copy_one])
@pytest.mark.parametrize("labels", [True, False])
def test_an_image_on_both_sides(tree, damage, labels):
    damage(tree)
    if not labels:
        for folder in tree.glob("*/label"):
            shutil.rmtree(folder)
    result = attack(tree, *([] if labels else ["--attack", "confidence"]))
    assert_refused(result, "the same image is a member and a non-member: train/00000 and val/")
    assert not (tree.parent / "run").exists()


def test_an_image_many_times_on_one_side(tree):
    for side in ("train", "val"):
        label, posterior = sorted((tree / side / "label").iterdir())[0], posteriors(tree, side)[0]
        for index in range(15):
            shutil.copy(label, label.with_name(f"copy{index}.png"))
            shutil.copy(posterior, posterior.with_name(f"copy{index}.npy"))
    assert_refused(attack(tree), "is attacked twice", "29 other pairs", "--allow copies")
    must(attack(tree, "--allow", "copies"))
    found = results(tree.parent / "run")
    assert found["roles"]["copies"] == 30 and found["groups"]["members"] == COUNT and found["members"] == COUNT + 15


def test_an_attacker_that_was_trained_on_the_attacked_images(world, tmp_path):
    own = ["attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", world / "shadow" / "posteriors-s4"]
    assert_refused(script(*own, "--out", tmp_path / "run"), "24 of the 24 attacked images", "D^S", "--allow overlap")
    result = must(script(*own, "--allow", "overlap", "--out", tmp_path / "run"))
    assert results(tmp_path / "run")["roles"]["overlap"] == 24
    assert "allowed: 24 images that the attacker knows" in result.stdout


@pytest.mark.parametrize("members, non_members, message", [
    ("victim_out", "victim_in", "exchange the two sides"),
    ("shadow", "victim_out", "not trained on 24 of the 24 members"),
    ("victim_in", "mixed", "trained on 1 of the 9 non-members, such as img/3")])
def test_sides_that_contradict_the_training_of_the_victim(world, live, tmp_path, members, non_members, message):
    names = ("victim_in", "victim_out", "shadow")
    sides = {name: read_split(world / f"{name}.txt", must_exist=False) for name in names}
    if non_members == "mixed":
        moved = next(pair for pair in sides["victim_in"] if pair.name == "img/3")
        sides["victim_in"].remove(moved)
        sides["mixed"] = [*sides["victim_out"], moved]
    for name in (members, non_members):
        write_split(tmp_path / f"{name}.txt", sides[name])
    flags = ["--members", tmp_path / f"{members}.txt", "--non-members", tmp_path / f"{non_members}.txt"]
    assert_refused(script("attack.py", "--attack", "loss", *live, *flags, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


def test_train_and_test_share_images(world, victim_command, tmp_path):
    both = world / "victim_in.txt"
    assert_refused(script(*victim_command, "--test", both, "--out", tmp_path / "run"), "share 8 images")
    for name in ("img", "label"):  # the same image under another name
        shutil.copytree(world / "data" / name, tmp_path / "data" / name)
        shutil.copy(tmp_path / "data" / name / "0.png", tmp_path / "data" / name / "other.png")
    write_split(tmp_path / "out.txt", [Pair(f"img/{name}.png", f"label/{name}.png", name) for name in ("100", "other")])
    flags = ["--root", tmp_path / "data", "--test", tmp_path / "out.txt", "--out", tmp_path / "run"]
    assert_refused(script(*victim_command, *flags), "share 1 images: img/other and img/0")
    assert not (tmp_path / "run").exists()


def test_shadow_data_that_the_victim_was_trained_on(world, tmp_path):
    flags = ["train_shadow.py", "--root", world / "data", "--split", world / "victim_in.txt", "--victim",
             world / "victim" / "last.pth.tar", "--out", tmp_path / "run", *SMALL, "--epochs", 1]
    assert_refused(script(*flags), "8 of the 8 images of D^S", "--allow overlap")
    must(script(*flags, "--allow", "overlap"))


def test_groups_that_both_sides_of_a_training_have(world, victim_command, tmp_path):
    for name in ("in", "out"):
        pairs = read_split(world / f"victim_{name}.txt", must_exist=False)
        write_split(tmp_path / f"{name}.txt", [Pair(pair.image, pair.label, f"drive{index % 2}")
                                               for index, pair in enumerate(pairs)])
    flags = ["--train", tmp_path / "in.txt", "--test", tmp_path / "out.txt", "--epochs", 1, "--out", tmp_path / "run"]
    result = must(script(*victim_command, *flags))
    assert "warning: 2 groups, such as drive0, are in both --train and --test" in result.stderr


def test_provenance_is_private_and_stays_beside_the_run(world, live, tmp_path):
    for run in ("victim", "shadow", "loss"):
        path = world / run / "provenance.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        known = json.loads(path.read_text())
        hashes = {one[kind] for side in ("in", "out") for one in known[side] for kind in ("image", "label")}
        for file in (world / run).rglob("*"):
            if file.is_file() and file != path:
                assert not any(value.encode() in file.read_bytes() for value in hashes), file
    (tmp_path / "key").write_bytes(bytes(range(32)))
    must(script("attack.py", "--attack", "loss", *live, "--hash-names", tmp_path / "key", "--out", tmp_path / "run"))
    text = (tmp_path / "run" / "provenance.json").read_text()
    known = json.loads((world / "victim" / "provenance.json").read_text())
    assert not any(one[kind] in text for one in known["in"] for kind in ("name", "image", "label"))


def test_training_resumes_only_with_the_images_of_its_start(world, victim_command, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    must(script(*victim_command, "--root", tmp_path / "data", "--out", tmp_path / "run"))
    must(script("train_victim.py", "--continue", tmp_path / "run"))
    label = tmp_path / "data" / "label" / "0.png"
    Image.fromarray(np.array(Image.open(label))[::-1]).save(label)
    assert_refused(script("train_victim.py", "--continue", tmp_path / "run"), "have changed since it was started",
                   "such as img/0")


def test_comparison_of_other_images_with_the_same_names(tree, tmp_path):
    must(attack(tree, out="one"))
    must(attack(tree, "--attack", "confidence", out="two"))
    must(script("evaluation/compare.py", tmp_path / "one", tmp_path / "two"))
    for kind, suffix in (("label", "png"), ("pred_sgd", "npy")):
        first, second = sorted((tree / "train" / kind).glob(f"*.{suffix}"))[:2]
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
    must(attack(tree, "--attack", "confidence", out="exchanged"))
    assert_refused(script("evaluation/compare.py", tmp_path / "one", tmp_path / "exchanged"),
                   "train/00000 is another image in")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["img", "label"])
def test_stored_posteriors_are_replaced_when_a_file_is_mended_in_place(world, live, tmp_path, kind):
    shutil.copytree(world / "data", tmp_path / "data")
    shutil.copytree(world / "victim", tmp_path / "victim")
    (tmp_path / "victim" / "provenance.json").unlink()
    flags = [*live, "--root", tmp_path / "data", "--victim", tmp_path / "victim" / "last.pth.tar"]
    path = tmp_path / "data" / kind / "0.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels[:, ::-1] if kind == "img" else np.where(pixels == 255, 255, 18 - pixels)).save(path)
    must(script("attack.py", "--attack", "loss", *flags, "--keep", tmp_path / "kept", "--out", tmp_path / "before"))
    state = path.stat()
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    must(script("attack.py", "--attack", "loss", *flags, "--keep", tmp_path / "kept", "--out", tmp_path / "after"))
    must(script("attack.py", "--attack", "loss", *flags, "--keep", tmp_path / "new", "--out", tmp_path / "new-run"))
    assert scores(tmp_path / "after") == scores(tmp_path / "new-run") != scores(tmp_path / "before")


@pytest.mark.parametrize("order, version", [("F", (1, 0)), ("C", (2, 0))])
def test_copies_of_outputs_in_another_form_of_file(tree, order, version):
    """The values identify an output where image and label are missing, not the bytes of its file."""
    for folder in tree.glob("*/label"):
        shutil.rmtree(folder)
    with open(tree / "val" / "pred_sgd" / "other.npy", "wb") as file:
        np.lib.format.write_array(file, np.array(np.load(posteriors(tree)[0]), order=order), version)
    assert_refused(attack(tree, "--attack", "confidence"), "the same image is a member and a non-member: train/00000")


def run_of(folder, *flags, groups=None):
    """A run on the tree `folder` with other flags, and with its images in `groups` groups."""
    if groups:
        names = [f"{path.parts[-3]}/{path.stem}" for path in posteriors(folder)]
        write_groups(folder, [(name, f"g{index % groups}") for index, name in enumerate(names)])
    out = f"run{len(list(folder.parent.glob('run*')))}"
    must(attack(folder, *flags, out=out))
    return folder.parent / out


@pytest.mark.slow
def test_comparison_names_what_differs_between_two_runs(tree, tmp_path):
    compare = functools.partial(script, "evaluation/compare.py")
    plain = run_of(tree)
    assert_refused(compare(plain, run_of(tree, groups=6)), "the group of train/00000 is g0 in", "one groups.txt")
    keys = [tmp_path / "first", tmp_path / "second"]
    for number, key in enumerate(keys):
        key.write_bytes(bytes([number]) * 32)
    (tree / "groups.txt").unlink()
    keyed = [run_of(tree, "--hash-names", key) for key in keys]
    must(compare(keyed[0], run_of(tree, "--hash-names", keys[0])))
    assert_refused(compare(*keyed), "perhaps --hash-names had another key")
    assert_refused(compare(plain, keyed[1]), f"the names of {keyed[1]} are keyed hashes")
    assert_refused(compare(keyed[1], plain), f"the names of {keyed[1]} are keyed hashes")
    posteriors(tree)[3].unlink()
    assert_refused(compare(plain, run_of(tree)), f"1 are only in {plain}, such as train/00003")
    os.rename(tree / "train", tree / "aside")
    os.rename(tree / "val", tree / "train")
    os.rename(tree / "aside", tree / "val")
    assert_refused(compare(plain, run_of(tree)), "such as train/01000")


def test_comparison_of_runs_with_other_labels(world, live, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    flags = ["attack.py", "--attack", "loss", *live, "--root", tmp_path / "data", "--allow", "unseen", "--out"]
    must(script(*flags, tmp_path / "one"))
    label = tmp_path / "data" / "label" / "0.png"
    Image.fromarray(np.where(np.arange(128) < 9, 255, np.array(Image.open(label))).astype(np.uint8)).save(label)
    must(script(*flags, tmp_path / "two"))
    result = must(script("evaluation/compare.py", tmp_path / "one", tmp_path / "two"))
    assert "warning: 1 images have other labels in another run, such as img/0 in" in result.stderr
    assert_refused(script("evaluation/compare.py", tmp_path / "one", f"{tmp_path}/two/../one"), "one is given twice")


# Files of a tree that are left out


def rename_all(folder, suffix):
    for path in sorted(folder.iterdir()):
        path.rename(path.with_suffix(suffix))


def test_files_of_a_tree_with_other_suffixes(tree, tmp_path):
    plain = run_of(tree)
    for side, suffix, kind in (("train", ".jpeg", "JPEG"), ("val", ".PNG", "PNG")):
        (tree / side / "img").mkdir()
        for index, label in enumerate(sorted((tree / side / "label").iterdir())):
            image = Image.fromarray(streets.draw(index + 40 * (side == "val"))[0])
            image.resize(Image.open(label).size).save(tree / side / "img" / f"{label.stem}{suffix}", kind)
        rename_all(tree / side / "label", ".tif" if side == "train" else ".PNG")
        rename_all(tree / side / "pred_sgd", ".NPY")
    result = must(attack(tree, out="other"))
    assert "left out" not in result.stdout and "of them" not in result.stdout
    assert "format of the images tells the sides apart" in result.stderr and scores(tmp_path / "other") == scores(plain)
    for path in sorted((tree / "val" / "img").iterdir())[1:]:
        path.unlink()
    assert f"{COUNT + 1} of them have a file of the same name in img/" in must(attack(tree, out="some")).stdout
    shutil.copy(tree / "train" / "img" / "00003.jpeg", tree / "train" / "img" / "00003.JPG")
    assert_refused(attack(tree, out="twice"), "00003.JPG and", "00003.jpeg have one name")


@pytest.mark.parametrize("kind, suffix", [("label", ".bmp"), ("pred_sgd", ".NPY")])
def test_two_files_of_one_name(tree, kind, suffix):
    path = sorted((tree / "val" / kind).iterdir())[0]
    shutil.copy(path, path.with_suffix(suffix))
    assert_refused(attack(tree), "have one name; keep one of them")


def test_hidden_and_unfinished_files_are_counted_and_hidden_folders_are_left_out(tree):
    folder = tree / "train" / "pred_sgd"
    for name in ("._00001.npy", "00002.npy.7.partial", ".DS_Store", ".cache/zzz.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    result = must(attack(tree))
    assert f"warning: 2 hidden or unfinished files in {folder}, such as ._00001.npy, are left out" in result.stderr
    assert f"{COUNT} + {COUNT} posteriors" in result.stdout and result.stderr.count("are left out") == 1
    (folder / "x.npy").mkdir()
    assert_refused(attack(tree, out="other"), "x.npy is a folder with the name of an array")


def test_a_third_side_is_reported(tree):
    (tree / "notes").mkdir()
    assert not must(attack(tree)).stderr
    shutil.copytree(tree / "val", tree / "test")
    groups = [f"{path.parts[-3]}/{path.stem}" for path in posteriors(tree, "train", "val", "test")]
    write_groups(tree, [(name, name[-1:]) for name in groups])
    assert f"warning: {tree}/test is left out: the sides of a tree are train and val" in must(attack(tree)).stderr


def test_a_folder_of_images_with_another_name_is_reported(tree):
    (tree / "val" / "images").mkdir()
    (tree / "val" / "pred_other").mkdir()
    line = f"warning: {tree}/val/images is left out: images belong in img/, and labels in label/\n"
    assert must(attack(tree)).stderr == line


@pytest.mark.parametrize("name", ["groups.csv", "Groups.txt"])
def test_groups_in_a_file_with_another_name(tree, name):
    (tree / name).write_text("train/00000 g\n")
    assert_refused(attack(tree), f"{name} is not read; name it groups.txt")


@pytest.mark.parametrize("resize, message", [
    (lambda label: label.resize((200, 128), Image.NEAREST), "no stride fits"),
    (lambda label: label.resize((128, 64), Image.NEAREST), "differ in stride: 4 ("),
    (lambda label: label.transpose(Image.ROTATE_90), "no stride fits")])
def test_a_label_of_another_size_than_its_posterior(tree, resize, message):
    path = tree / "val" / "label" / "01002.png"
    resize(Image.open(path)).save(path)
    for flags in ([], ["--attack", "confidence"]):
        assert_refused(attack(tree, *flags), message)


def test_a_side_with_another_name_is_named(tree):
    (tree / "val" / "pred_sgd").rename(tree / "val" / "posteriors")
    assert_refused(attack(tree), "holds no .npy posteriors", "val holds label/, posteriors/")


@pytest.mark.parametrize("place, target", [("train/pred_sgd", "train"), ("val/label", ""),
                                           ("train/label", "train/label")])
def test_a_link_to_a_folder_above_is_no_endless_loop(tree, place, target):
    (tree / place / "loop").symlink_to(tree / target)
    assert_refused(attack(tree), "are the same folder; remove the link")


def test_groups_of_one_image(tree):
    names = [f"{path.parts[-3]}/{path.stem}" for path in posteriors(tree)]
    lines = [f"{name} g{index % 10}" for index, name in enumerate(names)]
    (tree / "groups.txt").write_text("\n".join([*lines, lines[0]]))
    must(attack(tree))
    (tree / "groups.txt").write_text("\n".join([*lines, f"{names[0]} other"]))
    assert_refused(attack(tree), f"line {2 * COUNT + 1}: train/00000 already has g0, and now other")


def test_a_missing_label_of_a_tree(tree):
    (tree / "val" / "label" / "01002.png").unlink()
    result = attack(tree)
    assert_refused(result, "label/01002.png: no such label; check the folder that was given")
    assert "--root" not in result.stderr


@pytest.mark.parametrize("function, message", [
    (lambda image, label: (label, image), "i.png can be read as a label, so image and label may be exchanged"),
    (lambda image, label: (image, np.repeat(label[..., None], 3, 2)), "its channels are equal, so save one of them")])
def test_labels_that_are_images(tmp_path, function, message):
    for name, array in zip(("i", "l"), function(*small_scene(0)), strict=True):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    for dataset in ("streets", "cityscapes"):
        with pytest.raises(UserError, match=message):
            inspect(tmp_path / "i.png", tmp_path / "l.png", dataset)


def test_exchanged_columns_of_a_split_file(world, live, tmp_path):
    for side in ("victim_in", "victim_out"):
        pairs = read_split(world / f"{side}.txt", world / "data")
        write_split(tmp_path / f"{side}.txt", [Pair(pair.label, pair.image, pair.label) for pair in pairs])
    flags = ["--members", tmp_path / "victim_in.txt", "--non-members", tmp_path / "victim_out.txt"]
    result = script("attack.py", "--attack", "loss", *live, *flags, "--out", tmp_path / "run")
    assert_refused(result, "img/", "image and label may be exchanged (a split file has the image first)")


# Artefacts and controls


@pytest.mark.parametrize("function, message", [
    (lambda a: a.astype(np.float32), "differ in precision: float16 (12"),
    (lambda a: a.astype(np.float64), "differ in precision"),
    (lambda a: a[:, ::2, ::2], "differ in stride: 4 (12, such as train/00000) and 8 (12")])
def test_posteriors_of_the_two_sides_in_two_forms(tree, function, message):
    change(posteriors(tree, "val"), function)
    assert_refused(attack(tree), message)


def test_posteriors_of_one_side_were_rounded(tree):
    change(posteriors(tree), lambda a: a.astype(np.float32) / a.astype(np.float32).sum(0))
    must(attack(tree))
    change(posteriors(tree, "val"), lambda a: a.astype(np.float16).astype(np.float32))
    assert_refused(attack(tree, out="other"), "members are not rounded, and those of non-members rounded to 11 bits")


def test_significant_bits():
    exact = np.random.default_rng(0).random(1000, np.float32)
    assert significant_bits(exact) > 20 and significant_bits(exact.astype(np.float16)) == 11
    assert significant_bits(torch.tensor(exact).bfloat16().float().numpy()) == 8
    assert significant_bits(np.array([0, 1, 0.5])) == 1 and significant_bits(np.zeros(3)) == 0


def write_domains(folder, change_non_members):
    """Images and labels of 30 + 30 scenes, those of the second half changed; returns their records."""
    records = []
    for index in range(60):
        image, label = small_scene(index)
        if index >= 30:
            image, label = change_non_members(image, label)
        for kind, array in (("img", image), ("label", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{index}.png")
        records.append(Record(f"{index}", f"{index}", index < 30, folder / "img" / f"{index}.png",
                              folder / "label" / f"{index}.png"))
    return records


@pytest.mark.parametrize("function, differ", [
    (lambda image, label: (image, label), False), (lambda image, label: (image // 2, label), True),
    (lambda image, label: (image, np.where(np.arange(128) < 30, 255, label).astype(np.uint8)), True)])
def test_blind_control_finds_sides_that_differ_without_a_model(tmp_path, function, differ):
    records = write_domains(tmp_path, function)
    member, group = np.array([record.member for record in records]), [record.group for record in records]
    blind = blind_scores([inspect(*record.files) for record in records], member, group)
    judged = judge(blind, np.arange(60.0), member, group, CROSS_FITTED)
    assert (judged["sides_differ"] == "above") is differ
    assert (judged["auc"] > 0.9) is differ
    line = verdict("blind", judged)
    assert ("the sides differ without any model; attack minus control: " in line) is differ
    assert ("not above chance" in line or "not decided" in line) is not differ


@pytest.mark.parametrize("auc, interval, message", [
    (0.913, [0.436, 0.993], "it is not decided whether the sides differ"), (0.42, [0.274, 0.582], "not above chance"),
    (0.45, [0.3, 0.61], "it is not decided"), (0.3, [0.2, 0.4], "not above chance"),
    (0.9, [0.7, 0.97], "the sides differ without any model")])
def test_verdict_of_a_wide_interval(auc, interval, message):
    differ = "above" if interval[0] > 0.5 else "below" if interval[1] < 0.5 else ""
    judged = {"auc": auc, "auc_interval": interval, "sides_differ": differ, "attack_minus_control": 0.0,
              "attack_minus_control_interval": None}
    assert message in verdict("blind", judged)


def test_the_control_is_printed_and_its_scores_are_written(tree, tmp_path):
    result = must(attack(tree))
    control = results(tmp_path / "run")["controls"]["blind"]
    assert f"control without a model: AUC {control['auc']:.3f}" in result.stdout
    rows = (tmp_path / "run" / "controls.csv").read_text().splitlines()
    assert rows[0] == "image,member,blind" and len(rows) == 2 * COUNT + 1
    must(attack(tree, out="again"))
    assert (tmp_path / "again" / "controls.csv").read_text().splitlines() == rows


def test_the_same_attack_on_a_model_that_saw_neither_side(world, live, tmp_path):
    flags = ["attack.py", "--attack", "loss", *live, "--out"]
    result = must(script(*flags, tmp_path / "run", "--control", world / "shadow"))
    control = results(tmp_path / "run")["controls"]["model"]
    assert f"the same attack on --control: AUC {control['auc']:.3f}" in result.stdout
    shadow = ["--victim", world / "shadow" / "last.pth.tar", "--allow", "unseen"]
    must(script(*flags, tmp_path / "alone", *shadow))
    assert results(tmp_path / "alone")["image"]["auc"] == control["auc"]
    trained = script(*flags, tmp_path / "other", "--control", world / "victim")
    assert_refused(trained, "--control", "was trained on 8 of the attacked images")


@pytest.mark.parametrize("change_side, message", [
    (lambda image: image.resize((120, 60), Image.NEAREST), "size of the images tells the sides apart: 128 x 64 for"),
    (lambda image: image.convert("L"), "format of the images tells the sides apart: PNG RGB for members, PNG L")])
def test_files_that_tell_the_sides_apart(world, live, tmp_path, change_side, message):
    shutil.copytree(world / "data", tmp_path / "data")
    for pair in read_split(world / "victim_out.txt", tmp_path / "data"):
        for file in (pair.image, pair.label)[: 2 if "size" in message else 1]:
            with Image.open(tmp_path / "data" / file) as image:
                change_side(image).save(tmp_path / "data" / file)
    result = script("attack.py", "--attack", "loss", *live, "--root", tmp_path / "data", "--out", tmp_path / "run")
    assert f"warning: the {message}" in must(result).stderr


# Outputs and labels that do not belong together


def next_image(tree):
    for side in ("train", "val"):
        next_image_of(posteriors(tree, side))


@pytest.mark.parametrize("damage, message", [
    (next_image, "outputs of members seem to belong to other images: that of train/00000 fits the label"),
    (lambda tree: change(posteriors(tree), lambda a: np.roll(a, 1, 0)), "label 0 of members mostly has output 1"),
    (lambda tree: change_labels(tree, lambda a: np.where(a == 255, 255, 18 - a)), "classes of outputs and labels"),
    (lambda tree: change_labels(tree, lambda a: np.where(a < 5, 255, 0)), "have a single class, 0"),
    (lambda tree: change_labels(tree, lambda a: 0 * a + 7), "have a single class, 7"),
    (lambda tree: change_labels(tree, lambda a: 0 * a + 255), "so nothing can be measured; the labels of a tree hold")])
def test_outputs_and_labels_of_other_images_or_classes(tree, damage, message):
    damage(tree)
    assert_refused(attack(tree), message)
    assert not (tree.parent / "run").exists()


def next_image_of(paths):
    arrays = [np.load(path) for path in paths]
    for path, array in zip(paths, arrays[1:] + arrays[:1], strict=True):
        np.save(path, array)


@pytest.mark.parametrize("damage, message", [
    (next_image_of, "outputs of non-members seem to belong to other images: that of val/01000 fits"),
    (lambda paths: next_image_of(paths[6:]), "outputs of non-members seem to belong to other images"),
    (lambda paths: change(paths, lambda a: a[::-1]), "label 0 of non-members mostly has output 18"),
    (lambda paths: change(paths, lambda a: a[:, :, ::-1]), "non-members fit their labels better if one of both is"),
    (lambda paths: change(paths, lambda a: a[:, ::-1]), "is upside down"),
    (lambda paths: change(paths, one_hot), "those of non-members one-hot"),
    (lambda paths: change(paths, clipped), "clipped at")])
def test_only_the_outputs_of_one_side_are_wrong(tree, damage, message):
    damage(posteriors(tree, "val"))
    assert_refused(attack(tree), message)


def one_hot(array):
    return (np.arange(len(array))[:, None, None] == array.argmax(0)).astype(array.dtype)


def clipped(array):
    array = np.maximum(array.astype(np.float32), 0.01)
    return (array / array.sum(0)).astype(np.float16)


def test_outputs_that_fit_all_labels_equally_are_reported(tree):
    assert "warning" not in must(attack(tree)).stderr
    constant = np.load(posteriors(tree)[0]).mean(axis=(1, 2), dtype=np.float64)
    constant = (constant / constant.sum()).astype(np.float16)[:, None, None]
    change(posteriors(tree), lambda a: np.broadcast_to(constant, a.shape))
    assert "no better than those of other images" in must(attack(tree, out="other")).stderr


def test_few_outputs_that_fit_their_labels_clearly_better_are_not_reported(capsys):
    """Four images, 82.8 % against 54.9 %: a test of four images could not decide it."""
    fit = np.full((4, 4), 0.55)
    fit[range(4), range(4)] = [0.6, 0.72, 1.0, 1.0]
    check_images(Probe(list("abcd"), None, None, 3, {}, None), fit, "members")
    assert not capsys.readouterr().err
    fit[range(4), range(4)] = [0.5, 0.6, 0.55, 0.56]
    check_images(Probe(list("abcd"), None, None, 3, {}, None), fit, "members")
    assert "no better than those of other images" in capsys.readouterr().err


# The data set of a victim


def test_the_data_set_is_that_of_the_victim(world, live, tmp_path):
    checkpoint = torch.load(world / "victim" / "last.pth.tar", weights_only=True)
    torch.save(checkpoint | {"dataset": "cityscapes"}, tmp_path / "victim.pth.tar")
    flags = ["attack.py", "--attack", "loss", *live, "--victim", tmp_path / "victim.pth.tar", "--out", tmp_path / "run"]
    assert_refused(script(*flags, "--dataset", "streets"), "was trained on the data set cityscapes")
    must(script(*flags))  # labels that are not named labelIds hold train ids


# Random streams


def test_equal_file_names_in_several_folders_have_their_own_streams(tree, tmp_path):
    """Of one image in two folders the corners are equal; those of two images with one file name differ."""
    must(attack(tree, "-num-patch", 3, out="flat"))
    for path in list(tree.glob("*/*/*.*")):
        (path.parent / path.stem).mkdir()
        path.rename(path.parent / path.stem / f"frame{path.suffix}")
    must(attack(tree, "-num-patch", 3, out="deep"))
    flat, deep = (np.load(tmp_path / run / "patches.npz")["corner"].reshape(-1, 6) for run in ("flat", "deep"))
    assert np.array_equal(flat, deep) and len(np.unique(deep, axis=0)) == 2 * COUNT
    first, second = [sample.id for sample in tree_source(tree).samples()][:2]
    assert first != second


def test_stored_and_live_attacks_use_the_same_streams(world, live, tmp_path):
    flags = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *live]
    must(script(*flags, "--out", tmp_path / "live"))
    must(script(*flags, "--keep", tmp_path / "kept", "--out", tmp_path / "kept-run"))
    must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", "--examples", tmp_path / "kept", "--out",
                tmp_path / "stored", "--precision", "fp32"))
    corners = []
    for run in ("live", "kept-run", "stored"):
        with np.load(tmp_path / run / "patches.npz") as arrays:
            rows = zip(arrays["image"].tolist(), arrays["corner"].tolist(), strict=True)
            corners.append(sorted((name.rpartition("/")[2], *corner) for name, corner in rows))
    assert corners[0] == corners[1] == corners[2]


# Labels without a single known pixel


def void_labels(world, folder, part):
    """A copy of the data of `world` in which the labels of one split are void everywhere."""
    shutil.copytree(world / "data", folder)
    for pair in read_split(world / f"{part}.txt", folder):
        with Image.open(folder / pair.label) as label:
            size = label.size
        Image.new("L", size, 255).save(folder / pair.label)
    return folder


@pytest.mark.parametrize("part, name", [("victim_out", "--test"), ("victim_in", "--train")])
def test_labels_of_one_side_of_a_training_are_all_void(world, victim_command, tmp_path, part, name):
    """Otherwise a training runs to its end before the mean over no pixel fails."""
    root = void_labels(world, tmp_path / "data", part)
    result = script(*victim_command, "--root", root, "--out", tmp_path / "run")
    assert_refused(result, f"every label of {name} is void everywhere")
    assert not (tmp_path / "run").exists()


def test_a_void_label_in_the_data_of_a_shadow(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    Image.new("L", (128, 64), 255).save(tmp_path / "data" / "label" / "203.png")
    result = script("train_shadow.py", "--root", tmp_path / "data", "--split", world / "shadow.txt", "--victim",
                    world / "victim" / "last.pth.tar", "--out", tmp_path / "run", *SMALL)
    assert_refused(result, "img/203: its label is void everywhere", "shadow.txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("known, message", [((), "void everywhere"), (((1, 1),), "void at stride 4")])
def test_a_label_without_a_labelled_position_is_refused_before_the_attack(tree, known, message):
    """The last of the images: the attack scored those before it, and left a folder of a run."""
    path = sorted((tree / "val" / "label").iterdir())[-1]
    label = np.full_like(np.array(Image.open(path)), 255)
    for place in known:
        label[place] = 3
    Image.fromarray(label).save(path)
    assert_refused(attack(tree, "--batch", 6), f"{path.stem}: its label is {message}")
    assert not (tree.parent / "run").exists()
    must(attack(tree, "--attack", "confidence"))


def test_void_labels_of_a_training_are_counted(world, victim_command, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    for number in (1, 4, 102):
        Image.new("L", (128, 64), 255).save(tmp_path / "data" / "label" / f"{number}.png")
    result = must(script(*victim_command, "--root", tmp_path / "data", "--out", tmp_path / "run"))
    assert "2 of 8 labels of --train are void everywhere" in result.stderr
    assert "1 of 8 labels of --test are void everywhere" in result.stderr


def test_labels_that_are_mostly_void_are_reported(tree):
    change_labels(tree, lambda a: np.where(np.arange(a.shape[1]) < 200, 255, a))
    assert "% of the label pixels of the attacked images are void" in must(attack(tree)).stderr


# One flag in two runs, one set of classes in all models


def test_more_epochs_cannot_be_added_to_a_schedule(world, tmp_path):
    result = script("train_victim.py", "--continue", world / "victim", "--epochs", 99)
    assert_refused(result, "epochs 2, not 99", "because the learning rate falls to 0 at the last epoch")


@pytest.mark.parametrize("flag", ["--references", "--control"])
def test_other_models_have_other_classes(world, live, tmp_path, flag):
    checkpoint = torch.load(world / "shadow" / "last.pth.tar", weights_only=True)
    torch.save(checkpoint | {"classes": checkpoint["classes"][::-1]}, tmp_path / "other.pth.tar")
    attack = "calibrated" if flag == "--references" else "loss"
    result = script("attack.py", "--attack", attack, *live, flag, tmp_path / "other.pth.tar", "--out", tmp_path / "run")
    assert_refused(result, "class 0 of", "of the same classes")


@pytest.mark.parametrize("tau", ["nan", "5", "-1"])
def test_a_threshold_of_rejection_that_is_no_probability(tree, tau):
    assert_refused(attack(tree, "--select", "rejection", "-tau", tau), "-tau", "between 0 and 1")
