"""A bed of models: its command lines, the cancellation of difficulty, its claims, and kept posteriors of references."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import must, results, scores, script
from sklearn.metrics import roc_auc_score
from test_workflow import finished, parse, reproduce

from evaluation.pooled import pooled_difference
from reproduce.cells import pack, unpack
from reproduce.forms import FORMS, batches, form_of, missing_cells, read
from reproduce.packed import read_result
from reproduce.plan import FOLDER
from reproduce.rotations import CONTROL, ELSEWHERE, OTHERS, PARTNER, PARTS, Repeats, read_rotations
from reproduce.rotations_page import Bed, attacks, bed_page, claims, defenses, queries_of
from utils.cli import UserError
from utils.files import write_json

BEDS = [path.stem for path in sorted((FOLDER / "scales").glob("*.yaml")) if form_of(path) == "rotations"]


@pytest.mark.parametrize("path", sorted((FOLDER / "scales").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scale_is_read_by_its_form(path):
    scale = read(path)
    assert form_of(path) in FORMS and (FOLDER / f"{form_of(path)}.smk").is_file()
    assert scale.name == path.stem and scale.cells and scale.models


@pytest.mark.parametrize("name", BEDS)
def test_commands_of_a_bed(name):
    bed = read_rotations(name)
    for model in bed.models:
        script_name, *words = bed.model_command(model)
        args, of = parse(script_name, words), bed if model[0] in PARTS else bed.independent
        assert args.train == of.parts[model[0]] and args.test == of.parts[PARTNER[model[0]]] and args.root == of.root
    for attacker in bed.attackers.values():
        script_name, *words = bed.attacker_command(attacker)
        args = parse(script_name, words)
        shadows = {"one": 1, "all": 2 * bed.seeds, "independent": 2}
        assert len(args.shadow) == shadows[bed.learned[attacker.kind].shadows]
    for cell in bed.cells.values():
        script_name, *words = bed.cell_command(cell)
        args = parse(script_name, words)
        assert args.members == bed.parts[cell.model.part] and args.non_members == bed.parts[PARTNER[cell.model.part]]
    for data in bed.data:
        words = bed.data_command(data)
        parse(" ".join(words[:2]), words[2:])
    count = 4 * bed.seeds + 2 * bool(bed.independent) + 4 * sum(bool(one.model) for one in bed.defenses.values())
    assert bed.budget(lambda path: False)["models"][0] == len(bed.models) == count
    assert not any(count for count, _ in bed.budget(lambda path: True).values())
    methods = {cell.method for cell in bed.cells.values()}
    assert {claim[side] for claim in bed.claims for side in ("first", "second")} <= methods and len(bed.claims) <= 10


@pytest.mark.parametrize("name", BEDS)
def test_nothing_that_an_attack_uses_saw_the_attacked_images(name):
    """Shadows, references and the model of a control are of the other two parts; each image is a member once.

    The models of an oracle are the others of the same two parts, those of an independent attack of another data set.
    """
    bed = read_rotations(name)
    for cell in bed.cells.values():
        attacked = {cell.model.part, PARTNER[cell.model.part]}
        attacker = bed.attacker_of(cell)
        used = [*bed.references_of(cell), *(attacker.shadows if attacker else ())]
        if cell.method.startswith("oracle"):
            assert {model.part for model in used} == attacked and cell.model not in used
            assert len(used) == 2 * (bed.seeds - 1)
        elif attacker and attacker.shadows[0].part in ELSEWHERE:
            assert {model.part for model in used} == set(ELSEWHERE)
        else:
            assert all(model.part in set(PARTS) - attacked for model in used)
        assert all(model.defense == cell.model.defense for model in used)
        asked = re.search(r"/([A-D])\d+[a-z0-9-]*/last", " ".join(bed.cell_command(cell)))[1]
        assert (asked == cell.model.part) == (cell.method != CONTROL)
        assert cell.method != CONTROL or asked in OTHERS[cell.model.part]
    assert sorted(PARTNER) == [*PARTS, *ELSEWHERE]
    assert all(PARTNER[PARTNER[part]] == part != PARTNER[part] for part in PARTNER)


def test_references_and_answers_of_the_cells_of_a_bed():
    """A learned attack may have references; an attack that queries the models itself stores no outputs."""
    bed = read_rotations("rotations-camvid")
    bed.direct["gradient-one"] = replace(bed.direct["gradient"], references="one")
    bed.learned["calibrated-map"] = replace(bed.learned["loss-all"], references="all")
    words = {name: bed.cell_command(bed.cells[f"{name}/A0_0"]) for name in (
        "calibrated-map-random", "loss-all-random", "gradient-one", "gradient", "quantile")}
    counts = {name: sum("rotations-camvid/C" in word or "rotations-camvid/D" in word
                        for word in found[found.index("--references"):]) if "--references" in found else 0
              for name, found in words.items()}
    every = 2 * bed.seeds
    assert counts == {"calibrated-map-random": every, "loss-all-random": 0, "gradient-one": 1, "gradient": 0,
                      "quantile": 0}
    for name, found in words.items():
        assert ("--keep" in found) == (not name.startswith("gradient"))
    population = words["quantile"][words["quantile"].index("--population") + 1]
    assert population in (bed.parts["C"], bed.parts["D"])


@pytest.mark.parametrize("name", BEDS)
def test_batches_of_a_bed(name):
    """Two for each attacked model, which hold every cell once; one for a model that was trained with a defense."""
    bed = read_rotations(name)
    found = batches(bed)
    assert sorted(cell.name for batch in found.values() for cell in batch) == sorted(bed.cells)
    kinds = ("direct", "learned") if bed.learned else ("direct",)
    expected = {f"{model.name}-{kind}" for model in bed.targets for kind in kinds}
    assert set(found) == expected | {f"{name}-direct" for name, model in bed.models.items() if model.defense}
    assert {model.seed for model in bed.targets} == {0, 1}  # the tiny bed has two seeds, the others four


def test_models_and_attacks_under_defenses():
    """A defense of the training has models and shadows of its own; one of the answers changes references, too."""
    bed = read_rotations("defenses-camvid")
    assert bed.model_command("A0-label-smoothing")[-2:] == ["--label-smoothing", "0.1"]
    trained = bed.cell_command(bed.cells["calibrated-one-under-label-smoothing/A0-label-smoothing_0"])
    assert trained[trained.index("--references") + 1].endswith("/C0-label-smoothing")
    assert "/A0-label-smoothing/" in trained[trained.index("--victim") + 1] and "--defend-references" not in trained
    changed = bed.cell_command(bed.cells["rmia-one-under-rounding/B1_0"])
    assert changed[changed.index("-rounding") + 1] == "0.1" and "--defend-references" in changed
    alone = bed.cell_command(bed.cells["loss-under-rounding/B1_0"])
    assert "-rounding" in alone and not {"--references", "--defend-references"} & set(alone)
    clean = bed.cell_command(bed.cells["residual-one-clean-under-rounding/B1_0"])
    assert {"-rounding", "--references"} < set(clean) and "--defend-references" not in clean
    undone = bed.cell_command(bed.cells["residual-one-undone-under-temperature/B1_0"])
    assert "--references" in undone and not {"-temperature", "--defend-references"} & set(undone)
    assert len([cell for cell in bed.cells.values() if cell.method == "loss-under-rounding"]) == 8


@pytest.mark.parametrize("name, other", [("defenses-camvid", "rotations-camvid"),
                                         ("independent-camvid", "rotations-camvid"),
                                         ("independent-cityscapes", "rotations-cityscapes"),
                                         ("residual-cityscapes", "rotations-cityscapes")])
def test_beds_of_the_same_models_train_them_equally(name, other):
    first, second = read_rotations(name), read_rotations(other)
    shared = set(first.models) & set(second.models)
    assert first.runs == second.runs and len(shared) >= 8
    assert all(first.model_command(model) == second.model_command(model) for model in shared)


def test_independent_attacks_are_named_in_the_report(simulated):
    named = "those of calibrated-independent, loss-independent-random, loss-independent-full are models of another"
    assert named in bed_page(Bed(simulated))


@pytest.mark.parametrize("name, method", [("rotations-camvid", "residual-all"), ("independent-cityscapes", "rmia"),
                                          ("rotations-cityscapes", "loss-all-full")])
def test_committed_scores_give_the_table_of_the_report(name, method):
    """By scikit-learn, from the scores of each model."""
    bed = Bed(read(name))
    aucs = [np.mean([roc_auc_score(bed.images(part)[0], score) for scores in bed.scores(method, part).values()
                     for score in scores]) for part in PARTS]
    row = row_of((bed.scale.results / "report.md").read_text().split("## Do the two sides")[0], method)
    assert float(row[2].split(" [")[0]) == pytest.approx(100 * np.mean(aucs), abs=0.051) and row[1] == "8"


@pytest.mark.slow
def test_the_table_of_all_attacks_is_that_of_the_docs():
    """The page has what `reproduce.overview` prints."""
    rows = [line for line in must(script("reproduce/overview.py")).stdout.splitlines() if line.startswith("| ")]
    page = (FOLDER.parent / "docs" / "results.md").read_text()
    assert len(rows) > 40 and all(row in page for row in rows if "---" not in row)


@pytest.mark.parametrize("name", BEDS)
def test_queries_of_the_cells_of_a_bed(name):
    """An attack queries the target model once about each image, or as often as --queries says (default 6)."""
    bed = read_rotations(name)
    bed.direct["more"] = replace(bed.direct["loss"], flags="--attack agreement --queries 18", asks=True)
    bed.direct["noise"] = replace(bed.direct["loss"], flags="--attack repeated -gauss 0.1", asks=True)
    many = re.compile("--attack (augmented|agreement|repeated)")
    expected = {method: int(given[1]) if (given := re.search(r"--queries (\d+)", one.flags)) else 6
                for method, one in bed.direct.items() if many.match(one.flags)}
    assert (expected["more"], expected["noise"]) == (18, 6)
    cells = {cell.method: cell for cell in bed.cells.values()}
    assert {"more", "noise", CONTROL} <= cells.keys()
    assert any(map(bed.attacker_of, cells.values())) == bool(bed.learned)
    assert {method: queries_of(bed, cell) for method, cell in cells.items()} == {
        method: expected.get(method, 1) for method in cells}


@pytest.fixture
def simulated(tmp_path):
    """A bed of 30 images a part with the scores of a simulation: part A is easier than the others by far.

    The attack `loss` has a leak of 0.5 standard deviations, `calibrated-all` one of 1.5; `control` has none.
    """
    keys = yaml.safe_load((FOLDER / "scales" / "rotations-tiny.yaml").read_text())
    keys |= {"results": str(tmp_path), "runs": str(tmp_path / "runs")}
    (tmp_path / "bed.yaml").write_text(yaml.safe_dump(keys))
    bed, rng = read_rotations(tmp_path / "bed.yaml"), np.random.default_rng(0)
    easy = {part: rng.normal(2.0 * (part == "A"), 0.5, 30) for part in PARTS}
    for part in PARTS:
        names = [f"{each}{index}" for each in (part, PARTNER[part]) for index in range(30)]
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{part}.json").write_text(json.dumps(
            {"images": names, "member": "1" * 30 + "0" * 30, "group": names}))
    for name, cell in bed.cells.items():
        leak = {"loss": 0.5, "calibrated-all": 1.5}.get(cell.method, 0.0)
        both = np.concatenate([easy[cell.model.part], easy[PARTNER[cell.model.part]]])
        score = both + rng.normal(0, 0.5, 60) + leak * np.repeat([1, 0], 30)
        (tmp_path / cell.method).mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(
            {"scores": pack(score), "commit": "c", "victim": {"commit": "v"}, "image": {},
             "miou": {"in": 0.5, "out": {"short": 0.3, "smoothing": 0.35}.get(cell.model.defense, 0.4)}}))
    return bed


def row_of(table, name):
    [row] = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(f"| {name} |")]
    return row


def test_difficulty_cancels_in_the_mean_over_partners(simulated):
    """Part A is so easy that each single AUC of the control is far from 50; their mean is not."""
    text = bed_page(Bed(simulated))
    [single] = [line for line in text.splitlines() if line.startswith(f"| {CONTROL} |") and "/" in line]
    first, second, *_ = (float(cell.split(" / ")[0]) for cell in single.strip("| ").split(" | ")[1:])
    assert first > 90 and second < 10
    control = row_of(attacks(Bed(simulated)), CONTROL)
    low, high = (float(value) for value in re.search(r"\[(.*), (.*)\]", control[2]).groups())
    assert low < 50 < high and high - low < 25 and control[1] == "8"
    assert (simulated.results / "roc.png").stat().st_size > 10_000


def test_intervals_contain_the_trainings_of_attackers(simulated):
    """A second attacker seed whose scores find members: the two differ, which one attacker alone cannot show."""
    learned = simulated.learned | {"loss-all": replace(simulated.learned["loss-all"], seeds=2)}
    bed = replace(simulated, learned=learned)
    for name, cell in bed.cells.items():
        if cell.method == "loss-all-random" and cell.seed == 1:
            found = read_result(bed.results / f"{name.removesuffix('1')}0.json")
            better = unpack(found["scores"]) + np.repeat([1.0, 0.0], 30)
            write_json(bed.results / f"{name}.json", found | {"scores": pack(better)})
    one, two = Bed(simulated), Bed(bed)
    found = two.pooled("loss-all-random", "loss")
    alone = pooled_difference(two.strata("loss-all-random", "loss"))
    assert found["difference"] == alone["difference"] and found["error"] > 1.5 * alone["error"]
    assert one.pooled("loss-all-random", "loss") == pooled_difference(one.strata("loss-all-random", "loss"))
    of_a, of_b = (two._by_attacker("loss-all-random", None, "auc", part) for part in "AB")
    assert of_a[0][0].tolist() != of_b[0][0].tolist()  # of this part alone


def test_claims_of_a_bed(simulated):
    table = claims(Bed(simulated))
    assert row_of(table, "references help")[-1] == "**holds**"
    against = row_of(table, "the structured loss map is above the loss threshold")
    assert against[3] == "+7.7" and against[-1] == "**does not hold**" and against[4].startswith("-")
    row = row_of(attacks(Bed(simulated)), "calibrated-all")
    assert row[5].startswith("**+") and float(row[6]) > 0 and row[7:] == ["1", "4"]


def test_defenses_of_a_bed(simulated):
    """The plain models lie at mIoU 40, with the leak of `loss`, and at 30, without one; smoothing lies at 35."""
    text = defenses(Bed(simulated))
    rows = {name: row_of(text, name) for name in ("none", "short", "smoothing", "argmax")}
    assert [row[3] for row in rows.values()] == ["40.0", "30.0", "35.0", "40.0"]
    values = {name: float(row[5].split(" [")[0]) for name, row in rows.items()}
    assert values["none"] > 57 > max(values["short"], values["smoothing"], values["argmax"])
    assert [rows[name][-1] for name in ("none", "short")] == ["–", "–"]
    assert float(rows["smoothing"][-1]) == pytest.approx((values["none"] + values["short"]) / 2, abs=0.1)
    assert float(rows["argmax"][-1]) == pytest.approx(values["none"], abs=0.1)
    assert rows["argmax"][4] == "correctness-one" and rows["argmax"][1] == "-argmax"
    assert "under" not in attacks(Bed(simulated)) and "## Defenses" in bed_page(Bed(simulated))


def test_packed_results(simulated):
    """One file a folder: the same report; a file of its own counts instead, until it is packed, too."""
    text, path = bed_page(Bed(simulated)), simulated.results / "loss" / "A0_0.json"
    packed = must(script("reproduce/pack.py", simulated.results / "bed.yaml"))
    assert f"{len(simulated.cells)} results packed" in packed.stdout
    assert [one.name for one in path.parent.iterdir()] == ["all.jsonl"]
    assert not missing_cells(simulated, simulated.cells.values())
    assert bed_page(Bed(simulated)) == text
    both = read_result(path), read_result(path.with_name("B0_0.json"))
    write_json(path, both[0] | {"scores": pack(np.arange(60.0))})
    assert bed_page(Bed(simulated)) != text
    assert "1 results packed" in must(script("reproduce/pack.py", simulated.results / "bed.yaml")).stdout
    assert read_result(path)["scores"] == pack(np.arange(60.0)) and read_result(path.with_name("B0_0.json")) == both[1]
    lines = path.with_name("all.jsonl").read_text().splitlines(keepends=True)
    path.with_name("all.jsonl").write_text("".join(line for line in lines if "A0_0" not in line))
    assert [cell.name for cell in missing_cells(simulated, simulated.cells.values())] == ["loss/A0_0"]
    with pytest.raises(UserError, match="A0_0"):
        read_result(path)


def test_no_committed_result_exists_twice():
    for common in (FOLDER / "results").rglob("all.jsonl"):
        names = [name for line in common.read_text().splitlines() for name in json.loads(line)]
        alone = {path.stem for path in common.parent.glob("*.json")}
        assert len(names) == len(set(names)) and not alone & set(names), common


def test_variances_of_a_bed(simulated):
    """Cells of repeats are in the table of variances only. There, shadow and attacker of the tiny bed are one thing."""
    bed = Bed(simulated)
    repeats = [cell for cell in bed.cells.values() if cell.shadow is not None]
    assert len(repeats) == 8 * 2 and {cell.method for cell in repeats} == {"loss-one-random"}
    assert [len(arrays) for arrays in bed.scores("loss-one-random", "A").values()] == [1, 1]
    for cell in bed.cells.values():  # AUCs that depend on the shadow alone
        path, (member, _) = simulated.results / f"{cell.name}.json", bed.images(cell.model.part)
        attacker = simulated.attacker_of(cell)
        score = np.arange(60) + 20.0 * member * (attacker.shadows[0].seed if attacker else 0)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": pack(score)}))
    text = bed_page(Bed(simulated)).partition("## Where the variance comes from")[2]
    row = row_of(text, "loss-one-random")
    assert row[1] == "24" and row[2] == "0.0 (0 %)" and row[4] == "with shadow" and row[5:7] == ["0.0 (0 %)"] * 2
    assert float(row[3].split(" (")[0]) > 0 and "%" in row[7]
    row = row_of(text, "loss-all-full")
    assert row[3:6] == ["–"] * 3 and row[6] == "with victim"


def test_repeats_of_a_bed():
    """Each victim against the shadows of all seeds, more attacker seeds, and other seeds for the patch locations."""
    repeats = {"loss-one-random": Repeats(shadows=True, seeds=2, draws=3)}
    bed = replace(read_rotations("rotations-tiny"), seeds=4, repeats=repeats)
    cells = [cell for cell in bed.cells.values() if cell.method == "loss-one-random" and cell.model.name == "B1"]
    assert len(cells) == 4 * 2 + 2
    attackers = {bed.attacker_of(cell) for cell in cells}
    assert {(one.shadows[0].name, one.seed) for one in attackers} == {(f"D{i}", k) for i in range(4) for k in (0, 1)}
    seeds = [bed.cell_command(cell)[bed.cell_command(cell).index("--seed") + 1] for cell in cells]
    assert sorted(seeds) == sorted(["0"] * 4 + ["1"] * 4 + ["1000", "2000"])


def test_bed_without_all_cells(simulated):
    """A report of what is there: models of one seed, and attacks without their counterpart."""
    for path in {*simulated.results.glob("*/[A-D]1*_0.json"), *simulated.results.glob("loss/*")}:
        path.unlink()
    text = bed_page(Bed(simulated))
    assert "cells are missing" in text and row_of(attacks(Bed(simulated)), "calibrated-all")[5] == "–"
    for path in set(simulated.results.glob("*/*_0.json")):
        path.unlink()
    with pytest.raises(UserError, match="has no cells"):
        bed_page(Bed(simulated))


@pytest.mark.parametrize("change, message", [
    (lambda keys: keys["parts"].pop("D"), "a split file for each of A, B, C, D"),
    (lambda keys: keys.pop("seeds"), "seeds"), (lambda keys: keys["minutes"].pop("model"), "no entry for model"),
    (lambda keys: keys["direct"]["loss"].update(references="two"), "`references` is one of these or none"),
    (lambda keys: keys["learned"]["loss-one"].update(references="oracle"), "without a trained attacker"),
    (lambda keys: keys.pop("independent"), "`shadows` is one of one, all;"),
    (lambda keys: keys["independent"]["parts"].pop("F"), "`independent` must name a split file for each of E, F"),
    (lambda keys: keys["independent"].update(color="red"), "color"),
    (lambda keys: keys["direct"]["loss"].update(resume="loss"), "`resume` names loss, which is no learned attacker"),
    (lambda keys: keys["direct"]["loss"].update(references="oracle"), "three seeds or more"),
    (lambda keys: keys.update(attacked=3), "`attacked` is 3, but there are 2 seeds"),
    (lambda keys: keys["learned"]["loss-one"].update(shadows="none"), "`shadows` is one of one, all, independent"),
    (lambda keys: keys["repeats"].update({"loss-all-full": {}}), "loss-all-full, which is no selection"),
    (lambda keys: keys["repeats"].update({"loss-one-random": {"times": 2}}), "times"),
    (lambda keys: keys["learned"]["loss-one"].update(color="red"), "color")])
def test_scale_of_a_bed_that_is_wrong(tmp_path, change, message):
    keys = yaml.safe_load((FOLDER / "scales" / "rotations-tiny.yaml").read_text())
    change(keys)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(keys))
    with pytest.raises(UserError, match=message):
        read_rotations(tmp_path / "wrong.yaml")


@pytest.mark.slow
def test_no_model_is_queried_whose_outputs_are_kept(world, live, tmp_path, monkeypatch):
    """Not even to check it."""
    command = ["attack.py", "--attack", "calibrated", *live, "--references", world / "shadow", "--keep",
               tmp_path / "target", "--keep-references", tmp_path / "references"]
    must(script(*command, "--out", tmp_path / "first"))
    monkeypatch.setattr("predictors.checkpoint.CheckpointPredictor.predict", lambda self, queries: pytest.fail("asked"))
    must(script(*command, "--out", tmp_path / "second"))
    assert scores(tmp_path / "first") == scores(tmp_path / "second")


@pytest.mark.slow
def test_posteriors_of_references_are_kept(world, live, tmp_path):
    """A second attack reads them: it queries no reference, and its scores are those of float16."""
    command = ["attack.py", "--attack", "calibrated", *live, "--references", world / "shadow"]
    must(script(*command, "--out", tmp_path / "live"))
    kept = ["--keep-references", tmp_path / "kept"]
    must(script(*command, *kept, "--out", tmp_path / "first"))
    [tree] = (tmp_path / "kept").iterdir()
    stored = sorted(tree.rglob("*.npy"))
    assert tree.name.startswith("shadow-") and len(stored) == 16
    before = {path: path.stat().st_mtime_ns for path in stored}
    must(script(*command, *kept, "--out", tmp_path / "second"))
    assert {path: path.stat().st_mtime_ns for path in stored} == before
    assert scores(tmp_path / "first") == scores(tmp_path / "second")
    for name, (member, score) in scores(tmp_path / "live").items():
        assert scores(tmp_path / "first")[name] == (member, pytest.approx(score, abs=2e-3))
    np.save(stored[0], np.full_like(np.load(stored[0]), 1 / 19))
    must(script(*command, *kept, "--out", tmp_path / "third"))
    assert results(tmp_path / "third")["image"] and scores(tmp_path / "third") != scores(tmp_path / "second")


@pytest.mark.huge
def test_bed_from_data_to_report(tmp_path):
    keys = yaml.safe_load((FOLDER / "scales" / "rotations-tiny.yaml").read_text())
    keys |= {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results"), "seeds": 1,
             "learned": {"loss-all": keys["learned"]["loss-all"]}}
    keys["direct"] = {name: keys["direct"][name] for name in ("loss", "calibrated-all")}
    for key in ("repeats", "independent"):
        del keys[key]
    keys["defenses"] = {"argmax": keys["defenses"]["argmax"]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(keys))
    assert "4 models: about" in finished(reproduce(tmp_path / "small.yaml"))
    text = (tmp_path / "results" / "report.md").read_text()
    assert "cells are missing" not in text and row_of(text, "references help")[-1].startswith("**")
    assert "Nothing to be done" in finished(reproduce(tmp_path / "small.yaml"))


# One process for many cells


def test_a_batch_goes_on_after_an_attack_that_fails(tmp_path, monkeypatch):
    """The attacks are scripts that write their name; one fails. A cell that exists is left out, a signal ends all."""
    code = "import sys\nprint('ran', sys.argv[1])\nsys.exit({'bad': 2, 'stopped': 143}.get(sys.argv[1]))"
    (tmp_path / "attack.py").write_text(code)
    names = ["there", "first", "bad", "last"]
    scale = SimpleNamespace(
        cells={name: SimpleNamespace(name=name) for name in names}, results=tmp_path, batch_of=lambda cell: "all",
        cell_command=lambda cell: [str(tmp_path / "attack.py"), cell.name], run_of=lambda cell: tmp_path / "run",
        cell_arguments=lambda cell: {"images": tmp_path / "images.json"})
    monkeypatch.setattr("reproduce.forms.read", lambda name, again: scale)
    monkeypatch.setattr("reproduce.cells.write_cell", lambda run, into, images: into.write_text("{}"))
    (tmp_path / "there.json").write_text("{}")
    words = ["reproduce/measure.py", "scale", "all"]
    done = script(*words)
    assert done.returncode == 2 and "1 of 3 cells could not be measured: bad" in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == ["ran first", "ran bad", "ran last"]
    assert (tmp_path / "last.json").exists() and not (tmp_path / "bad.json").exists()
    scale.cells = {name: SimpleNamespace(name=name) for name in ("stopped", "next")}
    done = script(*words)
    assert done.returncode == 143 and "ran next" not in done.stdout
    assert "has no batch some; it has all" in script(*words[:2], "some").stderr
