"""Verdicts on the paper's claims, from cells whose separation of members and non-members is known."""

import base64
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from attacks.sample import Scored
from evaluation.report import summarise, write_scores
from reproduce import cells
from reproduce.cases import pool
from reproduce.cells import PACKED, pack, unpack, unpack_patches
from reproduce.claims import CLAIMS, measure, verdicts
from reproduce.figures import activation_maps, utility_points
from reproduce.measured import Measured
from reproduce.pages import claims, findings, report
from reproduce.plan import Dpsgd, Selections, read_scale
from reproduce.tables import GAP_ATTACKS, table_two, victims
from reproduce.verdicts import FAILS, HOLDS, LEVEL, OPEN, Range, holm
from utils.checkpoints import save_checkpoint
from utils.cli import UserError
from utils.files import write_json

IMAGES = 60  # of each side
BEST = {"loss": 0.6, "concate": 0.35, "pixelwise": 0.0, "threshold": 0.05}
LOST = {"dropout": 0.3, "dpsgd": 0.01, "gauss": 0.001}  # mIoU


def separation(cell):
    """By how much members score above non-members."""
    kind, _, select = cell.method.partition("-")
    defense, _, value = cell.defense.partition("-")
    if cell.setting == "dpc-psp" and kind == "pixelwise":
        return -0.1
    if defense == "gauss":
        return 0.0
    gap = BEST[kind] + 0.3 * (select == "rejection") - 0.25 * (select == "full") + 0.03 * (cell.size - 16)
    if defense == "argmax":
        gap -= {"psp-psp": 0.0, "dlv3-psp": 0.5}[cell.setting]
    if defense == "dpsgd":
        gap -= 0.35 if value == "0.001" else -0.2
    return gap


def write_cell(scale, cell):
    """Write a run as attack.py would, and collect it. All attacks have the same noise, and the gap of `separation`."""
    rng, extra = np.random.default_rng(cell.seed), np.random.default_rng(1)
    scored = []
    for index in range(2 * IMAGES):
        member = index < IMAGES
        patches = rng.normal(size=30) * 0.3 + rng.normal() * 0.5 + separation(cell) * member
        if cell.method == "loss-rejection":  # its first patch separates better than the others
            patches[0] += 0.5 * member + 0.01 * extra.normal()
        patches = patches[: cell.count]
        scored.append(Scored(f"p{index:03d}", member, f"b{index // 2}", float(patches.mean()), [[0, 0]] * cell.count,
                             patches.tolist()))
    run = scale.run_of(cell)
    run.mkdir(parents=True)
    about = {"miou": {"in": 0.6, "out": 0.5 - LOST.get(cell.defense.partition("-")[0], 0)}, "tau": None,
             "defense": cell.defense}
    write_scores(run, scored)
    write_json(run / "results.json", summarise(scored) | about)
    words = scale.cell_command(cell)
    models = {name: words[words.index(flag) + 1] for name, flag in (("victim", "--victim"), ("resume", "-resume"))}
    for path in map(Path, models.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"name": "pspnet"}, {"weight": torch.tensor(len(str(path)))})
        (path.parent / "args.json").write_text('{"commit": "old"}')
    write_json(run / "args.json", {"commit": "abc", "args": models})
    cells.write_cell(run, scale.results / f"{cell.name}.json", **scale.cell_arguments(cell) | {"maps": False})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, tiny = tmp_path_factory.mktemp("claims"), read_scale("tiny")
    scale = replace(
        tiny, seeds=1, sizes={16: 3, 10: 3, 4: 3}, count=3, gauss=[0.1], dropout=[0.5],
        selections=Selections(["psp-psp"], [1, 3], sliding_from=2, seeds=1),
        settings={name: tiny.settings[name] for name in ("psp-psp", "dlv3-psp", "dpc-psp")},
        dpsgd=Dpsgd("", {"psp-psp": [0.001, 0.01]}), runs=folder / "runs", results=folder / "results",
        again_folder=folder / "results" / "again")
    for cell in scale.cells.values():
        write_cell(scale, cell)
    return Measured(scale)


def result_of(measured, key):
    (result,) = (result for result in measure(measured) if result.claim.key == key)
    return result


