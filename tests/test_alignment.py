"""Outputs of one side that were changed: shifted, exchanged, permuted, smoothed, resized or copied."""

import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL, must, script, write_tree
from PIL import Image
from test_seams import assert_refused

from datasets.inspection import inspect
from evaluation.alignment import _cycles, _equal, _gain, exchanged, many
from evaluation.forms import Excerpt, compare_forms, find_form
from predictors.base import Record, tell_apart
from predictors.stored import StoredPredictor, check_forms, list_records
from utils.cli import UserError
from utils.files import ROOT


@pytest.fixture
def tree(tmp_path, request):
    """A copy of the first images of examples/: 12 of each side, or as many as the test asks for."""
    count = getattr(request, "param", 12)
    for side in ("train", "val"):
        for kind, suffix in (("label", "png"), ("pred_sgd", "npy")):
            (tmp_path / "tree" / side / kind).mkdir(parents=True)
            for path in sorted((ROOT / "examples" / side / kind).glob(f"*.{suffix}"))[:count]:
                shutil.copy(path, tmp_path / "tree" / side / kind)
    return tmp_path / "tree"


def attack(tree, *flags):
    return script("attack.py", "--attack", "loss", "--examples", tree, *flags, "--out", tree.parent / "run")


def change(tree, function, *sides, count=None):
    """Replace the first `count` posteriors of the sides (default: val) by `function` of them, as float32."""
    for side in ("train", "val"):
        for index, path in enumerate(sorted((tree / side / "pred_sgd").iterdir())):
            array = np.load(path).astype(np.float32)
            if side in (sides or ("val",)) and (count is None or index < count):
                array = function(array)
            np.save(path, (array / array.sum(0)).astype(np.float32))


def swap(first, second):
    def swapped(array):
        array = array.copy()
        array[[first, second]] = array[[second, first]]
        return array
    return swapped


def softmax(array):
    array = np.exp(array - array.max(0))
    return array / array.sum(0)


def permuted(array):
    return array[np.random.default_rng(int(1e6 * array[0, 0, 0])).permutation(len(array))]


def repeated(array):
    return array[:, ::2, ::2].repeat(2, 1).repeat(2, 2)


def largest_ten(array):
    return np.where(array.argsort(0).argsort(0) < 9, 0, array)


@pytest.mark.parametrize("function, message", [
    (lambda a: np.roll(a, 1, 2), "of non-members fit their labels better if they are shifted by 1 position left"),
    (lambda a: np.roll(a, -2, 1), "of non-members fit their labels better if they are shifted by 2 positions down"),
    (swap(10, 8), "label 10 of non-members mostly has output 8"),
    (permuted, "in 11 of 12 images of non-members"),
    (repeated, "those of non-members resized by repeating positions"),
    (softmax, "those of non-members a softmax of posteriors"),
    (lambda a: 0.95 * a + 0.05 / 19, "and those of non-members 0.003 or more"),
    (largest_ten, "those of non-members 47 % zeros"),
    (lambda a: np.round(a * 4095) / 4095, "rounded to 4096 levels"),
    (lambda a: np.minimum(a, 0.99), "clipped above 0.99"),
])
def test_the_outputs_of_one_side_were_changed(tree, function, message):
    assert not must(attack(tree)).stderr
    shutil.rmtree(tree.parent / "run")
    change(tree, function)
    if message.startswith(("rounded", "clipped")):  # dividing by the sum would undo the change
        for path in (tree / "val" / "pred_sgd").iterdir():
            np.save(path, function(np.load(path)))
    assert_refused(attack(tree), message)
    assert not (tree.parent / "run").exists()


@pytest.mark.parametrize("function, message", [
    (lambda a: np.roll(a, 4, 2), "fit their labels better if they are shifted by 4 positions left"),
    (softmax, "a softmax may have been applied twice")])
def test_the_outputs_of_both_sides_were_changed(tree, function, message):
    change(tree, function, "train", "val")
    assert message in must(attack(tree)).stderr


