"""Attacks that compare the target model with reference models: each against a slow version, and in simulations."""

import json
import math
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, must, results, scores, script
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from test_formulas import posterior_and_label, tensors
from test_seams import assert_refused, calibration_cases, write_other_model

from attacks import ATTACKS, build_attack
from attacks.calibrated import RMIA, WEIGHTS
from attacks.lira import SMALLEST, LiRA, log_odds
from attacks.representation import logit_map
from attacks.sample import AttackSettings, Sample, Scored
from attacks.statistics import QUANTILES, boundary
from evaluation.roles import lend_references
from predictors import open_predictor
from predictors.base import PredictorOptions
from predictors.reference import open_references, read_shadow
from predictors.samples import Source
from utils.cli import UserError

OFFLINE, ONLINE = ("lira", "lira-bayes"), ("lira-online", "lira-bayes-online")
FITTED = ("calibrated-weighted", "statistics")
ALL = ("calibrated", "base", "calibrated-weighted", "rmia", *OFFLINE, *ONLINE, "statistics")


# Simulated models


def posterior(rng, label, confidence, classes):
    """A posterior (C, h, w) whose logit of the labelled class has the mean `confidence`."""
    logits = rng.normal(0, 1, (classes, *label.shape))
    logits += confidence * (np.arange(classes)[:, None, None] == label)
    return torch.from_numpy(logits).softmax(0).float()


def draw_label(rng, side, classes):
    """A label uint8 (side, side), and the same with void at a fifth of the positions."""
    label = rng.integers(0, classes, (side, side)).astype(np.uint8)
    known = label.copy()
    known[rng.random(label.shape) < 0.2] = 255
    known[0, 0] = label[0, 0]
    return label, known


