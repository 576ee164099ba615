"""Give malformed files to the code that reads them.

Each file must be read or refused with a `UserError`, within limits of time and memory, and must not create other files.
"""

import contextlib
import os
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import DATASETS, find_dataset
from datasets.folder import settings
from datasets.images import load_image
from datasets.pairs import load_label, read_split
from models import load_attacker, load_segmenter
from predictors.base import PredictorOptions, Record
from predictors.samples import Source
from predictors.stored import StoredPredictor, list_records
from tools.fault_campaign import hostile, inputs
from tools.fault_campaign.runs import FORK, in_child, limit_memory, run_all
from tools.fault_campaign.scripts import MEMORY_LIMIT, script_trial
from tools.fault_campaign.workspace import Baseline
from utils import VOID
from utils.cli import UserError
from utils.download import unpack
from utils.randomness import stream

TIME_LIMIT = 10.0  # seconds for one input
INPUTS_PER_CHUNK = 250

# A reader gets the path of a file and an empty folder. It reads the file as the project does, or raises `UserError`.
def read_checkpoint(path: Path, _: Path) -> None:
    """Read an attacker or a segmentation model."""
    try:
        load_attacker(str(path))
    except UserError:
        load_segmenter(path)


def read_split_file(path: Path, _: Path) -> None:
    with contextlib.suppress(UserError):
        read_split(path, path.parent)
    read_split(path, path.parent, "/BS/", must_exist=False)


def read_groups(path: Path, _: Path) -> None:
    for side in ("train", "val"):
        (path.parent / side / "pred_sgd").mkdir(parents=True, exist_ok=True)
        (path.parent / side / "pred_sgd" / "a.npy").touch()
    list_records(path.parent)


def read_posterior(path: Path, _: Path) -> None:
    label_path = path.with_name("label.png")
    if not label_path.exists():
        Image.new("L", (16, 8)).save(label_path)
    record = Record("train/a", "a", True, path, label_path)
    source = Source([record], StoredPredictor(path.parent, PredictorOptions(), paths={"train/a": path}))
    sample = next(source.samples())
    assert sample.output.isfinite().all() and sample.truth.shape == sample.output.shape[1:]


def read_image(path: Path, _: Path) -> None:
    array = load_image(path)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


def read_label(path: Path, _: Path) -> None:
    """Read a label file of a data set that depends on the size of the file."""
    names = [*(name for name in DATASETS if name != "folder"), f"folder:{settings(3, None, None)}"]
    name = names[path.stat().st_size % len(names)]
    array, dataset = load_label(path, name), find_dataset(name)
    assert array.dtype == np.uint8 and array.ndim == 2
    assert set(np.unique(array)) <= {*range(len(dataset.CLASSES)), VOID}


# Kind of file -> file name, function that makes the content, reader, share of the inputs.
KINDS: dict[str, tuple[str, Callable, Callable, float]] = {
    "checkpoint": ("x.pth.tar", hostile.checkpoint, read_checkpoint, 0.18),
    "checkpoint, old form": ("x.pth.tar", partial(hostile.checkpoint, old=True), read_checkpoint, 0.16),
    "posterior": ("x.npy", inputs.posterior, read_posterior, 0.18),
    "image": ("x.png", inputs.image, read_image, 0.12),
    "label": ("x_labelIds.png", inputs.image, read_label, 0.12),
    "archive": ("x.zip", inputs.archive, unpack, 0.12),
    "split": ("x.txt", inputs.split, read_split_file, 0.09),
    "groups": ("groups.txt", inputs.groups, read_groups, 0.03),
}
SPECIAL = {("checkpoint", 1000): hostile.zip_bomb, ("image", 1000): inputs.large_png,
           ("label", 1000): inputs.large_png}  # by kind and number
SCRIPT_SHARE = 0.01  # number of inputs for complete scripts, as a share of the others


def run_fuzz(workspace: Path, _: dict[str, Baseline], count: int, seed: int, jobs: int) -> dict:
    """Read about `count` inputs, in the shares of `KINDS`. Returns the counts and every failure."""
    folder = workspace.parent / "inputs"
    folder.mkdir()
    chunks = [(kind, first, min(first + INPUTS_PER_CHUNK, total)) for kind, (*_, share) in KINDS.items()
              for total in [max(1, round(count * share))] for first in range(0, total, INPUTS_PER_CHUNK)]
    read = run_all(partial(read_chunk, folder, seed, chunks), len(chunks), jobs, "inputs")
    # One job: each trial lists the files of the campaign before and after, so another must not write at the same time.
    scripts = run_all(partial(script_trial, workspace, seed), max(1, round(count * SCRIPT_SHARE)), 1, "scripts")
    rows: dict = {}
    for part in [*read, *scripts]:
        rows.setdefault(part["kind"], Counter()).update(part["outcomes"])
    return {
        "inputs": sum(sum(row.values()) for row in rows.values()),
        "rows": rows,
        "peak MiB": max(part["peak"] for part in read) >> 20,
        "failures": [failure for part in [*read, *scripts] for failure in part["failures"]],
    }


