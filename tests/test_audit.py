"""audit.py: one command from a model and lists to a page, its conditions, its comparison, and hostile names."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import ROOT, must, results, script, write_tree
from sklearn.metrics import roc_curve
from test_seams import assert_refused

from attacks import ATTACKS
from attacks.sample import Scored
from datasets.sides import read_sides
from evaluation.attack_setup import LiveData
from evaluation.audit import parse_defense
from evaluation.audit_plan import LEFT_OUT, Audit
from evaluation.audit_results import POINTS, answer, roc
from evaluation.audit_setup import _same, read_condition
from evaluation.audit_words import ATTACKS as WORDS
from evaluation.audit_words import GUIDANCE, advice, collection, meaning
from evaluation.report import write_scores
from predictors.reference import read_shadow
from training.reference_models import options_like
from utils.checkpoints import load_checkpoint
from utils.cli import Stopped, UserError
from utils.files import write_json

NAMES = [f"scene{number}" for number in range(12)]
FAST = ["--attacks", "loss", "confidence", "statistics-crossfit", "--precision", "fp32"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("audit") / "a <b>tree</b>", names=NAMES)


@pytest.fixture(scope="module")
def audit(tree, tmp_path_factory):
    """The folder of an audit of `tree` under a defense, and what it printed."""
    folder = tmp_path_factory.mktemp("audits") / "first"
    done = must(script("audit.py", "--model", f"stored:{tree}", "--try", "argmax", "rounding:0.1", "--out", folder,
                       *FAST))
    return folder, done.stdout


def test_an_audit_has_the_metrics_of_its_attacks(audit):
    folder, printed = audit
    found = json.loads((folder / "audit.json").read_text(), parse_constant=pytest.fail)
    jsonschema.validate(found, json.loads((ROOT / "docs/audit.schema.json").read_text()))
    assert found["primary"] == "loss" and found["answer"]["verdict"] == "leak"
    assert [row["name"] for row in found["attacks"]] == ["confidence", "loss", "statistics-crossfit"]
    for row in found["attacks"]:
        own = results(folder / "attacks" / row["name"])
        assert row["auc"] == own["image"]["auc"] and row["roc"][0] == [0, 0] and row["roc"][-1] == [1, 1]
        x, y = np.array(row["roc"]).T
        assert np.trapezoid(y, x) == pytest.approx(row["auc"], abs=0.02)
    assert [row["defense"] for row in found["defenses"]] == [None, "argmax", "rounding 0.1"]
    worst = {row["defense"]: row["auc"] for row in found["defenses"]}
    assert worst["argmax"] <= worst[None] and str(folder / "report.html") in printed
    assert f"{found['answer']['auc']:.3f}" in printed


def test_the_page_stands_alone_and_escapes_names(audit):
    page = (audit[0] / "report.html").read_text()
    assert "<b>tree</b>" not in page and "a &lt;b&gt;tree&lt;/b&gt;" in page
    links = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([a-z]+:)""", page))
    assert links <= {"data:"} and "<script" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and len(re.findall("<svg", page)) == 5
    assert not any(name in page for name in NAMES), "names are keyed hashes"
    assert "a &lt;b&gt;tree" in (audit[0] / "report.md").read_text()
    assert all(document in page for document in GUIDANCE)


@pytest.mark.slow
def test_an_audit_resumes_and_another_key_starts_again(audit, tree):
    folder = audit[0]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("attacks/**/results.json")}
    must(script("audit.py", "--model", f"stored:{tree}", "--try", "argmax", "rounding:0.1", "--out", folder, *FAST))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    must(script("audit.py", "--model", f"stored:{tree}", "--out", folder, *FAST, "--show-images"))
    assert NAMES[0] in (folder / "attacks/loss/scores.csv").read_text()  # names are plain now
    must(script("audit.py", "--model", f"stored:{tree}", "--out", folder, *FAST, "--seed", 1))
    assert (folder / "attacks/loss/results.json").stat().st_mtime_ns != before[folder / "attacks/loss/results.json"]


@pytest.mark.slow
def test_conditions_decide_the_exit_code(tree, tmp_path):
    command = ["audit.py", "--model", f"stored:{tree}", "--attacks", "loss", "--precision", "fp32", "--out",
               tmp_path / "one", "--quiet"]
    assert script(*command, "--fail-if", "auc>0.6").returncode == 1
    assert must(script(*command, "--fail-if", "auc>1", "max_f>1")).stdout == ""
    undecided = script(*command, "--fail-if", "tpr@1%>0.05")
    assert undecided.returncode == 2 and "12 non-members" in undecided.stderr
    assert read_condition("auc > .6").limit == 0.6 and read_condition("tpr@1%>1").limit == 1
    for text in ("auc<0.6", "tpr@2%>0.1", "accuracy>1", "auc>1.2.3", "auc>.", "tpr@1.%>0.1", "auc>"):
        with pytest.raises(UserError, match="give auc>X"):
            read_condition(text)