@pytest.fixture(scope="module")
def results(measured):
    return {result.claim.key: result for result in measure(measured)}


def changed(measured, folder, change):
    """The same cells in another folder, where `change` maps the name of a cell and its content to another content."""
    results = shutil.copytree(measured.scale.results, folder)
    for name in measured.cells:
        path = results / f"{name}.json"
        path.write_text(json.dumps(change(name, json.loads(path.read_text()))))
    return Measured(replace(measured.scale, results=results, again_folder=results / "again"))


@pytest.mark.parametrize("key, reading", [
    ("loss-above-threshold", "inside"), ("full-above-threshold", "inside"), ("patches-above-1x1", "inside"),
    ("loss-above-concate", "inside"), ("patches-above-full", "inside"), ("sliding-equal-counts", "inside"),
    ("rejection-above-random", "inside"), ("independent-auc", "inside"), ("argmax-all", "outside"),
    ("gauss-below-60", "inside"), ("dpsgd-reference", "inside"), ("patch-sizes", "inside"), ("images-stay", "outside"),
    ("single-patches", "inside"), ("confidence-auc", "contains an end"), ("learned-auc", "inside"),
    ("gauss-dependent-taken", "outside"), ("gauss-loss", "inside"), ("dropout-taken", "contains an end"),
    ("dpsgd-larger", "outside"), ("dpsgd-per-layer", "contains an end"), ("dpsgd-noise", "inside")])
def test_intervals_and_ranges(results, key, reading):
    assert results[key].reading == reading


def test_values_are_means_over_settings_of_differences_of_metrics(measured):
    def auc(cell, count=None):
        member, _ = measured.images(cell.setting)
        return 100 * roc_auc_score(member, measured.scores(cell, count))

    def auc_of(method, defense="none", setting="psp-psp", **values):
        return auc(measured.seeds(setting, method, defense, **values)[0])

    def value(key):
        result = result_of(measured, key)
        low, high = result.auc.interval
        assert low < result.auc.value < high and result.auc.detectable > 0
        return result.auc.value

    loss, concate = (np.mean([auc_of(f"{kind}-random", setting=name) - auc_of(f"{kind}-random", "gauss-0.1", name)
                              for name in ("psp-psp", "dlv3-psp")]) for kind in ("loss", "concate"))
    assert value("gauss-loss") == pytest.approx(loss - concate)
    settings = list(measured.scale.settings)
    assert value("loss-above-concate") == pytest.approx(np.mean(
        [auc_of("loss-random", setting=name) - auc_of("concate-random", setting=name) for name in settings]))
    gains = []
    for kind in ("concate", "loss"):
        cells = [measured.seeds("psp-psp", f"{kind}-{select}", count=3)[0] for select in ("rejection", "random")]
        with_one, with_three = (auc(cells[0], count) - auc(cells[1], count) for count in (1, 3))
        gains.append(with_one - with_three)
    assert value("rejection-few") == pytest.approx(np.mean(gains))
    assert value("independent-auc") == pytest.approx(np.mean(
        [auc_of("loss-random", setting=name) for name in ("dlv3-psp", "dpc-psp")]))


def test_only_sizes_of_one_architecture_vote(measured):
    cases = result_of(measured, "patch-sizes").cases
    assert [(case.label, case.counted) for case in cases] == [("16 - 10 positions", True), ("16 - 4 positions", False)]
    assert "2 and 0 halvings" in cases[1].note


def test_sliding_with_another_number_of_patches_is_left_out(measured, tmp_path):
    def one_more(name, cell):
        return cell | {"patches": cell["patches"] + 2 * IMAGES} if "loss-sliding" in name else cell

    labels = [case.label for case in result_of(changed(measured, tmp_path / "more", one_more),
                                               "sliding-equal-counts").cases]
    assert labels == ["PSP→PSP, dependent, C+GT"]


