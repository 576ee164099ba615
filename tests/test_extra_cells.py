"""Cells beside those of table 2: other draws of patch locations, single patches, and queries about windows."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_workflow import parse

from attacks.sample import Scored
from evaluation.report import summarise
from reproduce import tables
from reproduce.cells import pack
from reproduce.measured import Measured
from reproduce.pages import _windows, findings, report
from reproduce.plan import WINDOWS, Windows, read_scale
from reproduce.variance import of_scale, variances
from utils.files import write_json

MEMBERS, OTHERS = 24, 12


def write(scale, cell):
    """The cell of a simulated attack: the attacker's seed shifts its members, the draw and the windows add noise."""
    rng, noise = np.random.default_rng(0), np.random.default_rng([cell.seed, cell.draw, cell.defense == WINDOWS])
    shift = 0.5 + 2 * cell.seed
    scored = []
    for index in range(MEMBERS + OTHERS):
        member = index < MEMBERS
        patches = rng.normal(size=8)[: cell.count] + shift * member + 0.01 * noise.normal()
        scored.append(Scored(f"i{index:02d}", member, f"g{index}", float(patches.mean()), [[0, 0]] * cell.count,
                             patches.tolist()))
    write_json(scale.results / f"{cell.name}.json", summarise(scored) | {
        "scores": pack(np.array([one.score for one in scored])), "commit": "c",
        "miou": {"in": 0.6, "out": 0.5 - 0.1 * (cell.defense == WINDOWS)}, "victim": {"sha256": "x", "commit": "v"},
        "attacker": {"sha256": "y", "commit": "a"}})
    write_json(scale.results / cell.setting / "images.json", {
        "images": [one.name for one in scored], "member": "".join("01"[one.member] for one in scored),
        "group": [one.group for one in scored]})
    return scored


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, tiny = tmp_path_factory.mktemp("extra"), read_scale("tiny")
    setting = replace(tiny.settings["psp-psp"], table_only=True)
    scale = replace(tiny, settings={"psp-psp": setting}, selections=replace(tiny.selections, settings=[]), count=4,
                    rows=["threshold-loss", "loss-random", "concate-random"], draws=3, patch_count=8,
                    windows=Windows(["psp-psp"], 40, 48), runs=folder / "runs", results=folder / "results",
                    again_folder=folder / "again")
    for cell in scale.cells.values():
        write(scale, cell)
    return Measured(scale)


def rows_of(table):
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]


def test_cells_of_the_extras(measured):
    """2 attackers of both representations and a threshold; 2 draws, one cell of 8 patches and one of windows each."""
    names = [name.removeprefix("psp-psp/") for name in measured.scale.cells]
    assert len(names) == len(set(names)) == 5 + 4 + 2 + 3
    assert "loss-random-n4-s16-draw2_none_0" in names and "threshold-loss-n4-s16_windows_0" in names
    assert [cell.name for cell in measured.seeds("psp-psp", "loss-random")] == [
        f"psp-psp/loss-random-n4-s16_none_{seed}" for seed in (0, 1)]
    assert measured.defenses("psp-psp") == ["none"] and measured.sizes() == []


def test_variances_of_a_scale(measured):
    """The attacker's seed matters here, and another draw of the patch locations hardly does."""
    rows = {row[0]: row for row in rows_of(variances(of_scale(measured)))}
    assert set(rows) == {"loss threshold (Sablayrolles)", "C+GT, random", "Loss, random"}
    row = rows["Loss, random"]
    assert row[1:4] == ["4", "–", "–"] and row[6] == "with patch locations"
    attacker, locations, images = (float(row[column].split(" (")[0]) for column in (4, 5, 7))
    assert attacker > 5 > locations and images > 0
    assert rows["loss threshold (Sablayrolles)"][1:7] == ["1", *["–"] * 5]


