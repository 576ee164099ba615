"""Defenses that users try, and attackers that know the defense."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, must, results, scores, script
from hypothesis import given, settings
from hypothesis import strategies as st
from test_queries import Mirrored, references_of, source_of
from test_seams import assert_refused

from defenses import DefenseSpec
from defenses.argmax import argmax
from defenses.gauss import gauss
from predictors.samples import live_records
from training.segmentation import image_losses, segmentation_loss
from utils import VOID
from utils.randomness import stream


def draw_posterior(seed, classes, ties=False):
    torch.manual_seed(seed)
    logits = torch.randint(0, 3, (classes, 3, 4)).float() if ties else 3 * torch.randn(classes, 3, 4)
    return logits.softmax(dim=0)


# Defenses


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 7), st.booleans())
def test_top_k(seed, kept, classes, ties):
    posterior = draw_posterior(seed, classes, ties)
    out = DefenseSpec("top-k", float(kept)).build().apply(posterior, "a")
    for row in range(3):
        for column in range(4):
            values = posterior[:, row, column].tolist()
            first = sorted(range(classes), key=lambda one: (-values[one], one))[:kept]
            total = sum(values[one] for one in first)
            expected = [values[one] / total if one in first else 0 for one in range(classes)]
            assert out[:, row, column].tolist() == pytest.approx(expected, abs=1e-6)


def test_top_1_is_argmax():
    posterior, defense = draw_posterior(0, 5, ties=True), DefenseSpec("top-k", 1.0).build()
    assert torch.equal(defense.apply(posterior, "a"), argmax(posterior)) and defense.one_hot
    assert not DefenseSpec("top-k", 2.0).build().one_hot


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.25, 1.0, 3.0, 50.0]))
def test_temperature(seed, temperature):
    torch.manual_seed(seed)
    logits = 5 * torch.randn(6, 3, 4, dtype=torch.float64)
    out = DefenseSpec("temperature", temperature).build().apply(logits.softmax(dim=0), "a")
    assert torch.allclose(out, (logits / temperature).softmax(dim=0), atol=1e-9)
    undone = DefenseSpec("temperature", 1 / temperature).build().apply(out, "a")
    assert torch.allclose(undone, logits.softmax(dim=0), atol=1e-9)


def test_temperature_keeps_zeros():
    posterior = torch.tensor([0.5, 0.5, 0.0]).reshape(3, 1, 1)
    assert DefenseSpec("temperature", 4.0).build().apply(posterior, "a").flatten().tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("flags, message", [
    (["-top-k", 0], "whole number, 1 or more"), (["-top-k", 1.5], "whole number"), (["-top-k", "nan"], "whole number"),
    (["-top-k", "inf"], "whole number"), (["-temperature", 0], "must be above 0, and finite"),
    (["-temperature", "nan"], "must be above 0"), (["-temperature", "inf"], "must be above 0, and finite")])
def test_wrong_strengths(tmp_path, flags, message):
    assert_refused(script("attack.py", "--attack", "loss", *flags, "--out", tmp_path / "run"), message)
    assert not list(tmp_path.iterdir())


# Label smoothing


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0]))
def test_label_smoothing(seed, smoothing):
    """The label counts 1 - E, and each class E / C more; void counts nothing."""
    torch.manual_seed(seed)
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    labels[torch.rand(labels.shape) < 0.2] = VOID
    labels[:, 0, 0] = 1
    target = F.one_hot(labels.where(labels != VOID, 0), 4).movedim(-1, 1) * (1 - smoothing) + smoothing / 4
    losses = -(target * logits.log_softmax(dim=1)).sum(dim=1) * (labels != VOID)
    whole = segmentation_loss((logits, logits), labels, 0.4, smoothing)
    assert whole.item() == pytest.approx(1.4 * losses.sum().item() / (labels != VOID).sum().item(), rel=1e-5)
    each = losses.sum(dim=(1, 2)) / (labels != VOID).sum(dim=(1, 2))
    assert image_losses(logits, labels, 0.4, smoothing).tolist() == pytest.approx(each.tolist(), rel=1e-5)


def test_label_smoothing_reaches_the_training(world, tmp_path):
    flags = ["--root", world / "data", "--train", world / "victim_in.txt", "--test", world / "victim_out.txt", *SMALL]
    for smoothing in (0, 0.5):
        must(script("train_victim.py", *flags, "--epochs", 1, "--label-smoothing", smoothing, "--out",
                    tmp_path / str(smoothing)))
    weights = [torch.load(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("0", "0.5")]
    same = torch.load(world / "victim" / "last.pth.tar")["args"]
    assert same["label_smoothing"] == 0
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    refused = script("train_victim.py", *flags, "--model", "pranet", "--label-smoothing", 0.1, "--out", tmp_path / "p")
    assert_refused(refused, "has no effect on pranet")


# References under the same defense


@pytest.fixture(scope="module")
def records(world):
    return live_records(world / "victim_in.txt", world / "victim_out.txt", world / "data", "", "streets")[:3]


def test_references_answer_under_the_defense(records):
    for spec in (DefenseSpec("argmax"), DefenseSpec("gauss", 0.2)):
        plain = source_of(records, Mirrored(1), 4, references=references_of(records))
        defended = source_of(records, Mirrored(1), 4, references=references_of(records), defense=spec,
                             defend_references=True)
        needs = frozenset({"image", "queries"})
        for clear, sample in zip(plain.samples(needs), defended.samples(needs), strict=True):
            asked = list(sample.ask(sample.image.permute(1, 2, 0).numpy(), 1))[1:]
            assert len(sample.references) == len(clear.references) == len(asked) == 3
            for index, outputs in enumerate(zip(clear.references, sample.references, asked, strict=True)):
                own, seen, again = outputs
                if spec.name == "argmax":
                    assert torch.equal(seen, argmax(own)) and torch.equal(again, seen)
                else:
                    rng = stream(spec.seed, "gauss", f"{sample.id} of reference {index}")
                    assert torch.equal(seen, gauss(own, spec.strength, rng, spec.floor))
                    assert not torch.equal(again, seen)
        untouched = replace(defended, defend_references=False)
        for clear, sample in zip(plain.samples(), untouched.samples(), strict=True):
            assert all(map(torch.equal, clear.references, sample.references))


def attack(live, folder, *flags):
    must(script("attack.py", "--attack", "calibrated", *live, "--patch-size", 6, *flags, "--out", folder))
    return scores(folder), results(folder)


@pytest.mark.slow
def test_the_attacker_knows_the_defense(world, live, tmp_path):
    flags = ["--references", world / "shadow", "--c", 1]
    for name, defense in (("temperature", ["-temperature", 4]), ("dropout", ["-test-dropout", 0.5])):
        unaware, first = attack(live, tmp_path / name, *flags, *defense)
        aware, second = attack(live, tmp_path / f"{name}-known", *flags, *defense, "--defend-references")
        assert all(unaware[image] != aware[image] for image in unaware)
        assert first["defense"] == second["defense"] is not None


@pytest.mark.parametrize("flags, message", [
    (["--defend-references", "-argmax"], "--defend-references has no effect without --references"),
    (["--defend-references", "--references", "SHADOW"], "--defend-references has no effect without a defense")])
def test_flags_without_effect(world, live, tmp_path, flags, message):
    flags = [world / "shadow" if one == "SHADOW" else one for one in flags]
    result = script("attack.py", "--attack", "calibrated", *live, "--patch-size", 6, *flags, "--out", tmp_path / "run")
    assert_refused(result, message)
    assert not list(tmp_path.iterdir())
