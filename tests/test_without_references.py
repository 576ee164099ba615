"""Attacks that need no reference model, no probability or no ground truth: slow versions, simulations, the script."""

import csv
import math
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_formulas import posterior_and_label, tensors
from test_membership_error import write_triples
from test_references import auc, draw_label, posterior, run, slow_boundary
from test_references import simulate as simulate_references
from test_seams import assert_refused, calibration_cases

from attacks import build_attack
from attacks.quantile import STRENGTHS, features
from attacks.sample import AttackSettings, Sample
from datasets.pairs import Pair, write_split
from defenses import DefenseSpec
from defenses.argmax import argmax
from predictors.samples import tree_source
from utils.cli import UserError


def simulate(seed, leak=0.0, images=120, members=True, side=8, classes=4):
    """Samples whose difficulty is seen in the brightness of their images; a member gains `leak`."""
    rng, samples = np.random.default_rng(seed), []
    for index in range(images):
        label, known = draw_label(rng, side, classes)
        member, difficulty = members and index % 2 == 0, rng.normal(1, 1)
        image = np.clip(128 + 30 * difficulty + rng.normal(0, 20, (3, 2 * side, 2 * side)), 0, 255).astype(np.uint8)
        output = posterior(rng, label, difficulty + leak * member, classes)
        samples.append(Sample(f"{index:03}", f"{index}", f"{index // 2}", member, output, torch.from_numpy(known),
                              torch.from_numpy(image)))
    return samples


# Quantile regression


def slow_features(sample):
    label, image = sample.truth.numpy(), sample.image.numpy().astype(float)
    height, width = image.shape[1:]
    known = [at for at in product(*map(range, label.shape)) if label[at] != 255]
    shares = [sum(label[at] == c for at in known) / len(known) for c in range(len(sample.output))]
    grey = [[sum(image[c, i, j] for c in range(3)) / 3 for j in range(width)] for i in range(height)]
    texture = [math.hypot(grey[min(i + 1, height - 1)][j] - grey[i][j], grey[i][min(j + 1, width - 1)] - grey[i][j])
               for i in range(height) for j in range(width)]
    return [*shares, sum(slow_boundary(label)[at] for at in known) / len(known), 1 - len(known) / label.size,
            len({int(label[at]) for at in known}), *(float(np.mean(one)) for one in image),
            *(float(np.std(one)) for one in image), float(np.mean(texture)), float(np.std(texture))]


@given(posterior_and_label(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_features_of_image_and_label(pair, height, width, seed):
    output, truth = tensors(pair)
    if (truth == 255).all():
        truth[0, 0] = 0
    image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8))
    sample = Sample("name", "id", "group", True, output, truth, image)
    assert features(sample) == pytest.approx(slow_features(sample), rel=1e-9, abs=1e-9)
    assert features(replace(sample, output=output.flip(0))) == features(sample)


def slow_regression(table, target, strength):
    """The function of a row that a ridge regression on standardised columns gives, by its normal equations."""
    mean, deviation = table.mean(0), np.where(table.std(0) > 0, table.std(0), 1)
    scaled = (table - mean) / deviation
    weights = np.linalg.solve(scaled.T @ scaled + strength * np.eye(table.shape[1]),
                              scaled.T @ (target - target.mean()))
    return lambda row: target.mean() + (row - mean) / deviation @ weights


def slow_loss(sample, floor):
    label = sample.truth.numpy()
    values = [-math.log(max(float(sample.output[label[at]][at]), floor))
              for at in product(*map(range, label.shape)) if label[at] != 255]
    return math.log(max(sum(values) / len(values), floor))


