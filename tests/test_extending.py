"""The pages for users: each example of docs/extending.md runs as it stands, and so do the commands of the README."""

import csv
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, must, script, small_scene
from PIL import Image

from attacks import ATTACKS, REPRESENTATIONS
from datasets import DATASETS
from datasets.pairs import read_split
from defenses import DEFENSES, DefenseEntry
from examples.demo import STEPS
from models import MODELS, TRANSLATORS, ModelEntry
from predictors import PREDICTORS
from utils.tables import Entry

PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/usage.md", "docs/extending.md")}
TABLES = {"ATTACKS": ATTACKS, "REPRESENTATIONS": REPRESENTATIONS, "PREDICTORS": PREDICTORS, "DEFENSES": DEFENSES,
          "MODELS": MODELS, "TRANSLATORS": TRANSLATORS, "DATASETS": DATASETS}
SECTION = re.compile(r"\nFile `(?P<file>[\w/]+\.py)`:\n\n```python\n(?P<code>.*?)```\n\n"
                     r"Line in `(?P<table>\w+)` of `(?P<where>[\w/]+\.py)`:\n\n```python\n(?P<line>.*?)```\n\n"
                     r"Use it[^\n]*:\n\n```sh\n(?P<commands>.*?)```", re.DOTALL)
EXAMPLES = {match["table"]: match for match in SECTION.finditer(PAGES["docs/extending.md"])}
SMALL_ATTACKER = ["--patch-size", "12", "--width", "0.125", "--epochs", "2", "--precision", "fp32"]
EXTRA = {"attack.py": ["--precision", "fp32"], "train_victim.py": SMALL, "train_shadow.py": SMALL,
         "train_attacker.py": SMALL_ATTACKER, "datasets/__main__.py": [],
         "train_translator.py": ["--width", "4", "--epochs", "2", "--workers", "0", "--precision", "fp32"]}


