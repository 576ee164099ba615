"""The reproduction as a workflow: its command lines, and a small scale from data to report."""

import base64
import itertools
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, SMALL, must, script
from PIL import Image

from reproduce.cells import unpack
from reproduce.dimension import measure, open_tree
from reproduce.forms import form_of, results_of
from reproduce.packed import pack_results, read_result
from reproduce.paper import COLUMNS, TABLE
from reproduce.plan import FOLDER, read_scale
from reproduce.shafran import TABLE_ONE
from reproduce.table_one import read_table_one
from reproduce.table_one_page import Errors, comparisons, pooled
from utils.cli import UserError

SCALES = ("tiny", "camvid", "camvid-shadows", "cityscapes", "paper", "two-shadows")


@cache
def functions_of(script):
    """The functions of a script, or of a module given as `-m NAME`, without an import of it under its name."""
    path = f"{script.removeprefix('-m ')}/__main__.py" if script.startswith("-m ") else script
    return runpy.run_path(str(ROOT / path), run_name="x")


def parse(script, words):
    """The arguments of a command line, checked as the script checks them."""
    args = functions_of(script)["parser"]().parse_args(words)
    functions_of(script)["check"](args)
    return args


@pytest.fixture
def scale_of(tmp_path):
    """Reads a scale by its name; two-shadows is tiny with two shadows in one setting and three in another."""
    def read(name):
        if name != "two-shadows":
            return read_scale(name)
        keys = yaml.safe_load((FOLDER / "scales" / "tiny.yaml").read_text())
        keys["settings"]["psp-psp"]["shadow_count"], keys["settings"]["dpc-psp"]["shadow_count"] = 3, 2
        (tmp_path / "two-shadows.yaml").write_text(yaml.safe_dump(keys))
        return read_scale(tmp_path / "two-shadows.yaml")
    return read


def commands_of(scale):
    """Every command of a scale that trains or attacks."""
    return [*map(scale.model_command, scale.models), *map(scale.attacker_command, scale.attackers.values()),
            *map(scale.cell_command, scale.cells.values())]


def shadows_in(words):
    """The folders behind --shadow in a command line."""
    return parse(words[0], words[1:]).shadow


@pytest.mark.parametrize("name", SCALES)
def test_scripts_accept_every_command(name, scale_of):
    scale = scale_of(name)
    for words in commands_of(scale):
        assert parse(words[0], words[1:]).out == words[2]
    for data in scale.data:
        parse("-m datasets", scale.data_command(data)[2:])


@pytest.mark.parametrize("name", SCALES)
def test_every_input_is_the_output_of_another_run(name, scale_of):
    scale = scale_of(name)
    outputs = {f"{scale.runs / model}/last.pth.tar" for model in scale.models}
    outputs |= {f"{scale.runs / 'attackers' / attacker}/best.pth.tar" for attacker in scale.attackers}
    for cell in scale.cells.values():
        words = scale.cell_command(cell)
        assert {words[words.index(flag) + 1] for flag in ("-resume", "--victim")} <= outputs
    for attacker in scale.attackers.values():
        assert {f"{folder}/last.pth.tar" for folder in shadows_in(scale.attacker_command(attacker))} <= outputs
    for model in scale.models:
        assert set(scale.needs_of_model(model)) <= set(scale.models)
    folders = [words[2] for words in commands_of(scale)]
    assert len(set(folders)) == len(folders)


def test_another_training_has_other_seeds_and_folders():
    first, again = read_scale("camvid"), read_scale("camvid", again=2)
    assert again.results == first.results / "again" / "2" and again.runs != first.runs
    for model in first.models:
        assert again.model_command(model) == [
            word.replace(str(first.runs), str(again.runs)) for word in first.model_command(model)] + ["--seed", "2"]
        parse(again.model_command(model)[0], again.model_command(model)[1:])