@pytest.mark.slow
def test_folders_and_a_list_give_the_metrics_of_split_files(world, live, tmp_path):
    members = tmp_path / "members.csv"
    members.write_text("image,member\n" + "".join(f"{i}.png,{int(i < 100)}\n" for i in [*range(8), *range(100, 108)]))
    done = must(script("audit.py", "--model", world / "victim", "--images", world / "data/img", "--masks",
                       world / "data/label", "--members", members, "--out", tmp_path / "audit", "--attacks", "loss",
                       "--precision", "fp32", "--json", "--seed", 3, "--skip-check"))
    must(script("attack.py", *live, "--attack", "loss", "--keep", tmp_path / "kept", "--out", tmp_path / "run"))
    found = json.loads(done.stdout)
    assert found["attacks"][0]["auc"] == pytest.approx(results(tmp_path / "run")["image"]["auc"], abs=0.005)
    assert found["images"]["members"] == found["images"]["non_members"] == 8


def test_a_model_that_does_not_segment_is_refused(world, tmp_path):
    command = ["audit.py", "--model", world / "victim", "--root", world / "data", "--members", world / "victim_in.txt",
               "--non-members", world / "victim_out.txt", "--out", tmp_path, "--precision", "fp32"]
    refused = script(*command)
    assert refused.returncode == 2 and "mIoU" in refused.stderr


def test_lists_that_are_wrong_are_refused(world, tmp_path):
    def refused(text, *flags, name="list.txt"):
        (tmp_path / name).write_text(text)
        done = script("audit.py", "--model", world / "victim", "--images", world / "data/img", "--masks",
                      world / "data/label", "--members", tmp_path / name, "--out", tmp_path / "refused", *flags)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr

    assert "which is no image below" in refused("nothing.png\n")
    assert "no membership" in refused("image,member\n1.png,perhaps\n", name="list.csv")
    assert "must have the columns" in refused("a,b\n1.png,1\n", name="list.csv")
    assert "leave --non-members out" in refused("image,member\n1,1\n2,0\n", "--non-members", tmp_path / "list.csv",
                                                name="list.csv")
    assert "leaves no image" in refused("".join(f"{i}\n" for i in [*range(8), *range(100, 108), *range(200, 224)]))
    with pytest.raises(UserError, match=r"cannot be read|missing|no such"):
        read_sides(str(tmp_path / "none.txt"))


def test_a_claim_is_tested_as_a_collection(world, tmp_path):
    lists = {name: tmp_path / f"{name}.txt" for name in ("claim", "null")}
    for name, numbers in (("claim", range(8)), ("null", range(100, 108))):
        lists[name].write_text("".join(f"{number}\n" for number in numbers))
    must(script("audit.py", "--model", world / "victim", "--images", world / "data/img", "--masks",
                world / "data/label", "--claim", lists["claim"], "--null", lists["null"], "--out", tmp_path / "audit",
                "--attacks", "loss", "--precision", "fp32", "--skip-check"))
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    assert 0 < found["collection"]["p"] <= 1 and found["collection"]["groups"] == [8, 8]
    assert "Was the collection used?" in (tmp_path / "audit/report.html").read_text()


def test_two_audits_are_compared_by_image(audit, tree, tmp_path):
    command = ["audit.py", "--model", f"stored:{tree}", "--attacks", "loss", "--precision", "fp32", "--hash-names",
               audit[0] / "key"]
    must(script(*command, "--out", tmp_path / "second"))
    printed = must(script("audit.py", "--compare", audit[0] / "audit.json", tmp_path / "second/audit.json")).stdout
    assert re.search(r"^loss .* \+0\.000 ", printed, re.MULTILINE) and "mIoU" in printed
    (tmp_path / "bad.json").write_text('{"version": 7}')
    assert "no audit.json" in script("audit.py", "--compare", tmp_path / "bad.json", tmp_path / "bad.json").stderr


def test_defenses_that_are_tried_are_named_with_their_strength():
    assert parse_defense("gauss:0.1", 5).describe() == "gauss 0.1" and parse_defense("argmax", 0).strength is None
    assert parse_defense("dropout:0.5", 0) == parse_defense("test-dropout:0.5", 0)
    for text in ("gauss", "argmax:1", "gauss:x", "dpsgd", "none"):
        with pytest.raises(UserError, match="give argmax, gauss:STD"):
            parse_defense(text, 0)


