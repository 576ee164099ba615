"""Where the leak is: regions against a slow version, and the files of attack.py --exposure."""

import csv
from collections import deque
from itertools import product

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_distributed import torchrun
from test_membership_error import write_triples
from test_seams import assert_refused

from attacks import build_attack
from attacks.sample import AttackSettings, Sample, Scored
from attacks.thresholds import LossThreshold
from evaluation.exposure import REGIONS, measure, region_maps, score_regions, shown_regions, table, write_ranking
from evaluation.intervals import intervals
from utils.cli import UserError


@st.composite
def samples(draw):
    """A sample whose label has blocks, single pixels and void, and of which each `stride`-th pixel is a position."""
    classes, stride = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width, block = draw(st.integers(1, 26)), draw(st.integers(1, 26)), draw(st.integers(1, 12))
    label = np.kron(rng.integers(0, classes, (26 // block + 1,) * 2), np.ones((block, block)))[:height, :width]
    label = np.where(rng.random(label.shape) < 0.03, rng.integers(0, classes, label.shape), label).astype(np.uint8)
    label[rng.random(label.shape) < draw(st.sampled_from([0, 0.1, 0.7]))] = 255
    label[0, 0] = 0
    truth = torch.from_numpy(label[::stride, ::stride].copy())
    output = torch.from_numpy(rng.random((classes, *truth.shape), np.float32)).softmax(0)
    return Sample("a", "a", "a", True, output, truth, label=torch.from_numpy(label), stride=stride)


def slow_area(label, y, x):
    """Number of pixels that paths of neighbours of one class lead to from (y, x)."""
    seen, waiting = {(y, x)}, deque([(y, x)])
    while waiting:
        i, j = waiting.popleft()
        for other in product((i - 1, i, i + 1), (j - 1, j, j + 1)):
            inside = 0 <= other[0] < label.shape[0] and 0 <= other[1] < label.shape[1]
            if inside and other not in seen and label[other] == label[y, x]:
                seen.add(other)
                waiting.append(other)
    return len(seen)


def slow_distance(label, y, x):
    """Chebyshev distance of (y, x) to the nearest position of another class; infinite if there is none."""
    others = [max(abs(i - y), abs(j - x)) for i, j in np.ndindex(*label.shape)
              if label[i, j] not in (255, label[y, x])]
    return min(others, default=np.inf)


def slow_regions(sample, i, j):
    """The names of the regions of a position."""
    label, truth, stride = sample.label.numpy(), sample.truth.numpy(), sample.stride
    distance = slow_distance(label, i * stride, j * stride)
    share = slow_area(label, i * stride, j * stride) / label.size
    thirds = [sum(3 * at >= part * side for part in (1, 2)) for at, side in zip((i, j), truth.shape, strict=True)]
    return {"class": str(truth[i, j]), "zone": "boundary" if slow_distance(truth, i, j) == 1 else "interior",
            "distance": "1 to 2 pixels" if distance <= 2 else "3 to 8 pixels" if distance <= 8 else "over 8 pixels",
            "size": "small" if share < 1 / 300 else "medium" if share < 0.03 else "large",
            "row": ("top", "middle", "bottom")[thirds[0]], "column": ("left", "centre", "right")[thirds[1]]}


@settings(max_examples=25, deadline=None)
@given(samples())
def test_regions_of_each_position(sample):
    maps = region_maps(sample)
    for i, j in np.argwhere(sample.known.numpy()):
        names = {kind: str(found[i, j]) if kind == "class" else REGIONS[kind][found[i, j]]
                 for kind, found in maps.items()}
        assert names == slow_regions(sample, i, j)


@settings(max_examples=25, deadline=None)
@given(samples(), st.sampled_from(["loss", "confidence"]))
def test_sums_of_regions_add_up_to_the_score_of_the_image(sample, name):
    attack = build_attack(name, AttackSettings())
    [plain], [scored] = attack.score([sample]), score_regions(attack, [sample])
    assert scored.score == plain.score and scored.patch_scores == plain.patch_scores
    sums, counts = (np.array(scored.statistics[key]) for key in ("sums", "counts"))
    ends = np.cumsum([len(sample.output), *map(len, REGIONS.values())])
    assert len(sums) == len(counts) == ends[-1]
    for part, sizes in zip(np.split(sums, ends[:-1]), np.split(counts, ends[:-1]), strict=True):
        assert sizes.sum() == sample.known.sum()
        assert part.sum() / sizes.sum() == pytest.approx(plain.score, rel=1e-9, abs=1e-12)
    expected = dict.fromkeys(range(len(sample.output)), 0.0)
    for value, label in zip(attack.evidence(sample)[sample.known], sample.truth[sample.known], strict=True):
        expected[int(label)] += float(value)
    assert sums[: ends[0]].tolist() == pytest.approx(list(expected.values()), rel=1e-9, abs=1e-12)


def scored_images(count=40, seed=0, classes=3):
    """Results of `score_regions` for random maps. Class 1 is in every second image, class 2 in those of members."""
    rng, found = np.random.default_rng(seed), []
    for index in range(count):
        member, counts = index < count // 2, rng.integers(1, 50, classes + sum(map(len, REGIONS.values())))
        counts[1:3] *= (index % 2, member)
        sums = counts * rng.normal(member, 1, len(counts))
        found.append(Scored(str(index), member, str(index // 2), 0.0,
                            statistics={"sums": sums.tolist(), "counts": counts.tolist()}))
    return found


def test_metrics_of_regions():
    scored = scored_images()
    found = measure(scored, ("road", "pole", "car"))
    assert list(found) == ["class", *REGIONS] and list(found["class"]) == ["road", "pole", "car"]
    assert sum(one["share"] for one in found["class"].values()) == pytest.approx(1)
    for column, region in enumerate(found["class"].values()):
        kept = [one for one in scored if one.statistics["counts"][column]]
        member = np.array([one.member for one in kept])
        assert (region["members"], region["non_members"]) == (member.sum(), (~member).sum())
        if member.all():
            assert region["auc"] is region["auc_interval"] is region["tpr_at_1_fpr"] is None
            continue
        score = np.array([one.statistics["sums"][column] / one.statistics["counts"][column] for one in kept])
        assert region["auc"] == pytest.approx(roc_auc_score(member, score))
        assert region["auc_interval"] == intervals(score, member, [one.group for one in kept])["auc"]
        assert region["tpr_at_1_fpr"] is region["tpr_at_1_fpr_interval"] is None  # fewer than 100 non-members
    assert found["class"]["road"]["auc_interval"] is not None
    few = measure([one for one in scored if 11 <= int(one.name) < 29])
    assert list(few["class"]) == ["0", "1", "2"] and few["class"]["0"]["auc"] and not few["class"]["0"]["auc_interval"]


def test_rate_is_given_where_false_positives_can_be_counted():
    road = measure(scored_images(200))["class"]["0"]
    low, high = road["tpr_at_1_fpr_interval"]
    assert low <= road["tpr_at_1_fpr"] <= high


def test_printed_table_has_the_classes_with_most_positions():
    many = measure(scored_images(classes=9), tuple("abcdefghi"))
    del many["class"]["c"]
    shown = shown_regions(many)
    classes = [name for kind, name in shown if kind == "class"]
    others = [region["share"] for name, region in many["class"].items() if name not in classes]
    assert len(shown) == 20 and min(many["class"][name]["share"] for name in classes) >= max(others)
    lines = table(many, many).splitlines()
    assert len(lines) == 22 and lines[-1].startswith("2 classes with fewer") and lines[0].endswith("AUC of control")
    assert len({len(line) for line in lines[:-1]}) == 1


def test_ranking_counts_false_positives_and_equal_scores(tmp_path):
    rows = (("a", True, 3.0), ("b", False, 2.0), ("c", True, 2.0), ("d", False, 1.0), ("e", False, 4.0))
    names = write_ranking(tmp_path / "ranks.csv", [Scored(name, member, name, score) for name, member, score in rows],
                          lambda name: {"b": "z"}.get(name, name))
    assert names == ["e", "a", "c", "b", "d"]
    assert (tmp_path / "ranks.csv").read_text().splitlines() == [
        "rank,image,member,score,false_positives,fpr", f"1,e,0,4.0,1,{1 / 3}", f"2,a,1,3.0,1,{1 / 3}",
        f"3,c,1,2.0,2,{2 / 3}", f"3,z,0,2.0,2,{2 / 3}", "5,d,0,1.0,3,1.0"]


def attack(*flags):
    return script("attack.py", "--attack", "loss", "--precision", "fp32", *flags)


def ranking(run):
    return list(csv.DictReader((run / "exposure.csv").read_text().splitlines()))


@pytest.mark.slow
def test_exposure_of_a_target_model(world, live, tmp_path):
    out = must(attack(*live, "--exposure", "--exposure-maps", tmp_path / "maps", "--control", world / "shadow",
                      "--out", tmp_path / "run")).stdout
    must(attack(*live, "--control", world / "shadow", "--out", tmp_path / "plain"))
    for name in ("scores.csv", "patches.npz", "controls.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    found, plain = (results(tmp_path / name) for name in ("run", "plain"))
    regions, control = found["exposure"]["regions"], found["exposure"]["control"]
    assert plain == {key: value for key, value in found.items() if key != "exposure"}
    assert "road" in regions["class"] and list(regions) == list(control) == ["class", *REGIONS]
    assert all(regions[kind][name]["share"] == one["share"] for kind in control for name, one in control[kind].items())
    assert "class: road " in out and "AUC of control" in out
    expected = sorted(scores(tmp_path / "run").items(), key=lambda item: -item[1][1])
    assert [(row["image"], int(row["member"]), float(row["score"])) for row in ranking(tmp_path / "run")] == [
        (name, *values) for name, values in expected]
    assert (tmp_path / "run" / "exposure.png").stat().st_size > 20_000
    drawn = sorted((tmp_path / "maps").iterdir())
    assert [path.name for path in drawn] == [f"{number}.png" for number in range(1, 9)]
    with Image.open(drawn[0]) as image:
        assert np.unique(np.asarray(image.convert("L"))).size > 100 and image.height > image.width  # image and two maps


def test_exposure_of_a_tree_under_a_defense_and_with_hashed_names(tmp_path):
    tree, key = write_tree(tmp_path / "tree", names=tuple("abcdef")), tmp_path / "key"
    key.write_bytes(bytes(32))
    must(attack("--examples", tree, "-argmax", "--exposure", "--exposure-maps", tmp_path / "maps", "--hash-names", key,
                "--out", tmp_path / "run"))
    rows, score, member = ranking(tmp_path / "run"), [], []
    for side in ("train", "val"):
        for name in "abcdef":
            with Image.open(tree / side / "label" / f"{name}.png") as image:
                label = np.asarray(image)[::4, ::4]
            predicted = np.load(tree / side / "pred_sgd" / f"{name}.npy").argmax(0)
            score.append(np.mean(predicted[label == 5] == 5))
            member.append(side == "train")
    five = results(tmp_path / "run")["exposure"]["regions"]["class"]["5"]
    assert five["auc"] == pytest.approx(roc_auc_score(member, score)) and five["auc_interval"] is None
    assert len({row["image"] for row in rows}) == 12 and not [row for row in rows if "/" in row["image"]]
    assert len(list((tmp_path / "maps").iterdir())) == 8  # without image files


def test_resumed_run_measures_the_same(tmp_path, monkeypatch):
    command = ["--examples", write_tree(tmp_path / "tree", names=tuple("abcdef")), "--batch", 6, "--exposure", "--out"]
    must(attack(*command, tmp_path / "complete"))
    evidence, calls = LossThreshold.evidence, []

    def stopped(self, sample):
        calls.append(sample.name)
        if len(calls) == 8:
            raise UserError("stopped")
        return evidence(self, sample)

    monkeypatch.setattr(LossThreshold, "evidence", stopped)
    assert_refused(attack(*command, tmp_path / "stopped"), "stopped")
    assert not (tmp_path / "stopped" / "exposure.csv").exists()
    must(attack(*command, tmp_path / "stopped"))
    assert len(calls) == 8 + 12 - 7
    for name in ("results.json", "exposure.csv", "exposure.png"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "complete" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_measure_the_same(tmp_path):
    command = ["attack.py", "--attack", "loss", "--examples", write_tree(tmp_path / "tree", names=tuple("abcdef")),
               "--batch", 6, "--precision", "fp32", "--exposure", "--out"]
    must(script(*command, tmp_path / "one"))
    must(torchrun(*command, tmp_path / "two"))
    for name in ("results.json", "exposure.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize("flags, message", [
    (["--exposure", "--threshold", "loss", "--exposure-maps", "FILE"], "must be a folder"),
    (["--exposure"], "--exposure reads a map of evidence, and --attack learned has none"),
    (["--exposure", "--attack", "statistics", "--population", "TREE"], "--attack statistics has none"),
    (["--exposure", "--attack", "lira", "--references", "stored:TREE"], "--attack lira has none")])
def test_flags_that_are_refused(world, tmp_path, flags, message):
    tree = write_tree(tmp_path / "tree")
    file = tmp_path / "file"
    file.touch()
    flags = [flag.replace("TREE", str(tree)).replace("FILE", str(file)) for flag in flags]
    learned = [] if "--attack" in flags else ["-resume", world / "loss" / "best.pth.tar"]
    assert_refused(script("attack.py", "--examples", tree, *learned, *flags, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


def test_images_without_a_label_are_refused(tmp_path):
    """A threshold on the confidence needs no label; regions do."""
    tree = write_tree(tmp_path / "tree")
    (tree / "val" / "label" / "b.png").unlink()
    command = ["attack.py", "--attack", "confidence", "--examples", tree, "--out", tmp_path / "run"]
    refused = script(*command, "--exposure")
    assert refused.returncode == 2 and "b" in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    must(script(*command))


def test_translated_images_are_refused(tmp_path):
    write_triples(tmp_path / "triples", 4)
    assert_refused(script("attack.py", "--attack", "reconstruction", "--triples", tmp_path / "triples", "--exposure",
                          "--out", tmp_path / "run"), "translated images have none")