def test_several_shadows_are_several_splits_of_the_same_images(scale_of, tmp_path):
    scale = scale_of("two-shadows")

    def shadows(setting):
        cell = next(c for c in scale.cells.values()
                    if (c.setting, c.method, c.defense) == (setting, "loss-random", "none"))
        return shadows_in(scale.attacker_command(scale.attacker_of(cell)))

    def arguments(folder):
        model = folder.rpartition("/")[2]
        words = scale.model_command(model)
        return parse(words[0], words[1:]), scale.needs_of_model(model)

    random = [arguments(folder) for folder in shadows("psp-psp")]  # --split, by the victim's confidence when alone
    for seed, (args, needs) in enumerate(random, 1):
        assert (args.partition, args.seed, args.train, needs) == ("random", seed, None, [])
        assert args.split == "splits/streets-64/shadow.txt"
    assert len(random) == 3
    (first, _), (swapped, _) = map(arguments, shadows("dpc-psp"))  # --train and --test
    assert (first.train, first.test) == (swapped.test, swapped.train) and first.train != first.test
    assert len(shadows("dlv3-psp")) == 1
    private = scale.attackers["psp-3shadows@clip-loss-s16_clip_0"]
    assert shadows_in(scale.attacker_command(private))[2].endswith("shadow-psp-random3@clip")
    again = read_scale(tmp_path / "two-shadows.yaml", again=1)
    seeds = [parse(words[0], words[1:]).seed for words in map(again.model_command, again.models)]
    assert {1001, 1002, 1003} <= set(seeds) and min(seeds) == 1


@pytest.mark.parametrize("change, message", [
    ({"shadow_cuont": 2}, "unexpected keyword argument 'shadow_cuont'"), ({"shadow_count": 0}, "1 or more, not 0"),
    ({"settings": {"dlv3-psp": {"victim": "psp", "shadow": "dlv3", "shadow_count": 3}}}, "shadow dlv3 has no --split"),
    ({"settings": {"dlv3-psp": {"victim": "psp"}}}, "missing 1 required positional argument: 'shadow'")])
def test_a_wrong_key_of_a_scale_is_an_error(change, message, tmp_path):
    keys = yaml.safe_load((FOLDER / "scales" / "tiny.yaml").read_text())
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(keys | change))
    with pytest.raises(UserError, match=message):
        read_scale(tmp_path / "wrong.yaml")


def test_table_two_is_complete():
    for name in ("tiny", "camvid", "paper"):
        scale = read_scale(name)
        planned = {(c.setting, c.method) for c in scale.cells.values()
                   if c.defense == "none" and c.count == scale.count}
        assert planned >= {(setting, method) for setting in COLUMNS for method in TABLE}
    for setting in ("psp-psp", "dlv3-psp"):
        for defense in ("gauss", "dpsgd"):
            strengths = {c.defense for c in read_scale("camvid").cells.values()
                         if c.setting == setting and c.defense.startswith(defense)}
            assert len(strengths) >= 4


def test_only_dependent_attackers_are_trained_under_the_defense():
    scale = read_scale("camvid")
    for cell in scale.cells.values():
        attacker, dependent = scale.attacker_of(cell), scale.settings[cell.setting].dependent
        if cell.method.startswith("threshold"):
            continue
        assert attacker.defense == (cell.defense if dependent or cell.defense == "argmax" else "none")
        if cell.defense.startswith("dpsgd"):
            assert scale.victim_of(cell).endswith(f"@{cell.defense}")
            assert all(("@" in shadow) == dependent for shadow in scale.shadow_names(attacker))


@pytest.fixture
def small_scale(world, tmp_path):
    """A scale file with one setting, two rows and Argmax, on the small world."""
    small = " ".join(SMALL)
    data = f"--root {world / 'data'}"
    keys = {
        "note": "a small scale", "threads": 1, "data": {}, "network": f"{data} {small}", "settings": {
            "psp-psp": {"victim": "psp", "shadow": "psp", "dependent": True}},
        "victims": {"psp": f"--train {world / 'victim_in.txt'} --test {world / 'victim_out.txt'}"},
        "shadows": {"psp": f"--split {world / 'shadow.txt'} --victim {{runs}}/victim-psp{{under}}/last.pth.tar"},
        "target": {"psp": f"{data} --members {world / 'victim_in.txt'} --non-members {world / 'victim_out.txt'} "
                          "--precision fp32"},
        "attacker": "--stride 4 --width 0.125 --precision fp32", "attacker_length": {"loss": 1}, "size": 12, "count": 4,
        "seeds": 1, "rows": ["loss-random", "threshold-loss"], "sizes": {}, "gauss": [], "dropout": [],
        "minutes": {"model": 0.1, "dpsgd": 0, "loss": 0.1, "attack": 0.1}, "runs": str(tmp_path / "runs"),
        "results": str(tmp_path / "results")}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(keys))
    return tmp_path / "small.yaml"