@pytest.mark.parametrize("control", ["blind", "model", "references-alone"])
@pytest.mark.parametrize("interval, around, more, verdict", [
    (None, [0.4, 0.6], None, "undecided"), ([0.4, 0.6], [0.6, 0.7], [-0.1, 0.1], "no evidence"),
    ([0.55, 0.7], [0.4, 0.6], [-0.1, 0.2], "leak"), ([0.55, 0.7], [0.51, 0.6], [-0.1, 0.2], "other difference"),
    ([0.55, 0.7], [0.51, 0.6], None, "other difference"), ([0.55, 0.7], [0.51, 0.6], [0.05, 0.2], "leak"),
    ([0.55, 0.7], None, None, "leak")])
def test_the_verdict_follows_from_the_interval_and_the_controls(control, interval, around, more, verdict):
    rows = [{"name": control, "interval": around, "minus_interval": more},
            {"name": "permuted", "interval": [0.6, 0.7], "minus_interval": None}]
    found = answer({"image": {"auc": 0.6, "auc_interval": interval}}, {"detectable": 0.6}, rows)
    assert found["verdict"] == verdict and found["detectable"] == 0.6


def test_flags_that_have_no_effect_are_refused(tmp_path):
    for flags, text in ((["--masks", "x"], "--images"), (["--non-members", "x"], "--members"),
                        (["--members", "x"], "of both sides"), (["--images", "x", "--members", "y"], "--masks"),
                        (["--compare", "a", "b", "--stride", "4"], "--compare"),
                        (["--quiet", "--json"], "--json has no effect with --quiet"),
                        (["--attacks", "calibrated"], "references"), (["--attacks", "learned"], "an audit has"),
                        (["--attacks", "statistics-crossfit"], "such as loss"),
                        (["--attacks", "references-alone", "--references", "weights/reference-0"], "such as loss")):
        done = script("audit.py", *flags, "--out", tmp_path / "none")
        assert done.returncode == 2 and text in done.stderr and not (tmp_path / "none/audit.json").exists()
    done = script("audit.py", "--compare", "a", "b", "--try", "argmax")
    assert done.returncode == 2 and "--try has no effect with --compare" in done.stderr


@pytest.mark.parametrize("where, shown", [
    ("/srv/secret/run/last.pth.tar", "…/run/last.pth.tar"), ("runs/victim", "runs/victim"),
    ("stored:/srv/a/tree", "stored:…/a/tree"), ("onnx:/srv/a/b/model.onnx", "onnx:…/b/model.onnx"),
    ("torchvision:lraspp=/srv/a/b/model.pth", "torchvision:…/b/model.pth"), ("/data/members.txt", "/data/members.txt"),
    ("https://host/a/b/c/predict", "https://host/a/b/c/predict"),
    ("https://host/predict?key=secret", "https://host/predict")])
def test_paths_on_the_page(where, shown):
    audit = Audit("stored:examples", None, Path("runs/audit"))
    assert audit.shown(where) == shown and replace(audit, show_images=True).shown(where) == where


def test_reasons_on_the_page_name_no_image_and_no_long_path():
    audit = Audit("stored:examples", None, Path("runs/audit"))
    reason = "data/private/img/anna smith.png: the answer of folder:/data/me/answers/x is missing; see https://h/p?k=1."
    audit.__dict__["_names"] = ["private/img/anna smith.png", "private/img/anna smith", "bob"]
    short = audit.shown_text(reason)
    assert not any(word in short for word in ("private", "anna", "smith", "/data", "k=1"))
    assert "bobsled 1" in audit.shown_text("bobsled 1")  # a name within a word is no image
    assert audit.shown_text("bob: every reference was trained on this image") == (
        "an image: every reference was trained on this image")
    assert "is missing; see https://h/p" in short and replace(audit, show_images=True).shown_text(reason) == reason


def test_names_that_are_hidden_on_the_page(world, tree):
    data = LiveData(str(world / "victim_in.txt"), str(world / "victim_out.txt"), str(world / "data"))
    assert {"img/0.png", "img/0", "label/107.png"} <= set(Audit("m", data, Path("out"))._names)
    names = set(Audit(f"stored:{tree}", None, Path("out"))._names)
    assert names == {f"{side}/{name}" for side in ("train", "val") for name in NAMES}