@pytest.mark.parametrize("tree", [60], indirect=True)
def test_a_rare_class_is_exchanged_on_one_side(tree):
    change(tree, swap(13, 3))
    assert "label 13 mostly has output 13 for members and 3 for non-members" in must(attack(tree)).stderr


def test_some_images_have_the_indices_of_their_own_palettes(tree):
    for path in sorted((tree / "val" / "label").iterdir())[:4]:
        label = np.array(Image.open(path))
        order = np.random.default_rng(int(path.stem)).permutation(19)
        Image.fromarray(np.where(label == 255, 255, order[np.minimum(label, 18)]).astype(np.uint8)).save(path)
    assert_refused(attack(tree), "in 4 of 12 images of non-members", "palette")


@pytest.mark.parametrize("tree", [4, 6, 8, 60], indirect=True)
def test_right_outputs_of_few_or_many_images_pass(tree):
    assert "order" not in must(attack(tree)).stderr


def test_a_weak_or_random_confusion_is_no_other_order():
    rng = np.random.default_rng(0)
    for _ in range(200):  # outputs that hardly depend on the label
        labels, outputs = rng.dirichlet(np.full(5, 0.5)), rng.dirichlet(np.full(5, 0.5))
        share = labels[:, None] * outputs * rng.uniform(0.5, 2, (5, 5))
        matrix = rng.multinomial(2000, share.ravel() / share.sum())
        assert exchanged(matrix.reshape(5, 5)) is None and exchanged(matrix.reshape(5, 5), together=True) is None
    one_way = np.array([[0, 900, 0], [0, 50, 5], [0, 100, 100]])  # class 0 is always taken for class 1
    assert exchanged(one_way) is None and exchanged(one_way, together=True) is None
    assert exchanged(np.array([[10, 900, 0], [500, 50, 5], [0, 100, 100]])) in ((0, 1), (1, 0))


def test_cycles_and_gain():
    assert [cycle.tolist() for cycle in _cycles(np.array([2, 1, 0, 4, 3]))] == [[0, 2], [1], [3, 4]]
    label = np.random.default_rng(0).integers(0, 5, (9, 12))
    for axis, by in ((0, 2), (1, -3)):
        assert _gain(np.roll(label, -by, axis), label, axis, by) > 0.5
        assert _gain(label, label, axis, by) < -0.5
    assert _gain(label, label, 0, 9) == _gain(label, label, 0, -20) == 0


def test_forms_of_usual_outputs_are_alike():
    rng = np.random.default_rng(0)
    sides = [find_form([Excerpt.of(rng.dirichlet(np.full(5, 0.3), (20, 20)).transpose(2, 0, 1).astype(np.float32))
                        for _ in range(6)]) for _ in range(2)]
    compare_forms(*sides)
    one_hot = find_form([Excerpt.of(np.eye(5, dtype=np.float32)[rng.integers(0, 5, (20, 20))].transpose(2, 0, 1))])
    with pytest.raises(UserError, match="are not rounded, and those of non-members one-hot"):
        compare_forms(sides[0], one_hot)
    constant = find_form([Excerpt.of(np.full((5, 20, 20), 0.2, np.float32))])
    assert constant.blocks == 0 and not constant.flat


# Copied outputs, and one shadow in two folders


@pytest.mark.parametrize("copies", [1, 12])
def test_images_with_the_output_of_another_image(tree, copies):
    members, others = (sorted((tree / side / "pred_sgd").iterdir()) for side in ("train", "val"))
    for source, target in zip(members[:copies], others, strict=False):
        shutil.copy(source, target)
    assert_refused(attack(tree), "train/00000 and val/01000 have the same posterior, and other images or labels")


def test_constant_outputs_are_not_copies(tree):
    change(tree, lambda a: np.full_like(a, 1 / 19), "train", "val")
    assert "the same posterior" not in must(attack(tree)).stderr


