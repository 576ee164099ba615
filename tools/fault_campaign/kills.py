"""Runs that are killed at random moments, called again, and compared with undisturbed ones."""

import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from reliability.faults import Fault
from reliability.runs import (
    TOGETHER,
    Ended,
    Known,
    Run,
    again,
    apart,
    attacks,
    command_of,
    differences,
    furnish,
    run,
    spread,
    torn,
)
from utils.randomness import stream

# How a run is ended, and how often: at some moment, in the middle of a write, at some moment but without the processes
# that it started, which must find out by themselves; or by a signal that lets it save. The exit code is then:
WAYS = {"moment": 0.45, "write": 0.3, "alone": 0.05, "SIGTERM": 0.1, "SIGINT": 0.1}
CODES = {"SIGTERM": 143, "SIGINT": 130}
SEVERAL = 0.3  # of the trials kill two to four times


def kills(world: Path, known: dict[str, Known], trials: int, seed: int, jobs: int) -> dict:
    """`trials` runs that are killed, one command after the other; what was found, with every failure."""
    found = spread(partial(trial, world, known, seed), trials, jobs, "kills")
    rows = {name: [one for one in found if one["command"] == name] for name in known}
    asked = [one for name, row in rows.items() if attacks(name) for one in row]
    return {
        "trials": trials,
        "resumed after SIGKILL": sum(bool(set(one["ways"]) - set(CODES)) for one in found),
        "over before it was killed": sum(not one["ways"] for one in found),
        "images attacked before a kill": sum(one["before"] for one in asked),
        "of them again": sum(one["again"] for one in asked),
        "kills": Counter(way for one in found for way in one["ways"]),
        "by": {name: {"trials": len(row), "kills": sum(len(one["ways"]) for one in row),
                      "failed": sum(bool(one["wrong"]) for one in row),
                      "seconds a trial": round(sum(one["seconds"] for one in row) / max(1, len(row)), 2)}
               for name, row in rows.items()},
        "failures": [one for one in found if one["wrong"]],
    }


def trial(world: Path, known: dict[str, Known], seed: int, number: int) -> dict:
    """Kill a run once or more, call it again, and say what is wrong with what it leaves."""
    name, rng, begun = list(known)[number % len(known)], stream(seed, "kills", number), time.monotonic()
    here = furnish(name, world, world / "trials" / f"kill {number}")
    command, ways, wrong, labels, finished = command_of(name, world, here), [], [], 0, False
    for _ in range(int(rng.integers(2, 5)) if rng.random() < SEVERAL else 1):
        way = str(rng.choice(list(WAYS), p=list(WAYS.values())))
        ended = strike(again(command, here), world, known[name], way, rng)
        finished = (here / "run" / "results.json").exists()  # an attack that is finished begins anew
        if ended.code == 0:
            break
        ways.append(way)
        labels += ended.did.labels
        wrong += ended.fault(CODES.get(way, -signal.SIGKILL)) + apart(torn, here)
    last = run(again(command, here), world)
    wrong += last.fault(0) or apart(differences, known[name].folder, here)
    repeated = 0 if finished else max(0, labels + last.did.labels - known[name].labels)
    if attacks(name) and repeated > 3 * TOGETHER * len(ways):
        wrong.append(f"{repeated} of {labels} images were done again after {len(ways)} kills")
    if not wrong:
        shutil.rmtree(here)
    return {"trial": number, "command": name, "ways": ways, "before": labels, "again": repeated, "wrong": wrong,
            "seconds": time.monotonic() - begun}


def strike(command: list[str], world: Path, known: Known, way: str, rng: np.random.Generator) -> Ended:
    """Start a run and end it in one of `WAYS`, unless it is faster."""
    if way == "write":
        return run(command, world, do="kill", at=int(rng.integers(1, known.writes + 1)))
    running = Run(command, Fault(world))
    if not running.over(rng.uniform(0.1 if way in CODES else 0, 1) * known.seconds):
        group = way == "moment" or (way in CODES and rng.random() < 0.5)
        running.signal(signal.Signals[way] if way in CODES else signal.SIGKILL, group)
    return running.end()