def make_input(kind: str, seed: int, index: int) -> bytes:
    """Content of input number `index` of a kind."""
    return SPECIAL.get((kind, index), lambda: KINDS[kind][1](stream(seed, "fuzz", kind, index)))()


def read_chunk(folder: Path, seed: int, chunks: list[tuple[str, int, int]], number: int) -> dict:
    """Read the inputs of one chunk in a child process. After a failure, a new process reads the rest."""
    kind, first, end = chunks[number]
    scratch, failures, peak = folder / f"{kind} {first}", [], 0
    outcomes = Counter(refused=0, read=0, failed=0)
    while first < end:
        (scratch / "target").mkdir(parents=True)
        results, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_read_inputs, args=(kind, seed, first, end, scratch, sender))
        process.start()
        sender.close()
        problem = ""
        while first < end and not problem:
            problem, refused, used = _next_result(process, results)
            outcomes["failed" if problem else "refused" if refused else "read"] += 1
            peak = max(peak, used)
            if problem:
                failures.append(_record_failure(folder, kind, seed, first, problem))
            first += 1
        process.kill()
        process.join()
        shutil.rmtree(scratch)
    return {"kind": kind, "outcomes": outcomes, "peak": peak, "failures": failures}


def _record_failure(folder: Path, kind: str, seed: int, index: int, problem: str) -> dict:
    """Describe a failure, and write its input to a file if it is smaller than 1 MiB."""
    data = in_child(make_input, kind, seed, index)
    file = folder / f"{kind}-{seed}-{index}-{KINDS[kind][0]}".replace(" ", "-")
    if len(data) < 2**20:
        file.write_bytes(data)
    return {"kind": kind, "seed": seed, "index": index, "bytes": len(data), "problem": problem, "file": file.name}


def _next_result(process: BaseProcess, results: Connection) -> tuple[str, bool, int]:
    """Problem of one input (or an empty text), whether it was refused, and the peak memory in bytes."""
    try:
        results.recv()  # the process has made the input, and starts to read it
        if results.poll(TIME_LIMIT):
            return results.recv()
        return f"longer than {TIME_LIMIT:g} seconds", False, 0
    except EOFError:
        process.join()
        return f"the process ended with exit code {process.exitcode}", False, 0


def _read_inputs(kind: str, seed: int, first: int, end: int, scratch: Path, results: Connection) -> None:
    """Read the inputs `first` to `end` - 1. Send None before each input is read, and its result afterwards."""
    for stream_number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream_number)
    warnings.simplefilter("ignore")
    limit_memory()
    os.chdir(scratch)
    path = scratch / KINDS[kind][0]
    for index in range(first, end):
        path.write_bytes(make_input(kind, seed, index))
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
        results.send(None)
        problem, refused = _read_one(KINDS[kind][2], path, scratch)
        peak = _peak_bytes()
        if peak > MEMORY_LIMIT:
            problem += f"; {peak >> 20} MiB of memory"
        results.send((problem, refused, peak))


def _read_one(reader: Callable, path: Path, scratch: Path) -> tuple[str, bool]:
    """Read one input. Returns the problem (or an empty text), and whether the input was refused."""
    problem, refused, target = "", False, scratch / "target"
    try:
        reader(path, target)
    except UserError:
        refused = True
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    allowed = {path.name, "target", "label.png", "train", "val"}
    created = [*({*os.listdir(scratch)} - allowed), *(["out"] if (scratch.parent / "out").exists() else [])]
    created += [str(file) for file in target.rglob("*") if file.is_symlink() or not (file.is_file() or file.is_dir())]
    if refused and any(target.iterdir()):
        created.append("a part of the refused file")
    if any(target.iterdir()):
        shutil.rmtree(target)
        target.mkdir()
    return problem + f"; created {created}" * bool(created), refused


def _peak_bytes() -> int:
    """Peak resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
