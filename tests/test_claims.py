"""Verdicts on the paper's claims, computed from cells whose truth is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import must, script
from sklearn.metrics import roc_auc_score

from attacks.sample import Scored
from evaluation.report import summarise, write_scores
from reproduce.claims import CLAIMS, FAILS, HOLDS, OPEN, _excess, _shuffled, measure, overall
from reproduce.collect import pack, unpack
from reproduce.figures import looks
from reproduce.measured import Measured
from reproduce.plan import Scale
from reproduce.report import findings, keep_again, report
from reproduce.tables import table_two
from utils.checkpoints import save_checkpoint
from utils.cli import UserError
from utils.files import write_json

PICTURES = 60
BEST = {"loss": 0.6, "concate": 0.35, "pixelwise": 0.0, "threshold": 0.05}
LOST = {"dropout": 0.3, "dpsgd": 0.01, "gauss": 0.2}  # mIoU


def separation(cell):
    """By how much members score above non-members, in standard deviations of a patch's noise."""
    kind, _, select = cell.method.partition("-")
    defense, _, value = cell.defense.partition("-")
    if defense == "gauss" or (cell.setting == "dpc-psp" and kind == "pixelwise"):
        return 0.0
    gap = BEST[kind] + 0.3 * (select == "rejection") - 0.25 * (select == "full") + 0.03 * (cell.size - 16)
    if defense == "argmax":
        gap -= {"psp-psp": 0.0, "dlv3-psp": 0.5}[cell.setting]
    if defense == "dpsgd":
        gap -= 0.35 if value == "0.001" else -0.2
    return gap


def write_cell(scale, cell):
    """A run of attack.py as it would be, collected: the same noise for all attacks, the gap of `separation`."""
    rng, extra = np.random.default_rng(cell.seed), np.random.default_rng(1)
    scored = []
    for index in range(2 * PICTURES):
        member = index < PICTURES
        patches = rng.normal(size=30) * 0.3 + rng.normal() * 0.5 + separation(cell) * member
        if cell.method == "loss-rejection":  # whose first patch alone is better than those of the others
            patches[0] += 0.5 * member + 0.01 * extra.normal()
        patches = patches[: cell.count]
        scored.append(Scored(f"p{index:03d}", member, f"b{index // 2}", float(patches.mean()), [[0, 0]] * cell.count,
                             patches.tolist()))
    run = scale.run_of(cell)
    run.mkdir(parents=True)
    about = {"miou": {"in": 0.6, "out": 0.5 - LOST.get(cell.defense.partition("-")[0], 0)}, "tau": None,
             "defense": cell.defense}
    write_scores(run, scored)
    write_json(run / "results.json", summarise(scored, 0) | about)
    words = scale.cell_command(cell)
    models = {name: words[words.index(flag) + 1] for name, flag in (("victim", "--victim"), ("resume", "-resume"))}
    for path in map(Path, models.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"name": "pspnet"}, {"weight": torch.tensor(len(str(path)))})
        (path.parent / "args.json").write_text('{"commit": "old"}')
    write_json(run / "args.json", {"commit": "abc", "args": models})
    flags = ["--curve", *scale.selections["counts"]] if cell.curve else []
    must(script("reproduce/collect.py", run, "--into", scale.results / f"{cell.name}.json", "--images",
                scale.results / cell.setting / "images.json", *flags, *(["--patches"] if cell.patches else [])))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    place = tmp_path_factory.mktemp("claims")
    scale = Scale("tiny")
    scale.config |= {"seeds": 1, "sizes": {16: 3, 4: 3}, "count": 3, "gauss": [0.1], "dropout": [0.5],
                     "selections": {"settings": ["psp-psp"], "counts": [1, 3], "sliding_from": 2, "seeds": 1},
                     "settings": {name: scale.settings[name] for name in ("psp-psp", "dlv3-psp", "dpc-psp")},
                     "dpsgd": {"flags": "", "variances": {"psp-psp": [0.001, 0.01]}}}
    scale.settings, scale.runs, scale.results = scale.config["settings"], place / "runs", place / "results"
    scale.again_folder = scale.results / "again"
    for cell in scale.cells.values():
        write_cell(scale, cell)
    return Measured(scale)


