"""Kill runs at random moments, resume them, and compare their results with those of undisturbed runs."""

import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from tools.fault_campaign.runs import RunResult, run_all
from tools.fault_campaign.workspace import IMAGES_PER_BATCH, Baseline, Trial, is_attack
from utils.randomness import stream

# Ways to stop a run, and how often each is used. The first three send SIGKILL: to all processes at a random moment, to
# all processes during a write, or to the main process only. The last two are signals after which a run saves and exits.
WAYS = {"random moment": 0.45, "during a write": 0.3, "main process only": 0.05, "SIGTERM": 0.1, "SIGINT": 0.1}
EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130}
SEVERAL = 0.3  # share of the trials with two to four kills


def run_kills(workspace: Path, baselines: dict[str, Baseline], count: int, seed: int, jobs: int) -> dict:
    """Run `count` trials, with the commands in turn. Returns the counts and every failure."""
    trials = run_all(partial(kill_trial, workspace, baselines, seed), count, jobs, "kills")
    by_command = {name: [trial for trial in trials if trial["command"] == name] for name in baselines}
    attacks = [trial for name, rows in by_command.items() if is_attack(name) for trial in rows]
    return {
        "trials": count,
        "resumed after SIGKILL": sum(bool(set(trial["kills"]) - set(EXIT_CODES)) for trial in trials),
        "ended before the kill": sum(not trial["kills"] for trial in trials),
        "images scored before a kill": sum(trial["scored"] for trial in attacks),
        "images scored again": sum(trial["scored again"] for trial in attacks),
        "kills": Counter(way for trial in trials for way in trial["kills"]),
        "rows": {name: {"trials": len(rows), "kills": sum(len(trial["kills"]) for trial in rows),
                        "failed": sum(bool(trial["problems"]) for trial in rows),
                        "seconds per trial": round(sum(trial["seconds"] for trial in rows) / max(1, len(rows)), 2)}
                 for name, rows in by_command.items()},
        "failures": [trial for trial in trials if trial["problems"]],
    }


def kill_trial(workspace: Path, baselines: dict[str, Baseline], seed: int, number: int) -> dict:
    """Kill a run once or several times, resume it to its end, and check its results."""
    name, rng = list(baselines)[number % len(baselines)], stream(seed, "kills", number)
    trial = Trial(name, workspace, workspace / "trials" / f"kill {number}", baselines[name])
    trial.prepare()
    ways, scored, complete = [], 0, False
    for _ in range(int(rng.integers(2, 5)) if rng.random() < SEVERAL else 1):
        way = str(rng.choice(list(WAYS), p=list(WAYS.values())))
        result = run_and_kill(trial, way, rng)
        complete = (trial.folder / "run" / "results.json").exists()  # then the attack starts from the beginning
        if result.code == 0:
            break
        ways.append(way)
        scored += result.counters.samples
        trial.check(result, EXIT_CODES.get(way, -signal.SIGKILL))
    last = trial.finish()
    again = 0 if complete else max(0, scored + last.counters.samples - trial.baseline.counters.samples)
    if is_attack(name) and again > 3 * IMAGES_PER_BATCH * len(ways):
        trial.problems.append(f"{again} of {scored} images were scored again after {len(ways)} kills")
    return trial.report(trial=number, kills=ways, scored=scored, **{"scored again": again})


def run_and_kill(trial: Trial, way: str, rng: np.random.Generator) -> RunResult:
    """Start or resume a run and stop it in one of `WAYS`, unless it ends before."""
    baseline = trial.baseline
    if way == "during a write":
        at = int(rng.integers(1, baseline.counters.writes + 1))
        return trial.start(action="kill", at=at).result()
    process = trial.start()
    if not process.ended_within(rng.uniform(0.1 if way in EXIT_CODES else 0, 1) * baseline.seconds):
        group = way == "random moment" or (way in EXIT_CODES and rng.random() < 0.5)
        (os.killpg if group else os.kill)(process.pid, signal.Signals[way] if way in EXIT_CODES else signal.SIGKILL)
    return process.result()
