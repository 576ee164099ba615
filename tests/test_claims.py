"""Verdicts on the paper's claims, from cells whose separation of members and non-members is known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import must, script
from sklearn.metrics import roc_auc_score

from attacks.sample import Scored
from evaluation.report import summarise, write_scores
from reproduce.cells import pack, unpack
from reproduce.claims import CLAIMS, FAILS, HOLDS, OPEN, _excess, _shuffled, measure, overall
from reproduce.figures import activation_maps
from reproduce.measured import Measured
from reproduce.pages import findings, report, write_again
from reproduce.plan import Dpsgd, Selections, read_scale
from reproduce.tables import table_two
from utils.checkpoints import save_checkpoint
from utils.cli import UserError
from utils.files import write_json

IMAGES = 60  # of each side
BEST = {"loss": 0.6, "concate": 0.35, "pixelwise": 0.0, "threshold": 0.05}
LOST = {"dropout": 0.3, "dpsgd": 0.01, "gauss": 0.2}  # mIoU


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
    flags = ["--curve", *scale.selections.counts] if cell.curve else []
    must(script("reproduce/collect.py", run, "--into", scale.results / f"{cell.name}.json", "--images",
                scale.results / cell.setting / "images.json", *flags, *(["--patches"] if cell.patches else [])))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, tiny = tmp_path_factory.mktemp("claims"), read_scale("tiny")
    scale = replace(
        tiny, seeds=1, sizes={16: 3, 4: 3}, count=3, gauss=[0.1], dropout=[0.5],
        selections=Selections(["psp-psp"], [1, 3], sliding_from=2, seeds=1),
        settings={name: tiny.settings[name] for name in ("psp-psp", "dlv3-psp", "dpc-psp")},
        dpsgd=Dpsgd("", {"psp-psp": [0.001, 0.01]}), runs=folder / "runs", results=folder / "results",
        again_folder=folder / "results" / "again")
    for cell in scale.cells.values():
        write_cell(scale, cell)
    return Measured(scale)


def findings_of(measured, key):
    (claim,) = (claim for claim in CLAIMS if claim.key == key)
    return [finding for setting in measured.scale.settings for finding in claim.findings(measured, setting)]


@pytest.mark.parametrize("claim, expected", [
    ("patch-sizes", {HOLDS}), ("full-above-threshold", {HOLDS}), ("patches-above-1x1", {HOLDS}),
    ("single-patches", {HOLDS}), ("images-stay", {FAILS}), ("loss-above-concate", {HOLDS}),
    ("patches-above-full", {HOLDS}), ("rejection-above-random", {HOLDS}), ("sliding-as-random", {HOLDS}),
    ("rejection-at-few", {HOLDS, OPEN}), ("independent", {HOLDS}), ("above-guessing", {OPEN}),
    ("learned-fails", {HOLDS}), ("gauss-independent", {HOLDS}), ("gauss-dependent", {FAILS}), ("dropout", {HOLDS}),
    ("argmax", {HOLDS, FAILS}), ("gauss-loss", {HOLDS}), ("dpsgd", {HOLDS, FAILS}), ("dpsgd-noise", {HOLDS, FAILS})])
def test_verdicts(measured, claim, expected):
    assert {finding.verdict for finding in findings_of(measured, claim)} == expected


def test_values_are_differences_of_metrics(measured):
    def auc(cell):
        member, _ = measured.images(cell.setting)
        return 100 * roc_auc_score(member, measured.scores(cell))

    def auc_of(method, defense="none"):
        return auc(measured.seeds("psp-psp", method, defense)[0])

    loss, concate = (auc_of(f"{kind}-random") - auc_of(f"{kind}-random", "gauss-0.1") for kind in ("loss", "concate"))
    above, gauss, few, dropout = (findings_of(measured, key)[0] for key in (
        "loss-above-concate", "gauss-loss", "rejection-at-few", "dropout"))
    assert above.value == pytest.approx(auc_of("loss-random") - auc_of("concate-random"))
    assert gauss.value == pytest.approx(loss - concate)
    member, _ = measured.images("psp-psp")
    curves = {select: measured.seeds("psp-psp", f"concate-{select}")[0] for select in ("random", "rejection")}
    at = {(select, count): 100 * roc_auc_score(member, measured.scores(curve, count))
          for select, curve in curves.items() for count in (1, 3)}
    with_one, with_three = (at["rejection", count] - at["random", count] for count in (1, 3))
    assert few.value == pytest.approx(with_one - with_three)
    for finding in (above, gauss, few):
        assert finding.low < finding.value < finding.high
    assert dropout.value == pytest.approx(30 - (auc_of("loss-random") - auc_of("loss-random", "dropout-0.5")))


def test_random_scores_are_not_above_guessing(measured):
    """Each of them reaches the F of calling all images members, and most of them exceed it."""
    member, group = measured.images("psp-psp")
    rng, above = np.random.default_rng(0), 0
    for _ in range(20):
        scores = rng.normal(size=len(member))
        excess = _excess(scores, member)
        by_chance = [_excess(scores, shuffled) for shuffled in _shuffled(member, group, 100)]
        assert excess >= 0
        above += excess > np.quantile(by_chance, 0.975)
    assert above <= 3


def test_cells_of_two_victims_are_refused(measured):
    scale = measured.scale
    path = scale.results / f"{measured.seeds('psp-psp', 'loss-random')[0].name}.json"
    cell = json.loads(path.read_text())
    path.write_text(json.dumps(cell | {"victim": {"sha256": "another", "commit": "x"}}))
    with pytest.raises(UserError, match="different trainings of psp"):
        Measured(scale)
    path.write_text(json.dumps(cell))
    assert Measured(scale).commits() == ["abc", "old"]


def test_overall_counts_the_verdicts(measured):
    assert overall(findings_of(measured, "argmax")) == f"{HOLDS} in 1, {FAILS} in 1"


def test_a_verdict_needs_all_trainings_to_agree(measured):
    """Another training has other cells, and may have fewer."""
    scale = replace(measured.scale, again=1, results=measured.scale.runs / "again")
    folder = scale.results / "psp-psp"
    shutil.copytree(measured.scale.results / "psp-psp", folder)
    strong, weak, sliding = (folder / f"{kind}-n3-s16_none_0.json" for kind in (
        "loss-random", "concate-random", "loss-sliding"))
    loss, concate = (json.loads(path.read_text()) for path in (strong, weak))
    strong.write_text(json.dumps(loss | {"scores": concate["scores"]}))
    weak.write_text(json.dumps(concate | {"scores": loss["scores"]}))
    sliding.unlink()
    write_again(Measured(scale))
    path = scale.again_folder / "1.json"
    written = json.loads(path.read_text())
    assert written["cells"] == len(list(folder.glob("*_0.json"))) and written["commits"] == ["abc", "old"]
    record = written["claims"]["loss-above-concate"]["PSP→PSP, dependent"]
    alone = findings_of(measured, "loss-above-concate")
    together = measure(Measured(measured.scale))["loss-above-concate"]
    assert alone[0].label == together[0].label == "PSP→PSP, dependent" and len(alone) == len(together) == 3
    assert (alone[0].verdict, together[0].verdict) == (HOLDS, OPEN)
    assert [finding.verdict for finding in together[1:]] == [HOLDS] * 2
    assert together[0].metrics == alone[0].metrics and together[0].others == {"1": record}
    assert record["verdict"] == FAILS and together[1].others == {}
    page = findings([Measured(measured.scale)])
    assert "Other trainings of all models: *1*" in page
    assert f"| tiny | PSP→PSP, dependent | {alone[0].metrics} | 1: {record['metrics']} | {OPEN} |" in page
    path.unlink()


def test_an_auc_below_one_half_is_no_protection(measured):
    cell = measured.seeds("psp-psp", "loss-random", "dpsgd-0.001")[0]
    path = measured.scale.results / f"{cell.name}.json"
    text = path.read_text()
    results = json.loads(text)
    results["scores"], results["image"]["auc"] = pack(-unpack(results["scores"])), 1 - results["image"]["auc"]
    assert findings_of(measured, "dpsgd")[0].verdict == HOLDS
    path.write_text(json.dumps(results))
    finding = findings_of(Measured(measured.scale), "dpsgd")[0]
    path.write_text(text)
    assert results["image"]["auc"] < 0.5 and finding.verdict == OPEN


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
    assert {path.name for path in measured.scale.results.glob("*.png")} == {f"fig{n}.png" for n in (1, 2, 3, 4)}
    assert "![Fig. 3" in text and "nan" not in text.lower()
    page = findings([measured])
    assert f"**{HOLDS}**" in page and page.count("\n|") >= 2 * len(CLAIMS) + 1
    assert page.count("<details>") == page.count("</details>") == len(CLAIMS)
    assert max(map(len, page.splitlines())) < 600


def test_keys_of_claims_are_unique_and_those_of_the_committed_files():
    keys = [claim.key for claim in CLAIMS]
    assert len(set(keys)) == len(keys)
    for path in read_scale("camvid").again_files():
        assert list(json.loads(path.read_text())["claims"]) == keys


def test_a_run_on_other_images_is_refused(measured, tmp_path):
    scale = measured.scale
    run = scale.run_of(next(iter(scale.cells.values())))
    other = tmp_path / "images.json"
    other.write_text('{"images": [], "member": "", "group": []}')
    result = script("reproduce/collect.py", run, "--into", tmp_path / "cell.json", "--images", other)
    assert result.returncode == 2 and "other images" in result.stderr and not (tmp_path / "cell.json").exists()


def test_a_run_without_a_victim_is_no_cell(measured, tmp_path):
    run = shutil.copytree(measured.scale.run_of(next(iter(measured.scale.cells.values()))), tmp_path / "run")
    (run / "args.json").write_text('{"commit": "abc", "args": {"victim": null, "resume": null}}')
    result = script("reproduce/collect.py", run, "--into", tmp_path / "cell.json", "--images", tmp_path / "images.json")
    assert result.returncode == 2 and "its attack had no victim" in result.stderr, result.stderr
    assert not (tmp_path / "cell.json").exists()
