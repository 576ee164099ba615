"""Models of different label spaces: an attack is restricted to the classes that they share."""

import math
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from conftest import SMALL, must, results, scores, script
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_seams import assert_refused

from attacks import ATTACKS
from attacks.sample import Scored
from attacks.thresholds import MapAttack
from datasets import bdd100k, camvid, cityscapes, labelmefacade, mapillary, streets
from datasets.classes import known_names, places_of, shared_classes
from datasets.pairs import Pair, read_split, write_split
from predictors import open_predictor
from predictors.base import PredictorOptions, predict_records
from predictors.classes import ClassView
from predictors.samples import live_records
from utils.tables import Entry

# What each class of streets is in CamVid, written by hand; all others are void.
IN_CAMVID = {"road": "road", "sidewalk": "pavement", "building": "building", "fence": "fence", "pole": "pole",
             "traffic sign": "sign", "vegetation": "tree", "sky": "sky", "person": "pedestrian", "rider": "bicyclist",
             "bicycle": "bicyclist", "car": "car"}
NEVER = "pole"  # the class of CamVid that the labels of the shadow do not have


# Names


def test_cityscapes_and_camvid_share_the_classes_of_camvid():
    assert shared_classes(camvid.CLASSES, cityscapes.CLASSES) == list(camvid.CLASSES)
    assert set(shared_classes(cityscapes.CLASSES, camvid.CLASSES)) == {
        "bicyclist" if name in ("rider", "bicycle") else name for name in IN_CAMVID}
    places = places_of(cityscapes.CLASSES, camvid.CLASSES)
    assert {name: camvid.CLASSES[place] for name, place in zip(cityscapes.CLASSES, places, strict=True)
            if place != 255} == IN_CAMVID


@pytest.mark.parametrize("module", [bdd100k, mapillary, streets, labelmefacade, camvid, cityscapes])
def test_equal_label_spaces_share_all_classes_in_their_order(module):
    for others in ([module.CLASSES], [module.CLASSES, module.CLASSES]):
        assert shared_classes(module.CLASSES, *others) == list(module.CLASSES)
    assert places_of(module.CLASSES, module.CLASSES) == tuple(range(len(module.CLASSES)))


def test_a_rider_stays_a_rider_where_all_data_sets_have_it():
    assert shared_classes(["rider", "car"], ["car", "rider"]) == ["rider", "car"]
    assert shared_classes(["rider", "bicycle", "car"], ["car", "bicyclist"]) == ["bicyclist", "car"]
    assert shared_classes(["bicyclist", "car"], ["rider", "car"], ["bicycle", "car"]) == ["bicyclist", "car"]
    assert shared_classes(["rider", "car"], ["bicycle", "car"]) == ["car"]
    assert shared_classes(["sidewalk", "x", "pavement"], ["pavement"]) == ["sidewalk"]
    assert shared_classes(["a"], ["b"]) == []


@given(st.lists(st.lists(st.sampled_from([*cityscapes.CLASSES, *camvid.CLASSES, "x"]), unique=True, min_size=1),
                min_size=1, max_size=4))
@example([["road", "bicyclist", "rider"], ["road", "rider"]])
def test_each_label_space_has_every_shared_class(spaces):
    names = shared_classes(*spaces)
    assert len(set(names)) == len(names)
    for space in spaces:
        assert set(range(len(names))) <= set(places_of(space, names))


def test_numbers_and_damaged_names_are_no_names():
    assert known_names(["a", "b"]) and known_names(("class 1", "class 0"))
    for names in (None, [], "ab", ["a", "a"], ["a", 3], ["class 0", "class 1"], 7, {"a": 1}, [[]]):
        assert not known_names(names)


# The view, beside slow code