def simulate(seed, leak=0.0, images=40, models=4, online=False, side=6, classes=4):
    """Samples of a victim that was trained on half of the images, and references; a model gains `leak` on its images.

    Images differ in difficulty. With `online`, each image has references on both sides.
    """
    rng, samples = np.random.default_rng(seed), []
    for index in range(images):
        label, known = draw_label(rng, side, classes)
        seen = rng.permutation(models) < (models // 2 if online else 0)
        member, difficulty = index % 2 == 0, rng.normal(1, 1.5)
        outputs = [posterior(rng, label, difficulty + leak * inside, classes) for inside in (member, *seen)]
        samples.append(Sample(f"{index:03}", f"{index}", f"{index // 2}", member, outputs[0], torch.from_numpy(known),
                              None, tuple(outputs[1:]), tuple(seen.tolist())))
    return samples


def run(name, samples, population=None, **given_settings):
    """The scores {name: score} of an attack that is fitted, if it has to be, on `population`."""
    attack = build_attack(name, AttackSettings(**given_settings))
    if "population" in attack.needs:
        attack.fit(population)
    scored = attack.finish(list(attack.score(samples)))
    return {one.name: one.score for one in scored}


def auc(samples, found):
    return roc_auc_score([one.member for one in samples], [found[one.name] for one in samples])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_victim_that_saw_neither_side_is_at_chance(name):
    online = name in ONLINE
    aucs = [auc(victim, run(name, victim, simulate(1000 + seed, 0.5, online=online)))
            for seed in range(30) for victim in [simulate(seed, 0.0, online=online)]]
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / math.sqrt(len(aucs)) and 0.06 < np.std(aucs) < 0.14


@pytest.mark.parametrize("name", ALL)
def test_a_leak_is_found_where_the_loss_hardly_finds_it(name):
    online = name in ONLINE
    victim = simulate(0, 0.5, 200, online=online)
    found = auc(victim, run(name, victim, simulate(1, 0.5, 200, online=online)))
    loss = auc(victim, run("loss", victim))
    assert loss < 0.65 and found > (loss + 0.03 if name == "rmia" else 0.75)
    if name == "rmia":
        assert auc(victim, run("rmia", victim, offline_a=1)) > 0.8


@pytest.mark.parametrize("name", ALL)
def test_order_and_batches_do_not_change_scores(name):
    online = name in ONLINE
    victim, known = simulate(2, 0.5, 24, online=online), simulate(3, 0.5, 24, online=online)
    one = run(name, victim, known)
    attack = build_attack(name, AttackSettings())
    if "population" in attack.needs:
        attack.fit(known[::-1])
    order = np.random.default_rng(0).permutation(len(victim)).tolist()
    parts = [list(attack.score([victim[index] for index in order[first : first + 5]])) for first in range(0, 24, 5)]
    saved = json.loads(json.dumps([vars(scored) for part in parts for scored in part]))  # as the journal of a run
    finished = attack.finish([Scored(**values) for values in saved])
    assert [scored.name for scored in finished] == [victim[index].name for index in order]
    assert {scored.name: scored.score for scored in finished} == pytest.approx(one, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["one-hot", "wrong", "half", "constant", "float16"])
def test_extreme_posteriors_give_finite_scores(name, kind):
    change = {"one-hot": lambda p, y: (p == p.amax(0)).float(),
              "wrong": lambda p, y: torch.eye(4)[(y.clamp_max(3).long() + 1) % 4].permute(2, 0, 1).contiguous(),
              "half": lambda p, y: p.where(torch.arange(6) < 3, torch.eye(4)[y.clamp_max(3).long()].permute(2, 0, 1)),
              "constant": lambda p, y: torch.full_like(p, 0.25),
              "float16": lambda p, y: (8 * p.log()).softmax(0).half().float()}[kind]
    victim, known = (
        [replace(one, output=change(one.output, one.truth),
                 references=tuple(change(other, one.truth) for other in one.references))
         for one in simulate(seed, 0.5, 24, online=name in ONLINE)] for seed in (4, 5))
    victim[0] = replace(victim[0], output=simulate(6)[0].output)  # far from references that all agree
    for floor in (1e-30, 2.0**-24):
        found = run(name, victim, known, floor=floor)
        assert len(found) == 24 and all(map(math.isfinite, found.values()))


# The logit


def slow_logits(output, label, floor):
    """phi of each known position, one at a time."""
    values = []
    for i, j in product(*map(range, label.shape)):
        if label[i, j] != 255:
            others = math.fsum(float(output[c, i, j]) for c in range(len(output)) if c != label[i, j])
            values.append(math.log(max(float(output[label[i, j], i, j]), floor)) - math.log(max(others, floor)))
    return values


@given(posterior_and_label(), st.sampled_from([1e-30, 2.0**-24]))
def test_logit_map(pair, floor):
    found = logit_map(*tensors(pair), floor)
    assert found.dtype == torch.float64 and not found[torch.from_numpy(pair[1] == 255)].any()
    np.testing.assert_allclose(found.numpy()[pair[1] != 255], slow_logits(*pair, floor), rtol=1e-9, atol=1e-9)
    batch = logit_map(*(tensor[None].repeat(2, *[1] * tensor.ndim) for tensor in tensors(pair)), floor)
    assert torch.equal(batch[1], found)


def test_logit_of_a_posterior_near_one_keeps_its_digits():
    """1 - p is 0 in float32 and has no digit after float16; the sum of the other classes has all of them."""
    output = torch.tensor([1.0, 2e-9, 1e-9]).view(3, 1, 1)
    assert logit_map(output, torch.zeros(1, 1, dtype=torch.uint8)).item() == pytest.approx(-math.log(3e-9), rel=1e-6)


# RMIA and the weight of the calibrated score


@given(calibration_cases(), st.sampled_from([0.0, 0.3, 0.6, 1.0]))
@settings(max_examples=40, deadline=None)
def test_rmia(case, a):
    sample, _, floor = case
    used = [reference for reference, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
    values = []
    for i, j in product(*map(range, sample.truth.shape)):
        if (label := int(sample.truth[i, j])) != 255:
            out = sum(float(reference[label, i, j]) for reference in used) / len(used)
            mean = 0.5 * ((1 + a) * out + (1 - a))
            values.append(math.log(max(float(sample.output[label, i, j]), floor)) - math.log(max(mean, floor)))
    [scored] = RMIA(AttackSettings(floor=floor, offline_a=a)).score([sample])
    assert scored.score == pytest.approx(sum(values) / len(values), rel=1e-9, abs=1e-9)
    if a == 1:
        [same] = build_attack("base", AttackSettings(floor=floor)).score([sample])
        assert scored.score == pytest.approx(same.score, rel=1e-4, abs=1e-4)


@given(calibration_cases())
@settings(max_examples=40, deadline=None)
def test_references_alone(case):
    sample, _, floor = case
    used = [reference for reference, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
    values = [math.log(max(sum(float(reference[label, i, j]) for reference in used) / len(used), floor))
              for i, j in product(*map(range, sample.truth.shape)) if (label := int(sample.truth[i, j])) != 255]
    [scored] = build_attack("references-alone", AttackSettings(floor=floor)).score([sample])
    assert scored.score == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-4)


def test_controls_are_above_chance_where_members_are_easier():
    """Without a leak, images that every model finds easier are called members by the loss, and by its control."""
    victim = simulate(9, 0.0, 200)
    order = sorted(victim, key=lambda one: run("references-alone", [one])[one.name])
    easier = [replace(one, member=rank >= 100) for rank, one in enumerate(order)]
    assert auc(easier, run("references-alone", easier)) == 1 and auc(easier, run("loss", easier)) > 0.9


def test_rmia_counts_of_the_paper_rank_as_the_ratio():
    """Pr_z[(P / P^)_x / (P / P^)_z > gamma] grows with the ratio of x, and has ties."""
    victim = simulate(7, 0.5, 60)
    ratio = np.exp(list(run("rmia", victim).values()))
    counts = (ratio[:40, None] / ratio[None, 40:] > 1.0).mean(1)
    order = ratio[:40].argsort()
    assert (np.diff(counts[order]) >= 0).all() and len(set(counts.tolist())) < 40


@pytest.mark.parametrize("a", [-0.1, 1.1, math.nan])
def test_a_that_is_no_share(a):
    with pytest.raises(UserError, match=r"--offline-a .* between 0 and 1"):
        build_attack("rmia", AttackSettings(offline_a=a))


def test_the_weight_of_references_is_chosen_on_the_population():
    known = simulate(8, 0.4, 60)
    every = tuple([True] * 4)
    known = [replace(one, in_reference=every) if index < 4 else one for index, one in enumerate(known)]  # left out
    attack = build_attack("calibrated-weighted", AttackSettings())
    attack.fit(known)
    aucs = {c: auc(known[4:], run("calibrated", known[4:], c=c)) for c in WEIGHTS}
    assert attack.chosen["auc"] == pytest.approx(max(aucs.values())) == pytest.approx(aucs[attack.chosen["c"]])
    assert attack.chosen["c"] > 0.3
    expected = run("calibrated", known[4:], c=attack.chosen["c"])
    assert {one.name: one.score for one in attack.score(known[4:])} == expected


@pytest.mark.parametrize("name", FITTED)
def test_a_population_that_references_saw(name):
    known = [replace(one, in_reference=tuple([one.member] * 4)) for one in simulate(9)]
    with pytest.raises(UserError, match="trained on all of its members"):
        build_attack(name, AttackSettings()).fit(known)


# LiRA


def slow_confidence(sample, output, floor):
    values = slow_logits(output.numpy(), sample.truth.numpy(), floor)
    return sum(values) / len(values)


def slow_sides(samples, floor):
    """For each sample: phi of the target, of references that were not trained on it, and of those that were."""
    rows = []
    for one in samples:
        values = [slow_confidence(one, output, floor) for output in one.references]
        rows.append((slow_confidence(one, one.output, floor),
                     [value for value, seen in zip(values, one.in_reference, strict=True) if not seen],
                     [value for value, seen in zip(values, one.in_reference, strict=True) if seen]))
    return rows


def slow_variance(rows, side):
    squares, freedom = 0.0, 0
    for row in rows:
        mean = sum(row[side]) / len(row[side])
        squares += sum((value - mean) ** 2 for value in row[side])
        freedom += len(row[side]) - 1
    return squares / freedom


def slow_student(rows, side):
    """Degrees of freedom, location and squared scale of the Student t of each image, by updates of one value each."""
    variance = slow_variance(rows, side)
    means = [sum(row[side]) / len(row[side]) for row in rows]
    middle = sum(means) / len(means)
    between = sum((mean - middle) ** 2 for mean in means) / len(means)
    between -= variance * sum(1 / len(row[side]) for row in rows) / len(rows)
    laws = []
    for row in rows:
        mu, kappa, alpha, beta = middle, variance / max(between, 1e-6 * variance), 2.0, variance
        for value in row[side]:
            beta += kappa * (value - mu) ** 2 / (2 * (kappa + 1))
            mu = (kappa * mu + value) / (kappa + 1)
            kappa, alpha = kappa + 1, alpha + 0.5
        laws.append((2 * alpha, mu, beta * (kappa + 1) / (alpha * kappa)))
    return laws


def log_t(x, freedom, location, scale):
    z = (x - location) ** 2 / scale
    return (gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - 0.5 * math.log(freedom * math.pi * scale)
            - (freedom + 1) / 2 * math.log1p(z / freedom))


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]), st.integers(2, 5))
@settings(max_examples=10, deadline=None)
def test_lira_offline(seed, leak, models):
    samples = simulate(seed, leak, 6, models, side=3)
    samples[0] = replace(samples[0], in_reference=(True, *[False] * (models - 1)))
    rows = slow_sides(samples, 1e-30)
    deviation = math.sqrt(slow_variance(rows, 1))
    distance = [(target - sum(out) / len(out)) / deviation / math.sqrt(2) for target, out, _ in rows]
    expected = [math.log(math.erfc(-z) / math.erfc(z)) for z in distance if abs(z) < 25]
    found = [score for score, z in zip(run("lira", samples).values(), distance, strict=True) if abs(z) < 25]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    bayes = run("lira-bayes", samples)
    for (target, *_), law, score in zip(rows, slow_student(rows, 1), bayes.values(), strict=True):
        between = np.linspace(law[1], target, 1001)  # the centre has the probability 1/2
        p = 0.5 + np.trapezoid(np.exp([log_t(x, *law) for x in between]), between)
        assert score == pytest.approx(math.log(p / (1 - p)), rel=1e-3, abs=1e-3)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]), st.integers(3, 6))