def test_an_audit_starts_again_when_an_input_changes(world, tmp_path):
    """Of lists and settings the content counts, of images the date."""
    def stamp(**changes):
        data = LiveData(str(world / "victim_in.txt"), str(world / "victim_out.txt"), str(tmp_path))
        arguments = {"preprocess": str(tmp_path / "preprocess.json")} | changes
        audit = Audit(str(world / "victim"), data, tmp_path / "audit", arguments=arguments)
        return audit.stamp(audit.plain_trial("loss"))

    image = tmp_path / "img/0.png"
    image.parent.mkdir()
    for file in (tmp_path / "preprocess.json", image):
        file.write_text("{}")
    first = stamp()
    assert stamp() == first != stamp(seed=1)
    (tmp_path / "preprocess.json").write_text('{"bgr": true}')
    second = stamp()
    image.write_text("{} ")
    assert len({first, second, stamp()}) == 3


def test_a_stopped_audit_goes_on(tree, tmp_path, monkeypatch):
    """Stopped in its second attack. The same command repeats only that one, also where the folder is found again."""
    from evaluation import audit as module

    usual, calls = module.run_attack, []

    def stop(*args, **flags):
        calls.append(args[2].name)
        if len(calls) == 2:
            raise Stopped(15)
        return usual(*args, **flags)

    command = ["audit.py", "--model", f"stored:{tree}", "--attacks", "loss", "confidence", "--precision", "fp32"]
    with contextlib.chdir(tmp_path):
        monkeypatch.setattr(module, "run_attack", stop)
        assert script(*command, cwd=tmp_path).returncode == 143
        assert not (tmp_path / "runs/audit-1/audit.json").exists() and len(calls) == 2
        done = must(script(*command, cwd=tmp_path))
    assert calls[1:] == [calls[1]] * 2 and "page: runs/audit-1/report.html" in done.stdout


def test_arguments_of_a_stopped_audit_are_recognised(tmp_path):
    """Those with tuples, which JSON stores as lists."""
    arguments = {"windows": (88, 88), "model": "m", "out": None}
    write_json(tmp_path / "args.json", {"args": arguments})
    assert _same(tmp_path, arguments | {"out": "other"}) and not _same(tmp_path, arguments | {"windows": (88, 96)})


def test_references_are_advised_where_there_are_none(audit):
    found = json.loads((audit[0] / "audit.json").read_text())
    assert any("--references" in step and "calibrated" in step for step in advice(found))
    for flag in ("--references", "--train-references"):
        given = found | {"settings": found["settings"] | {flag: "x"}}
        assert not any("references" in step for step in advice(given))


def test_every_attack_of_an_audit_is_described_in_plain_words():
    assert set(ATTACKS) - set(LEFT_OUT) == set(WORDS)


def test_a_roc_curve_with_few_points_is_that_of_all_images(tmp_path):
    """Of 3,000 images: TPR at each FPR, and the area."""
    rng = np.random.default_rng(0)
    scored = [Scored(f"{index:04}", index < 2000, f"{index}", float(rng.normal(1.1 * (index < 2000))))
              for index in range(3000)]
    write_scores(tmp_path, scored)
    points = roc(tmp_path)
    false, true, _ = roc_curve([one.member for one in scored], [one.score for one in scored])
    assert len(false) > POINTS >= len(points) and points[0] == [0, 0] and points[-1] == [1, 1]
    x, y = np.array(points).T
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(np.trapezoid(true, false), abs=0.003)
    for rate in (0.001, 0.01, 0.05, 0.1, 0.3, 0.7):
        assert y[x <= rate + 1e-9].max() == pytest.approx(true[false <= rate].max(), abs=0.02)


@pytest.mark.parametrize("verdict, p, says, never", [
    ("leak", 0.01, "evidence, and no proof", "no evidence"), ("no evidence", 0.04, "weak evidence", "no proof:"),
    ("other difference", 0.01, "no evidence that it was used, because a control", "proof"),
    ("no evidence", 0.4, "no evidence that it was used.", "weak"),
    ("undecided", 0.4, "no evidence that it was used.", "weak"),
    ("undecided", 0.01, "weak evidence: there are too few groups", "no proof:")])