@st.composite
def view_cases(draw):
    """A view of 1 to 6 classes, a posterior with zeros, and a label."""
    space = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=6))
    names = draw(st.integers(1, 4))
    places = tuple(draw(st.sampled_from([*range(names), 255])) for _ in space)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    posterior = rng.random((len(space), height, width)) * (rng.random((len(space), height, width)) < 0.6)
    posterior[0][posterior.sum(0) == 0] = 1
    label = rng.choice([*range(len(space)), 255], (height, width)).astype(np.uint8)
    return (ClassView(tuple(space), tuple(map(str, range(names))), places),
            torch.from_numpy((posterior / posterior.sum(0)).astype(np.float32)), label)


@given(view_cases())
@settings(deadline=None)
def test_view_equals_slow_code(case):
    view, posterior, label = case
    before = posterior.clone()
    seen, truth = view.posterior(posterior), view.label(label)
    count = len(view.names)
    assert torch.equal(posterior, before) and seen.shape == (count, *label.shape) and seen.dtype == torch.float32
    assert truth.dtype == np.uint8
    for i, j in product(*map(range, label.shape)):
        kept = [math.fsum(float(posterior[c, i, j]) for c, place in enumerate(view.places) if place == k)
                for k in range(count)]
        expected = [value / sum(kept) for value in kept] if sum(kept) else [1 / count] * count
        assert seen[:, i, j].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert truth[i, j] == (255 if label[i, j] == 255 else view.places[label[i, j]])


def test_a_view_of_all_classes_changes_nothing():
    posterior = torch.rand(4, 3, 5)
    view = ClassView.of(["sky", "tree", "sign", "x"], ["sky", "vegetation", "traffic sign", "x"])
    assert view.posterior(posterior) is posterior
    assert view.label(np.array([[0, 3, 255]], np.uint8)).tolist() == [[0, 3, 255]]


# A victim of 19 classes, and a shadow of CamVid's classes


@pytest.fixture(scope="module")
def foreign(world, tmp_path_factory):
    """A folder with shadow/, which has CamVid's 11 classes, of which its labels hold 10; and the attackers of it.

    loss/ and concate/ are trained with --shared-with streets, and plain/ without it.
    """
    folder = tmp_path_factory.mktemp("foreign")
    table = np.full(256, 11, np.uint8)  # void in the files of CamVid
    for number, name in enumerate(streets.CLASSES):
        if IN_CAMVID.get(name, NEVER) != NEVER:
            table[number] = camvid.CLASSES.index(IN_CAMVID[name])
    pairs = []
    (folder / "data").mkdir()
    for pair in read_split(world / "shadow.txt", world / "data"):
        name = pair.name.replace("/", "-")
        Image.open(pair.root / pair.image).save(folder / "data" / f"{name}.jpg", quality=95)
        Image.fromarray(table[np.array(Image.open(pair.root / pair.label))]).save(folder / "data" / f"{name}.png")
        pairs.append(Pair(f"{name}.jpg", f"{name}.png", f"{name}.jpg"))
    write_split(folder / "shadow.txt", pairs)
    must(script("train_shadow.py", "--dataset", "camvid", "--root", folder / "data", "--split", folder / "shadow.txt",
                "--partition", "random", "--out", folder / "shadow", *SMALL))
    for name, flags in (("loss", ["--shared-with", "streets"]), ("concate", ["--shared-with", "streets"]),
                        ("plain", [])):
        result = must(script("train_attacker.py", "--shadow", folder / "shadow", "-input",
                             "concate" if name == "concate" else "loss", "--patch-size", 12, "--width", 0.125,
                             "--epochs", 1, "--out", folder / name, "--precision", "fp32", *flags))
        assert ("void: " in result.stdout and NEVER in result.stdout.partition("void: ")[2]) is bool(flags)
    return folder


def classes_of(path):
    """Number of classes and class names in the checkpoint of an attacker."""
    checkpoint = torch.load(path, weights_only=True)
    return checkpoint["model"]["classes"], checkpoint["classes"]