def verdicts(measured, text):
    (claim,) = (name for name in CLAIMS if name.startswith(text))
    return [one.verdict for one in CLAIMS[claim](measured)]


@pytest.mark.parametrize("claim, expected", [
    ("structure helps: the largest", {HOLDS}), ("structure helps: learned", {HOLDS}),
    ("structure helps: C+GT", {HOLDS}), ("single patches", {HOLDS}), ("images stay", {FAILS}),
    ("loss map above", {HOLDS}), ("patches above the full", {HOLDS}), ("rejection above", {HOLDS}),
    ("sliding about", {HOLDS}), ("rejection helps most", {HOLDS, OPEN}), ("independent attacks", {HOLDS}),
    ("every attack above guessing", {OPEN}), ("Salem's learned", {HOLDS}), ("Gauss protects", {HOLDS}),
    ("Gauss does not", {FAILS}), ("Dropout costs", {HOLDS}), ("Argmax protects", {HOLDS, FAILS}),
    ("the loss attacker", {HOLDS}), ("DPSGD protects", {HOLDS, FAILS}), ("and by its noise", {HOLDS, FAILS})])
def test_verdicts(measured, claim, expected):
    found = verdicts(measured, claim)
    assert found and set(found) == expected


def auc(measured, cell):
    member, _ = measured.images(cell.setting)
    return 100 * roc_auc_score(member, measured.scores(cell))


def test_values_are_the_differences_of_the_figures(measured):
    def value(text):
        (claim,) = (name for name in CLAIMS if name.startswith(text))
        return next(iter(CLAIMS[claim](measured)))

    def cell(method, defense="none"):
        return auc(measured, measured.seeds("psp-psp", method, defense)[0])

    loss, both = (cell(f"{kind}-random") - cell(f"{kind}-random", "gauss-0.1") for kind in ("loss", "concate"))
    assert value("loss map above").value == pytest.approx(cell("loss-random") - cell("concate-random"))
    assert value("the loss attacker").value == pytest.approx(loss - both)
    member, _ = measured.images("psp-psp")
    curves = {select: measured.seeds("psp-psp", f"concate-{select}")[0] for select in ("random", "rejection")}
    at = {(select, count): 100 * roc_auc_score(member, measured.scores(curve, count))
          for select, curve in curves.items() for count in (1, 3)}
    few, many = (at["rejection", count] - at["random", count] for count in (1, 3))
    assert value("rejection helps most").value == pytest.approx(few - many)
    for found in (value("loss map above"), value("the loss attacker"), value("rejection helps most")):
        assert found.low < found.value < found.high
    kept = value("Dropout costs")
    assert kept.value == pytest.approx(30 - (cell("loss-random") - cell("loss-random", "dropout-0.5")))


def test_scores_of_chance_are_not_above_guessing(measured):
    """Each of them reaches the F of calling all members, and most of them more."""
    member, group = measured.images("psp-psp")
    rng, holds = np.random.default_rng(0), 0
    for _ in range(20):
        drawn = rng.normal(size=len(member))
        excess, luck = _excess(drawn, member), [_excess(drawn, one) for one in _shuffled(member, group, 100)]
        assert excess >= 0
        holds += excess > np.quantile(luck, 0.975)
    assert holds <= 3


def test_one_victim_a_comparison(measured):
    scale = measured.scale
    path = scale.results / f"{measured.seeds('psp-psp', 'loss-random')[0].name}.json"
    cell = json.loads(path.read_text())
    path.write_text(json.dumps(cell | {"victim": {"sha256": "another", "commit": "x"}}))
    with pytest.raises(UserError, match="different trainings of psp"):
        Measured(scale)
    path.write_text(json.dumps(cell))
    assert Measured(scale).commits() == ["abc", "old"]


def test_overall_says_how_many(measured):
    (claim,) = (name for name in CLAIMS if name.startswith("Argmax"))
    assert overall(list(CLAIMS[claim](measured))) == f"{HOLDS} in 1, {FAILS} in 1"


