"""A tiny world, the scripts run in it by forked processes, and what they left there.

The process that forks has imported everything and computed nothing, so a run starts at once and meets no thread of
another.
"""

import atexit
import importlib
import json
import os
import pickle
import resource
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets import streets
from datasets.pairs import Pair, write_split
from reliability.faults import Fault
from utils.cli import UserError
from utils.files import ROOT
from utils.log import progress

SMALL = ("--root {world}/data --width 16 --stages 2 --epochs 3 --batch 4 --workers 0 --crop 64 128 --precision fp32 "
         "--out {here}/run ")
VICTIM = "train_victim.py --train {world}/victim_in.txt --test {world}/victim_out.txt " + SMALL
LIVE = ("--victim {world}/victim/last.pth.tar --root {world}/data --members {world}/victim_in.txt "
        "--non-members {world}/victim_out.txt ")
# Two images go through the attacker together, and are saved then.
ATTACK = ("attack.py -resume {world}/attacker/best.pth.tar --precision fp32 -num-patch 3 --batch 6 --save-every 0 "
          "--out {here}/run ")
TOGETHER = 2
COMMANDS = {
    "victim": VICTIM,
    "victim, a worker": VICTIM + "--workers 1",
    "victim, DPSGD": VICTIM + "--epochs 2 --lr 0.001 -dpsgd",
    "shadow": "train_shadow.py --split {world}/shadow.txt --victim {world}/victim/last.pth.tar " + SMALL,
    "attacker": "train_attacker.py --shadow {here}/shadow --patch-size 12 --width 0.125 --epochs 3 --precision fp32 "
                "--out {here}/run",
    "attack": ATTACK + "--examples {world}/shadow/posteriors-s4",
    "attack, live": ATTACK + LIVE,
    "attack, kept": ATTACK + LIVE + "--keep {here}/kept",
}
PATIENCE = 30.0  # seconds for a run that takes two