def test_attacker_stores_the_shared_classes(foreign):
    inside = [np.array(Image.open(pair.root / pair.label))
              for pair in read_split(foreign / "shadow" / "in.txt", foreign / "data")]
    learned = [name for number, name in enumerate(camvid.CLASSES) if any((label == number).any() for label in inside)]
    assert NEVER not in learned and len(learned) >= 5
    for name in ("loss", "concate"):
        assert classes_of(foreign / name / "best.pth.tar") == (len(learned), learned)
    assert classes_of(foreign / "plain" / "best.pth.tar") == (11, list(camvid.CLASSES))
    model = torch.load(foreign / "concate" / "best.pth.tar", weights_only=True)["model"]
    assert model["arguments"]["channels"] == 2 * len(learned)


def seen_by_hand(tree, name, names):
    """Posterior (K, h, w) and label (h, w) of a stored image in the classes `names` of CamVid, class by class."""
    side = "train" if (tree / "train" / "pred_sgd" / f"{name}.npy").is_file() else "val"
    posterior = np.load(tree / side / "pred_sgd" / f"{name}.npy").astype(np.float64)
    raw = np.array(Image.open(tree / side / "label" / f"{name}.png"))[::4, ::4]
    seen, label = np.zeros((len(names), *raw.shape)), np.full(raw.shape, 255)
    for number, own in enumerate(streets.CLASSES):
        if IN_CAMVID.get(own) in names:
            place = names.index(IN_CAMVID[own])
            seen[place] += posterior[number]
            label[raw == number] = place
    return seen / seen.sum(0), label


def mean_log(posterior, label):
    """Mean log-posterior of the labelled class over known positions."""
    rows, columns = np.nonzero(label != 255)
    return np.log(posterior[label[rows, columns], rows, columns]).mean()


@pytest.mark.slow
@pytest.mark.parametrize("attacker", ["loss", "concate", "plain"])
def test_learned_attack_on_a_victim_of_other_classes(foreign, live, tmp_path, attacker):
    checkpoint = foreign / attacker / "best.pth.tar"
    result = must(script("attack.py", "-resume", checkpoint, *live, "--keep", tmp_path / "tree", "--out",
                         tmp_path / "run"))
    names = classes_of(checkpoint)[1]
    line, = [line for line in result.stdout.splitlines() if line.startswith("classes of ")]
    assert f"{len(names)} classes are kept ({', '.join(names)}); void: " in line
    void = line.partition("void: ")[2].split(", ")
    assert set(void) == {name for name in streets.CLASSES if IN_CAMVID.get(name) not in names}
    found = results(tmp_path / "run")
    assert found["classes"] == names and found["members"] == found["non_members"] == 8
    again = script("attack.py", "-resume", checkpoint, *live, "--keep", tmp_path / "tree", "--out", tmp_path / "again")
    assert scores(tmp_path / "run") == scores(tmp_path / "again") and must(again)


def test_thresholds_read_the_classes_of_the_attacker(foreign, live, tmp_path):
    checkpoint = foreign / "loss" / "best.pth.tar"
    names = classes_of(checkpoint)[1]
    for kind in ("loss", "confidence"):
        must(script("attack.py", "--threshold", kind, "-resume", checkpoint, *live, "--keep", tmp_path / "tree",
                    "--out", tmp_path / kind))
    for name, (_, score) in scores(tmp_path / "loss").items():
        assert score == pytest.approx(mean_log(*seen_by_hand(tmp_path / "tree", name, names)), rel=1e-4)
    for name, (_, score) in scores(tmp_path / "confidence").items():
        posterior, label = seen_by_hand(tmp_path / "tree", name, names)
        assert score == pytest.approx(posterior.max(0)[label != 255].mean(), rel=1e-4)


