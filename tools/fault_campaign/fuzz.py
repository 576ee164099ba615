"""Files that lie, given to what reads them: each is read, or refused with a `UserError`, and leaves nothing behind."""

import contextlib
import importlib
import json
import mmap
import os
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import DATASETS, find_dataset
from datasets.images import load_image
from datasets.pairs import load_label, read_split
from datasets.posteriors import Stored, list_tree
from models import load_segmenter
from reliability import hostile, inputs
from reliability.runs import Known, apart, limit_memory, spread
from reliability.scripts import MOST, script
from utils import VOID
from utils.cli import UserError
from utils.download import unpack
from utils.randomness import stream

LONGEST = 10.0  # seconds that one input may take
TOGETHER = 250  # inputs that one process meets, unless it ends before


def _attacker(path: Path, _: Path) -> None:
    script = importlib.import_module("attack")
    script.load_attacker(script.parser().parse_args(["-resume", str(path)]))


def _either(path: Path, folder: Path) -> None:
    """A checkpoint that is no attacker may still be a segmentation model."""
    try:
        _attacker(path, folder)
    except UserError:
        load_segmenter(path)


def _split(path: Path, _: Path) -> None:
    with contextlib.suppress(UserError):
        read_split(path, path.parent)
    read_split(path, path.parent, "/BS/", must_exist=False)


def _groups(path: Path, _: Path) -> None:
    for side in ("train", "val"):
        (path.parent / side / "pred_sgd").mkdir(parents=True, exist_ok=True)
        (path.parent / side / "pred_sgd" / "a.npy").touch()
    list_tree(path.parent)


def _posterior(path: Path, _: Path) -> None:
    label = path.with_name("label.png")
    if not label.exists():
        Image.new("L", (16, 8)).save(label)
    array, found = Stored("train/a", True, "a", path, label).load()
    assert array.dtype == np.float32 and array.ndim == 3 and np.isfinite(array).all() and found.shape == array.shape[1:]


def _image(path: Path, _: Path) -> None:
    array = load_image(path)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


def _label(path: Path, _: Path) -> None:
    dataset = find_dataset(DATASETS[path.stat().st_size % len(DATASETS)])
    array = load_label(path, dataset)
    assert array.dtype == np.uint8 and array.ndim == 2
    assert set(np.unique(array)) <= {*range(len(dataset.CLASSES)), VOID}


# What is fuzzed: file name, maker, reader, share of the inputs.
KINDS: dict[str, tuple[str, Callable, Callable, float]] = {
    "checkpoint": ("x.pth.tar", hostile.checkpoint, _either, 0.18),
    "checkpoint, old form": ("x.pth.tar", partial(hostile.checkpoint, old=True), _either, 0.16),
    "posterior": ("x.npy", inputs.posterior, _posterior, 0.18),
    "image": ("x.png", inputs.image, _image, 0.12),
    "label": ("x_labelIds.png", inputs.image, _label, 0.12),
    "archive": ("x.zip", inputs.archive, unpack, 0.12),
    "split": ("x.txt", inputs.split, _split, 0.09),
    "groups": ("groups.txt", inputs.groups, _groups, 0.03),
}
SPECIAL = {("checkpoint", 1000): hostile.bomb, ("image", 1000): inputs.vast, ("label", 1000): inputs.vast}
SCRIPTS = 0.01  # as many more go through a whole script


def fuzz(world: Path, known: dict[str, Known], trials: int, seed: int, jobs: int) -> dict:
    """About `trials` inputs; what was found, with every failure."""
    place = world.parent / "inputs"
    place.mkdir()
    chunks = [(kind, first, min(first + TOGETHER, count)) for kind, (*_, share) in KINDS.items()
              for count in [max(1, round(trials * share))] for first in range(0, count, TOGETHER)]
    found = spread(partial(chunk, place, seed, chunks), len(chunks), jobs, "inputs")
    scripts = spread(partial(script, world, seed), max(1, round(trials * SCRIPTS)), 1, "scripts")  # each looks around
    ways: dict = {}
    for one in [*found, *scripts]:
        ways.setdefault(one["kind"], Counter()).update(one["ways"])
    return {
        "inputs": sum(sum(one.values()) for one in ways.values()),
        "by": ways,
        "most MiB": max(one["peak"] for one in found) >> 20,
        "failures": [failure for one in [*found, *scripts] for failure in one["failures"]],
    }