def test_single_patches_of_both_sides(measured):
    """24 members and 12 non-members with 8 patches: 4 patches of a member are used."""
    table = tables.single_patches(measured)
    [cell] = [cell for cell in measured.cells.values() if cell.patches and cell.method == "loss-random"]
    scored = write(measured.scale, cell)
    score = np.concatenate([one.patch_scores[: 4 if one.member else 8] for one in scored])
    member = np.concatenate([[one.member] * (4 if one.member else 8) for one in scored])
    [row] = [row for row in rows_of(table) if row[1] == "Loss, random"]
    assert row[2:4] == ["4 (96)", "8 (96)"] and row[4] == f"{100 * roc_auc_score(member, score):.1f}"
    assert row[6:] == ["50.00", "66.67"]


def test_queries_about_windows(measured):
    lines = _windows(measured)
    rows = {row[1]: row for row in rows_of(lines[-1])}
    assert len(rows) == 3 and "windows of 40 x 48 pixels" in lines[2]
    aucs = []
    for defense in ("none", WINDOWS):
        cell = measured.seeds("psp-psp", "loss-random", defense)[0]
        aucs.append(100 * roc_auc_score(measured.images("psp-psp")[0], measured.scores(cell)))
    row = rows["Loss, random"]
    assert row[2:4] == [f"{auc:.1f}" for auc in aucs] and row[4].startswith(f"{aucs[0] - aucs[1]:+.1f} [")
    assert row[5:] == ["50.0", "40.0"]


def test_pages_with_the_extras(measured):
    text = report(measured)
    for title in ("## Single patches", "## Queries about crops", "## Where the variance comes from"):
        assert f"\n{title}\n" in text
    assert "windows" not in text.partition("## Defenses")[2].partition("## Fig. 5")[0]
    assert "### Where the variance comes from" in findings([measured])
    plain = Measured(replace(measured.scale, windows=Windows([], 0, 0), patch_count=0))
    assert "## Single patches" not in report(plain) and "## Queries about crops" not in report(plain)


def test_the_attackers_of_windows_learn_from_windows():
    """Victim and shadow are those of table 2. The threshold needs no other attacker."""
    scale = read_scale("cityscapes")
    cells = [cell for cell in scale.cells.values() if cell.defense == WINDOWS]
    assert len(cells) == 3
    for cell in cells:
        (usual,) = (one for one in scale.cells.values()
                    if one == replace(cell, defense="none", curve=one.curve, patches=one.patches))
        attacker, other = scale.attacker_of(cell), scale.attacker_of(usual)
        assert scale.victim_of(cell) == scale.victim_of(usual)
        assert scale.shadow_names(attacker) == scale.shadow_names(other)
        args, before = (parse(words[0], words[1:]) for words in map(scale.cell_command, (cell, usual)))
        assert (args.windows, before.windows) == ((88, 88), False) and args.victim == before.victim
        assert args.keep != before.keep
        words = scale.attacker_command(attacker)
        learned = not cell.method.startswith("threshold")
        assert bool(parse(words[0], words[1:]).windows) == learned


@pytest.mark.parametrize("name", ["cityscapes", "paper"])
@pytest.mark.parametrize("method", ["loss-random", "concate-random"])
def test_as_many_single_patches_as_in_the_paper_are_planned(name, method):
    assert any((cell.setting, cell.method, cell.count, cell.patches) == ("psp-psp", method, 33, True)
               for cell in read_scale(name).cells.values())


@pytest.mark.parametrize("name", ["stand-ins", "paper"])
def test_missing_pieces_of_the_paper_are_planned(name):
    """Dropout, DPSGD (1e-6 too) and activation maps on UperNet."""
    scale = read_scale(name)
    assert scale.settings["dlv3-uper"].victim == "uper" and scale.activation == "dlv3-uper"
    for method in ("loss-random", "concate-random"):
        maps = {cell.defense for cell in scale.cells.values() if cell.setting == "dlv3-uper" and cell.method == method
                and "-cam" in scale.cell_command(cell)}
        assert maps >= {"none", "argmax", "dropout-0.1", "dropout-0.5", "dropout-0.9", "dpsgd-1e-06", "dpsgd-0.001"}
    assert all(1e-6 in variances for variances in scale.dpsgd.variances.values())