def test_rejection_votes_only_where_it_changes_scores(measured, tmp_path):
    random = {name: json.loads((measured.scale.results / f"{name}.json").read_text())["scores"]
              for name in measured.cells}

    def mostly_the_same(name, cell):
        """Rejection changes 40 of 120 scores of the loss map, so that its AUC becomes 1."""
        if "loss-rejection" not in name:
            return cell
        scores = unpack(random[name.replace("rejection", "random")])
        scores[:40] += 100
        return cell | {"scores": pack(scores)}

    cases = result_of(changed(measured, tmp_path / "same", mostly_the_same), "rejection-above-random").cases
    counted = {case.label: case.counted for case in cases}
    assert len(counted) == 6 and all(one == label.endswith("C+GT") for label, one in counted.items())
    assert all("changed 33 %" in case.note and "0 of 1 attackers" in case.note for case in cases if not case.counted)


def test_a_dear_defense_does_not_hold_and_one_below_one_half_does_not_vote(measured, tmp_path):
    def dear(name, cell):
        return cell | {"miou": {"in": 0.6, "out": 0.48}} if "dpsgd-0.001" in name else cell

    def inverted(name, cell):
        if "loss-random" not in name or "dpsgd-0.001" not in name:
            return cell
        return cell | {"scores": pack(-unpack(cell["scores"])),
                       "image": cell["image"] | {"auc": 1 - cell["image"]["auc"]}}

    result = result_of(measured, "dpsgd-reference")
    assert result.test[0] == HOLDS and result.test[1] < LEVEL and result.lost == pytest.approx(1)
    costly = result_of(changed(measured, tmp_path / "dear", dear), "dpsgd-reference")
    assert costly.test == (FAILS, result.test[1]) and costly.lost == pytest.approx(2)
    wrong = result_of(changed(measured, tmp_path / "wrong", inverted), "dpsgd-reference")
    assert wrong.auc is None and wrong.test == (OPEN, 1.0) and "is not counted: down to" in wrong.cases[0].note


def test_a_claim_without_cases_has_no_verdict(measured):
    scale = replace(measured.scale, gauss=[], dpsgd=Dpsgd("", {}))
    results = measure(Measured(scale))
    assert not {"gauss-below-60", "dpsgd-reference"} & set(verdicts(results))
    assert len(verdicts(results)) == 8 and "nan" not in claims(Measured(scale)).lower()


@given(values=st.lists(st.floats(width=16), max_size=20), kind=st.sampled_from(sorted(PACKED)))
def test_packed_scores(values, kind):
    """As one line, and to the last bit; the codes of earlier cells are read too."""
    text = pack(np.array(values), kind)
    assert "\n" not in text and '"' not in text and np.array_equal(unpack(text), values, equal_nan=True)
    assert np.array_equal(unpack(" ".join(map(repr, values))), values, equal_nan=True)
    plain = base64.b64encode(np.array(values, PACKED[kind]).tobytes()).decode()
    assert np.array_equal(unpack(f"{kind}:{plain}"), values, equal_nan=True)


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_packed_patches(counts):
    patches = unpack_patches({"patch_scores": pack(np.arange(sum(counts)), "float16"),
                              "patch_counts": pack(np.array(counts))})
    assert [len(one) for one in patches] == counts
    assert np.concatenate(patches).tolist() == list(range(sum(counts)))


