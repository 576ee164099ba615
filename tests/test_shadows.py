"""Collecting results and printing tables."""

import json

import numpy as np
from conftest import must, script

from attacks.sample import Scored
from evaluation.report import write_scores
from reproduce.shadows.table import as_markdown


def figure(auc):
    return {"auc": auc, "max_f": 0.8, "tpr_at_5_fpr": 0.2, "auc_interval": [auc - 0.1, auc + 0.1]}


def result(auc):
    return {"image": figure(auc), "patch": figure(auc - 0.1), "members": 5, "non_members": 4, "blocks": 3,
            "chance": {"image": {"random_f": 0.5, "all_member_f": 0.7}, "patch": {}}, "tau": None}


def write_attack(folder, gap):
    """Scores of 20 members, `gap` above 20 non-members."""
    noise = np.random.default_rng(0).normal(size=40).tolist()
    write_scores(folder, [Scored(f"p{i}", i < 20, f"b{i // 2}", value + gap * (i < 20), [[0, 0]], [0.0])
                          for i, value in enumerate(noise)])


def test_collect_and_print(tmp_path):
    model = {"miou_in": 0.5, "miou_out": 0.4, "in": 5, "out": 4, "minutes": 1.0}
    contents = {"victim": model, "shadow": model, "s/loss-random-0": result(0.7), "s/loss-random-1": result(0.8),
                "s/threshold-loss-0": result(0.6), "s/attacker-loss-0": {"validation_auc": 0.9}}
    for run, content in contents.items():
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "results.json").write_text(json.dumps(content))
        (tmp_path / run / "args.json").write_text(json.dumps({"commit": "abc", "args": {"epochs": 15}}))
    for run, gap in (("loss-random-0", 3.0), ("loss-random-1", 2.0), ("threshold-loss-0", 0.2)):
        write_attack(tmp_path / "s" / run, gap)
    into = tmp_path / "setting.json"
    must(script("reproduce/shadows/table.py", "--collect", tmp_path / "s", "--victim", tmp_path / "victim", "--shadow",
                tmp_path / "shadow", "--into", into))
    table = as_markdown("setting", json.loads(into.read_text()))
    assert json.loads(into.read_text())["attackers"]["attacker-loss-0"]["epochs"] == 15
    assert "| Loss, random | 75.0 | 70.0-80.0 | 60.0-80.0 | 80.0 | 20.0 | 65.0 | 84.8 / 84.6 |" in table
    assert "50.0% in (5 images)" in table and "Commits abc." in table and "C+GT" not in table
    (tmp_path / "again.json").write_text(into.read_text())
    both = must(script("reproduce/shadows/table.py", into, tmp_path / "again.json")).stdout
    assert "| setting | 50.0 / 40.0 |" in both and "| again | 50.0 / 40.0 |" in both and both.count("### ") == 2
    found = json.loads(into.read_text())["paired"]["loss-random threshold-loss"]
    low, high = (f"{100 * bound:+.1f}" for bound in found["interval"])
    assert f"| **{100 * found['difference']:+.1f}** [{low}, {high}] |" in both and "| paper | +1.9 |" in both
    brief = must(script("reproduce/shadows/table.py", "--brief", into, tmp_path / "again.json")).stdout
    assert both.startswith(brief.rstrip("\n")) and "### " not in brief
    claim = next(line for line in table.splitlines() if "Loss, random > loss threshold" in line)
    assert claim.endswith("| holds | +9.7 |") and "rejection" not in table
    assert script("reproduce/shadows/table.py", tmp_path / "none.json").returncode == 2


def test_plot_of_shadows(tmp_path):
    attacks = {f"{method}-{seed}": result(0.6 + 0.1 * seed) for method in ("loss-full", "concate-full")
               for seed in (0, 1)} | {f"threshold-{kind}-0": result(0.55) for kind in ("loss", "confidence")}
    for name in ("dealt", "eight"):
        (tmp_path / f"camvid-scratch-block-{name}.json").write_text(json.dumps({"attacks": attacks}))
    must(script("reproduce/shadows/plot.py", "--results", tmp_path, "--into", tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    empty = script("reproduce/shadows/plot.py", "--results", tmp_path / "none", "--into", tmp_path / "plot.png")
    assert empty.returncode == 2 and "camvid.sh" in empty.stderr