@pytest.mark.parametrize("floor", [1e-30, 0.5])
def test_quantile_regression_is_a_ridge_regression_that_whole_groups_choose(floor):
    known, victim = simulate(0, images=30, members=False), simulate(1, images=10)
    table = np.array([slow_features(one) for one in known])
    target, groups = np.array([slow_loss(one, floor) for one in known]), np.array([one.group for one in known])
    attack = build_attack("quantile", AttackSettings(floor=floor))
    attack.fit(known)
    names, fold_of = sorted(set(groups.tolist())), {}
    for group in names:  # each group goes to the fold with the fewest images; all groups have two
        sizes = [sum(fold_of.get(one) == fold for one in groups) for fold in range(5)]
        fold_of[group] = sizes.index(min(sizes))
    folds, errors = np.array([fold_of[group] for group in groups]), {}
    for strength in STRENGTHS:
        held_out = [slow_regression(table[folds != fold], target[folds != fold], strength)(row)
                    for fold, row in zip(folds, table, strict=True)]
        errors[strength] = ((target - held_out) ** 2).mean()
    assert attack.chosen["alpha"] == min(errors, key=errors.get)
    found = {one.name: one.score for one in attack.score(victim)}
    expected = slow_regression(table, target, attack.chosen["alpha"])
    for one in victim:
        wanted = expected(np.array(slow_features(one))) - slow_loss(one, floor)
        assert found[one.name] == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_quantile_regression_finds_members_where_the_loss_hardly_does():
    victim, known = simulate(2, 0.5), simulate(3, members=False)
    found, loss = run_quantile(victim, known), auc(victim, run("loss", victim))
    assert loss < 0.7 and auc(victim, found) > loss + 0.1
    order = np.random.default_rng(0).permutation(len(known)).tolist()
    assert run_quantile(victim[::-1], [known[index] for index in order]) == pytest.approx(found, rel=1e-9)


def run_quantile(victim, known):
    attack = build_attack("quantile", AttackSettings())
    attack.fit(known)
    return {one.name: one.score for one in attack.score(victim)}


def at_chance(aucs):
    """Whether the AUCs of victims of 40 images lie around 0.5, as far from it as chance puts them."""
    return abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / math.sqrt(len(aucs)) and 0.04 < np.std(aucs) < 0.16


def test_quantile_regression_is_at_chance_without_members():
    attack = build_attack("quantile", AttackSettings())
    attack.fit(simulate(1000, images=60, members=False))
    assert at_chance([auc(victim, {one.name: one.score for one in attack.score(victim)})
                      for seed in range(14) for victim in [simulate(seed, images=40)]])


def extreme(sample, kind):
    """The sample with an argmax, with the truth, or with the same posterior everywhere, for all models."""
    right = torch.eye(4)[sample.truth.clamp_max(3).long()].permute(2, 0, 1).contiguous()

    def change(output):
        return {"one-hot": argmax(output), "right": right, "constant": torch.full_like(right, 0.25)}[kind]

    return replace(sample, output=change(sample.output), references=tuple(map(change, sample.references)))


@pytest.mark.parametrize("kind", ["one-hot", "right", "constant"])
def test_quantile_regression_of_extreme_posteriors(kind):
    found = run_quantile(*([extreme(one, kind) for one in simulate(seed, images=20)] for seed in (4, 5)))
    assert len(found) == 20 and all(map(math.isfinite, found.values()))


def test_quantile_regression_needs_two_groups():
    known = [replace(one, group="one") for one in simulate(6, images=4, members=False)]
    with pytest.raises(UserError, match="one group of images"):
        build_attack("quantile", AttackSettings()).fit(known)


# Residuals of a regression on the attacked images


def slow_residuals(victim, floor=1e-30):
    """Expected minus observed log loss, with the strength whose squared error is lowest if each image is left out."""
    observed, table = np.array([slow_loss(one, floor) for one in victim]), [slow_features(one) for one in victim]
    if victim[0].references:
        for row, one in zip(table, victim, strict=True):
            row += slow_class_losses(one, floor)
        known = np.array([[math.nan if seen else slow_loss(replace(one, output=output), floor)
                           for output, seen in zip(one.references, one.in_reference, strict=True)] for one in victim])
        known = (known - np.nanmean(known, axis=0)) / np.nanstd(known, axis=0)
        for row, values in zip(table, known, strict=True):
            row += [float(np.nanmean(values)) if math.isnan(value) else float(value) for value in values]
    table = np.array(table)
    scaled = (table - table.mean(0)) / np.where(table.std(0) > 0, table.std(0), 1)

    def error(strength):
        found = 0.0
        for index in range(len(scaled)):
            others = np.arange(len(scaled)) != index
            rows, target = scaled[others], observed[others]
            rest = rows - rows.mean(0)
            weights = np.linalg.solve(rest.T @ rest + strength * np.eye(rows.shape[1]),
                                      rest.T @ (target - target.mean()))
            found += (observed[index] - target.mean() - (scaled[index] - rows.mean(0)) @ weights) ** 2
        return found

    return [slow_regression(table, observed, min(STRENGTHS, key=error))(row) - own
            for row, own in zip(table, observed, strict=True)]