def test_one_shadow_in_two_folders(world, tmp_path):
    """Trained twice with one seed: only the stored arguments differ."""
    shadow = world / "shadow"
    command = ["train_shadow.py", "--root", world / "data", "--split", world / "shadow.txt", "--victim",
               world / "victim" / "last.pth.tar", "--out", tmp_path / "again", *SMALL]
    must(script(*command))
    result = script("train_attacker.py", "--shadow", shadow, tmp_path / "again", "--patch-size", 12, "--out",
                    tmp_path / "run")
    assert_refused(result, "hold the same shadow")


# Random streams of images without labels of their own


def test_images_without_labels_have_their_own_streams(tmp_path):
    tree = write_tree(tmp_path / "tree", names=("0", "1"))
    for side in ("train", "val"):
        shutil.rmtree(tree / side / "label")
        for name in ("0", "1"):
            (tree / side / "pred_sgd" / name).mkdir()
            (tree / side / "pred_sgd" / f"{name}.npy").rename(tree / side / "pred_sgd" / name / "frame.npy")
    records = list_records(tree)
    assert [record.id for record in records] == ["0/frame", "1/frame"] * 2


def test_one_mask_for_many_images(tmp_path):
    label = np.zeros((16, 16), np.uint8)
    label[8:] = 1
    records = []
    for index in range(3):
        image, mask = tmp_path / f"{index}.png", tmp_path / f"mask{index}.png"
        Image.fromarray(np.random.default_rng(index // 2).integers(0, 256, (16, 16, 3), np.uint8)).save(image)
        Image.fromarray(label).save(mask)
        records.append(Record(f"{index}", f"{index}", True, image, mask))
    pattern = inspect(*records[0].files).pattern
    assert [record.id for record in tell_apart(records)] == [f"{pattern}{index}" for index in range(3)]
    assert [record.id for record in tell_apart(records[:2])] == [pattern] * 2  # copies of one image


def test_some_outputs_of_a_weak_model_fit_another_label_by_chance():
    """They are errors only where the other outputs clearly fit their own labels."""
    wrong = np.arange(100) < 12
    assert many(wrong, np.where(wrong, -0.3, 0.4)) and not many(wrong, np.where(wrong, -0.3, 0.02))
    assert not many(np.arange(100) < 2, np.full(100, 0.4)) and many(np.arange(100) < 60, np.full(100, -0.2))


def blob(shift, noise, size=64):
    """Posteriors (2, size, size) of a small object on a certain background, with noise on the logits."""
    rng = np.random.default_rng(noise)
    logit = np.full((size, size), -8.0)
    logit[20:24, 20 + shift : 24 + shift] = 8
    logit += rng.normal(0, 1, logit.shape)
    one = 1 / (1 + np.exp(-logit))
    return torch.from_numpy(np.stack([1 - one, one])).float()


def test_two_models_of_small_objects_are_not_one_model():
    assert not _equal(blob(0, 1), blob(2, 2)) and not _equal(blob(0, 1), blob(0, 2))
    for output in (blob(0, 1), torch.rand(19, 20, 30).mul(6).softmax(0)):
        assert _equal(output, output.half().float())
        assert _equal(output, (output.log() * (1 + 1e-3 * torch.randn_like(output))).softmax(0))


def test_one_hot_outputs_that_differ_in_a_small_object(tmp_path):
    tree = write_tree(tmp_path / "tree", names=tuple("abcd"))
    for index, path in enumerate(sorted(tree.rglob("*.npy"))):
        array = np.zeros((19, 16, 32), np.float32)
        array[0] = 1
        array[:, 1 + index : 3 + index, index : 2 + index] = np.eye(19)[1][:, None, None]
        np.save(path, array)
    check_forms(StoredPredictor(tree), list_records(tree))
    shutil.copy(tree / "train" / "pred_sgd" / "a.npy", tree / "val" / "pred_sgd" / "b.npy")
    with pytest.raises(UserError, match="train/a and val/b have the same posterior"):
        check_forms(StoredPredictor(tree), list_records(tree))
