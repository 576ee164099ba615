"""`--precision auto` is measured once for each network, kept in a file, and recorded."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL, must, scores, script, write_attacker
from hypothesis import given
from hypothesis import strategies as st
from test_distributed import torchrun

from datasets.pairs import read_split
from evaluation import audit_setup
from evaluation.attack_setup import load_attacker, settle_attacker
from models import build_segmenter, build_translator, stored_spec
from predictors.base import Access, PredictorOptions
from predictors.checkpoint import CheckpointPredictor, open_checkpoint
from predictors.foreign import ForeignModel
from predictors.preprocess import Preprocess
from training import attacker, reference_models, segmentation, setup, translation
from training.options import AttackerTraining, SegmenterTraining, TranslatorTraining
from utils import precision
from utils.checkpoints import save_checkpoint
from utils.device import CPU, Compute, compute_on, resolve_precision
from utils.distributed import WARNED
from utils.files import write_json
from utils.precision import BUDGET, ROUNDS, cache_file, measure, settle

FREE = Compute(CPU, "bf16", True)  # of `--precision auto` on a processor with bf16 units
TINY = SegmenterTraining(width=16, stages=2, crop=(32, 64), batch=2)
AUTO = [*SMALL, "--precision", "auto"]


class Clock:
    """A clock that a step moves by `seconds` of its precision, and by ten times as much in its first call."""

    def __init__(self, **seconds):
        self.seconds, self.now, self.calls = seconds, 0.0, []

    def __call__(self):
        return self.now

    def step(self, compute):
        first = compute.precision not in self.calls
        self.calls.append(compute.precision)
        self.now += self.seconds[compute.precision] * (10 if first else 1)


@pytest.fixture
def units(monkeypatch, tmp_path):
    """A processor with bf16 units, a user without choices so far, and the list of what is measured: fp32 wins."""
    measured = []

    def fake(step, compute):
        measured.append(step)
        return "fp32", 2.0

    monkeypatch.delenv("SEGLEAK_PRECISION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "measure", fake)
    return measured


def recorded(run):
    """The precisions in the args.json of a run."""
    found = json.loads((run / "args.json").read_text())
    return found["precision"], found.get("query_precision")


# The choice


@given(st.floats(1e-4, 10), st.floats(1e-4, 10))
def test_bf16_unless_fp32_is_clearly_faster(fp32, bf16):
    clock = Clock(fp32=fp32, bf16=bf16)
    chosen, factor = measure(clock.step, FREE, clock)
    ratio = bf16 / fp32
    if abs(ratio - 1.1) > 1e-3:
        assert chosen == ("fp32" if ratio > 1.1 else "bf16")
    assert factor == pytest.approx(ratio if chosen == "fp32" else 1 / ratio, rel=1e-6)


@pytest.mark.parametrize(("fp32", "bf16", "rounds"), [
    (1.0, 3.0, 1), (3.0, 1.0, 1), (1.0, 1.05, 2), (1.0, 1.5, 2), (BUDGET / 1e3, BUDGET / 1e3, ROUNDS)])
def test_long_steps_are_timed_fewer_times(fp32, bf16, rounds):
    clock = Clock(fp32=fp32, bf16=bf16)
    measure(clock.step, FREE, clock)
    assert clock.calls == ["fp32", "bf16"] * (1 + rounds)  # one warm-up


# When it is measured


def test_only_auto_is_measured_and_only_where_there_are_units(units, monkeypatch):
    assert compute_on(CPU) == FREE
    assert compute_on(CPU, "bf16") == Compute(CPU, "bf16") and compute_on(CPU, "fp32") == Compute()
    for override in ("fp32", "bf16"):
        monkeypatch.setenv("SEGLEAK_PRECISION", override)
        assert compute_on(CPU) == Compute(CPU, override)
    monkeypatch.delenv("SEGLEAK_PRECISION")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert compute_on(CPU) == Compute()


@pytest.mark.parametrize("given", [Compute(), Compute(CPU, "bf16")])
def test_a_given_precision_is_not_measured(units, given):
    assert settle(given, "network", 1, lambda: pytest.fail("measured")) == given
    assert not cache_file().exists()


def test_a_step_that_fails_decides_nothing(units, capsys):
    def broken():
        raise RuntimeError("no such size")

    assert settle(FREE, "network", 1, broken) == Compute(CPU, "bf16")
    assert not cache_file().exists() and not capsys.readouterr().out


# The file


def test_a_choice_is_kept_for_the_same_network_shape_threads_and_machine(units, monkeypatch, capsys):
    def choose(what="network", about=(1, 2)):
        assert settle(FREE, what, about, lambda: "step") == Compute(CPU, "fp32")
        return len(units)

    assert choose() == 1
    said = capsys.readouterr().out
    assert said == (f"precision fp32 for the network: 2 times as fast as bf16 here (measured once, kept in "
                    f"{cache_file()})\n")
    assert choose() == 1 and not capsys.readouterr().out
    assert choose(about=(1, 3)) == 2 and choose("other network") == 3 and choose(about=(1, 3)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        assert choose() == 4
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        assert choose() == 5
    assert choose() == 5
    assert set(json.loads(cache_file().read_text()).values()) == {"fp32"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{", b"null"])
def test_a_broken_file_is_measured_again_and_replaced(units, content):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(content)
    for _ in range(2):
        assert settle(FREE, "network", 1, lambda: "step").precision == "fp32"
    assert len(units) == 1 and len(json.loads(cache_file().read_text())) == 1


@pytest.mark.parametrize("value", ["half", None, ["fp32"]])
def test_an_unknown_value_is_measured_again(units, value):
    settle(FREE, "network", 1, lambda: "step")
    [key] = json.loads(cache_file().read_text())
    write_json(cache_file(), {key: value, "other": "bf16"})
    assert settle(FREE, "network", 1, lambda: "step").precision == "fp32"
    assert json.loads(cache_file().read_text()) == {key: "fp32", "other": "bf16"}


def test_without_a_place_for_the_file_it_is_measured_each_time(units, tmp_path, capsys):
    (tmp_path / "home").write_text("a file, so no folder can be made in it")
    for number in (1, 2):
        assert settle(FREE, "network", 1, lambda: "step").precision == "fp32"
        assert len(units) == number and "measured once, not kept" in capsys.readouterr().out


def test_the_folder_is_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file() == tmp_path / ".cache" / "segmentations-leak" / "precision.json"


# What a measurement leaves unchanged


def test_a_measurement_changes_no_weights_and_no_random_numbers(units, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "measure", measure)
    loaded = load_attacker(write_attacker(tmp_path / "a.pth.tar"))
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    checkpoint = str(tmp_path / "v.pth.tar")
    spec = TINY.spec(19)
    save_checkpoint(checkpoint, stored_spec(spec), build_segmenter(spec).state_dict(), args={"crop": [32, 64]})
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    done = [settle_attacker(FREE, loaded, 64), CheckpointPredictor(checkpoint, PredictorOptions(FREE)).options.compute,
            setup.settle_segmenter(FREE, TINY, None), setup.settle_attacker(FREE, AttackerTraining(batch=2), 19, None)]
    assert not any(one.measure for one in done) and len(json.loads(cache_file().read_text())) == 4
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("make", [
    lambda: segmentation.trial_step(TINY, 2, CPU),
    lambda: segmentation.trial_step(replace(TINY, dpsgd=True), 2, CPU),
    lambda: attacker.trial_step(AttackerTraining(input="concate", width=0.125), 19, 2, CPU),
    lambda: attacker.trial_step(AttackerTraining(input="concate", arch="pixelwise"), 19, 2, CPU),
    lambda: translation.trial_step(TranslatorTraining(width=4), 64, 1, CPU)])
def test_the_steps_of_all_trainings_run_in_both_precisions(make):
    step = make()
    for name in ("fp32", "bf16", "fp32"):
        step(Compute(CPU, name))


# Training


def test_a_training_runs_in_the_faster_precision_and_resumes_in_it(units, victim_command, tmp_path, monkeypatch):
    out = must(script(*victim_command[:-len(SMALL)], *AUTO, "--out", tmp_path / "auto")).stdout
    assert "precision fp32 for the training of pspnet (resnet10t): 2 times as fast as bf16 here" in out
    must(script(*victim_command, "--out", tmp_path / "fp32"))
    states = [torch.load(tmp_path / name / "last.pth.tar", weights_only=True)["state_dict"]
              for name in ("auto", "fp32")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert recorded(tmp_path / "auto") == ("fp32", None) and len(units) == 1
    shutil.rmtree(tmp_path / "home")
    seen = []
    monkeypatch.setattr(setup, "train_and_report", lambda *args: seen.append(args[4]))
    must(script("train_victim.py", "--continue", tmp_path / "auto"))
    assert seen == [Compute()] and len(units) == 1


@pytest.mark.parametrize(("content", "expected"), [
    ('{"precision": "fp32"}', "fp32"), ('{"precision": "bf16"}', "bf16"), ('{"args": {}}', "bf16"), ("{", "bf16"),
    ('{"precision": "half"}', "bf16"), (None, "bf16")])
def test_a_resumed_training_is_never_measured(units, tmp_path, content, expected):
    if content:
        (tmp_path / "args.json").write_text(content)
    computes = [setup.settle_segmenter(FREE, TINY, tmp_path),
                setup.settle_attacker(FREE, AttackerTraining(), 19, tmp_path),
                setup.settle_translator(FREE, TranslatorTraining(), 64, tmp_path)]
    assert computes == [Compute(CPU, expected)] * 3 and not units


def test_a_resumed_training_says_that_bf16_is_emulated(tmp_path, monkeypatch, capsys):
    WARNED.clear()
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    for recorded_in, said in (("fp32", ""), ("bf16", "only emulates bf16")):
        write_json(tmp_path / "args.json", {"precision": recorded_in})
        assert setup.settle_segmenter(Compute(), TINY, tmp_path) == Compute(CPU, recorded_in)
        assert said in (err := capsys.readouterr().err) and bool(err) == bool(said)


def test_an_attacker_and_the_queries_of_its_shadow_are_measured_separately(units, world, tmp_path, monkeypatch):
    asked = []

    def fake(compute, what, about, make_step):
        asked.append(what)
        return "fp32" if what.startswith("training") else "bf16"

    monkeypatch.setattr(precision, "_read_or_measure", fake)
    shutil.copytree(world / "shadow", tmp_path / "shadow", ignore=shutil.ignore_patterns("posteriors*"))
    must(script("train_attacker.py", "--shadow", tmp_path / "shadow", "--patch-size", 12, "--width", 0.125,
                "--epochs", 1, "--out", tmp_path / "run"))
    assert asked == ["queries of pspnet", "training of A_P"]
    assert recorded(tmp_path / "run") == ("fp32", None)
    assert json.loads((tmp_path / "shadow" / "posteriors-s4" / "made-from").read_text())["precision"] == "bf16"


# Attacks and audits


def test_an_attack_records_the_precisions_of_its_networks(units, world, live, tmp_path, monkeypatch):
    asked = []

    def fake(compute, what, about, make_step):
        asked.append(what)
        return "bf16" if what == "scores of A_P" else "fp32"

    monkeypatch.setattr(precision, "_read_or_measure", fake)
    flags = [*live, "--precision", "auto", "--keep", tmp_path / "tree"]
    must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *flags, "--control",
                world / "shadow", "--out", tmp_path / "learned"))
    assert asked == ["scores of A_P", "queries of pspnet"] and recorded(tmp_path / "learned") == ("bf16", "fp32")
    assert json.loads((tmp_path / "tree" / "made-from").read_text())["precision"] == "fp32"
    must(script("attack.py", "--attack", "calibrated", "--patch-size", 6, *flags, "--references", world / "shadow",
                "--out", tmp_path / "run"))
    assert asked[2:] == ["queries of pspnet"]  # the reference is queried in the precision of the target model
    assert recorded(tmp_path / "run") == ("fp32", "fp32")


def test_an_attack_in_the_faster_precision_gives_the_scores_of_that_precision(units, live, tmp_path):
    flags = ["attack.py", "--attack", "loss", "--patch-size", 6, *live]
    must(script(*flags, "--precision", "auto", "--out", tmp_path / "auto"))
    must(script(*flags, "--out", tmp_path / "fp32"))
    assert scores(tmp_path / "auto") == scores(tmp_path / "fp32") and len(units) == 1


def test_an_audit_has_one_precision_and_prints_no_measurement(units, world, tmp_path, capsys):
    victim = str(world / "victim" / "last.pth.tar")
    folder, compute = audit_setup.start({}, str(tmp_path / "audit"), FREE, [victim, str(world / "shadow")], Access())
    assert compute == Compute() and recorded(folder) == ("fp32", None) and len(units) == 1
    assert "2 times as fast as bf16" in (folder / "log.txt").read_text() and not capsys.readouterr().out


def test_an_audit_records_its_precision(units, live, tmp_path):
    found = must(script("audit.py", "--model", live[1], *live[2:], "--precision", "auto", "--attacks", "loss", "--json",
                        "--skip-check", "--out", tmp_path / "audit")).stdout
    assert json.loads(found)["settings"]["precision"] == "fp32" and recorded(tmp_path / "audit")[0] == "fp32"
    assert recorded(tmp_path / "audit" / "attacks" / "loss") == ("fp32", "fp32") and len(units) == 1


def test_the_references_of_an_audit_are_measured_and_resume(units, world, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(reference_models, "train_and_report", lambda *args: seen.append(args[4]))
    pairs = read_split(world / "shadow.txt", world / "data")
    for _ in range(2):
        reference_models.train_references(pairs, 1, TINY, str(world / "data"), tmp_path, FREE)
        (tmp_path / "0" / "last.pth.tar").touch()
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        monkeypatch.setattr(reference_models, "lock_run", lambda folder: None)  # this process has locked it
    assert seen == [Compute()] * 2 and len(units) == 1 and recorded(tmp_path / "0") == ("fp32", None)


def test_a_translator_is_measured_at_the_size_of_its_training(units, tmp_path, monkeypatch):
    spec = TranslatorTraining(width=4).spec(64)
    save_checkpoint(tmp_path / "t.pth.tar", spec, build_translator(spec).state_dict())
    translator = open_checkpoint(str(tmp_path / "t.pth.tar"), PredictorOptions(FREE))
    assert translator.options.compute == Compute() and translator.stride == 1 and len(units) == 1
    units[0](Compute())


def test_a_model_of_other_people_is_measured_if_it_takes_the_images(units, monkeypatch):
    def open_model(model):
        return ForeignModel("model.pt", PredictorOptions(FREE), Preprocess(), model, 2).options.compute

    assert open_model(torch.nn.Conv2d(3, 2, 1)) == Compute()
    monkeypatch.setattr(precision, "measure", measure)
    assert open_model(torch.nn.Linear(7, 2)) == Compute(CPU, "bf16")  # no images are 7 wide here


@pytest.mark.slow
@pytest.mark.skipif(resolve_precision("auto", CPU) != "bf16", reason="this processor has no bf16 units")
def test_the_main_process_measures_for_all(victim_command, tmp_path, monkeypatch):
    monkeypatch.delenv("SEGLEAK_PRECISION")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    result = must(torchrun(*victim_command[:-len(SMALL)], *AUTO, "--out", tmp_path / "run"))
    assert result.stdout.count("measured once") == 1
    assert set(json.loads(cache_file().read_text()).values()) == {recorded(tmp_path / "run")[0]}