def prepare() -> None:
    """Import what the scripts import, once, before anything is forked."""
    for name in ("defenses.dpsgd", "defenses.victim", "evaluation.report", "evaluation.utility", "models.pspnet",
                 "multiprocessing.popen_fork", "torch.utils.tensorboard", "training.attacker", "training.segmentation"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    Image.init()


@dataclass
class Ended:
    """How a run ended: exit code (-N: by signal N), seconds, stderr, what it did with files, peak memory in bytes."""

    code: int
    seconds: float
    err: str
    did: Fault
    peak: int

    def fault(self, *codes: int) -> list[str]:
        """What is wrong when one of `codes` was expected: 0, or one line on stderr."""
        wrong = [] if self.code in codes else [f"exit code {self.code}, not {' or '.join(map(str, codes))}"]
        if "Traceback" in self.err:
            wrong.append("a traceback")
        elif self.code > 0 and len(self.err.splitlines()) != 1:
            wrong.append(f"{len(self.err.splitlines())} lines on stderr")
        return [f"{', '.join(wrong)}: {self.err[-500:]}"] if wrong else []


class Run:
    """A script that runs in a process group of its own."""

    def __init__(self, command: Sequence[str], did: Fault, nobody: bool = False):
        self.did, self.begun = did, time.monotonic()
        self._err = os.memfd_create("stderr")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, did, self._err, nobody)

    def signal(self, number: int, group: bool = True) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def over(self, seconds: float) -> bool:
        """Wait until it ended, `seconds` at most; whether it did."""
        until = time.monotonic() + seconds
        while not (ended := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return ended is not None

    def end(self) -> Ended:
        """How it ended; what hangs is killed, as are children that it left behind."""
        hung = not self.over(PATIENCE)
        seconds = time.monotonic() - self.begun
        self.signal(signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        with open(self._err, "rb") as file:
            file.seek(0)
            text = file.read().decode(errors="replace") + "hung" * hung
        return Ended(os.waitstatus_to_exitcode(status), seconds, text, self.did, usage.ru_maxrss * 1024)


def _become(command: Sequence[str], did: Fault, err: int, nobody: bool) -> None:
    """Be the script from here on, as `python NAME ARGS` would, and never return."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        limit_memory()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [str(ROOT / command[0]), *map(str, command[1:])]
        os.chdir(did.place)
        if nobody:
            os.seteuid(65534)
        did.install()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)


def limit_memory() -> None:
    """Let this process fail, and not the machine, when it wants gigabytes more."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 8 * 2**30,) * 2)


def run(command: Sequence[str], place: Path, **fault: object) -> Ended:
    """Run a script to its end, with a `Fault` on files below `place`."""
    return Run(command, Fault(place, **fault)).end()


def apart(work: Callable, *args: object) -> object:
    """`work(*args)`, computed by a forked process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(write, "wb") as file:
                pickle.dump(work(*args), file)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(answer)


def spread(work: Callable[[int], dict], count: int, jobs: int, what: str) -> list[dict]:
    """`work` of 0 to `count` - 1, by `jobs` processes side by side, in order."""
    if jobs == 1:
        return [work(index) for index in progress(range(count), what)]
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        return list(progress(pool.map(work, range(count)), what, total=count))


def command_of(name: str, world: Path, here: Path) -> list[str]:
    """The command line `name` of `COMMANDS`, which works in the folder `here`."""
    return [part.format(world=world, here=here) for part in COMMANDS[name].split()]


def attacks(name: str) -> bool:
    """Whether a command of `COMMANDS` is an attack, which is called again as it was, and not a training."""
    return COMMANDS[name].startswith("attack.py")


def again(command: Sequence[str], here: Path) -> list[str]:
    """How a run is called again that did not come to its end."""
    if command[0] != "attack.py" and (here / "run" / "last.pth.tar").exists():
        return [command[0], "--continue", str(here / "run")]
    return list(command)


def furnish(name: str, world: Path, here: Path) -> Path:
    """Make the folder `here` with what `name` writes beside its own run: a shadow is asked for posteriors there."""
    here.mkdir(parents=True, exist_ok=True)
    if name == "attacker":
        shutil.copytree(world / "shadow", here / "shadow", ignore=shutil.ignore_patterns("posteriors*", "events"))
    return here


def make_world(world: Path) -> Path:
    """Folder with data/, split files, runs of victim and shadow, and an attacker of 12 x 12 patches."""
    apart(_draw, world)
    for name, out in (("victim", "victim"), ("shadow", "shadow"), ("attacker", "attacker")):
        command = command_of(name, world, world)
        command[command.index("--out") + 1] = str(world / out)
        ended = run(command, world)
        if ended.code:
            raise UserError(f"the world could not be made: {ended.err}")
    return world


def _draw(world: Path) -> None:
    for part, indices in {"victim_in": range(8), "victim_out": range(100, 108), "shadow": range(200, 224)}.items():
        pairs = [Pair(f"img/{i}.png", f"label/{i}.png", f"img/{i}.png") for i in indices]
        write_split(world / f"{part}.txt", pairs)
        for pair, index in zip(pairs, indices, strict=True):
            for path, array in zip((pair.image, pair.label), streets.draw(index), strict=True):
                (world / "data" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[::2, ::2]).save(world / "data" / path)


@dataclass(frozen=True)
class Known:
    """An undisturbed run: its folder, seconds, writes, reads, labels read, and bytes on disk."""

    folder: Path
    seconds: float
    writes: int
    reads: int
    labels: int
    size: int


def undisturbed(name: str, world: Path) -> Known:
    """Run `name` twice, which must leave the same, and keep the first of them."""
    folders = [world / "known" / f"{name}{suffix}" for suffix in ("", ", again")]
    for here in folders:
        ended = run(command_of(name, world, furnish(name, world, here)), world)
        if wrong := ended.fault(0):
            raise UserError(f"{name}: {wrong[0]}")
    if wrong := apart(differences, *folders):
        raise UserError(f"{name} differs from itself: {wrong}")
    shutil.rmtree(folders[1])
    size = sum(path.stat().st_size for path in folders[0].rglob("*") if path.is_file())
    return Known(folders[0], ended.seconds, ended.did.writes, ended.did.reads, ended.did.labels, size)


def left(folder: Path) -> list[Path]:
    """The files of a run that must be whole, relative: all but TensorBoard's and those still being written."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if path.suffix != ".partial" and path.name != ".lock" and "events" not in path.parts]


def content(path: Path) -> object:
    """What a file of a run says, without what differs from run to run; raises when it is not whole."""
    if path.name.endswith(".pth.tar"):
        checkpoint = torch.load(path, weights_only=True)
        return {key: _plain(value) for key, value in checkpoint.items() if key not in ("args", "minutes")}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: _plain(torch.from_numpy(array)) if array.dtype.kind in "if" else array.tolist()
                    for name, array in arrays.items()}
    data = path.read_bytes()
    if path.suffix == ".json":
        return None if path.name == "args.json" and json.loads(data) else {**json.loads(data), "minutes": 0}
    if path.suffix == ".npy":
        np.load(path)
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".jsonl":
        for line in data.splitlines():
            json.loads(line)
    elif path.suffix in (".csv", ".txt") and not data.endswith(b"\n"):
        raise ValueError("the last line is not whole")
    return data


def _plain(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def torn(folder: Path) -> list[str]:
    """Files in `folder` that are not whole."""
    wrong = []
    for path in left(folder):
        try:
            content(folder / path)
        except Exception as error:
            wrong.append(f"{path} is not whole: {type(error).__name__}: {error}"[:300])
    return wrong


def differences(one: Path, two: Path) -> list[str]:
    """Where the results in two folders differ."""
    first, second = ([path for path in left(folder) if "unfinished" not in path.parts] for folder in (one, two))
    wrong = [f"{path} is in one of them only" for path in sorted(set(first) ^ set(second))]
    for path in sorted(set(first) & set(second)):
        try:
            values = content(one / path), content(two / path)
        except Exception as error:
            wrong.append(f"{path} is not whole: {type(error).__name__}: {error}"[:300])
            continue
        if values[0] != values[1]:
            where = [key for key in values[0] if values[0][key] != values[1].get(key)] if isinstance(
                values[0], dict) else ""
            wrong.append(f"{path} differs {where}")
    return wrong