def test_a_claim_is_answered_as_its_verdict_says(verdict, p, says, never):
    blind = {"name": "blind", "interval": [0.6, 0.7], "minus_interval": None}
    found = {"claim": True, "collection": {"p": p, "groups": [20, 20], "needed": None}, "defenses": [{}],
             "answer": {"verdict": verdict, "detectable": 0.7, "auc": 0.6, "interval": None},
             "settings": {"--claim": "x"}, "controls": [blind] if verdict == "other difference" else [],
             "images": {"groups": {"members": 20, "non_members": 20}}}
    text = collection(found)
    assert says in text and never not in text
    assert "safety" not in meaning(found) and "at least 10" not in meaning(found)
    steps = " ".join(advice(found))
    assert "defense" not in steps and "--compare" not in steps and "null of the same place" in steps


def test_references_are_advised_to_be_trained_for_lists_alone(audit):
    """References are trained for images that the audit knows by lists, and not for a stored tree."""
    found = json.loads((audit[0] / "audit.json").read_text())
    assert not any("--train-references" in step for step in advice(found))
    listed = advice(found | {"settings": found["settings"] | {"--members": "x"}})
    assert any("--train-references 4" in step and "calibrated" in step for step in listed)


# References that the audit trains


def trained(world, folder, *flags):
    return script("audit.py", "--model", world / "victim", "--root", world / "data", "--members",
                  world / "victim_in.txt", "--non-members", world / "victim_out.txt", "--skip-check", "--precision",
                  "fp32", "--stride", 4, "--train-references", 3, "--out", folder, *flags)


@pytest.mark.slow
def test_references_are_trained_like_the_target_model_and_once(world, tmp_path):
    flags = ["--reference-images", world / "shadow.txt", "--attacks", "calibrated", "lira", "statistics", "gradient"]
    first = must(trained(world, tmp_path / "audit", *flags, "--json"))
    found = json.loads(first.stdout)
    assert "training 3 references: pspnet (resnet10t), 2 epochs on 12 images each, 72 images in all" in first.stderr
    assert {row["name"]: row["references"] for row in found["attacks"]} == {
        "calibrated": 3, "lira": 3, "statistics": 3, "gradient": 3} and found["not_run"] == {}
    runs = [read_shadow(tmp_path / "audit" / "trained" / name) for name in ("0", "1", "2")]
    assert [pair.name for pair in runs[0].inside] == [pair.name for pair in runs[1].outside]
    assert not {pair.name for pair in runs[0].inside} & {pair.name for pair in runs[1].inside}
    target = load_checkpoint(world / "victim" / "last.pth.tar")
    for seed, run in enumerate(runs):
        own = load_checkpoint(run.checkpoint)
        assert own["model"] == target["model"] and own["args"]["seed"] == seed
        assert own["args"]["epochs"] == target["args"]["epochs"] == own["epoch"]
    before = [run.checkpoint.stat().st_mtime_ns for run in runs]
    again = must(trained(world, tmp_path / "audit", *flags, "--json"))
    assert json.loads(again.stdout)["attacks"] == found["attacks"] and "training" not in again.stderr
    assert [run.checkpoint.stat().st_mtime_ns for run in runs] == before


@pytest.mark.slow
def test_a_folder_and_a_list_of_reference_images(world, tmp_path):
    """They are not non-members by default, though these are all other images."""
    for name, numbers in (("members", range(8)), ("others", range(200, 208))):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{number}.png" for number in numbers))
    must(script("audit.py", "--model", world / "victim", "--images", world / "data" / "img", "--masks",
                world / "data" / "label", "--members", tmp_path / "members.txt", "--train-references", 1,
                "--reference-images", tmp_path / "others.txt", "--attacks", "calibrated", "--skip-check", "--precision",
                "fp32", "--stride", 4, "--out", tmp_path / "audit"))
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["images"]["non_members"] == 8 + 24 - 8
    assert len(read_shadow(tmp_path / "audit" / "trained" / "0").records()) == 8


def test_models_of_other_people_get_the_usual_references():
    options = options_like("onnx:model.onnx", "streets", (128, 1024), 3)
    assert (options.backbone, options.pretrained, options.crop, options.seed) == (
        "efficientnet_lite0", True, (128, 512), 3)


@pytest.mark.parametrize("flags, message", [
    (["--reference-images", "OUT"], "of the 8 images for the references are attacked, too"),
    (["--reference-images", "missing.txt"], "missing.txt"), ([], "--train-references needs --reference-images")])
def test_reference_images_that_cannot_serve(world, tmp_path, flags, message):
    flags = [world / "victim_out.txt" if one == "OUT" else one for one in flags]
    assert_refused(trained(world, tmp_path / "audit", *flags), message)


def test_reference_images_without_training(world, tmp_path):
    result = script("audit.py", "--reference-images", world / "shadow.txt", "--out", tmp_path / "audit")
    assert_refused(result, "--reference-images has no effect without --train-references")
