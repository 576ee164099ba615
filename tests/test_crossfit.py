"""Attacks that are trained on the attacked images, and the control that deals membership to whole groups."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, must, scores, script, write_tree
from sklearn.metrics import roc_auc_score
from test_references import auc, simulate

from attacks import build_attack, learned_crossfit
from attacks.sample import AttackSettings
from attacks.statistics import CROSS_FITTED
from evaluation.audit_plan import Audit
from evaluation.audit_setup import parse_defense
from evaluation.controls import DEALS, deal_groups, permuted_aucs, permuted_records
from evaluation.intervals import intervals, widen
from evaluation.stored_scores import read_scores
from predictors.samples import tree_source
from utils.cli import UserError

CROSSFITTED = ("statistics-crossfit", "learned-crossfit")


def groups_of_one_side(samples):
    """The samples with members and non-members in groups of their own."""
    return [replace(one, group=f"{one.group}-{one.member}") for one in samples]


def scores_of(name, samples):
    attack = build_attack(name, AttackSettings())
    if "own" in attack.needs:
        attack.fit(iter(samples))
    return {one.name: one.score for one in attack.finish(list(attack.score(samples)))}


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(learned_crossfit, "STEPS", 60)


@pytest.mark.parametrize("name", CROSSFITTED)
@pytest.mark.parametrize("references", [0, 4])
def test_a_leak_is_found_and_random_sides_are_not(name, references, short):
    samples = [replace(one, references=one.references[:references], in_reference=one.in_reference[:references])
               for one in groups_of_one_side(simulate(0, 1.5, 80))]
    found = auc(samples, scores_of(name, samples))
    assert found > (0.75 if references else 0.62)
    dealt, index = deal_groups(np.array([one.member for one in samples]), [one.group for one in samples], 0)
    control = [replace(one, member=bool(dealt[0][number])) for one, number in zip(samples, index, strict=True)]
    assert auc(control, scores_of(name, control)) < found - 0.1


@pytest.mark.parametrize("name", CROSSFITTED)
def test_no_image_is_scored_by_a_model_that_was_trained_on_its_fold(name, short):
    """If the output of one image changes, the other images of its fold keep their scores."""
    samples = groups_of_one_side(simulate(1, 1.0, 40))
    attack = build_attack(name, AttackSettings())
    first = scores_of(name, samples)
    flipped = [replace(one, output=torch.full_like(one.output, 0.25)) if one.name == "003" else one
               for one in samples]
    second = scores_of(name, flipped)
    same = [one.name for one in samples if first[one.name] == second[one.name]]
    assert "003" not in same and len(same) >= 4 and attack.widened > 1, "the fold of 003 was not trained on it"


def test_the_network_gives_the_same_scores_again_and_in_parts(short):
    samples = groups_of_one_side(simulate(2, 1.0, 24))
    whole = scores_of("learned-crossfit", samples)
    attack = build_attack("learned-crossfit", AttackSettings())
    torch.manual_seed(5)
    attack.fit(iter(samples[::-1]))
    parts = {one.name: one.score for sample in samples for one in attack.score([sample])}
    assert parts == pytest.approx(whole, abs=1e-5)


def test_too_few_groups():
    samples = groups_of_one_side(simulate(3, 1.0, 6))[:2]
    for name in CROSSFITTED:
        with pytest.raises(UserError, match="the attacked images have too few groups"):
            scores_of(name, samples)


# The permuted control


def test_permuted_aucs_are_those_of_each_deal():
    rng = np.random.default_rng(0)
    score, group = rng.normal(size=60).round(1), rng.integers(0, 12, 60).astype(str)
    member = np.isin(group, ["0", "1", "2", "3", "4"])
    dealt, index = deal_groups(member, group, 7, DEALS)
    slow = [roc_auc_score(one[index], score) for one in dealt]
    assert permuted_aucs(score, member, group, 7) == pytest.approx(slow, abs=1e-12)
    assert (dealt.sum(axis=1) == 5).all() and np.mean(slow) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("member", [[True, True, True, False], [True, False, True, False], [False, False, False, True]])
def test_each_deal_has_both_sides_even_if_groups_hold_both(member):
    dealt, _ = deal_groups(np.array(member), ["a", "a", "b", "b"], 0, 20)
    assert dealt.any(axis=1).all() and not dealt.all(axis=1).any()


def test_records_of_a_group_stay_together(tmp_path):
    source = tree_source(write_tree(tmp_path / "tree", names=[f"{name}" for name in range(6)]))
    records = [replace(one, group=f"{one.member}{int(one.name[-1]) // 2}") for one in source.records]
    dealt = permuted_records(records, 3)
    assert [one.name for one in dealt] == [one.name for one in records]
    sides = {}
    for one in dealt:
        sides.setdefault(one.group, set()).add(one.member)
    assert all(len(side) == 1 for side in sides.values()) and sum(side == {True} for side in sides.values()) == 3
    assert [one.member for one in permuted_records(records[::-1], 3)][::-1] == [one.member for one in dealt]


def test_intervals_are_widened_on_the_logit_scale():
    assert widen(0.5, [0.4, 0.6], 1.0) == pytest.approx([0.4, 0.6])
    low, high = widen(0.7, [0.6, 0.8], 1.25)
    assert 0 < low < 0.6 and 0.8 < high < 1 and widen(1.0, [0.9, 1.0], 2) == [0.9, 1.0] and widen(0.6, None, 2) is None


# In an audit


@pytest.mark.slow
def test_an_audit_has_permuted_controls(tmp_path):
    tree = write_tree(tmp_path / "tree", names=[f"scene{number}" for number in range(12)])
    command = ["audit.py", "--model", f"stored:{tree}", "--attacks", "loss", *CROSSFITTED, "--precision", "fp32",
               "--out", tmp_path / "audit", "--try", "argmax"]
    must(script(*command))
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    controls = {row["name"]: row for row in found["controls"]}
    assert {"permuted", *(f"{name}, permuted" for name in CROSSFITTED)} <= set(controls)
    member, _, score = map(np.array, zip(*read_scores(tmp_path / "audit/attacks/loss").values(), strict=True))
    low, high = controls["permuted"]["interval"]
    assert low < controls["permuted"]["auc"] < high and abs(controls["permuted"]["auc"] - 0.5) < 0.05
    assert roc_auc_score(member, score) > high, "members of this tree score higher"
    for name in CROSSFITTED:
        own = {row["name"]: row for row in found["attacks"]}[name]
        member, group, score = zip(*read_scores(tmp_path / "audit/attacks" / name).values(), strict=True)
        plain = intervals(np.array(score), np.array(member), group)["auc"]
        assert own["kind"] == "bound" and own["auc_interval"] == pytest.approx(widen(own["auc"], plain, CROSS_FITTED))
    assert not (tmp_path / "audit/attacks/argmax/statistics-crossfit").exists(), "no attacker has the lists"
    assert "random sides" in (tmp_path / "audit/report.html").read_text()


@pytest.mark.slow
def test_references_under_the_defense_are_tried(world, tmp_path):
    must(script("audit.py", "--model", world / "victim", "--root", world / "data", "--members", world / "victim_in.txt",
                "--non-members", world / "victim_out.txt", "--skip-check", "--precision", "fp32", "--stride", 4,
                "--references", world / "shadow", "--attacks", "calibrated", "--try", "gauss:0.1", "test-dropout:0.5",
                "--out", tmp_path / "audit"))
    for name, stored in (("gauss-0.1", "references"), ("test_dropout-0.5", "references-test_dropout-0.5")):
        runs = tmp_path / "audit" / "attacks" / name
        plain, informed = (scores(runs / run) for run in ("calibrated", "calibrated-informed"))
        assert plain.keys() == informed.keys() and plain != informed and (tmp_path / "audit" / stored).is_dir()
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    assert found["not_run"] == {} and len(found["defenses"]) == 3
    plan = Audit("stored:examples", None, ROOT, references=["a"], attacks=["calibrated", "loss"],
                 defenses=[parse_defense("gauss:0.1", 0)])
    titles = [(trial.defense.describe(), trial.title) for trial in plan.trials]
    assert ("gauss 0.1", "calibrated, references under the defense") in titles
    assert sum("under the defense" in title for _, title in titles) == 1