def test_primary_claims_have_the_verdicts_of_holm(measured):
    results = measure(measured)
    found = verdicts(results)
    assert set(found) == {claim.key for claim in CLAIMS if claim.primary} and len(found) == 10
    raw = {result.claim.key: result.test for result in results if result.claim.primary}
    assert all(p_value >= raw[key][1] for key, (_, p_value) in found.items())
    assert all(verdict == (raw[key][0] if p_value <= LEVEL else OPEN) for key, (verdict, p_value) in found.items())
    assert found["loss-above-threshold"][0] == HOLDS


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_beside_its_step_down_definition(p_values):
    """At a level, Holm rejects in increasing order until p > level / number of the hypotheses that are left."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for index in sorted(range(len(p_values)), key=p_values.__getitem__):
            if p_values[index] * (len(p_values) - len(rejected)) > level:
                break
            rejected.add(index)
        assert {index for index, p_value in enumerate(adjusted) if p_value <= level} == rejected


@given(value=st.floats(-20, 20), error=st.floats(0.1, 10), freedom=st.floats(1, 50), ends=st.sampled_from(
    [(0, math.inf), (-3, 3), (-math.inf, 10), (0, 10)]))
def test_the_p_value_decides_as_the_interval(value, error, freedom, ends):
    step = stats.t.ppf(0.975, freedom) * error
    verdict, p_value = Range(*ends).test(value, error, freedom)
    assume(abs(p_value - 0.05) > 1e-9)
    assert (verdict if p_value <= 0.05 else OPEN) == Range(*ends).judge(value - step, value + step)


def test_cells_of_another_training_vote(measured, tmp_path):
    """Another training has other cells, and may have fewer. Its value is as different as its cells."""
    def swapped(name, cell):
        for first, second in (("loss", "concate"), ("concate", "loss")):
            if f"/{first}-random-n3-s16_none" in name:
                other = measured.scale.results / f"{name.replace(f'/{first}-', f'/{second}-')}.json"
                return cell | {"scores": json.loads(other.read_text())["scores"]}
        return cell

    both = changed(measured, tmp_path / "both", lambda name, cell: cell)
    again = changed(measured, tmp_path / "again", swapped).scale.results
    shutil.rmtree(again / "dpc-psp")
    shutil.copytree(again, both.scale.results / "again" / "1")
    (training,) = both.trainings
    assert training.scale.again == 1 and len(training.cells) < len(both.cells) and training.trainings == []
    alone, together = result_of(measured, "loss-above-concate"), result_of(both, "loss-above-concate")
    assert (alone.auc.trainings, together.auc.trainings) == (0, 2)
    assert [len(case.trainings) for case in together.cases] == [2, 2, 1]
    third = pool(alone.cases[2:]).value / 3
    assert together.auc.value == pytest.approx(third, abs=1e-9)  # the two trainings of the others cancel
    assert verdicts(measure(both))["loss-above-concate"][0] == OPEN
    assert "Other trainings of all models: *1*, " in findings([both])


def test_records_of_another_training_are_shown_and_do_not_vote(measured, tmp_path):
    both = changed(measured, tmp_path / "both", lambda name, cell: cell)
    record = {"metrics": "-99.0 [-99.5, -98.5]", "verdict": FAILS}
    write_json(both.scale.again_folder / "old.json", {
        "commits": ["abc"], "cells": 5, "claims": {"loss-above-concate": {"PSP→PSP, dependent": record}}})
    assert result_of(both, "loss-above-concate").auc == result_of(measured, "loss-above-concate").auc
    page = findings([both])
    assert "*old*, 5 cells, commits abc (only its metrics are kept)" in page
    assert page.count(f"| old: {record['metrics']} |") == 1


def test_cells_of_two_victims_are_refused(measured):
    scale = measured.scale
    path = scale.results / f"{measured.seeds('psp-psp', 'loss-random')[0].name}.json"
    cell = json.loads(path.read_text())
    path.write_text(json.dumps(cell | {"victim": {"sha256": "another", "commit": "x"}}))
    with pytest.raises(UserError, match="different trainings of psp"):
        Measured(scale)
    path.write_text(json.dumps(cell))
    assert Measured(scale).commits() == ["abc", "old"]


def test_figure_five_is_drawn_from_cells_with_maps(measured):
    paths = [measured.scale.results / f"{measured.seeds('psp-psp', f'{kind}-random', defense)[0].name}.json"
             for kind in ("loss", "concate") for defense in ("none", "gauss-0.1")]
    before = {path: path.read_text() for path in paths}
    values = [*np.linspace(0, 1, 23), np.nan]
    for path, text in before.items():
        path.write_text(json.dumps(json.loads(text) | {"maps": {
            "image": "p", "shape": [4, 6], **{kind: pack(values) for kind in ("loss", "cam")}}}))
    figure = activation_maps(Measured(measured.scale))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["no defense", "gauss-0.1"]
    assert len(figure.axes) == 6 and all(axes.images[0].get_array().shape == (4, 6) for axes in figure.axes)
    for path, text in before.items():
        path.write_text(text)
    assert activation_maps(Measured(measured.scale)) is None


def test_tables_and_pages(measured):
    table = table_two(measured)
    assert "84.8 / 84.6" in table and table.count("\n") == 2 + 9 + 2
    text = report(measured)
    assert {path.stem for path in measured.scale.results.glob("*.png")} == {"fig1", "fig2", "fig3", "fig4", "gap"}
    assert "![Fig. 3" in text and "nan" not in text.lower()
    page = findings([measured])
    assert f"**{HOLDS}**" in page and page.count("<details>") == page.count("</details>") == len(CLAIMS)
    assert max(map(len, page.splitlines())) < 600


@pytest.mark.parametrize("rows", [["loss-random", "threshold-loss"], ["threshold-loss"], ["concate-random"]])
def test_a_scale_with_few_attacks_has_a_report(measured, tmp_path, rows):
    few = changed(measured, tmp_path / "few", lambda name, cell: cell)
    scale = replace(few.scale, rows=rows, sizes={}, selections=Selections([], [], 0, 0), gauss=[], dropout=[],
                    dpsgd=Dpsgd("", {}))
    text = report(Measured(scale))
    assert "## Claims" in text and "nan" not in text.lower() and ("![AUC against" in text) == (rows[0] in GAP_ATTACKS)


def test_victims_by_their_gap(measured):
    found = victims(measured)
    assert set(found) == {"psp", *(f"psp@{name}" for name in ("dpsgd-0.001", "dpsgd-0.01", "frozen", "clip"))}
    assert found["psp"]["gap"] == pytest.approx(10) and found["psp@dpsgd-0.01"]["gap"] == pytest.approx(11)
    assert set(found["psp"]) == {"gap", "threshold-loss", "loss-random"} and list(found)[-1].startswith("psp@dpsgd")


def test_points_of_figure_four_have_auc_on_the_first_axis(measured):
    points = utility_points(measured, "psp-psp", "loss-random")
    cell = measured.seeds("psp-psp", "loss-random", "dropout-0.5")[0]
    assert points["dropout"] == {"0.5": (100 * measured.mean([cell]), pytest.approx(20))}
    assert points["none"][""][1] == pytest.approx(50)


def test_keys_of_claims_are_unique_and_committed_records_have_cases():
    """A record of another training whose claim still has its key is shown beside a case."""
    keys = [claim.key for claim in CLAIMS]
    assert len(set(keys)) == len(keys) and sum(claim.primary for claim in CLAIMS) <= 10
    measured = Measured(read_scale("camvid"))
    labels = {result.claim.key: {case.label for case in result.cases} for result in measure(measured)}
    records = measured.records()
    assert set(records) == {"second-h100", "two-cores"}
    for record in records.values():
        shared = set(record["claims"]) & set(keys)
        assert len(shared) >= 9 and all(set(record["claims"][key]) <= labels[key] for key in shared)


def test_a_run_on_other_images_is_refused(measured, tmp_path):
    scale = measured.scale
    run = scale.run_of(next(iter(scale.cells.values())))
    other = tmp_path / "images.json"
    other.write_text('{"images": [], "member": "", "group": []}')
    with pytest.raises(UserError, match="other images"):
        cells.write_cell(run, tmp_path / "cell.json", other)
    assert not (tmp_path / "cell.json").exists()


def test_a_cell_with_the_scores_of_patches_has_their_metrics(measured, tmp_path):
    """Also if each image has one patch, where a cell without these scores leaves them out."""
    run = shutil.copytree(measured.scale.run_of(next(iter(measured.scale.cells.values()))), tmp_path / "run")
    scored = [Scored(f"p{n:03d}", n < IMAGES, f"b{n // 2}", n % 7.0, [[0, 0]], [n % 7.0]) for n in range(2 * IMAGES)]
    write_scores(run, scored)
    write_json(run / "results.json", json.loads((run / "results.json").read_text()) | summarise(scored))
    for patches in (False, True):
        cells.write_cell(run, tmp_path / "cell.json", tmp_path / "images.json", patches=patches)
        assert ("patch" in json.loads((tmp_path / "cell.json").read_text())) == patches


def test_a_run_without_a_victim_is_no_cell(measured, tmp_path):
    run = shutil.copytree(measured.scale.run_of(next(iter(measured.scale.cells.values()))), tmp_path / "run")
    (run / "args.json").write_text('{"commit": "abc", "args": {"victim": null, "resume": null}}')
    with pytest.raises(UserError, match="its attack had no victim"):
        cells.write_cell(run, tmp_path / "cell.json", tmp_path / "images.json")
    assert not (tmp_path / "cell.json").exists()