def test_a_defense_acts_before_the_view(foreign, live, tmp_path):
    checkpoint = foreign / "loss" / "best.pth.tar"
    names = classes_of(checkpoint)[1]
    must(script("attack.py", "--threshold", "confidence", "-resume", checkpoint, "-argmax", *live, "--keep",
                tmp_path / "tree", "--out", tmp_path / "run"))
    for name, (_, score) in scores(tmp_path / "run").items():
        path, = (tmp_path / "tree").glob(f"*/pred_sgd/{name}.npy")
        answered = np.load(path).argmax(0)
        kept = np.isin(answered, [index for index, own in enumerate(streets.CLASSES) if IN_CAMVID.get(own) in names])
        label = seen_by_hand(tmp_path / "tree", name, names)[1]
        assert score == pytest.approx(np.where(kept, 1, 1 / len(names))[label != 255].mean(), rel=1e-5)


def shadow_posteriors(foreign, live):
    """Posteriors (11, h, w) of the shadow on the attacked images, by name."""
    root, members, non_members = (live[live.index(flag) + 1] for flag in ("--root", "--members", "--non-members"))
    records = live_records(members, non_members, str(root), "", "streets")
    predictor = open_predictor(str(foreign / "shadow"), PredictorOptions(stride=4))
    return {answer.record.name: answer.output.double().numpy() for answer in predict_records(predictor, records)}


@pytest.mark.slow
def test_references_and_control_of_other_classes(foreign, live, tmp_path):
    flags = ["--attack", "calibrated", "--references", foreign / "shadow", *live, "--stride", 4, "--patch-size", 12]
    must(script("attack.py", *flags, "--keep", tmp_path / "tree", "--out", tmp_path / "run"))
    must(script("attack.py", *flags, "--keep-references", tmp_path / "answers", "--out", tmp_path / "kept"))
    found, kept = (scores(tmp_path / name) for name in ("run", "kept"))
    assert all(kept[name][1] == pytest.approx(score, abs=2e-3) for name, (_, score) in found.items())
    names = results(tmp_path / "run")["classes"]
    assert set(names) == set(streets.CLASSES) & set(IN_CAMVID) - {"rider", "bicycle"} | {"bicyclist"}
    names = [IN_CAMVID.get(name, name) for name in names]
    order, asked = [camvid.CLASSES.index(name) for name in names], shadow_posteriors(foreign, live)
    for name, (_, score) in scores(tmp_path / "run").items():
        posterior, label = seen_by_hand(tmp_path / "tree", name, names)
        reference = mean_log(asked[name][order], label)
        assert score == pytest.approx(mean_log(posterior, label) - 0.75 * reference, rel=1e-3, abs=1e-4)
    must(script("attack.py", "-resume", foreign / "loss" / "best.pth.tar", *live, "--control", foreign / "shadow",
                "--out", tmp_path / "control"))
    assert "model" in results(tmp_path / "control")["controls"]


class ReadsPopulation(MapAttack):
    """Checks that population and target have the same classes. All samples have the score 0."""

    needs = frozenset({"truth", "population"})

    def fit(self, population):
        self.classes = {self.see(sample) for sample in population}
        assert self.classes == {11}

    def see(self, sample):
        assert sample.output.sum(0).numpy() == pytest.approx(1, abs=1e-5)
        known = sample.truth[sample.truth != 255]
        assert len(known) and known.max() < len(sample.output)
        return len(sample.output)

    def score(self, samples, predictor=None):
        for sample in samples:
            assert self.see(sample) in self.classes
            yield Scored(sample.name, sample.member, sample.group, 0.0)


def test_population_of_other_classes(foreign, live, tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "reads", Entry("test_label_spaces:ReadsPopulation", "reads a population"))
    must(script("attack.py", "--attack", "reads", "--population", foreign / "shadow", *live, "--out", tmp_path / "run"))
    assert len(results(tmp_path / "run")["classes"]) == 11


def test_equal_label_spaces_are_not_restricted(world, live, tmp_path):
    result = must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--out", tmp_path / "run"))
    assert "classes of" not in result.stdout and "classes" not in results(tmp_path / "run")


