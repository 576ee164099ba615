"""The reproduction as a workflow: its command lines, and a cut-down of it from data to report."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, SMALL

from reproduce.plan import Scale

SCALES = ("tiny", "camvid", "paper")


def parser_of(script):
    return importlib.import_module(script.removesuffix(".py").removeprefix("-m ")).parser()


@pytest.mark.parametrize("name", SCALES)
def test_every_command_is_one_that_the_scripts_take(name):
    scale = Scale(name)
    commands = [scale.model_command(model) for model in scale.models]
    commands += [scale.attacker_command(attacker) for attacker in scale.attackers.values()]
    commands += [scale.cell_command(cell) for cell in scale.cells.values()]
    for words in commands:
        args = parser_of(words[0]).parse_args(words[1:])
        assert args.out == words[2]
    for data in scale.data:
        importlib.import_module("datasets.__main__").parser().parse_args(scale.data_command(data)[2:])


@pytest.mark.parametrize("name", SCALES)
def test_what_a_run_needs_another_makes(name):
    scale = Scale(name)
    made = {f"{scale.runs / model}/last.pth.tar" for model in scale.models}
    made |= {f"{scale.runs / 'attackers' / attacker}/best.pth.tar" for attacker in scale.attackers}
    for cell in scale.cells.values():
        words = scale.cell_command(cell)
        assert {words[words.index(flag) + 1] for flag in ("-resume", "--victim")} <= made
    for model in scale.models:
        assert set(scale.needs_of_model(model)) <= set(scale.models)
    outs = [words[2] for words in (*map(scale.model_command, scale.models), *map(scale.cell_command,
                                                                                 scale.cells.values()))]
    assert len(set(outs)) == len(outs)


def test_trained_again_is_the_same_with_other_seeds_elsewhere():
    first, again = Scale("camvid"), Scale("camvid", again=2)
    assert again.again_folder == first.results / "again" and again.runs != first.runs and again.results != first.results
    for model in first.models:
        assert again.model_command(model) == [
            word.replace(str(first.runs), str(again.runs)) for word in first.model_command(model)] + ["--seed", "2"]
        parser_of(again.model_command(model)[0]).parse_args(again.model_command(model)[1:])


def test_every_row_and_column_of_the_table_has_a_cell():
    from reproduce.paper import COLUMNS, TABLE

    for name in SCALES:
        scale = Scale(name)
        have = {(c.setting, c.method) for c in scale.cells.values() if c.defense == "none" and c.count == scale.count}
        assert have >= {(setting, method) for setting in COLUMNS for method in TABLE}
    for setting in ("psp-psp", "dlv3-psp"):
        for defense in ("gauss", "dpsgd"):
            found = {c.defense for c in Scale("camvid").cells.values()
                     if c.setting == setting and c.defense.startswith(defense)}
            assert len(found) >= 4


def test_dependent_attackers_meet_the_defense_and_independent_ones_do_not():
    scale = Scale("camvid")
    for cell in scale.cells.values():
        attacker, dependent = scale.attacker_of(cell), scale.settings[cell.setting].get("dependent")
        if cell.method.startswith("threshold"):
            continue
        assert attacker.defense == (cell.defense if dependent or cell.defense == "argmax" else "none")
        if cell.defense.startswith("dpsgd"):
            assert scale.victim_of(cell).endswith(f"@{cell.defense}")
            assert ("@" in attacker.shadow) == bool(dependent)


@pytest.fixture
def cut(world, tmp_path):
    """A scale of one setting, two rows and Argmax, on the small world."""
    small = " ".join(SMALL)
    data = f"--root {world / 'data'}"
    config = {
        "note": "a cut-down", "threads": 1, "data": {}, "network": f"{data} {small}", "settings": {
            "psp-psp": {"victim": "psp", "shadow": "psp", "dependent": True}},
        "victims": {"psp": f"--train {world / 'victim_in.txt'} --test {world / 'victim_out.txt'}"},
        "shadows": {"psp": f"--split {world / 'shadow.txt'} --victim {{runs}}/victim-psp{{under}}/last.pth.tar"},
        "target": {"psp": f"{data} --members {world / 'victim_in.txt'} --non-members {world / 'victim_out.txt'} "
                          "--precision fp32"},
        "attacker": "--stride 4 --width 0.125 --precision fp32", "attacker_epochs": {"loss": 1}, "size": 12, "count": 4,
        "seeds": 1, "rows": ["loss-random", "threshold-loss"], "sizes": {}, "gauss": [], "dropout": [],
        "without_dropout": [], "selections": {"settings": []}, "dpsgd": {"flags": "", "variances": {}},
        "minutes": {"model": 0.1, "dpsgd": 0, "loss": 0.1, "attack": 0.1}, "runs": str(tmp_path / "runs"),
        "results": str(tmp_path / "results")}
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "cut.yaml"


def reproduce(scale, *flags):
    command = [sys.executable, "-m", "snakemake", "-s", "reproduce/Snakefile", "--config", f"scale={scale}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def finished(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def figures(results):
    return {path.name: {key: value for key, value in json.loads(path.read_text()).items() if key != "commit"}
            for path in sorted(results.rglob("*_0.json"))}


def test_killed_and_called_again(cut):
    runs, results = cut.parent / "runs", cut.parent / "results"
    process = reproduce(cut)
    for _ in range(600):
        if (runs / "shadow-psp" / "last.pth.tar").exists():
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (results / "report.md").exists()
    again = finished(reproduce(cut))
    assert "one core" in again and f"--continue {runs / 'shadow-psp'}" in again
    text = (results / "report.md").read_text()
    assert "Loss, random" in text and "cells are not there" not in text
    made = figures(results)
    assert len(made) == 4
    for checkpoint in runs.rglob("*.pth.tar"):  # what is finished is not run again for a checkpoint that is gone
        checkpoint.unlink()
    for gone in runs.rglob("results.json"):
        gone.unlink()
    assert "Nothing to be done" in finished(reproduce(cut))
    assert figures(results) == made
    (results / "psp-psp" / "loss-random-n4-s12_argmax_0.json").unlink()  # it needs its models, the others stay
    planned = finished(reproduce(cut, "--dry-run"))
    for cell, wanted in (("loss-random-n4-s12_argmax_0", True), ("loss-random-n4-s12_none_0", False)):
        assert (f"attack.py --out {runs}/cells/psp-psp/{cell}" in planned) == wanted


def test_trained_again_stands_beside_the_first(cut):
    results = cut.parent / "results"
    finished(reproduce(cut))
    finished(reproduce(cut, "again=1"))
    kept = json.loads((results / "again" / "1.json").read_text())
    assert kept["cells"] == 4 and (cut.parent / "runs-again1" / "victim-psp" / "last.pth.tar").exists()
    assert "Other trainings" not in (results / "report.md").read_text()
    finished(reproduce(cut))
    assert "*1*, 4 cells" in (results / "report.md").read_text()
