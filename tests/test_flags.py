"""A flag that has no effect beside the others is refused; every command line that the project shows is accepted."""

import re
import runpy
import shutil
import subprocess
import sys
from functools import cache

import pytest
import torch
from conftest import ROOT, must, script

from examples.demo import STEPS
from tools.fault_campaign.scripts import LINES
from tools.fault_campaign.workspace import COMMANDS
from tools.same_bytes import attacks, trainings
from utils.cli import UserError

LIVE = "--victim v.pth.tar --members a.txt --non-members b.txt"
UPERNET = "--model upernet --aux-weight 0"
RELEASE = """attack.py -resume ./weights/loss.pth.tar -gpu 0
attack.py -resume ./weights/concate.pth.tar -input concate -gpu 0
attack.py -resume ./weights/loss.pth.tar -gpu 0 -num-patch 10
attack.py -resume ./weights/concate.pth.tar -input concate -gpu 0 -argmax
attack.py -resume ./weights/concate.pth.tar -input concate -gpu 0 -gauss 0.1
attack.py -resume ./weights/concate.pth.tar -input concate -gpu 0 -dpsgd"""  # the README of the authors
COMMAND = re.compile(r"(?:python3?|\$python|\$\(RUN\)|torchrun.*|^ +) "
                     r"((?:attack|audit|train_\w+)\.py)([^\n#`|;]*)", re.M)


@cache
def functions_of(name):
    return runpy.run_path(str(ROOT / name), run_name="x")


def check(name, words):
    """Parse a command line, and check its flags as the script does before it loads anything."""
    functions = functions_of(name)
    functions["check"](functions["parser"]().parse_args(words))


@pytest.mark.parametrize("line", [
    *(f"attack.py {flag}" for flag in (
        "--stride 4", "--root DIR", "--strip-prefix TEXT", "--dataset camvid", "--classes 3", "--class-names FILE",
        "--label-map FILE", "--members SPLIT", "--non-members SPLIT", "--keep TREE", "--c 0.5", "-tau 0.5",
        "--cam-images 2", "--gauss-floor 0", "--exposure-maps DIR")),
    f"attack.py {LIVE} --examples TREE", "attack.py --select full -tau 0.5", "attack.py -argmax --gauss-floor 0",
    "attack.py --attack loss -input concate", "attack.py --attack calibrated -arch resnet18",
    "attack.py --attack confidence -dilation", "attack.py --attack loss --score release",
    "attack.py --attack loss --c 0", "attack.py --threshold loss --c 0",
    "attack.py --attack calibrated --score release", "attack.py --attack confidence --floor 1e-3",
    "attack.py --threshold confidence --floor 1e-3",
    "train_shadow.py --train a.txt --test b.txt --split c.txt",
    "train_shadow.py --train a.txt --test b.txt --partition random",
    *(f"train_victim.py --model {model} {flag}" for model in ("hrnetv2", "unet", "pranet", "infnet") for flag in (
        "--output-stride 16", "--stages 4", "--aux-weight 0")),
    "train_shadow.py --model hrnetv2 --width 64", "train_shadow.py --model unet --pretrained",
    "train_shadow.py --model unet --backbone resnet18", *(
        f"train_shadow.py --model {model} --dropout 0.5" for model in ("hrnetv2", "pranet", "infnet")),
    f"train_victim.py {UPERNET} --dropout 0.5", f"train_shadow.py {UPERNET} --dropout 0.5",
    *(f"train_{stage}.py {flag}" for stage in ("victim", "shadow", "attacker") for flag in (
        "--images 10", "--devices 8", "--tflops 60", "--gb-per-s 60", "--utilisation 0.3")),
    "train_attacker.py --classes 5", "train_attacker.py --gauss-floor 0",
    "train_attacker.py --posteriors TREE --stride 4", "datasets/__main__.py cityscapes --seed 1",
])
def test_flag_without_effect(line):
    name, *words = line.split()
    flag = [word for word in words if word.startswith("-")][-1]
    with pytest.raises(UserError, match=f"^{flag} has no effect .*; (leave|give)"):
        check(name, words)


def test_flag_without_effect_is_one_line_and_nothing_is_written(tmp_path):
    for name, *flags in (["attack.py", "--stride", 4], ["train_victim.py", "--devices", 8], ["datasets/__main__.py",
                         "mapillary", "--seed", 1], ["tools/fault_campaign/__main__.py", "fuzz", "--trials", 3]):
        result = script(name, *flags, cwd=tmp_path)
        assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
        assert f"{flags[-2]} has no effect" in result.stderr and not list(tmp_path.iterdir())