def commands(text):
    """The commands `python ...` of a text, as lists of words; the first is the path of the script."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("python ")]
    return [[script_of(words[1]), *words[2:]] if words[0] == "-m" else words for words in found]


def script_of(module):
    """The file that `python -m MODULE` runs."""
    path = module.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


def run_example(place, table):
    """Run the commands of an example in `place`, with flags that make trainings short; returns their outputs."""
    return [must(script(name, *words, *EXTRA[name], cwd=place)).stdout
            for name, *words in commands(EXAMPLES[table]["commands"])]


def install(monkeypatch, tmp_path, table):
    """Write the file of an example into a folder that its package searches too, and add its line to the table."""
    example = EXAMPLES[table]
    file = tmp_path / "added" / example["file"]
    file.parent.mkdir(parents=True)
    file.write_text(example["code"])
    package = importlib.import_module(example["file"].rpartition("/")[0].replace("/", "."))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    [(name, entry)] = eval("{" + example["line"] + "}", {"Entry": Entry, "DefenseEntry": DefenseEntry,
                                                      "ModelEntry": ModelEntry}).items()
    assert name not in TABLES[table] and example["where"] == f"{package.__name__.partition('.')[0]}/__init__.py"
    monkeypatch.setitem(TABLES[table], name, entry)
    monkeypatch.delitem(sys.modules, f"{package.__name__}.{file.stem}", raising=False)
    return TABLES[table].load(name)


@pytest.fixture
def place(world, tmp_path):
    """A folder where the paths of the documented commands lead to the small world and to what ships."""
    links = {"runs/victim": world / "victim", "runs/shadow": world / "shadow", "runs/loss": world / "loss",
             "data/streets": world / "data", "examples": ROOT / "examples", "weights": ROOT / "weights",
             **{f"splits/streets/{name}.txt": world / f"{name}.txt" for name in ("victim_in", "victim_out", "shadow")}}
    for name, target in links.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    return tmp_path


def results(folder):
    return json.loads((folder / "results.json").read_text())


def scores(folder):
    with open(folder / "scores.csv") as file:
        return {row["image"]: float(row["score"]) for row in csv.DictReader(file)}


def test_every_table_has_an_example():
    assert EXAMPLES.keys() == TABLES.keys()


def test_new_attack(monkeypatch, tmp_path, place):
    from predictors.samples import tree_source

    install(monkeypatch, tmp_path, "ATTACKS")
    [out] = run_example(place, "ATTACKS")
    found = results(place / "runs" / "attack-1")
    assert found["attack"] == "modified-entropy" and "60 members, 60 non-members" in out
    assert 0.6 < found["image"]["auc"] < 0.8
    with np.load(place / "runs" / "attack-1" / "patches.npz") as patches:
        assert len(np.unique(patches["score"])) > 700  # infinite evidence at void positions does not reach a patch
    sample = next(sample for sample in tree_source(ROOT / "examples").samples() if sample.name == "val/01003")
    p, label = sample.output.double().clamp(1e-7, 1 - 1e-7), sample.truth
    slow = [(1 - p[c, y, x]) * p[c, y, x].log() + sum(p[k, y, x] * (1 - p[k, y, x]).log() for k in range(19) if k != c)
            for y, row in enumerate(label.tolist()) for x, c in enumerate(row) if c != 255]
    assert scores(place / "runs" / "attack-1")["val/01003"] == pytest.approx(float(np.mean(slow)), rel=1e-3)


def test_new_representation(monkeypatch, tmp_path, place):
    install(monkeypatch, tmp_path, "REPRESENTATIONS")
    trained, attacked = run_example(place, "REPRESENTATIONS")
    checkpoint = torch.load(place / "runs/loss-entropy/best.pth.tar", weights_only=True)
    assert checkpoint["view"]["input"] == "loss-entropy" and checkpoint["model"]["arguments"]["channels"] == 2
    assert "A_P (loss-entropy)" in trained
    assert "attack learned on loss-entropy, random patches: 8 members, 8 non-members" in attacked
    assert len(set(scores(place / "runs" / "attack-1").values())) == 16


def test_new_predictor(monkeypatch, tmp_path, place):
    network = install(monkeypatch, tmp_path, "PREDICTORS").__init__.__globals__["lraspp_mobilenet_v3_large"]
    torch.manual_seed(0)
    model = network(weights=None, weights_backbone=None, num_classes=19).eval()
    torch.save(model.state_dict(), place / "runs" / "lraspp.pth")
    run_example(place, "PREDICTORS")
    image, label = small_scene(3)  # img/3.png of the small world
    with torch.inference_mode():
        logits = model(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)["out"][0]
    loss = torch.nn.functional.cross_entropy(logits[None, :, ::8, ::8], torch.from_numpy(label[::8, ::8]).long()[None],
                                             ignore_index=255)
    assert scores(place / "runs" / "attack-1")["img/3"] == pytest.approx(-loss.item(), rel=1e-5)
    words = commands(EXAMPLES["PREDICTORS"]["commands"])[0]
    refused = script(*words, "-test-dropout", 0.5, cwd=place)
    assert refused.returncode == 2 and "changes how a model is queried" in refused.stderr


def test_new_defense(monkeypatch, tmp_path, place):
    from defenses import DefenseSpec

    coarsen = install(monkeypatch, tmp_path, "DEFENSES")
    _, trained = run_example(place, "DEFENSES")
    must(script("attack.py", "--precision", "fp32", cwd=place))
    defended, plain = (scores(place / "runs" / name) for name in ("attack-1", "attack-2"))
    assert defended.keys() == plain.keys() and all(defended[name] != plain[name] for name in plain)
    assert results(place / "runs" / "attack-1")["defense"] == "coarsen 1" and "A_P (loss)" in trained
    posterior = torch.tensor([0.62, 0.31, 0.07]).view(3, 1, 1)
    rounded = coarsen(DefenseSpec("coarsen", 1)).apply(posterior, "key").flatten()
    torch.testing.assert_close(rounded, torch.tensor([0.6, 0.3, 0.1]))


def test_new_model(monkeypatch, tmp_path, place):
    with monkeypatch.context() as patch:
        install(patch, tmp_path, "MODELS")
        run_example(place, "MODELS")
        assert 0 < results(place / "runs" / "victim-fcn")["miou_in"] < 1
        assert len(set(scores(place / "runs" / "attack-1").values())) == 16
        checkpoint = torch.load(place / "runs/victim-fcn/last.pth.tar", weights_only=True)
        assert checkpoint["model"]["name"] == "fcn" and "head.layers.2.weight" in checkpoint["state_dict"]
    name, *words = commands(EXAMPLES["MODELS"]["commands"])[1]
    refused = script(name, *words, cwd=place)
    assert refused.returncode == 2 and "holds no segmentation model" in refused.stderr


def test_new_translator(monkeypatch, tmp_path, place, pairs):
    (place / "data" / "streets-translation").symlink_to(pairs / "pairs")
    (place / "splits" / "streets-translation").symlink_to(pairs / "splits")
    install(monkeypatch, tmp_path, "TRANSLATORS")
    trained, _ = run_example(place, "TRANSLATORS")
    assert "training plain (width 4) on 12 pairs" in trained
    assert len(set(scores(place / "runs" / "attack-1").values())) == 24
    checkpoint = torch.load(place / "runs" / "plain" / "last.pth.tar", weights_only=True)
    assert checkpoint["model"] == {"name": "plain", "arguments": {"width": 4, "size": 64}}


def test_new_data_set(monkeypatch, tmp_path, place):
    rng = np.random.default_rng(0)
    for index in range(16):
        mask = np.zeros((64, 128), np.uint8)
        mask[20:40, 8 * index // 2 : 60 + 4 * index] = 255
        image = np.repeat(mask[..., None] // 2, 3, axis=2) + rng.integers(0, 40, (64, 128, 3), np.uint8)
        for folder, array, suffix in (("images", image, "jpg"), ("masks", mask, "png")):
            (place / "data" / "polyps" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place / "data" / "polyps" / folder / f"{index:02d}.{suffix}")
    install(monkeypatch, tmp_path, "DATASETS")
    written, _, attacked = run_example(place, "DATASETS")
    parts = [read_split(place / f"splits/polyps/{name}.txt", place / "data" / "polyps")
             for name in ("victim_in", "victim_out", "shadow")]
    assert [len(part) for part in parts] == [4, 4, 8] and "victim_in.txt: 4" in written
    assert len({pair.image for part in parts for pair in part}) == 16
    checkpoint = torch.load(place / "runs/victim-polyps/last.pth.tar", weights_only=True)
    assert checkpoint["dataset"] == "polyps" and checkpoint["classes"] == ["background", "polyp"]
    assert "4 members, 4 non-members" in attacked


BAD = """
from attacks.sample import Attack, Scored