def reproduce(scale, *flags):
    command = [sys.executable, "-m", "snakemake", "-s", "reproduce/Snakefile", "--config", f"scale={scale}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def finished(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def cells_of(results):
    return {path.name: {key: value for key, value in json.loads(path.read_text()).items() if key != "commit"}
            for path in sorted(results.rglob("*_0.json"))}


@pytest.mark.slow
def test_a_killed_run_resumes(small_scale):
    keys = yaml.safe_load(small_scale.read_text())
    keys["settings"]["two"] = {"victim": "psp", "shadow": "psp", "shadow_count": 2, "table_only": True, "title": "Two"}
    small_scale.write_text(yaml.safe_dump(keys))
    runs, results = small_scale.parent / "runs", small_scale.parent / "results"
    process = reproduce(small_scale)
    for _ in range(600):
        if (runs / "shadow-psp" / "last.pth.tar").exists():
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (results / "report.md").exists()
    (runs / "shadow-psp" / "results.json").unlink(missing_ok=True)
    mark = base64.b64encode(str(runs / "victim-psp" / "results.json").encode()).decode()
    (ROOT / ".snakemake" / "incomplete" / mark).touch()  # as if the kill had come just after this file was written
    again = finished(reproduce(small_scale))
    assert "one core" in again and f"--continue {runs / 'shadow-psp'}" in again
    text = (results / "report.md").read_text()
    assert "Loss, random" in text and "cells are missing" not in text and "shadow-psp-random2" in text
    splits = [(runs / f"shadow-psp-random{n}" / "in.txt").read_text().splitlines()[1:] for n in (1, 2)]
    assert splits[0] != splits[1]
    cells = cells_of(results)
    assert len(cells) == 4 and len(cells_of(results / "two")) == 2
    (results / "psp-psp" / "loss-random-n4-s12_none_0.json").unlink()  # its batch has another cell, which stays
    assert "cell 1 of 1: psp-psp/loss-random" in finished(reproduce(small_scale))
    assert cells_of(results) == cells
    for checkpoint in runs.rglob("*.pth.tar"):  # a finished cell does not run again when a checkpoint is deleted
        checkpoint.unlink()
    for path in runs.rglob("results.json"):
        path.unlink()
    assert "Nothing to be done" in finished(reproduce(small_scale))
    assert cells_of(results) == cells
    (results / "psp-psp" / "loss-random-n4-s12_argmax_0.json").unlink()  # a missing cell is planned, the others are not
    pack_results(results_of(read_scale(small_scale)))  # nor are those that have no file of their own any more
    assert not cells_of(results)
    planned = finished(reproduce(small_scale, "--dry-run"))
    assert "rule model_results" not in planned and "rule report" in planned
    for defense, wanted in (("argmax", True), ("none", False)):
        batch = f"psp_{next(name for name in read_scale(small_scale).attackers if f'_{defense}_' in name)}"
        assert (f"reproduce.measure {small_scale} {batch}" in planned) == wanted
    command = ["-m", "reproduce.measure", small_scale, batch.replace("_none_", "_argmax_"), "--dry-run"]
    printed = must(subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)).stdout
    assert "python attack.py --out" in printed and "cells/psp-psp/loss-random-n4-s12_argmax_0 " in printed
    unknown = subprocess.run([sys.executable, *command[:3], "x"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2 and "has no batch x; it has psp_psp-loss" in unknown.stderr


@pytest.mark.slow
def test_another_training_stands_beside_the_first(small_scale):
    results = small_scale.parent / "results"
    finished(reproduce(small_scale))
    finished(reproduce(small_scale, "again=1"))
    again = cells_of(results / "again" / "1")
    assert len(again) == 4 and (small_scale.parent / "runs-again1" / "victim-psp" / "last.pth.tar").exists()
    assert not (results / "again" / "1" / "report.md").exists()
    assert "Other trainings" not in (results / "report.md").read_text()
    finished(reproduce(small_scale))
    assert "*1*, 4 cells" in (results / "report.md").read_text()
    assert again == cells_of(results / "again" / "1")


# Table 1 of the second paper

TABLE_ONES = ("table1-tiny", "table1")


@pytest.mark.parametrize("name", TABLE_ONES)
def test_commands_of_table_one(name):
    scale = read_table_one(name)
    assert form_of(name) == "table-one"
    for model in scale.models:
        script, *words = scale.model_command(model)
        target = scale.targets[scale.models[model][0]]
        assert parse(script, words).test == target.sides[1]
    for cell in scale.cells.values():
        script, *words = scale.cell_command(cell)
        args = parse(script, words)
        assert Path(args.victim).parent.name in scale.models and args.attack == cell.attack
    for data in scale.data:
        words = scale.data_command(data)
        parse(" ".join(words[:2]), words[2:])
    rows = {target.row for target in scale.targets.values()} - {None}
    assert rows | set(scale.missing) == set(TABLE_ONE) and not rows & set(scale.missing)
    budget = scale.budget(lambda path: False)
    assert budget["models"][0] == len(scale.models) and budget["attacks"][0] == len(scale.cells)
    assert not any(count for count, _ in scale.budget(lambda path: True).values())


@pytest.mark.parametrize("change, message", [
    (lambda keys: keys["missing"].pop("SPADE, ADE20K"), "'SPADE, ADE20K' is no row"),
    (lambda keys: keys["targets"]["pix2pix"].update(row="pix2pix, Horses"), "'pix2pix, Horses' is no row"),
    (lambda keys: keys["minutes"].pop("upernet"), "no entry for upernet"), (lambda keys: keys.pop("note"), "note"),
    (lambda keys: keys.update(compared=[["pix2pix", "horses"]]), "horses, which is no target"),
    (lambda keys: keys.update(pooled={"streets": ["pix2pix", "cows"]}), "`pooled` names cows, which is no target"),
    (lambda keys: keys["targets"]["pix2pix"].update(color="red"), "color")])
def test_scale_of_table_one_that_is_wrong(tmp_path, change, message):
    keys = yaml.safe_load((FOLDER / "scales" / "table1-tiny.yaml").read_text())
    change(keys)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(keys))
    with pytest.raises(UserError, match=message):
        read_table_one(tmp_path / "wrong.yaml")


@pytest.mark.slow
def test_table_one_from_models_to_report(pairs, tmp_path):
    keys = yaml.safe_load((FOLDER / "scales" / "table1-tiny.yaml").read_text())
    target = {"row": "pix2pix, Cityscapes", "about": "streets", "root": str(pairs / "pairs"), "sides": [
        str(pairs / "splits" / f"victim_{side}.txt") for side in ("in", "out")],
        "train": "train_translator.py --width 4 --epochs 1 --workers 0"}
    keys |= {"data": {}, "targets": {"one": target}, "minutes": {"one": 0.1, "attack": 0.1},
             "runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}
    keys["missing"] |= {row: "not here" for row in TABLE_ONE if row != target["row"]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(keys))
    assert "1 models: about" in finished(reproduce(tmp_path / "small.yaml"))
    text = (tmp_path / "results" / "report.md").read_text()
    [row] = [line.split(" | ") for line in text.splitlines() if "| streets |" in line]
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results" / "one").glob("*_0.json")}
    assert cells.keys() == {"reconstruction_0", "membership-error_0", "membership-error-released_0"}
    assert row[1] == "77.74 → 83.23" and row[3] == "1"
    aucs = {name: 100 * cell["image"]["auc"] for name, cell in cells.items()}
    assert row[4].startswith(f"{aucs['reconstruction_0']:.1f} [")
    for column, name in ((5, "membership-error-released_0"), (6, "membership-error_0")):
        change = re.escape(f"{aucs[name] - aucs['reconstruction_0']:+.1f}")
        assert row[column].startswith(f"{aucs[name]:.1f} [") and re.search(rf"<br>\**{change}\** \[", row[column])
    assert "SPADE, ADE20K | 85.31 → 89.79 | not here" in text and "| one_0 | L1 in 0..1 |" in text
    sizes = json.loads((tmp_path / "results" / "dimension" / "one_0.json").read_text())["sizes"]
    assert sizes["full"]["auc"] == pytest.approx(aucs["reconstruction_0"] / 100) and "averages of 8 x 8" in text
    assert (tmp_path / "results" / "dimension.png").stat().st_size > 10_000


# The claims of the second paper

def test_compared_targets(tmp_path):
    """Two trainings of the committed results as two targets, whose images have other folders but the same names."""
    keys = yaml.safe_load((FOLDER / "scales" / "table1.yaml").read_text())
    keys["targets"] = {name: keys["targets"]["pix2pix-maps"] | {"seeds": 1, "about": name} for name in ("one", "two")}
    keys["missing"] |= {row: "not here" for row in TABLE_ONE if row != "pix2pix, Maps2sat"}
    keys |= {"results": str(tmp_path), "compared": [["one", "two"]], "pooled": {},
             "minutes": {"one": 1, "two": 1, "attack": 1}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(keys))
    committed = FOLDER / "results" / "table1" / "pix2pix-maps"
    for seed, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        cell = read_result(committed / f"reconstruction_{seed}.json")
        (tmp_path / name / "reconstruction_0.json").write_text(json.dumps(cell))
    images = json.loads((committed / "images.json").read_text())
    other = images | {"images": [name.replace("map/", "aerial/") for name in images["images"]]}
    for name, listed in (("one", images), ("two", other)):
        (tmp_path / name / "images.json").write_text(json.dumps(listed))
    errors = Errors(read_table_one(tmp_path / "two.yaml"))
    row = comparisons(errors).splitlines()[-1].split(" | ")
    first, second = (read_result(committed / f"reconstruction_{seed}.json")["image"]["auc"] for seed in (0, 1))
    assert float(row[-1].strip("*").split("[")[0].strip(" *")) == pytest.approx(100 * (second - first), abs=0.06)
    assert float(row[-3].split(" [")[0]) == pytest.approx(100 * first, abs=0.06)
    errors.scale.pooled["maps"] = [["one", "two"]]  # the first is the more certain task
    row = pooled(errors).splitlines()[-1].split(" | ")
    assert row[1:5] == ["maps", "reconstruction error", "1 of 1", "0"] and row[-1].startswith("**")
    assert float(row[5].split(" [")[0]) == pytest.approx(100 * (second - first), abs=0.06)
    (tmp_path / "two" / "images.json").write_text(json.dumps(other | {"images": other["images"][::-1]}))
    with pytest.raises(UserError, match="do not have the same images"):
        comparisons(Errors(errors.scale))


def test_outputs_of_each_size(tmp_path):
    """The posteriors of the examples at fewer positions and with fewer classes, beside a slow computation."""
    must(script("reproduce/dimension.py", ROOT / "examples", "--into", tmp_path / "sizes.json"))
    sizes = json.loads((tmp_path / "sizes.json").read_text())["sizes"]
    assert sizes.keys() == {"full", "1/2", "1/4", "1/8", "1/16", "1/32", "8 classes", "4 classes", "2 classes"}
    assert [sizes[name]["values"] for name in ("full", "1/2", "2 classes")] == [19 * 32 * 64, 19 * 16 * 32, 2 * 32 * 64]
    posterior = np.load(ROOT / "examples/train/pred_sgd/00000.npy").astype(float)
    label = np.asarray(Image.open(ROOT / "examples/train/label/00000.png"))[::4, ::4]
    losses = {"1/4": [], "4 classes": []}
    for y, x in np.ndindex(label.shape):
        p, true = posterior[:, y, x] / posterior[:, y, x].sum(), label[y, x]
        if true == 255:
            continue
        losses["4 classes"].append(math.log(sum(p[i] for i in range(19) if i * 4 // 19 == true * 4 // 19)))
        if y % 4 == x % 4 == 0:
            losses["1/4"].append(math.log(max(p[true], 6e-8)))
    for name, found in losses.items():
        assert unpack(sizes[name]["scores"])[0] == pytest.approx(np.mean(found), rel=1e-3)
    assert sizes["full"]["minus_full"] == 0 and sizes["full"]["minus_full_interval"] == [0, 0]


def test_translated_images_of_each_size(tmp_path):
    rng = np.random.default_rng(0)
    for side, count in (("train", 3), ("val", 2)):
        for name, part in itertools.product(range(count), ("input", "output", "truth")):
            (tmp_path / side / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / side / part / f"{name}.png")
    sizes = measure(open_tree(tmp_path))
    averages = [f"averages of {k} x {k}" for k in (2, 4, 8)]
    assert list(sizes) == ["full", "1/2", "1/4", "1/8", *averages, "grey"]
    one, two = (np.asarray(Image.open(tmp_path / "train" / part / "0.png")).astype(float) / 255
                for part in ("output", "truth"))
    halved = [image.reshape(4, 2, 4, 2, 3).mean((1, 3)) for image in (one, two)]
    wanted = {"grey": -np.abs(one.mean(2) - two.mean(2)).mean(),
              "averages of 2 x 2": -np.abs(halved[0] - halved[1]).mean(),
              "1/4": -np.abs(one[::4, ::4] - two[::4, ::4]).mean()}
    assert {name: unpack(sizes[name]["scores"])[0] for name in wanted} == pytest.approx(wanted, abs=3e-3)