def slow_class_losses(sample, floor):
    label, outputs = sample.truth.numpy(), [output.double() for output, seen in zip(
        sample.references, sample.in_reference, strict=True) if not seen]
    mean = sum(outputs) / len(outputs)
    known = [at for at in product(*map(range, label.shape)) if label[at] != 255]
    return [sum(-math.log(max(float(mean[label[at]][at]), floor)) for at in known if label[at] == c) / len(known)
            for c in range(len(mean))]


def with_images(samples, seed=0):
    """The samples of `simulate_references` with images whose brightness says little about their difficulty."""
    rng = np.random.default_rng(seed)
    return [replace(one, image=torch.from_numpy(rng.integers(0, 256, (3, 6, 6)).astype(np.uint8))) for one in samples]


@pytest.mark.parametrize("victim", [simulate(1, 0.5, images=24), with_images(
    simulate_references(3, 0.5, images=24, online=True))], ids=["alone", "references"])
@pytest.mark.parametrize("floor", [1e-30, 0.3])
def test_residual_is_a_ridge_regression_on_the_attacked_images(victim, floor):
    found = run("residual", victim, floor=floor)
    assert list(found.values()) == pytest.approx(slow_residuals(victim, floor), rel=1e-5, abs=1e-5)
    assert run("residual", victim[::-1], floor=floor) == pytest.approx(found, rel=1e-6, abs=1e-6)
    unknown = [replace(one, member=not one.member) for one in victim]
    assert run("residual", unknown, floor=floor) == found, "membership is not read"


def test_residual_needs_no_non_members_and_learns_what_references_say():
    """References of another kind of data: the loss of each is twice as high as it should be, plus noise."""
    alone = simulate(2, 0.5)
    assert auc(alone, run("residual", alone)) > auc(alone, run("loss", alone)) + 0.1

    def foreign(sample):
        changed = tuple((output ** 2 + 0.01).div((output ** 2 + 0.01).sum(0)) for output in sample.references)
        return replace(sample, references=changed, in_reference=(False,) * len(changed))

    victim = [foreign(one) for one in with_images(simulate_references(4, 0.5, images=200, models=2))]
    aucs = {name: auc(victim, run(name, victim)) for name in ("residual", "loss", "calibrated")}
    assert aucs["residual"] > max(aucs["loss"], aucs["calibrated"]) + 0.02


@pytest.mark.parametrize("draw", [simulate, lambda seed, images: with_images(simulate_references(seed, images=images))],
                         ids=["alone", "references"])
def test_residual_is_at_chance_without_members(draw):
    assert at_chance([auc(victim, run("residual", victim)) for seed in range(14)
                      for victim in [draw(seed, images=40)]])


@pytest.mark.parametrize("kind", ["one-hot", "right", "constant"])
def test_residual_of_extreme_posteriors(kind):
    found = run("residual", [extreme(one, kind) for one in with_images(simulate_references(5))])
    assert len(found) == 40 and all(map(math.isfinite, found.values()))


def test_residual_refuses_few_images_and_references_that_saw_all():
    with pytest.raises(UserError, match="9 attacked images are too few for a regression; give 10 or more"):
        run("residual", simulate(6, images=9))
    seen = [replace(one, in_reference=(True,) * len(one.references)) for one in with_images(simulate_references(7))]
    with pytest.raises(UserError, match="trained on this image"):
        run("residual", seen)


# Label only


