"""Verdicts on the paper's claims, computed from cells whose truth is known."""

import numpy as np
import pytest
from conftest import must, script

from attacks.scoring import Scored
from evaluation.report import summarise, write_scores
from reproduce.claims import CLAIMS, HOLDS, OPEN, overall
from reproduce.measured import Measured
from reproduce.plan import Scale
from reproduce.report import findings, report
from reproduce.tables import table_two
from utils.files import write_json

PICTURES, BEST = 60, {"loss": 0.6, "concate": 0.35, "pixelwise": 0.0, "threshold": 0.05}


def separation(cell):
    """By how much members score above non-members: as the paper has it, Gauss reversing it where it should not."""
    gap = BEST[cell.method.partition("-")[0]]
    gap += 0.3 * cell.method.endswith("rejection") - 0.25 * cell.method.endswith("full")
    if cell.defense.startswith("gauss"):
        gap = 0.0
    return gap + 0.03 * (cell.size - 16)


def write_cell(scale, cell):
    """A run of attack.py as it would be, collected: the same noise for all attacks, the gap of `separation`."""
    rng = np.random.default_rng(cell.seed)
    scored = []
    for index in range(2 * PICTURES):
        member = index < PICTURES
        patches = (rng.normal(size=max(30, cell.count)) * 0.3 + rng.normal() * 0.5 + separation(cell) * member)
        patches = patches[: cell.count]
        scored.append(Scored(f"p{index:03d}", member, f"b{index // 2}", [[0, 0]] * cell.count, patches.tolist(),
                             float(patches.mean())))
    run = scale.run_of(cell)
    run.mkdir(parents=True)
    lost = 0.3 if cell.defense.startswith("dropout") else 0.0
    about = {"miou": {"in": 0.6, "out": 0.5 - lost}, "tau": None, "defense": cell.defense}
    write_scores(run, scored)
    write_json(run / "results.json", summarise(scored, 0) | about)
    (run / "args.json").write_text('{"commit": "abc"}')
    flags = ["--curve", *scale.selections["counts"]] if cell.curve else []
    must(script("reproduce/collect.py", run, "--into", scale.results / f"{cell.name}.json", "--pictures",
                scale.results / cell.setting / "pictures.json", *flags, *(["--patches"] if cell.patches else [])))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    place = tmp_path_factory.mktemp("claims")
    scale = Scale("tiny")
    scale.config |= {"seeds": 1, "sizes": {16: 3, 4: 3}, "count": 3, "gauss": [0.1], "dropout": [0.5],
                     "selections": {"settings": ["psp-psp"], "counts": [1, 3], "sliding_from": 2, "seeds": 1},
                     "settings": {name: scale.settings[name] for name in ("psp-psp", "dlv3-psp")}}
    scale.settings, scale.runs, scale.results = scale.config["settings"], place / "runs", place / "results"
    scale.config["dpsgd"] = {"flags": "", "variances": {}}
    for cell in scale.cells.values():
        write_cell(scale, cell)
    return Measured(scale)


def verdicts(measured, text):
    (claim,) = (name for name in CLAIMS if name.startswith(text))
    return [one.verdict for one in CLAIMS[claim](measured)]


@pytest.mark.parametrize("claim, expected", [
    ("structure helps: the largest", {HOLDS}), ("structure helps: learned", {HOLDS}),
    ("structure helps: C+GT", {HOLDS}), ("single patches", {HOLDS}), ("loss map above", {HOLDS}),
    ("patches above the full", {HOLDS}), ("rejection above", {HOLDS}), ("sliding about", {HOLDS}),
    ("independent attacks", {HOLDS}), ("Gauss protects", {HOLDS}), ("Gauss does not", {OPEN}),
    ("Dropout costs", {HOLDS}), ("Argmax protects", {HOLDS}), ("the loss attacker", {HOLDS})])
def test_verdicts(measured, claim, expected):
    found = verdicts(measured, claim)
    assert found and set(found) == expected


def test_reversed_and_undecided(measured):
    """The same cells the other way round, and against themselves."""
    loss, both = (measured.seeds("psp-psp", f"{kind}-random", count=3) for kind in ("loss", "concate"))
    away = measured.difference(both, loss)
    assert away["interval"][1] < 0 and measured.difference(loss, loss)["interval"] == [0, 0]
    assert overall([next(iter(CLAIMS[claim](measured))) for claim in CLAIMS if claim.startswith(("loss map", "single"))]
                   ) == HOLDS


def test_tables_and_pages(measured, tmp_path):
    table = table_two(measured)
    assert "84.8 / 84.6" in table and table.count("\n") == 2 + 9 + 2
    text = report(measured)
    assert {path.name for path in measured.scale.results.glob("*.png")} == {f"fig{n}.png" for n in (1, 2, 3, 4)}
    assert "![Fig. 3" in text and "nan" not in text.lower()
    page = findings([measured])
    assert f"**{HOLDS}**" in page and page.count("\n|") >= len(CLAIMS) + 1


def test_cells_of_other_pictures_are_refused(measured, tmp_path):
    scale = measured.scale
    run = scale.run_of(next(iter(scale.cells.values())))
    other = tmp_path / "pictures.json"
    other.write_text('{"pictures": [], "member": "", "group": []}')
    result = script("reproduce/collect.py", run, "--into", tmp_path / "cell.json", "--pictures", other)
    assert result.returncode == 2 and "other pictures" in result.stderr and not (tmp_path / "cell.json").exists()
