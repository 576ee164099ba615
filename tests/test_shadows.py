"""The page about one shadow and several, from JSON files of known metrics."""

import json

import pytest
from conftest import ROOT, must, script

from reproduce.shadows import METHODS, PAIRS, mean_and_range, seeds_of


def metrics(auc):
    return {"image": {"auc": auc, "auc_interval": [auc - 0.1, auc + 0.1]}, "blocks": 3,
            "chance": {"image": {"random_f": 0.5, "all_member_f": 0.7}}}


@pytest.fixture
def folder(tmp_path):
    """A setting with one shadow, of three attacks, and one with eight shadows, of all attacks."""
    model = {"miou_in": 0.5, "miou_out": 0.4, "in": 5, "out": 4, "minutes": 1.5}
    rows = {"dealt": ("loss-full", "concate-full", "threshold-loss"), "eight": METHODS}
    for name, methods in rows.items():
        attacks = {f"{method}-{seed}": metrics(0.7 + 0.1 * seed) for method in methods
                   for seed in range(1 if method.startswith("threshold") else 2)}
        paired = {f"{first} {second}": {"difference": 0.05, "interval": [0.01, 0.09]} for first, second in PAIRS
                  if {first, second} <= set(methods)}
        paired |= {"loss-full concate-full": {"difference": 0.02, "interval": [-0.01, 0.05]}}
        (tmp_path / f"camvid-scratch-block-{name}.json").write_text(json.dumps(
            {"victim": model, "shadow": model, "attacks": attacks, "paired": paired, "commits": ["abc", "def+"]}))
    return tmp_path


def test_the_page_has_the_metrics_of_each_setting(folder):
    must(script("reproduce/shadows.py", "--results", folder))
    page = (folder / "report.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| camvid-scratch-block-dealt |")]
    models, aucs, differences = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines)
    assert models[1:] == ["50.0 / 40.0 (5 / 4)", "50.0 / 40.0 (5 / 4)", "1.5 + 1.5", "3", "50.0 / 70.0", "abc, def+"]
    assert aucs[1:] == ["–", "70.0 [60.0, 80.0]", "75.0 [60.0, 80.0]", "75.0 [60.0, 80.0]", *["–"] * 6]
    assert differences[2] == "+2.0 [-1.0, +5.0]" and differences[6] == "**+5.0** [+1.0, +9.0]"
    assert [differences[column] for column in (1, 3, 4, 5, 7, 8)] == ["–"] * 6
    assert "| paper | +1.9 | +1.4 | +2.0 | +2.5 | +0.3 | +7.7 | +9.7 | +7.8 |" in page
    assert (folder / "auc.png").read_bytes().startswith(b"\x89PNG")


def test_means_are_over_seeds(folder):
    setting = json.loads((folder / "camvid-scratch-block-eight.json").read_text())
    mean, spread = mean_and_range(seeds_of(setting, "loss-full"))
    assert mean == pytest.approx(0.75) and spread == [[pytest.approx(0.05)], [pytest.approx(0.05)]]


def test_a_folder_without_results_is_an_error(tmp_path):
    empty = script("reproduce/shadows.py", "--results", tmp_path)
    assert empty.returncode == 2 and "has no *-eight.json" in empty.stderr and not list(tmp_path.iterdir())


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    results = ROOT / "reproduce" / "results" / "shadows"
    for path in results.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    must(script("reproduce/shadows.py", "--results", tmp_path))
    assert (tmp_path / "report.md").read_text() == (results / "report.md").read_text()
