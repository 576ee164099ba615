"""The interfaces between predictors, defenses and attacks, and the order of the imports between folders."""

import ast
import graphlib
import json
import math
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from conftest import SOURCES, must, results, scores, script, write_attacker, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_stopping import interrupt

from attacks import ATTACKS, REPRESENTATIONS, build_attack
from attacks.sample import AttackSettings, Sample, Scored
from attacks.thresholds import MapAttack
from datasets import DATASETS
from datasets.pairs import read_split, write_split
from defenses import DEFENSES, DefenseEntry
from defenses.base import Defense
from models import MODELS
from predictors import PREDICTORS
from predictors.base import Predictor
from utils.device import CPU, resolve_precision
from utils.tables import Entry


def assert_refused(result, *messages):
    """The script ended in one line that contains every message, with exit code 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, result.stderr
    for message in messages:
        assert message in result.stderr, result.stderr


# Attacks without an attacker


@pytest.mark.parametrize("kind", ["loss", "confidence"])
def test_threshold_needs_no_attacker_and_gives_the_scores_that_it_has_with_one(world, tmp_path, kind):
    write_tree(tmp_path / "tree")
    runs = {"attack": ["--attack", kind, "--patch-size", 9], "threshold": ["--threshold", kind, "--patch-size", 9],
            "attacker": ["--threshold", kind, "-resume", world / "loss" / "best.pth.tar"]}  # its patch size is 12
    for name, flags in runs.items():
        must(script("attack.py", *flags, "--examples", "tree", "--out", name, cwd=tmp_path))
        assert results(tmp_path / name)["attack"] == kind and results(tmp_path / name)["input"] == kind
    found = [scores(tmp_path / name) for name in runs]
    assert found[0] == found[1] == found[2] and len(found[0]) == 6
    corners = [np.load(tmp_path / name / "patches.npz")["corner"] for name in runs]
    assert np.array_equal(corners[0], corners[1]) and not np.array_equal(corners[0], corners[2])


def test_learned_attack_needs_an_attacker(tmp_path):
    write_tree(tmp_path / "tree")
    assert_refused(script("attack.py", "--examples", "tree", "--out", "run", cwd=tmp_path), "no such checkpoint")
    assert not (tmp_path / "run").exists()


def test_two_attacks_in_one_call_are_refused(tmp_path):
    tree = write_tree(tmp_path / "tree")
    result = script("attack.py", "--attack", "loss", "--threshold", "confidence", "--examples", tree, cwd=tmp_path)
    assert_refused(result, "--threshold confidence", "--attack loss")


def confidence_over_all_positions(tree, name):
    """Mean of the largest posterior over every position, void or not."""
    posterior = np.load(tree / "train" / "pred_sgd" / f"{name}.npy")
    return (posterior / posterior.sum(0)).max(0).mean()


@pytest.mark.parametrize("defense", [[], ["-gauss", 0.1]])
def test_confidence_needs_no_labels_and_loss_does(tmp_path, defense):
    tree = write_tree(tmp_path / "tree")
    for side in ("train", "val"):
        shutil.rmtree(tree / side / "label")
    flags = ["--examples", tree, *defense, "--patch-size", 12]
    must(script("attack.py", "--attack", "confidence", *flags, "--out", tmp_path / "run"))
    assert results(tmp_path / "run")["miou"] == {"in": None, "out": None}
    if not defense:
        assert scores(tmp_path / "run")["train/a"][1] == pytest.approx(confidence_over_all_positions(tree, "a"))
    for name in ("loss", "learned"):
        result = script("attack.py", "--attack", name, *flags[:-2], "--out", tmp_path / name)
        assert_refused(result, "a.png: no such label")
        assert not (tmp_path / name).exists()
    result = script("attack.py", "--attack", "confidence", *flags, "--select", "rejection", "--out", tmp_path / "run")
    assert_refused(result, "--select rejection needs the ground truth")


def test_confidence_accepts_a_label_that_is_void_everywhere_and_loss_does_not(tmp_path):
    tree = write_tree(tmp_path / "tree")
    Image.fromarray(np.full((64, 128), 255, np.uint8)).save(tree / "train" / "label" / "a.png")
    flags = ["--examples", tree, "--patch-size", 12]
    must(script("attack.py", "--attack", "confidence", *flags, "--out", tmp_path / "run"))
    assert scores(tmp_path / "run")["train/a"][1] == pytest.approx(confidence_over_all_positions(tree, "a"))
    assert 0 < results(tmp_path / "run")["miou"]["in"] < 1  # of the images with a label
    result = script("attack.py", "--attack", "loss", *flags, "--out", tmp_path / "loss")
    assert_refused(result, "train/a: its label is void everywhere")


def test_confidence_accepts_void_labels_of_a_live_victim(world, live, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    Image.fromarray(np.full((64, 128), 255, np.uint8)).save(tmp_path / "data" / "label" / "0.png")
    flags = [*live, "--root", tmp_path / "data", "--patch-size", 6]
    must(script("attack.py", "--attack", "confidence", *flags, "--out", tmp_path / "run"))
    must(script("attack.py", "--attack", "confidence", *live, "--patch-size", 6, "--out", tmp_path / "labelled"))
    void, labelled = scores(tmp_path / "run"), scores(tmp_path / "labelled")
    assert {name for name in void if void[name] != labelled[name]} <= {"img/0"}
    result = script("attack.py", "--attack", "loss", *flags, "--out", tmp_path / "loss")
    assert_refused(result, "img/0: its label is void everywhere")


# A new attack, predictor or defense is one class and one line in a table


class FirstPosterior(MapAttack):
    """Scores an image by the mean posterior of class 0."""

    needs = frozenset()

    def evidence(self, sample):
        return sample.output[0]


class UniformPosterior(Defense):
    """Replaces every posterior by the uniform one."""

    def apply(self, output, key):
        return torch.full_like(output, 1 / len(output))


def test_new_attack_and_new_defense_are_choices_of_the_script(tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "first", Entry("test_seams:FirstPosterior", "posterior of class 0"))
    monkeypatch.setitem(DEFENSES, "uniform", DefenseEntry("test_seams:UniformPosterior", "uniform posteriors"))
    flags = ["--attack", "first", "--examples", write_tree(tmp_path / "tree"), "--patch-size", 12]
    must(script("attack.py", *flags, "--out", tmp_path / "plain"))
    must(script("attack.py", *flags, "-uniform", "--out", tmp_path / "uniform"))
    posterior = np.load(tmp_path / "tree" / "train" / "pred_sgd" / "a.npy")[:, 2:]  # the rows above are void
    assert scores(tmp_path / "plain")["train/a"][1] == pytest.approx(posterior[0].mean(), rel=1e-5)
    assert [score for _, score in scores(tmp_path / "uniform").values()] == pytest.approx([1 / 19] * 6)
    assert results(tmp_path / "uniform")["defense"] == "uniform"


class ReadsEverything(MapAttack):
    """Queries the model again, and checks the image and the population. All samples have the score 0."""

    needs = frozenset({"image", "population", "queries"})

    def fit(self, population):
        assert [sample.member for sample in population] == [True] * 3 + [False] * 3

    def score(self, samples, predictor=None):
        for sample in samples:
            assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 64, 128)
            [repeated] = sample.ask(sample.image.permute(1, 2, 0).numpy(), 1)
            torch.testing.assert_close(repeated, sample.output)
            yield Scored(sample.name, sample.member, sample.group, 0.0)


def test_attack_that_needs_images_a_population_and_queries(live, tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "everything", Entry("test_seams:ReadsEverything", "reads everything"))
    tree = write_tree(tmp_path / "tree")
    for label in [*tree.rglob("label/*.png")]:
        image = label.parents[1] / "img" / label.name
        image.parent.mkdir(exist_ok=True)
        Image.new("RGB", (128, 64)).save(image)
    flags = ["attack.py", "--attack", "everything", "--out", tmp_path / "run"]
    assert_refused(script(*flags, *live), "give --population")
    assert_refused(script(*flags, "--examples", tree, "--population", tree), "give --victim")
    assert not (tmp_path / "run").exists()
    must(script(*flags, *live, "--population", tree))
    assert results(tmp_path / "run")["image"]["auc"] == 0.5 and "patch" not in results(tmp_path / "run")
    with np.load(tmp_path / "run" / "patches.npz") as patches:
        assert len(patches["score"]) == 16 and not patches["corner"].any()


# The calibrated score


@st.composite
def calibration_cases(draw):
    """Sample with a target and K reference posteriors (some with zeros), c, and the floor."""
    classes, height, width, count = (draw(st.integers(low, high)) for low, high in ((2, 5), (1, 7), (1, 7), (1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = rng.integers(0, 5, (count + 1, classes, height, width)) * rng.random((count + 1, classes, height, width))
    raw[:, 0][raw.sum(1) == 0] = 1
    posteriors = torch.from_numpy((raw / raw.sum(1, keepdims=True)).astype(np.float32))
    label = rng.integers(0, classes, (height, width)).astype(np.uint8)
    label[rng.random((height, width)) < draw(st.sampled_from([0, 0.5]))] = 255
    label[0, 0] = 0
    seen = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda values: not all(values)))
    sample = Sample("name", "id", "group", True, posteriors[0], torch.from_numpy(label), None, tuple(posteriors[1:]),
                    tuple(seen))
    return sample, draw(st.sampled_from([0.0, 0.3, 0.75, 1.0, 2.0])), draw(st.sampled_from([1e-30, 2.0**-24]))


def slow_calibrated(sample, c, floor):
    """log p_V - c log(mean_k p_k) of the labelled class, position by position; the mean over the known positions."""
    values = []
    used = [reference for reference, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
    for i, j in product(*map(range, sample.truth.shape)):
        label = int(sample.truth[i, j])
        if label != 255:
            mean = sum(float(reference[label, i, j]) for reference in used) / len(used)
            target = float(sample.output[label, i, j])
            values.append(math.log(max(target, floor)) - c * math.log(max(mean, floor)))
    return sum(values) / len(values)


@given(calibration_cases())
@settings(max_examples=60, deadline=None)
def test_calibrated_score(case):
    sample, c, floor = case
    attack = build_attack("calibrated", AttackSettings(floor=floor, c=c))
    scored = next(attack.score([sample]))
    assert scored.score == pytest.approx(slow_calibrated(sample, c, floor), rel=1e-4, abs=1e-4)
    loss = next(build_attack("loss", AttackSettings(floor=floor)).score([sample]))
    assert (scored.score == loss.score and scored.patch_scores == loss.patch_scores) or c > 0


def run_calibrated(tmp_path, name, *flags):
    """Scores of `attack.py --attack calibrated`, in the folder `name`."""
    must(script("attack.py", "--attack", "calibrated", *flags, "--patch-size", 6, "--out", tmp_path / name))
    return scores(tmp_path / name)


def test_calibrated_attack_with_references(world, live, tmp_path):
    shadow, victim = world / "shadow", world / "victim" / "last.pth.tar"
    must(script("attack.py", "--attack", "loss", *live, "--patch-size", 6, "--out", tmp_path / "loss"))
    loss = scores(tmp_path / "loss")
    assert run_calibrated(tmp_path, "c0", *live, "--references", shadow, "--c", 0) == loss
    one = run_calibrated(tmp_path, "one", *live, "--references", shadow)
    other = write_other_model(victim, tmp_path / "other.pth.tar")
    two = run_calibrated(tmp_path, "two", *live, "--references", shadow, f"checkpoint:{other}")
    assert one.keys() == two.keys() == loss.keys() and len(loss) == 16
    assert all(one[name] != two[name] != loss[name] != one[name] for name in loss)
    assert results(tmp_path / "one")["attack"] == "calibrated"


def write_other_model(checkpoint, path):
    """Write the model of a checkpoint with other weights."""
    stored = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(0)
    stored["state_dict"] = {name: value + 0.3 * torch.randn_like(value) if name.endswith("weight") else value
                            for name, value in stored["state_dict"].items()}
    torch.save(stored, path)
    return path


def test_calibrated_attack_on_stored_posteriors(tmp_path):
    tree, reference = write_tree(tmp_path / "tree"), write_tree(tmp_path / "reference", seed=1)
    for side in ("train", "val"):
        shutil.copytree(tree / side / "label", reference / side / "label", dirs_exist_ok=True)
    calibrated = run_calibrated(tmp_path, "run", "--examples", tree, "--references", f"stored:{reference}", "--c", 0.5)
    for name in ("tree", "reference"):
        must(script("attack.py", "--attack", "loss", "--examples", tmp_path / name, "--out", tmp_path / f"loss-{name}"))
    target, other = scores(tmp_path / "loss-tree"), scores(tmp_path / "loss-reference")
    for name, (_, score) in calibrated.items():
        assert score == pytest.approx(target[name][1] - 0.5 * other[name][1], abs=1e-4)


@pytest.mark.slow
def test_reference_that_was_trained_on_an_image_is_not_used_for_it(world, live, tmp_path):
    shadow, victim, trained = world / "shadow", world / "victim" / "last.pth.tar", world / "shadow" / "in.txt"
    unseen = ["--patch-size", 6, "--members", trained, "--allow", "unseen"]
    flags = ["attack.py", "--attack", "calibrated", *live, *unseen]
    for place in (shadow, shadow / "last.pth.tar"):
        result = script(*flags, "--references", place, "--out", tmp_path / "run")
        assert_refused(result, "was trained on 12 of 12 members and on 0 of 8 non-members", "tells the sides apart")
    result = script(*flags, "unbalanced", "--references", shadow, "--out", tmp_path / "run")
    assert_refused(result, "every reference model was trained on this image")
    detour = ["--root", world / "shadow" / ".." / "data"]
    assert_refused(script(*flags, *detour, "--references", shadow, "--out", tmp_path / "run"), "was trained on")
    (tmp_path / "link").symlink_to(world / "data")
    link = ["--root", tmp_path / "link"]
    assert_refused(script(*flags, *link, "--references", shadow, "--out", tmp_path / "run"), "was trained on")
    shutil.copytree(world / "data" / "img", tmp_path / "copy" / "img")
    shutil.copytree(world / "data" / "label", tmp_path / "copy" / "label")
    copy = ["--root", tmp_path / "copy"]
    assert_refused(script(*flags, *copy, "--references", shadow, "--out", tmp_path / "run"), "was trained on")
    assert not (tmp_path / "run" / "scores.csv").exists()
    other = write_other_model(victim, tmp_path / "other.pth.tar")
    both = ["--references", shadow, other]
    assert_refused(script(*flags, *both, "--out", tmp_path / "run"), "tells the sides apart")
    must(script(*flags, "unbalanced", *both, "--out", tmp_path / "bound"))
    assert results(tmp_path / "bound")["roles"]["unbalanced"] == 1
    seen = read_split(trained, must_exist=False)[:2]
    for side, extra in zip(("victim_in", "victim_out"), seen, strict=True):
        pairs = read_split(world / f"{side}.txt", must_exist=False)
        write_split(tmp_path / f"{side}.txt", [*pairs, extra])
    mixed = ["--members", tmp_path / "victim_in.txt", "--non-members", tmp_path / "victim_out.txt", "--allow", "unseen"]
    flags = ["attack.py", "--attack", "calibrated", *live, *mixed]
    result = script(*flags, "--references", shadow, "--out", tmp_path / "run")
    assert_refused(result, "img/", "every reference model was trained on this image")
    some = run_calibrated(tmp_path, "some", *live, *mixed, *both)
    alone = run_calibrated(tmp_path, "alone", *live, *mixed, "--references", other)
    for name in some:
        assert (alone[name] == some[name]) == (name in {pair.name for pair in seen}), name


@pytest.mark.parametrize("attack, flags, message", [
    ("calibrated", [], "give --references DIR"), ("loss", ["--references", "stored:tree"], "reads no reference models"),
    ("learned", ["--references", "stored:tree"], "reads no reference models"),
    ("calibrated", ["--references", "x"], "is missing, so references cannot be queried"),
    ("loss", ["--population", "tree"], "leave --population out"),
    ("calibrated", ["--references", "x", "--c", -1], "0 or more"),
    ("calibrated", ["--references", "nowhere.pth.tar"], "no such checkpoint"),
    ("calibrated", ["--references", "tree"], "is no run of train_shadow.py"),
    ("calibrated", ["--references", "stored:nowhere"], "holds no .npy"),
])
def test_references_that_are_missing_or_not_read(world, tmp_path, attack, flags, message):
    write_tree(tmp_path / "tree")
    shutil.copy(world / "shadow" / "last.pth.tar", tmp_path / "x")
    attacker = ["-resume", write_attacker(tmp_path / "loss.pth.tar")] if attack == "learned" else []
    command = ["attack.py", "--attack", attack, *attacker, "--examples", "tree", *flags, "--out", "run"]
    assert_refused(script(*command, cwd=tmp_path), message)
    assert not (tmp_path / "run").exists()


def test_unfinished_shadow_is_refused_as_reference(world, live, tmp_path):
    shutil.copytree(world / "shadow", tmp_path / "shadow")
    (tmp_path / "shadow" / "results.json").unlink()
    result = script("attack.py", "--attack", "calibrated", *live, "--references", tmp_path / "shadow")
    assert_refused(result, "is not finished", "--continue")


# A live victim and stored posteriors take the same checks


def with_value(value):
    """A function that sets one value of the posterior at position (3, 3); None sets all classes there to 0."""
    def change(posterior):
        posterior = posterior.copy()
        posterior[slice(None) if value is None else 0, 3, 3] = 0 if value is None else value
        return posterior
    return change


# Name -> function of a posterior (19, h, w), and the words that the messages about live and stored posteriors share
DAMAGES = {
    "nan": (with_value(np.nan), "NaN"), "infinite": (with_value(np.inf), "infinite"),
    "negative": (with_value(-0.1), "negative"), "zero": (with_value(None), "all are 0"),
    "classes": (lambda a: a[:11] / a[:11].sum(0), "the attacker was trained for 19"),
    "narrow": (lambda a: a[:, :, :-3], "positions, its label"),
}


class DamagedPredictor(Predictor):
    """A victim with random posteriors. `where` names their damage, a key of `DAMAGES`."""

    def predict(self, queries):
        outputs = []
        for query in queries:
            shape = [-(-length // self.stride) for length in query.image.shape[:2]]
            raw = np.random.default_rng(0).random((19, *shape), np.float32)
            outputs.append(torch.from_numpy(DAMAGES[self.where][0](raw / raw.sum(0)).astype(np.float32)))
        return outputs


@pytest.fixture
def damaged(monkeypatch):
    monkeypatch.setitem(PREDICTORS, "damaged", Entry("test_seams:DamagedPredictor", "damaged posteriors"))


@pytest.mark.parametrize("defense", [[], ["-argmax"], ["-gauss", 0.1]])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_posteriors_of_a_live_victim_and_on_disk_give_the_same_message(world, live, damaged, tmp_path, kind,
                                                                               defense):
    change, message = DAMAGES[kind]
    tree = write_tree(tmp_path / "tree")
    path = tree / "train" / "pred_sgd" / "b.npy"
    np.save(path, change(np.load(path)))
    base = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *defense, "--out", tmp_path / "run"]
    stored = script(*base, "--examples", tree)
    assert_refused(stored, message, "b")
    assert_refused(script(*base, *live, "--victim", f"damaged:{kind}"), message, "img/0")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["nan", "negative", "zero", "narrow"])
def test_damaged_posteriors_of_a_reference(live, damaged, tmp_path, kind):
    result = script("attack.py", "--attack", "calibrated", *live, "--references", f"damaged:{kind}", "--patch-size", 6,
                    "--out", tmp_path / "run")
    assert_refused(result, "gives (19," if kind == "narrow" else DAMAGES[kind][1], f"{kind} gives", "img/0")
    assert not (tmp_path / "run").exists()


def test_noise_that_is_larger_than_a_number_can_be(tmp_path):
    result = script("attack.py", "--attack", "loss", "--examples", write_tree(tmp_path / "tree"), "-gauss", 1e38,
                    "--patch-size", 12, "--out", tmp_path / "run")
    assert_refused(result, "train/a", "-gauss is not finite")


def test_label_outside_the_classes_of_the_posterior(live, damaged, tmp_path):
    """Without an attacker the number of classes is that of the posterior; labels must be below it."""
    tree = write_tree(tmp_path / "tree")
    for path in tree.rglob("*.npy"):
        np.save(path, DAMAGES["classes"][0](np.load(path)))
    base = ["attack.py", "--attack", "loss", "--patch-size", 6, "--out", tmp_path / "run"]
    for source in (["--examples", tree], [*live, "--victim", "damaged:classes"]):
        assert_refused(script(*base, *source), ".png holds id", "classes 0..10")


def test_victim_with_other_classes_than_its_data_set_or_attacker(world, live, tmp_path):
    result = script("attack.py", "--attack", "loss", *live, "--dataset", "camvid", "--out", tmp_path / "run")
    assert_refused(result, "has 19 classes; the data set camvid has 11", "--dataset")
    write_attacker(tmp_path / "a.pth.tar")
    checkpoint = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    checkpoint["model"]["classes"] = 11
    torch.save(checkpoint, tmp_path / "a.pth.tar")
    result = script("attack.py", "-resume", tmp_path / "a.pth.tar", *live, "--out", tmp_path / "run")
    assert_refused(result, "has 19 classes; the attacker was trained for 11")


# Precision


@pytest.mark.parametrize("override", ["fp32", "bf16"])
def test_environment_variable_sets_the_meaning_of_auto(world, live, tmp_path, monkeypatch, override):
    monkeypatch.setenv("SEGLEAK_PRECISION", override)
    assert resolve_precision("auto", CPU) == override
    assert [resolve_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    flags = ["attack.py", "--attack", "loss", *live, "--patch-size", 6]
    must(script(*flags, "--precision", "auto", "--keep", tmp_path / "tree", "--out", tmp_path / "auto"))
    assert json.loads((tmp_path / "tree" / "made-from").read_text())["precision"] == override
    must(script(*flags, "--precision", override, "--out", tmp_path / "explicit"))
    must(script(*flags, "--precision", "auto", "--out", tmp_path / "implicit"))
    assert scores(tmp_path / "implicit") == scores(tmp_path / "explicit")


def test_unknown_precision_in_the_environment(live, victim_command, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLEAK_PRECISION", "fp16")
    for command in (["attack.py", "--attack", "loss", *live], victim_command):
        result = script(*command, "--precision", "auto", "--out", tmp_path / "run")
        assert_refused(result, "SEGLEAK_PRECISION=fp16: expected one of fp32, bf16")
    assert not (tmp_path / "run").exists()
    must(script("attack.py", "--attack", "loss", *live, "--patch-size", 6, "--out", tmp_path / "run"))  # in fp32


@pytest.mark.slow
def test_cache_in_another_precision_is_not_used(live, tmp_path):
    flags = ["attack.py", "--attack", "loss", *live, "--patch-size", 6]

    def run(name, precision, tree="tree"):
        must(script(*flags, "--precision", precision, "--keep", tmp_path / tree, "--out", tmp_path / name))
        return scores(tmp_path / name)

    fp32, bf16 = run("one", "fp32"), run("two", "bf16")
    assert json.loads((tmp_path / "tree" / "made-from").read_text())["precision"] == "bf16"
    assert fp32 != bf16 == run("new", "bf16", "other") and run("three", "fp32") == fp32


# Checkpoints of earlier versions


def write_old_form(source, target):
    """Write a checkpoint of train_victim.py or train_shadow.py as earlier versions did.

    They wrote the arguments of the model beside its name, and an argument "pictures" instead of "images".
    """
    checkpoint = torch.load(source, weights_only=True)
    model = checkpoint["model"]
    checkpoint["model"] = {"name": model["name"], "classes": model["classes"], **model["arguments"]}
    checkpoint["args"]["pictures"] = checkpoint["args"].pop("images")
    torch.save(checkpoint, target)


def test_old_checkpoint_is_a_victim_and_a_reference(world, live, tmp_path):
    write_old_form(world / "victim" / "last.pth.tar", tmp_path / "victim.pth.tar")
    shutil.copytree(world / "shadow", tmp_path / "shadow")
    write_old_form(world / "shadow" / "last.pth.tar", tmp_path / "shadow" / "last.pth.tar")
    old = run_calibrated(tmp_path, "old", *live, "--victim", tmp_path / "victim.pth.tar", "--references",
                         tmp_path / "shadow")
    assert old == run_calibrated(tmp_path, "new", *live, "--references", world / "shadow")


def test_training_resumes_from_an_old_checkpoint(world, victim_command, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "training.segmentation", "learn", 3)
        assert script(*victim_command, "--out", tmp_path / "run").returncode == 143
    path = tmp_path / "run" / "last.pth.tar"
    write_old_form(path, path)
    must(script("train_victim.py", "--continue", tmp_path / "run"))
    resumed, complete = (torch.load(file, weights_only=True) for file in (path, world / "victim" / "last.pth.tar"))
    assert resumed["epoch"] == 2 and resumed["model"] == complete["model"] and "images" in resumed["args"]
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in complete["state_dict"].items())


# Imports and arguments in the source

TREES = {path: ast.parse(source) for path, source in SOURCES.items()}
SCRIPTS = {path for path, source in SOURCES.items() if '__name__ == "__main__"' in source}
LEVELS = ({"utils"}, {"models", "datasets"}, {"attacks", "defenses"}, {"predictors"}, {"evaluation", "training"},
          {"reproduce", "tools", "examples", "scripts"})  # a folder imports from its own level and the ones before it
LEVEL = {folder: number for number, folders in enumerate(LEVELS) for folder in folders}
FROM_NAMESPACE = {  # the functions that scripts call with their parsed arguments
    "datasets/__init__.py:chosen", "defenses/__init__.py:chosen", "predictors/__init__.py:chosen",
    "training/setup.py:begin",
    "training/setup.py:plan_of", "utils/cli.py:pick", "utils/cli.py:refuse_unused", "utils/cli.py:run",
    "utils/resume.py:resume_arguments"}


def folder_of(path):
    return path.partition("/")[0] if "/" in path else "scripts"


def imports_of(tree):
    """The modules that a file imports, also within functions, but not for TYPE_CHECKING."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in set(ast.walk(tree)) - {node for block in blocks for node in ast.walk(block)}:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def path_of(module):
    """The file that an imported name belongs to, or None for a name of another package."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        stem = "/".join(parts[:length])
        if found := {f"{stem}.py", f"{stem}/__init__.py"} & SOURCES.keys():
            return found.pop()
    return None


def test_scan_finds_late_imports_and_skips_those_for_type_checkers():
    tree = ast.parse("import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from c.d import e\n")
    assert set(imports_of(tree)) == {"a", "c.d.e"}
    assert path_of("utils.cli.UserError") == "utils/cli.py" and path_of("utils.VOID") == "utils/__init__.py"
    assert path_of("numpy.random") is None and {"attack.py", "evaluation/compare.py"} <= SCRIPTS
    assert {folder_of(path) for path in SOURCES} == LEVEL.keys()


def test_imports_point_from_scripts_to_utils():
    graph = {folder: set() for folder in LEVEL}
    for path, tree in TREES.items():
        for target in filter(None, map(path_of, imports_of(tree))):
            source, imported = folder_of(path), folder_of(target)
            assert LEVEL[imported] <= LEVEL[source], f"{path} imports {target}"
            graph[source] |= {imported} - {source}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, also for folders of one level


def test_no_module_imports_a_script():
    imported = {(path, target) for path, tree in TREES.items() for target in map(path_of, imports_of(tree))}
    # The fault campaign damages the archives that utils.download unpacks.
    assert {(path, target) for path, target in imported if target in SCRIPTS} <= {
        ("tools/fault_campaign/fuzz.py", "utils/download.py")}


def test_attacks_read_no_files_and_import_no_predictor():
    for path, tree in TREES.items():
        if folder_of(path) == "attacks":
            calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert not calls & {"open", "Path", "np.load", "torch.load"}, path


def test_parsed_arguments_stay_in_the_scripts():
    functions = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and path not in SCRIPTS:
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                annotations = [argument.annotation for argument in arguments] + [node.returns]
                if any(annotation and "Namespace" in ast.unparse(annotation) for annotation in annotations):
                    functions.add(f"{path}:{node.name}")
    assert functions == FROM_NAMESPACE


@pytest.mark.parametrize("table", [ATTACKS, DATASETS, DEFENSES, MODELS, PREDICTORS, REPRESENTATIONS],
                         ids=lambda table: table.kind)
def test_every_entry_of_a_table_can_be_loaded_and_has_a_help_text(table):
    for name, entry in table.items():
        assert path_of(entry.where.partition(":")[0]) and entry.about and table.load(name) is not None