def shown_lines():
    """Each command line of a script in README, docs, Makefile, docstrings and tools."""
    pages = [page for page in (ROOT / "docs").glob("*.md") if page.name != "extending.md"]  # has a test of its own
    files = [ROOT / "README.md", *pages, ROOT / "Makefile", ROOT / "examples" / "make.sh", *ROOT.glob("*.py")]
    for file in files:
        text = re.sub(r"\\+\n\s*", "", file.read_text()).replace("$input", "loss")
        text = re.sub(r"\$\(\(.*?\)\)|\$(half|seed)", "0", text)  # of loops over 0 and 1
        yield from (f"{name} {words}" for name, words in COMMAND.findall(text)
                    if "..." not in words and ".py" not in words)
    yield from (*RELEASE.splitlines(), *STEPS.values())
    yield from (f"attack.py {flags}" for flags in attacks().values())
    yield from trainings().values()
    yield from COMMANDS.values()
    yield from (line for _, _, line in LINES if not line.startswith("utils"))


def test_every_command_line_that_is_shown_is_accepted():
    lines = sorted({" ".join(line.split()) for line in shown_lines()})
    for line in lines:
        name, *words = line.split()
        try:
            check(name, words)
        except (UserError, SystemExit) as error:
            pytest.fail(f"{line}: {error}")
    assert len(lines) > 100 and {line.split()[0] for line in lines} == {path.name for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("line", [
    "attack.py --cam-images 4 --c 0.75 --score paper --gauss-floor 1e-6 --root data/streets -arch resnet50",
    f"attack.py {LIVE} --examples examples --stride 4 --root DIR --dataset folder --classes 3",
    "attack.py --select full -num-patch 10", "attack.py --attack loss -resume a.pth.tar -arch resnet18 -dilation",
    "attack.py --attack calibrated --references runs/shadow --c 0.5 --floor 1e-3",
    "attack.py --threshold loss -input loss --floor 1e-3",
    "train_shadow.py --train a.txt --test b.txt --victim v.pth.tar --allow overlap --partition confidence",
    "train_shadow.py --partition random --victim v.pth.tar --allow overlap",
    "train_victim.py --model unet --width 16 --dropout 0.5", "train_shadow.py --model hrnetv2 --backbone hrnet_w48",
    "train_victim.py --model pranet --width 32 --backbone res2net50d --pretrained",
    "train_victim.py --model unet --stages 3",
    "train_victim.py --model upernet --dropout 0.5", "train_victim.py --plan --images 10 --lr 0.1 --devices 8",
    "train_victim.py --dataset folder --classes 3", "train_attacker.py --plan --posteriors TREE --classes 5",
    "train_attacker.py --continue DIR --gauss-floor 0", "train_attacker.py -gauss 0 --gauss-floor 0",
    "datasets/__main__.py camvid --seed 1", "datasets/__main__.py cityscapes --seed 0",
])
def test_flag_that_has_an_effect_or_its_default_value(line):
    name, *words = line.split()
    check(name, words)


def test_resumed_run_takes_no_other_folder(world, tmp_path):
    shutil.copytree(world / "victim", tmp_path / "run")
    result = script("train_victim.py", "--continue", tmp_path / "run", "--out", tmp_path / "other")
    assert result.returncode == 2 and "--out" in result.stderr and "has no effect with --continue" in result.stderr
    must(script("train_victim.py", "--continue", tmp_path / "run", "--out", f"{tmp_path}/run/", "--workers", 0))


def test_architecture_that_a_checkpoint_stores(world, live, tmp_path):
    checkpoint = world / "loss" / "best.pth.tar"
    for flags in (["-a", "resnet18"], ["-dilation"]):
        stored = torch.load(checkpoint, weights_only=True)["model"]["arguments"]["arch"]
        result = script("attack.py", "-resume", checkpoint, *live, *flags, "--out", tmp_path / flags[0])
        accepted = flags[1:] == [stored]
        assert result.returncode == (0 if accepted else 2), result.stderr
        assert accepted or "leave -a and -dilation out" in result.stderr


def test_attacker_of_stored_posteriors_keeps_their_stride(world, tmp_path):
    command = ["train_attacker.py", "--patch-size", 12, "--width", 0.125, "--epochs", 1, "--precision", "fp32"]
    must(script(*command, "--posteriors", world / "shadow" / "posteriors-s4", "--out", tmp_path / "run"))
    stored = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    assert stored["args"]["stride"] is None and stored["view"]["stride"] == 4
    must(script("train_attacker.py", "--continue", tmp_path / "run"))
    assert torch.load(world / "loss" / "last.pth.tar", weights_only=True)["args"]["stride"] == 4


@pytest.mark.slow
def test_output_that_nobody_reads():
    """As with `| true`: one line says why the script stopped, and no traceback follows."""
    process = subprocess.Popen([sys.executable, str(ROOT / "train_victim.py"), "--plan", "--images", "10"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    process.stdout.close()
    assert process.wait() == 2
    assert process.stderr.read().splitlines() == [
        "train_victim.py: error: stopped, because the program that read the output has ended"]