@given(calibration_cases(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_correctness(case, with_references):
    sample = case[0] if with_references else replace(case[0], references=(), in_reference=())
    used = [one for one, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
    values = []
    for at in product(*map(range, sample.truth.shape)):
        if (label := int(sample.truth[at])) != 255:
            right = [int(np.argmax([float(one[c][at]) for c in range(len(one))])) == label
                     for one in (sample.output, *used)]
            values.append(right[0] - (sum(right[1:]) / len(used) if used else 0))
    attack = build_attack("correctness", AttackSettings())
    scored, same = attack.score([sample, replace(sample, output=argmax(sample.output))])
    assert scored.score == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-9)
    assert (scored.score, scored.patch_scores) == (same.score, same.patch_scores)


@pytest.mark.parametrize("references", [0, 4])
def test_correctness_in_simulations(references):
    def samples(*args):
        return [replace(one, references=one.references[:references], in_reference=one.in_reference[:references])
                for one in simulate_references(*args)]

    assert at_chance([auc(victim, run("correctness", victim)) for seed in range(15) for victim in [samples(seed)]])
    victim = samples(0, 1.0, 120)
    assert auc(victim, run("correctness", victim)) > (0.75 if references else 0.6)


def test_correctness_leaves_references_out_that_saw_an_image():
    [sample] = simulate_references(1, images=1)
    attack = build_attack("correctness", AttackSettings())
    one = run("correctness", [replace(sample, in_reference=(False, True, True, True))])
    assert one == run("correctness", [replace(sample, references=sample.references[:1], in_reference=(False,))])
    with pytest.raises(UserError, match="000: every reference model"):
        attack.check_references(["000"], np.ones((1, 4), bool))


# Pseudo-labels


@pytest.mark.parametrize("name", ["loss", "calibrated", "lira"])
def test_pseudo_labels_in_simulations(name):
    def samples(*args):
        return [replace(one, truth=one.output.argmax(0).to(torch.uint8)) for one in simulate_references(*args)]

    assert at_chance([auc(victim, run(name, victim)) for seed in range(12) for victim in [samples(seed)]])
    victim = samples(0, 1.0, 120)
    assert auc(victim, run(name, victim)) > 0.55


@pytest.mark.parametrize("std", [None, 0.3])
def test_the_argmax_of_the_defended_output_is_the_ground_truth(tmp_path, std):
    defense = DefenseSpec("gauss" if std else None, std).build()
    source = replace(tree_source(write_tree(tmp_path / "tree")), defense=defense)
    for own, pseudo in zip(source.samples(), replace(source, pseudo_labels=True).samples(), strict=True):
        assert pseudo.truth.dtype == own.truth.dtype == torch.uint8 and not own.known.all() and pseudo.known.all()
        assert torch.equal(pseudo.truth.long(), own.output.argmax(0)) and torch.equal(pseudo.output, own.output)


def test_an_attack_on_a_tree_without_labels(tmp_path):
    tree = write_tree(tmp_path / "tree")
    flags = ["--attack", "loss", "--pseudo-labels", "--examples", tree, "--patch-size", 12]
    out = must(script("attack.py", *flags, "--out", tmp_path / "run")).stdout
    assert "ground truth: the argmax of each attacked output (--pseudo-labels)" in out and "mIoU" not in out
    found = results(tmp_path / "run")
    assert found["pseudo_labels"] is True and found["miou"] == {"in": None, "out": None}
    for name, (_, score) in scores(tmp_path / "run").items():
        side, _, name = name.partition("/")
        stored = np.load(tree / side / "pred_sgd" / f"{name}.npy")
        assert score == pytest.approx(float(np.log(stored.max(0)).mean()), rel=1e-5)
    for side in ("train", "val"):
        shutil.rmtree(tree / side / "label")
    must(script("attack.py", *flags, "--out", tmp_path / "bare"))
    assert scores(tmp_path / "bare") == scores(tmp_path / "run")


@pytest.mark.parametrize("flags, message", [
    (["confidence"], "has no effect with --attack confidence, which reads no ground truth; leave it out"),
    (["correctness"], "all that --attack correctness sees here is the argmax"),
    (["loss", "-argmax"], "all that --attack loss sees here is the argmax"),
    (["membership-error"], "--attack membership-error reads other ground truth here; leave it out")])
def test_pseudo_labels_that_cannot_serve(tmp_path, flags, message):
    result = script("attack.py", "--pseudo-labels", "--examples", write_tree(tmp_path / "tree"), "--attack", *flags,
                    "--out", tmp_path / "run")
    assert_refused(result, "--pseudo-labels", message)
    assert not (tmp_path / "run").exists()


def test_pseudo_labels_of_translated_images(tmp_path):
    result = script("attack.py", "--attack", "reconstruction", "--triples", write_triples(tmp_path / "triples", 2),
                    "--pseudo-labels", "--out", tmp_path / "run")
    assert_refused(result, "--pseudo-labels replaces the labels of posteriors")


# Non-members of the target model, through the script


@pytest.fixture
def quantile(live, tmp_path):
    """A function that runs the attack on the small victim."""
    return lambda *flags: script("attack.py", "--attack", "quantile", *live, *flags, "--out", tmp_path / "run")


def test_known_non_members_of_a_target_model_that_is_queried(world, quantile, tmp_path):
    """With pseudo-labels, label files are read for no score and no control, nor for the known non-members."""
    flags = ["--population", world / "shadow.txt", "--pseudo-labels"]
    out = must(quantile(*flags)).stdout
    found, run = results(tmp_path / "run"), shutil.move(tmp_path / "run", tmp_path / "labels")
    assert found["chosen"]["alpha"] in STRENGTHS and "chosen on --population: alpha" in out
    assert "patch" not in found and "--population" in found["roles"]["compared_with"]
    assert len({score for _, score in scores(run).values()}) == 16
    shutil.copytree(world / "data" / "img", tmp_path / "bare" / "img")
    must(quantile(*flags, "--root", tmp_path / "bare"))
    assert scores(tmp_path / "run") == scores(run)
    controls = [(folder / "controls.csv").read_text() for folder in (tmp_path / "run", run)]
    assert controls[0] == controls[1] and "blind" in controls[0]


def test_residual_of_a_target_model_that_is_queried(world, live, tmp_path):
    """With and without references; a control has a regression of its own, and pseudo-labels read no label."""
    def attack(out, *flags):
        return script("attack.py", "--attack", "residual", *live, *flags, "--out", tmp_path / out)

    must(attack("alone", "--control", world / "shadow"))
    must(attack("references", "--references", world / "shadow"))
    must(attack("labels", "--pseudo-labels"))
    found = [scores(tmp_path / name) for name in ("alone", "references", "labels")]
    assert len({tuple(one[name][1] for one in found) for name in found[0]}) == 16
    assert found[0] != found[1] and found[0] != found[2]
    assert {"blind", "model"} <= results(tmp_path / "alone")["controls"].keys()
    must(script("attack.py", "--attack", "residual", *live, "--allow", "unseen", "--victim",
                world / "shadow" / "last.pth.tar", "--out", tmp_path / "other"))
    other = {name: score for name, (_, score) in scores(tmp_path / "other").items()}
    with (tmp_path / "alone" / "controls.csv").open() as file:
        control = {row["image"]: float(row["model"]) for row in csv.DictReader(file)}
    assert control == pytest.approx(other, abs=1e-4)
    assert_refused(attack("population", "--population", world / "shadow"), "--population")


def test_known_non_members_on_disk(tmp_path):
    """Only the side val/ of their tree is read."""
    for seed, name in enumerate(("attacked", "known")):
        tree = write_tree(tmp_path / name, names=("a", "b", "c", "d"), seed=seed)
        for index, label in enumerate(sorted(tree.rglob("label/*.png"))):
            pixels = np.random.default_rng([seed, index]).integers(0, 256, (64, 128, 3), np.uint8)
            (label.parents[1] / "img").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(label.parents[1] / "img" / label.name)
    flags = ["--attack", "quantile", "--examples", tmp_path / "attacked", "--population"]
    must(script("attack.py", *flags, tmp_path / "known", "--out", tmp_path / "both"))
    shutil.rmtree(tmp_path / "known" / "train")
    must(script("attack.py", *flags, tmp_path / "known", "--out", tmp_path / "one"))
    assert scores(tmp_path / "both") == scores(tmp_path / "one") and len(scores(tmp_path / "one")) == 8
    assert_refused(script("attack.py", *flags, tmp_path / "attacked"), "4 of the 8 attacked images")
    assert_refused(script("attack.py", *flags, tmp_path / "known.txt"), "is no folder", "in val/")
    other = ["--attack", "statistics", *flags[2:], tmp_path / "known"]
    assert_refused(script("attack.py", *other), "known/train/pred_sgd holds no .npy")


def test_images_that_are_no_known_non_members(world, quantile, tmp_path):
    assert_refused(quantile(), "give --population, a split file")
    attacked = tmp_path / "attacked.txt"
    attacked.write_text((world / "shadow.txt").read_text() + (world / "victim_out.txt").read_text())
    assert_refused(quantile("--population", attacked), "8 of the 16 attacked images", "are in --population")
    write_split(tmp_path / "members.txt", [Pair(f"img/{i}.png", f"label/{i}.png", f"img/{i}.png") for i in (0, 200)])
    assert_refused(quantile("--population", tmp_path / "members.txt", "--allow", "overlap"),
                   "was trained on 1 of the 2 images of --population, such as img/0")
    assert_refused(quantile("--population", world / "shadow"), "beside split files")
    assert_refused(quantile("--population", world / "shadow.txt", "--references", world / "shadow"),
                   "reads no reference models")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["statistics", "membership-error-weighted"])
def test_other_attacks_refuse_a_population_of_non_members(world, live, tmp_path, name):
    result = script("attack.py", "--attack", name, *live, "--population", world / "shadow.txt", "--out",
                    tmp_path / "run")
    assert_refused(result, "shadow.txt is a file", "give members and non-members of another model")