def test_a_verdict_is_one_only_where_all_trainings_agree(measured):
    """Another training is of other cells, and need not have all of them."""
    scale = Scale("tiny", again=1)
    scale.config, scale.settings = measured.scale.config, measured.scale.settings
    scale.results, scale.again_folder = measured.scale.runs / "again", measured.scale.again_folder
    place = scale.results / "psp-psp"
    shutil.copytree(measured.scale.results / "psp-psp", place)
    strong, weak, sliding = (place / f"{kind}-n3-s16_none_0.json" for kind in (
        "loss-random", "concate-random", "loss-sliding"))
    loss, both = (json.loads(path.read_text()) for path in (strong, weak))
    strong.write_text(json.dumps(loss | {"scores": both["scores"]}))
    weak.write_text(json.dumps(both | {"scores": loss["scores"]}))
    sliding.unlink()
    keep_again(Measured(scale))
    path = scale.again_folder / "1.json"
    kept = json.loads(path.read_text())
    assert kept["cells"] == len(list(place.glob("*_0.json"))) and kept["commits"] == ["abc", "old"]
    (claim,) = (name for name in CLAIMS if name.startswith("loss map above"))
    plain, both = list(CLAIMS[claim](measured)), measure(Measured(measured.scale))[claim]
    assert plain[0].where == both[0].where == "PSP→PSP, dependent" and len(plain) == len(both) == 3
    assert (plain[0].verdict, both[0].verdict) == (HOLDS, OPEN) and [one.verdict for one in both[1:]] == [HOLDS] * 2
    assert str(both[0]) == f"{plain[0]}; 1 {kept['claims'][claim]['PSP→PSP, dependent']['figures']}"
    assert kept["claims"][claim]["PSP→PSP, dependent"]["verdict"] == FAILS and "; 1 " not in str(both[1])
    assert "Other trainings of all of it: *1*" in findings([Measured(measured.scale)])
    path.unlink()


def test_an_attack_that_points_the_wrong_way_is_no_protection(measured):
    cell = measured.seeds("psp-psp", "loss-random", "dpsgd-0.001")[0]
    path = measured.scale.results / f"{cell.name}.json"
    text = path.read_text()
    found = json.loads(text)
    found["scores"], found["image"]["auc"] = pack(-unpack(found["scores"])), 1 - found["image"]["auc"]
    (claim,) = (name for name in CLAIMS if name.startswith("DPSGD protects"))
    assert next(iter(CLAIMS[claim](measured))).verdict == HOLDS
    path.write_text(json.dumps(found))
    one = next(iter(CLAIMS[claim](Measured(measured.scale))))
    path.write_text(text)
    assert found["image"]["auc"] < 0.5 and one.verdict == OPEN


def test_figure_five_is_drawn_where_there_are_maps(measured):
    paths = [measured.scale.results / f"{measured.seeds('psp-psp', f'{kind}-random', defense)[0].name}.json"
             for kind in ("loss", "concate") for defense in ("none", "gauss-0.1")]
    before = {path: path.read_text() for path in paths}
    values = [*np.linspace(0, 1, 23), np.nan]
    for path, text in before.items():
        path.write_text(json.dumps(json.loads(text) | {"maps": {
            "image": "p", "shape": [4, 6], **{what: pack(values) for what in ("loss", "cam")}}}))
    figure = looks(Measured(measured.scale))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["no defense", "gauss-0.1"]
    assert len(figure.axes) == 6 and all(axes.images[0].get_array().shape == (4, 6) for axes in figure.axes)
    for path, text in before.items():
        path.write_text(text)
    assert looks(Measured(measured.scale)) is None


def test_tables_and_pages(measured, tmp_path):
    table = table_two(measured)
    assert "84.8 / 84.6" in table and table.count("\n") == 2 + 9 + 2
    text = report(measured)
    assert {path.name for path in measured.scale.results.glob("*.png")} == {f"fig{n}.png" for n in (1, 2, 3, 4)}
    assert "![Fig. 3" in text and "nan" not in text.lower()
    page = findings([measured])
    assert f"**{HOLDS}**" in page and page.count("\n|") >= len(CLAIMS) + 1


def test_cells_of_other_images_are_refused(measured, tmp_path):
    scale = measured.scale
    run = scale.run_of(next(iter(scale.cells.values())))
    other = tmp_path / "images.json"
    other.write_text('{"images": [], "member": "", "group": []}')
    result = script("reproduce/collect.py", run, "--into", tmp_path / "cell.json", "--images", other)
    assert result.returncode == 2 and "other images" in result.stderr and not (tmp_path / "cell.json").exists()