def make(kind: str, seed: int, index: int) -> bytes:
    """Input `index` of a kind, which follows from the three alone."""
    return SPECIAL.get((kind, index), lambda: KINDS[kind][1](stream(seed, "fuzz", kind, index)))()


def chunk(place: Path, seed: int, chunks: list[tuple[str, int, int]], number: int) -> dict:
    """Give a run of inputs to forked processes: one goes on until an input ends it, or is the last."""
    kind, at, end = chunks[number]
    box, failures, ways, peak = place / f"{kind} {at}", [], Counter(), 0
    while at < end:
        now = memoryview(mmap.mmap(-1, 32)).cast("d")  # index, time that it began, peak in bytes, refused
        (box / "target").mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            _serve(kind, seed, at, end, box, now)
        wrong = _watch(pid, now)
        index, peak = int(now[0]), max(peak, int(now[2]))
        for line in (box / "wrong").read_text().splitlines() if (box / "wrong").exists() else ():
            failures.append(_keep(place, kind, seed, **json.loads(line)))
        if wrong:
            failures.append(_keep(place, kind, seed, index, wrong))
        ways.update({"refused": int(now[3]), "read": index + 1 - at - int(now[3])})
        shutil.rmtree(box)
        at = index + 1
    ways.update({"read": -len(failures), "failed": len(failures)})
    return {"kind": kind, "ways": ways, "peak": peak, "failures": failures}


def _keep(place: Path, kind: str, seed: int, index: int, wrong: str) -> dict:
    """Note a failure, and keep its input if it is small."""
    data = apart(make, kind, seed, index)
    file = place / f"{kind}-{seed}-{index}-{KINDS[kind][0]}".replace(" ", "-")
    if len(data) < 2**20:
        file.write_bytes(data)
    return {"kind": kind, "seed": seed, "index": index, "bytes": len(data), "wrong": wrong, "kept": file.name}


def _watch(pid: int, now: memoryview) -> str:
    """Wait for a process that meets inputs; what is wrong with its end."""
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if (begun := now[1]) and time.monotonic() - begun > LONGEST:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return f"longer than {LONGEST:g} seconds"
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"the process ended with {code}" if code else ""


def _serve(kind: str, seed: int, first: int, end: int, box: Path, now: memoryview) -> None:
    """Meet the inputs from `first` on, and never return; ends before the last when one took too much memory."""
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(quiet, number)
        warnings.simplefilter("ignore")
        limit_memory()
        os.chdir(box)
        path = box / KINDS[kind][0]
        for index in range(first, end):
            now[0], now[1] = index, 0
            path.write_bytes(make(kind, seed, index))
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            now[1] = time.monotonic()
            wrong, refused = _meet(KINDS[kind][2], path, box)
            now[1], now[2], now[3] = 0, max(now[2], _peak()), now[3] + refused
            if _peak() > MOST:
                wrong += f"; {_peak() >> 20} MiB of memory"
            if wrong:
                with open(box / "wrong", "a") as file:
                    print(json.dumps({"index": index, "wrong": wrong}), file=file)
                if _peak() > MOST:
                    break
        code = 0
    finally:
        os._exit(code)


def _meet(reader: Callable, path: Path, box: Path) -> tuple[str, bool]:
    """What is wrong with how an input was met, and whether it was refused."""
    wrong, refused, target = "", False, box / "target"
    try:
        reader(path, target)
    except UserError:
        refused = True
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    own = {path.name, "target", "wrong", "label.png", "train", "val"}
    strange = [one for one in {*os.listdir(box)} - own] + [one for one in os.listdir(box.parent) if one == "out"]
    strange += [str(one) for one in target.rglob("*") if one.is_symlink() or not (one.is_file() or one.is_dir())]
    if refused and any(target.iterdir()):
        strange.append("half of what was refused")
    if any(target.iterdir()):
        shutil.rmtree(target)
        target.mkdir()
    for one in {*os.listdir(box)} - own:
        shutil.rmtree(box / one) if (box / one).is_dir() else (box / one).unlink()
    return wrong + f"; created {strange}" * bool(strange), refused


def _peak() -> int:
    """Peak of resident memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