class Bad(Attack):
    def score(self, samples, predictor=None):
        for sample in samples:
            yield Scored(sample.name, sample.member, sample.group, VALUE)
"""


@pytest.mark.parametrize("code, message", [
    (BAD.replace("VALUE", "float('nan')"), "a score must be finite"),
    (BAD.replace("VALUE", "1.0").replace("for sample in", "for sample in list(samples)[:1] or"), "gave 1 scores for"),
])
def test_an_attack_that_scores_wrongly_is_one_line(monkeypatch, tmp_path, place, code, message):
    (tmp_path / "bad_attack.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ATTACKS, "bad", Entry("bad_attack:Bad", "no attack"))
    monkeypatch.delitem(sys.modules, "bad_attack", raising=False)
    result = script("attack.py", "--attack", "bad", "--out", tmp_path / "out", cwd=place)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_references_need_the_images_of_a_tree(tmp_path, place):
    flags = ["attack.py", "--attack", "calibrated", "--references", "runs/shadow", "--out", tmp_path / "out"]
    tree = shutil.copytree(ROOT / "examples", tmp_path / "tree", ignore=shutil.ignore_patterns("img", "pred_dpsgd"))
    result = script(*flags, "--examples", tree, cwd=place)
    assert result.returncode == 2 and "give --victim" in result.stderr and result.stderr.count("\n") == 1
    must(script(*flags, cwd=place))  # examples/ has images


def test_logits_instead_of_posteriors_are_an_error(place):
    from predictors.base import Predictor, PredictorOptions
    from predictors.samples import Source, live_records
    from utils.cli import UserError

    class Logits(Predictor):
        def predict(self, queries):
            return [torch.randn(19, 16, 32) for _ in queries]

    records = live_records(place / "splits/streets/victim_in.txt", place / "splits/streets/victim_out.txt",
                           place / "data/streets", "", "streets")
    with pytest.raises(UserError, match="apply a softmax"):
        next(Source(records, Logits("memory", PredictorOptions(stride=4))).samples())


@pytest.mark.slow
def test_a_stopped_run_of_an_attack_that_was_edited_starts_again(monkeypatch, tmp_path, place):
    """The first call fails on a non-member after it has saved scores; the second must not use them."""
    file = tmp_path / "edited_attack.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(ATTACKS, "edited", Entry("edited_attack:Bad", "an attack"))
    outcomes = []
    for value in ("1.0 if sample.member else float('nan')", "2.0"):
        file.write_text(BAD.replace("VALUE", value))
        monkeypatch.delitem(sys.modules, "edited_attack", raising=False)
        outcomes.append(script("attack.py", "--attack", "edited", "--batch", 6, "--save-every", 0, cwd=place))
    outcomes = [outcome.returncode for outcome in outcomes]
    assert outcomes == [2, 0]
    runs = [scores(run) for run in (place / "runs").glob("attack-*") if (run / "results.json").exists()]
    assert len(runs) == 1 and set(runs[0].values()) == {2.0}


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def test_the_python_of_the_readme_gives_what_attack_py_gives(tmp_path, monkeypatch, capsys):
    [code] = python_blocks("README.md")
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    must(script("attack.py", "--precision", "fp32", "--out", tmp_path / "run"))
    assert float(capsys.readouterr().out) == results(tmp_path / "run")["image"]["auc"]


def test_the_notebook_example_scores_a_model_in_memory(world, place, monkeypatch):
    from models import load_segmenter

    [code] = [block for block in python_blocks("docs/extending.md") if "ModelPredictor" in block]
    model, _ = load_segmenter(world / "victim" / "last.pth.tar")
    names = {"model": model}
    monkeypatch.chdir(place)
    exec(compile(code, "docs/extending.md", "exec"), names)
    must(script("attack.py", "--attack", "loss", "--stride", 4, "--precision", "fp32",
                *commands(EXAMPLES["REPRESENTATIONS"]["commands"])[1][3:], cwd=place))
    assert {one.name: one.score for one in names["scored"]} == scores(place / "runs" / "attack-1")


@pytest.mark.parametrize("page", ["README.md", "docs/usage.md"])
def test_documented_commands_have_flags_that_exist(page, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a script sets it when it is imported; restored after the test
    found = commands(PAGES[page])
    assert len(found) > 5
    for name, *words in found:
        runpy.run_path(str(ROOT / name), run_name="parser")["parser"]().parse_args(words)


def test_documented_files_exist():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_usage_names_every_flag_of_attack_py_and_every_data_set():
    parser, page = runpy.run_path(str(ROOT / "attack.py"), run_name="parser")["parser"](), PAGES["docs/usage.md"]
    for action in parser._actions:
        assert any(re.search(rf"`{flag}(?![\w-])", page) for flag in action.option_strings), action.option_strings
    for name in (*ATTACKS, *DATASETS):
        assert f"`{name}`" in page


def test_the_readme_prints_what_the_demo_prints(tmp_path):
    """Within 0.005: the kernels of another processor round differently."""
    demo = PAGES["README.md"].split("    == attack 1 of 6")[1].split("\n\n")[0]
    printed = [re.findall(r"\d\.\d{3}", line) for line in demo.splitlines() if line.strip().startswith("image")]
    calls = [shlex.split(command)[1:] for command in STEPS.values() if command.startswith("attack.py")]
    assert len(printed) == len(calls) == 6 and all(f"== {title}" in PAGES["README.md"] for title in STEPS)
    assert "\n\t@$(RUN) -m examples.demo\n" in (ROOT / "Makefile").read_text().split("\ndemo:")[1]
    for values, words in zip(printed, calls, strict=True):
        must(script("attack.py", *words[:-1], tmp_path / words[-1], "--precision", "fp32"))
        found = results(tmp_path / words[-1])
        measured = [number for metric in ("auc", "max_f") for number in (found["image"][metric],
                                                                          *found["image"][f"{metric}_interval"])]
        assert measured + list(found["chance"]["image"].values()) == pytest.approx(list(map(float, values)), abs=0.005)


def test_the_demo_ends_with_a_page(tmp_path):
    [words] = [shlex.split(command)[1:] for command in STEPS.values() if command.startswith("audit.py")]
    printed = must(script("audit.py", *words[:-1], tmp_path / "audit", "--precision", "fp32")).stdout
    page = f"page: {tmp_path / 'audit'}/report.html; also report.md and audit.json"
    assert page in printed and page.replace(str(tmp_path / "audit"), words[-1]) in PAGES["README.md"]
    assert (tmp_path / "audit/report.html").stat().st_size > 50_000 and "reaches AUC 0.72" in printed


def test_figure_of_the_steps_is_drawn(tmp_path):
    must(script("examples/road.py", "--out", tmp_path / "road.png"))
    with Image.open(tmp_path / "road.png") as drawn, Image.open(ROOT / "docs/road.png") as shipped:
        assert drawn.size == shipped.size and np.unique(np.asarray(drawn.convert("L"))).size > 100
    assert (ROOT / "docs" / "road.png").stat().st_size < 250_000


def test_figure_of_the_membership_error_is_drawn(tmp_path):
    must(script("examples/errors.py", "--out", tmp_path / "errors.png"))
    with Image.open(tmp_path / "errors.png") as drawn, Image.open(ROOT / "docs/membership-error.png") as shipped:
        assert drawn.size == shipped.size and np.unique(np.asarray(drawn.convert("L"))).size > 100
    assert (ROOT / "docs" / "membership-error.png").stat().st_size < 250_000


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ATTACKS if not ATTACKS.load(name).needs & {"population",
                                                                                             "non-members"}])
def test_each_attack_runs_on_the_shipped_examples(tmp_path, name):
    """Those that need a population read the drawn streets, too: see the commands of docs/attacks.md."""
    needs, live = ATTACKS.load(name).needs, []
    if needs & {"queries", "weights"}:
        for side in ("train", "val"):
            images = sorted((ROOT / "examples" / side / "img").glob("*.jpg"))[:10]
            (tmp_path / f"{side}.txt").write_text("".join(f"{side}/img/{path.name} {side}/label/{path.stem}.png\n"
                                                          for path in images))
        live = ["--victim", "weights/victim.pth.tar", "--root", "examples", "--members", tmp_path / "train.txt",
                "--non-members", tmp_path / "val.txt", "--stride", 4, "--allow", "unseen"]
    kind = "online-*" if name.endswith("-online") else "reference-*"
    references = ["--references", *sorted(ROOT.glob(f"weights/{kind}"))] if "references" in needs else []
    noise = ["-gauss", 0.1] if "noise" in needs else []
    must(script("attack.py", "--attack", name, *live, *references, *noise, "--precision", "fp32", "--out",
                tmp_path / "run"))
    assert len(set(results(tmp_path / "run")["image"]) & {"auc", "max_f"}) == 2


@pytest.mark.slow
def test_settings_of_attackers_are_compared_by_transfer(tmp_path):
    """Again with the same file nothing is trained; other steps are refused."""
    words = ["tools/transfer.py", "--train", "examples", "--test", "examples", "--settings", "loss", "loss, rate 3e-3",
             "--out", tmp_path / "scores.json", "--steps"]
    first = must(script(*words, 2)).stdout.splitlines()[-2:]
    assert first[0].startswith("loss: random ") and first[1].startswith("loss, rate 3e-3: random ") and "[" in first[1]
    found = json.loads((tmp_path / "scores.json").read_text())
    assert sum(len(images["group"]) for images in found["images"].values()) == 120
    assert must(script(*words, 2)).stdout.splitlines() == first
    assert "has another patch size" in script(*words, 3).stderr


@pytest.mark.slow
def test_our_folders_hide_no_installed_package(tmp_path):
    """`datasets`, `models` and `utils` are names of packages that others install; Hugging Face's datasets is one."""
    for name in ("datasets", "models", "utils"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("INSTALLED = True\n")
    look_up = "import datasets, models, utils; print(datasets.INSTALLED, models.INSTALLED, utils.INSTALLED)"

    def python(*args):
        return subprocess.run([sys.executable, *args], cwd=tmp_path, capture_output=True, text=True, check=True,
                              env={"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}).stdout

    assert python("-c", look_up) == "True True True\n"
    assert python(ROOT / "attack.py", "--attack", "loss", "--examples", ROOT / "examples", "--out", "run") and (
        tmp_path / "run" / "results.json").is_file()
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = list(sys.path)\n"
            "import attacks, datasets, defenses, evaluation.attack_setup, models, predictors.samples, training.setup\n"
            "assert sys.path == before and datasets.DATASETS")
    python("-c", code)