@settings(max_examples=10, deadline=None)
def test_lira_online(seed, leak, models):
    samples = simulate(seed, leak, 6, models, online=True, side=3)
    samples[0] = replace(samples[0], in_reference=(True, True, *[False] * (models - 2)))
    rows = slow_sides(samples, 1e-30)
    expected = []
    for target, out, inside in rows:
        expected.append(norm.logpdf(target, sum(inside) / len(inside), math.sqrt(slow_variance(rows, 2)))
                        - norm.logpdf(target, sum(out) / len(out), math.sqrt(slow_variance(rows, 1))))
    assert list(run("lira-online", samples).values()) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    expected = [log_t(row[0], *inside) - log_t(row[0], *out)
                for row, out, inside in zip(rows, slow_student(rows, 1), slow_student(rows, 2), strict=True)]
    assert list(run("lira-bayes-online", samples).values()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_score_of_lira_ranks_as_the_probability_of_the_paper():
    samples = simulate(10, 0.3, 60)
    rows = slow_sides(samples, 1e-30)
    distance = [target - sum(out) / len(out) for target, out, _ in rows]
    assert np.argsort(distance).tolist() == np.argsort(list(run("lira", samples).values())).tolist()


def test_log_odds_has_no_ties_far_from_the_centre():
    far = np.array([-1e6, -50.0, -9.0, 0.0, 9.0, 50.0, 1e6])
    found = log_odds(norm(np.zeros(7), 1), far)
    assert (np.diff(found) > 0).all() and np.isfinite(found).all() and found[3] == 0 and SMALLEST > 0
    assert found == pytest.approx(-found[::-1])


def test_a_prior_helps_where_the_variance_of_images_differs():
    """With eight references the Student t ranks a leak better than the pooled variance."""
    gains = []
    for seed in range(20):
        rng, scored = np.random.default_rng(seed), []
        for index in range(400):
            deviation, mean = math.exp(rng.normal(0, 0.7)), rng.normal(0, 3)
            values = rng.normal(mean, deviation, 8).tolist()
            member = index % 2 == 0
            target = rng.normal(mean + 2 * deviation * member, deviation)
            scored.append(Scored(str(index), member, str(index), 0.0, statistics={"target": [target], "out": values}))
        aucs = [roc_auc_score([one.member for one in scored], [
            one.score for one in build_attack(name, AttackSettings()).finish(scored)]) for name in OFFLINE]
        gains.append(aucs[1] - aucs[0])
    assert np.mean(gains) > 0.01


@pytest.mark.parametrize("name, seen, message", [
    ("lira", [[False]], "give --references two or more that were not trained on the same image"),
    ("lira", [[False, True], [True, False]], "two or more that were not trained"),
    ("lira-bayes", [[True, True], [False, False]], "a: every reference model was trained on this image"),
    ("lira-online", [[True, False, True], [False, False, False]], "b: no reference model was trained on this image"),
    ("lira-online", [[True, False, False], [False, True, False]], "two or more that were trained on the same image"),
    ("lira-bayes-online", [[True, True, True]], "a: every reference model"),
    ("rmia", [[False], [True]], "b: every reference model"), ("calibrated", [[True]], "a: every reference model")])
def test_references_that_cannot_serve(name, seen, message):
    attack = build_attack(name, AttackSettings())
    with pytest.raises(UserError, match=message):
        attack.check_references(["a", "b"], np.array(seen))
    accepted = np.array([[False, True, False, True], [True, True, False, False]])
    attack.check_references(["a", "b"], accepted)


def test_lira_scores_no_image_without_references():
    [sample] = simulate(11, images=1)
    with pytest.raises(UserError, match="000: every reference model"):
        next(build_attack("lira", AttackSettings()).score([replace(sample, in_reference=(True,) * 4)]))
    attack = build_attack("lira", AttackSettings())
    with pytest.raises(UserError, match="two or more"):
        attack.finish(list(attack.score([replace(sample, in_reference=(True, True, True, False))])))


# Statistics


def slow_boundary(label):
    height, width = label.shape
    out = np.zeros(label.shape, bool)
    for i, j in product(range(height), range(width)):
        around = [label[y, x] for y in range(max(0, i - 1), min(height, i + 2))
                  for x in range(max(0, j - 1), min(width, j + 2)) if label[y, x] != 255]
        out[i, j] = label[i, j] != 255 and any(one != label[i, j] for one in around)
    return out


@given(posterior_and_label())
def test_boundary(pair):
    np.testing.assert_array_equal(boundary(torch.from_numpy(pair[1])).numpy(), slow_boundary(pair[1]))


def slow_statistics(values, label):
    """The statistics of a map {position: value} of the known positions."""
    edge, ordered = slow_boundary(label), sorted(values.values())
    mean = sum(ordered) / len(ordered)
    highest = ordered[-max(1, round(0.05 * len(ordered))):]
    found = [mean, *(float(np.quantile(ordered, q)) for q in QUANTILES), sum(highest) / len(highest)]
    for side in (True, False):
        part = [value for position, value in values.items() if edge[position] == side]
        found.append(sum(part) / len(part) if part else mean)
    return found


def slow_features(sample, floor):
    label = sample.truth.numpy()
    known = [position for position in product(*map(range, label.shape)) if label[position] != 255]

    def loss(outputs):
        return {at: -math.log(max(sum(float(one[label[at]][at]) for one in outputs) / len(outputs), floor))
                for at in known}

    def three(output):
        columns = [[float(output[c][at]) for c in range(len(output))] for at in known]
        return [slow_confidence(sample, output, floor),
                sum(-sum(p * math.log(p) for p in column if p) for column in columns) / len(known),
                sum(map(max, columns)) / len(known)]

    own = loss([sample.output])
    found = three(sample.output) + slow_statistics(own, label)
    used = [reference for reference, seen in zip(sample.references, sample.in_reference, strict=True) if not seen]
    if used:
        others = loss(used)
        each = [three(one) for one in used]
        found += [value - sum(one[index] for one in each) / len(each) for index, value in enumerate(found[:3])]
        found += slow_statistics({at: own[at] - others[at] for at in known}, label)
    return found


@given(calibration_cases(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_features(case, with_references):
    sample, _, floor = case
    if not with_references:
        sample = replace(sample, references=(), in_reference=())
    attack = build_attack("statistics", AttackSettings(floor=floor))
    found = attack.features(sample)
    assert len(found) == (22 if with_references else 11)
    assert found == pytest.approx(slow_features(sample, floor), rel=1e-6, abs=1e-6)


def test_statistics_without_references():
    victim, known = ([replace(one, references=(), in_reference=()) for one in simulate(seed, 1.0, 100)]
                     for seed in (12, 13))
    assert auc(victim, run("statistics", victim, known)) > 0.65


def test_a_population_of_too_few_groups():
    known = [replace(one, group=str(one.member)) for one in simulate(14)]
    with pytest.raises(UserError, match="too few groups"):
        build_attack("statistics", AttackSettings()).fit(known)
    known = [replace(one, group=f"{one.member} {index % 4}") for index, one in enumerate(known)]
    build_attack("statistics", AttackSettings()).fit(known)


# Through the script


@pytest.fixture(scope="module")
def others(world, tmp_path_factory):
    """Two models whose training images are not known."""
    folder = tmp_path_factory.mktemp("others")
    return [write_other_model(world / part / "last.pth.tar", folder / f"{part}.pth.tar")
            for part in ("victim", "shadow")]


def attack(live, tmp_path, name, *flags):
    return script("attack.py", "--attack", name, *live, *flags, "--out", tmp_path / name)


def change_shadow(shadow, folder, noise, swap=False):
    """A run with `noise` times changed weights. `swap`: it says that it was trained on the other half."""
    shutil.copytree(shadow, folder, ignore=shutil.ignore_patterns("posteriors*"))
    for _ in range(noise):
        write_other_model(folder / "last.pth.tar", folder / "last.pth.tar")
    if swap:
        stored = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps(stored | {"in": stored["out"], "out": stored["in"]}))
        for name, other in (("in", "out"), ("out", "in")):
            shutil.copy(shadow / f"{name}.txt", folder / f"{other}.txt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in ONLINE])
def test_attacks_with_references(world, live, others, tmp_path, name):
    """The model of the population is among the references: it is used for the target, and not for the population."""
    flags = ["--references", world / "shadow", *others]
    flags += ["--population", world / "shadow"] if name in FITTED else []
    out = must(attack(live, tmp_path, name, *flags)).stdout
    found = scores(tmp_path / name)
    assert len(found) == 16 and len({score for _, score in found.values()}) == 16
    own = world / "shadow" / "last.pth.tar"
    alone = f"--population is attacked without the reference {own}: it is the model of --population itself"
    assert (alone in out) == (name in FITTED), out
    assert ("patch" in results(tmp_path / name)) == ATTACKS.load(name).patches == ("random patches" in out)
    if name == "calibrated-weighted":
        chosen = results(tmp_path / name)["chosen"]
        must(attack(live, tmp_path, "calibrated", *flags[:4], "--c", chosen["c"]))
        assert scores(tmp_path / "calibrated") == found
        shutil.rmtree(tmp_path / name)
        must(attack(live, tmp_path, name, "--references", *others, "--population", world / "shadow"))
        assert results(tmp_path / name)["chosen"] == chosen


@pytest.mark.slow
def test_a_copy_of_the_model_of_the_population(world, live, others, tmp_path):
    """It is recognised by its outputs, also if the population is a tree of them."""
    copy = shutil.copy(world / "shadow" / "last.pth.tar", tmp_path / "copy.pth.tar")
    torch.save(torch.load(copy, weights_only=True) | {"epoch": 7}, copy)
    tree = shutil.copytree(world / "shadow" / "posteriors-s4", tmp_path / "tree")
    refused = attack(live, tmp_path, "statistics", "--references", *others, "--population", tree)
    assert_refused(refused, "is missing, so references cannot be queried about --population")
    for label in tree.glob("*/label/**/*.png"):
        image = label.parents[2] / "img" / "img" / label.name
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / "data" / "img" / label.name, image)
    for place in (world / "shadow", tree):
        flags = ["--references", others[0], copy, "--population", place, "--stride", 4]
        out = must(attack(live, tmp_path, "calibrated-weighted", *flags)).stdout
        assert f"without the reference {copy}: it is the model of --population itself" in out
        shutil.rmtree(tmp_path / "calibrated-weighted")
    refused = attack(live, tmp_path, "calibrated-weighted", "--references", copy, "--population", world / "shadow")
    assert_refused(refused, "no reference model can serve for --population")
    assert not (tmp_path / "calibrated-weighted").exists()


@pytest.mark.slow
def test_a_reference_that_saw_one_side_of_the_population(world, live, others, tmp_path):
    swapped = change_shadow(world / "shadow", tmp_path / "swapped", 2, swap=True)
    same = change_shadow(world / "shadow", tmp_path / "same", 1)
    flags = ["--population", world / "shadow", "--references", swapped, same]
    assert_refused(attack(live, tmp_path, "statistics", *flags), "no reference model can serve for --population")
    out = must(attack(live, tmp_path, "statistics", *flags, others[0])).stdout
    for folder, seen in ((swapped, "0 of 12 members and on 12 of 12"), (same, "12 of 12 members and on 0 of 12")):
        assert f"without the reference {folder}/last.pth.tar: it was trained on {seen} non-members" in out


@pytest.mark.slow
def test_one_sided_references_that_are_enough_for_each_image(world, live, tmp_path):
    """Three models of each half of D^S: each image of the population gets the three that were not trained on it."""
    folders = [change_shadow(world / "shadow", tmp_path / f"{number}", 1 + number, swap=number < 3)
               for number in range(6)]
    flags = ["--population", world / "shadow", "--references", *folders]
    out = must(attack(live, tmp_path, "calibrated-weighted", *flags)).stdout
    assert "each image of --population gets 3 of 6 references, which were not trained on it" in out
    chosen = results(tmp_path / "calibrated-weighted")["chosen"]
    assert set(chosen) == {"c", "auc", "auc of the references alone"}
    options = PredictorOptions(stride=4)
    population = Source(read_shadow(world / "shadow").records(), open_predictor(str(world / "shadow"), options))
    lent = lend_references(population, open_references(list(map(str, folders)), options))
    for sample, answer in zip(lent.samples(), lent.answers(), strict=True):
        wanted = answer.others[:3] if sample.member else answer.others[3:]
        assert sample.in_reference == (False,) * 3 and len(sample.references) == 3
        assert all(torch.allclose(one, other) for one, other in zip(sample.references, wanted, strict=True))
    must(attack(live, tmp_path, "statistics", *flags))


def test_online_attacks(world, live, tmp_path):
    """Four references, each trained on half of the members and half of the non-members."""
    lines = [(world / f"{side}.txt").read_text().splitlines(keepends=True) for side in ("victim_in", "victim_out")]
    for number in (0, 1):
        (tmp_path / f"{number}.txt").write_text("".join(line for side in lines for line in side[number::2]))
    split = ["--train", tmp_path / "0.txt", "--test", tmp_path / "1.txt"]
    must(script("train_shadow.py", "--root", world / "data", *split, *SMALL, "--out", tmp_path / "a"))
    folders = [tmp_path / "a", change_shadow(tmp_path / "a", tmp_path / "b", 1, swap=True)]
    few = ["--references", *folders]
    for name, message in (("lira", "were not trained on"), ("lira-online", "were not trained on")):
        assert_refused(attack(live, tmp_path, name, *few), f"give --references two or more that {message} the same")
        assert not (tmp_path / name).exists()
    folders += [change_shadow(folders[0], tmp_path / "c", 2), change_shadow(folders[0], tmp_path / "d", 3, True)]
    for name in (*ONLINE, *OFFLINE):
        out = must(attack(live, tmp_path, name, "--references", *folders)).stdout
        assert out.count("was trained on 4 of 8 members and on 4 of 8 non-members; for these images") == 4, out
        assert len({score for _, score in scores(tmp_path / name).values()}) == 16
    refused = attack(live, tmp_path, "lira-online", "--references", world / "shadow", world / "loss")
    assert_refused(refused, "is no run of train_shadow.py")
    refused = attack(live, tmp_path, "lira-online", "--references", world / "shadow")
    assert_refused(refused, "no reference model was trained on this image", "give the attack without -online")


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_scores(live, others, tmp_path, monkeypatch):
    flags, confidence = ["--references", *others], LiRA.confidence
    must(attack(live, tmp_path, "lira-bayes", *flags))
    expected, calls = scores(tmp_path / "lira-bayes"), []
    shutil.rmtree(tmp_path / "lira-bayes")

    def stopped(self, sample, output):
        calls.append(sample.name)
        if len(set(calls)) > 12:
            raise UserError("stopped")
        return confidence(self, sample, output)

    monkeypatch.setattr(LiRA, "confidence", stopped)
    assert_refused(attack(live, tmp_path, "lira-bayes", *flags), "stopped")
    assert (tmp_path / "lira-bayes" / "unfinished").exists()
    monkeypatch.setattr(LiRA, "confidence", lambda self, *args: calls.append("again") or confidence(self, *args))
    must(attack(live, tmp_path, "lira-bayes", *flags))
    assert scores(tmp_path / "lira-bayes") == expected and 0 < calls.count("again") < 3 * 16


def test_the_same_attack_on_a_control(world, live, others, tmp_path):
    must(attack(live, tmp_path, "lira", "--references", *others, "--control", world / "shadow"))
    assert 0 <= results(tmp_path / "lira")["controls"]["model"]["auc"] <= 1


@pytest.mark.parametrize("flags, message", [
    (["lira", "--select", "sliding"], "--select has no effect"), (["lira", "--c", 0.5], "--c has no effect"),
    (["statistics", "-num-patch", 3], "-num-patch has no effect"), (["statistics"], "give --population"),
    (["lira-online", "--patch-size", 3], "--patch-size has no effect"), (["lira"], "give --references DIR"),
    (["calibrated", "--offline-a", 1], "--offline-a has no effect"), (["rmia", "--offline-a", 2], "between 0 and 1"),
    (["calibrated-weighted", "--c", 0.5], "--c has no effect"), (["rmia", "--population", "x"], "leave --population"),
    (["calibrated-weighted", "--references", "REFERENCE"], "give --population")])
def test_flags_of_these_attacks(world, live, tmp_path, flags, message):
    name, *flags = [world / "shadow" if flag in ("REFERENCE", "x") else flag for flag in flags]
    if name == "rmia":
        flags += ["--references", world / "shadow"]
    assert_refused(attack(live, tmp_path, name, *flags), message)
    assert not (tmp_path / name).exists()


def test_a_shipped_reference_needs_none_of_its_images(tmp_path, monkeypatch):
    """provenance.json says what it was trained on. data/streets is not in the current folder."""
    folder = shutil.copytree(ROOT / "weights/reference-0", tmp_path / "reference")
    monkeypatch.chdir(tmp_path)
    [reference] = open_references([str(folder)], PredictorOptions(stride=4))
    assert len(reference.trained_on.all) == 160
    assert {one.name for one in reference.trained_on.all} == {
        Path(line.split()[0]).with_suffix("").as_posix() for line in (folder / "in.txt").read_text().splitlines()[1:]}
    (folder / "provenance.json").unlink()
    with pytest.raises(UserError, match="which is not there"):
        open_references([str(folder)], PredictorOptions(stride=4))
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        open_references([str(folder)], PredictorOptions(stride=4))