def test_an_image_of_other_classes_only_is_refused_at_once(foreign, world, live, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    label = np.full((64, 128), streets.CLASSES.index("terrain"), np.uint8)
    label[:32] = streets.CLASSES.index("wall")
    Image.fromarray(label).save(tmp_path / "data" / "label" / "0.png")
    flags = [*live, "--root", tmp_path / "data", "--allow", "unseen"]
    result = script("attack.py", "-resume", foreign / "loss" / "best.pth.tar", *flags, "--out", tmp_path / "run")
    assert_refused(result, "img/0: its label is void everywhere except for classes that are left out")
    assert not (tmp_path / "run").exists()


# Refusals


def renamed(path, out, names):
    """A checkpoint with other class names."""
    torch.save(torch.load(path, weights_only=True) | {"classes": names}, out)
    return out


def test_label_spaces_without_a_shared_class(foreign, world, live, tmp_path):
    (tmp_path / "names.txt").write_text("polyp\nbackground\n")
    train = ["train_attacker.py", "--shadow", foreign / "shadow", "--out", tmp_path / "run"]
    assert_refused(script(*train, "--shared-with", tmp_path / "names.txt"), "share no class")
    (tmp_path / "names.txt").write_text("polyp\nroad\n")
    assert_refused(script(*train, "--shared-with", tmp_path / "names.txt"), "share only the class 'road'")
    assert_refused(script(*train, "--shared-with", "folder"), "give a file with the names of its classes")
    assert_refused(script(*train, "--shared-with", tmp_path / "none.txt"), "none.txt")
    assert_refused(script(*train, "--shared-with", "maps"), "maps has no labels")
    other = renamed(foreign / "shadow" / "last.pth.tar", tmp_path / "other.pth.tar", [f"thing {i}" for i in range(11)])
    result = script("attack.py", "--attack", "calibrated", "--references", other, *live, "--out", tmp_path / "run")
    assert_refused(result, "share no class")
    assert not (tmp_path / "run").exists()


def test_attacker_with_a_class_that_the_victim_or_a_model_lacks(foreign, live, tmp_path):
    names = classes_of(foreign / "loss" / "best.pth.tar")[1]
    attacker = renamed(foreign / "loss" / "best.pth.tar", tmp_path / "a.pth.tar", ["tent", *names[1:]])
    result = script("attack.py", "-resume", attacker, *live, "--out", tmp_path / "run")
    assert_refused(result, "was trained on the class 'tent'", "--shared-with")
    shadow = renamed(foreign / "shadow" / "last.pth.tar", tmp_path / "s.pth.tar",
                     ["tent" if name == names[0] else name for name in camvid.CLASSES])
    flags = ["-resume", foreign / "loss" / "best.pth.tar", *live, "--out", tmp_path / "run"]
    result = script("attack.py", "--attack", "calibrated", "--references", shadow, *flags)
    assert_refused(result, f"lacks the class {names[0]!r} of")
    assert_refused(script("attack.py", "--control", shadow, *flags), f"lacks the class {names[0]!r}, which is attacked")


def test_shared_with_without_effect(foreign, tmp_path):
    tree = next((foreign / "shadow").glob("posteriors-*"))
    result = script("train_attacker.py", "--posteriors", tree, "--shared-with", "streets", "--out", tmp_path / "run")
    assert_refused(result, "--shared-with has no effect with --posteriors")
    result = script("train_attacker.py", "--plan", "--images", 9, "--shared-with", "streets")
    assert_refused(result, "--shared-with has no effect with --plan")


def test_attack_that_reads_the_victim_itself(foreign, live, tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "asks", Entry("test_label_spaces:Asks", "asks"))
    result = script("attack.py", "--attack", "asks", "-resume", foreign / "loss" / "best.pth.tar", *live, "--out",
                    tmp_path / "run")
    assert_refused(result, "reads", "gets all its classes")


class Asks(MapAttack):
    needs = frozenset({"truth", "weights"})
