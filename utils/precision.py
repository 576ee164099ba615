"""The faster precision of a network on this machine, which is measured once and kept in a file."""

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from utils.cli import UserError
from utils.device import PRECISIONS, Compute
from utils.distributed import alone, run_on_main
from utils.files import read_json, write_json

Step = Callable[[Compute], object]  # computes once what a run repeats, with the given device and precision
MARGIN = 1.1  # fp32 is used where it is so many times as fast as bf16, so that close times do not decide
CLEAR = 2.0  # at this ratio of times, one round suffices
ROUNDS = 5  # largest number of rounds
BUDGET = 0.2  # seconds; there are no more than two rounds once they are used up


def settle(compute: Compute, what: str, about: object, make_step: Callable[[], Step]) -> Compute:
    """`compute` with the precision that is faster on this machine, unless its precision was given.

    `what`: kind of the step and name of the network, for the line that is printed after a measurement; `about`: the
    architecture of the network and the shape of its input, whose `repr` tells networks apart, whatever their weights
    are; `make_step`: builds the network and a step on random data.
    The step must change nothing that the run uses later; it may draw from the generators of PyTorch. A step that fails
    decides nothing: the run goes on, and fails with a message if it has the same problem. Under torchrun the main
    process measures, on its own, and all get its answer.
    """
    if not compute.measure:
        return compute
    precision = run_on_main(lambda: _read_or_measure(compute, what, about, make_step))
    return replace(compute, precision=precision, measure=False)


def forward_step(model: Callable[[torch.Tensor], object], inputs: torch.Tensor) -> Step:
    """The step of a network that is queried: a forward pass without gradients."""
    @torch.inference_mode()
    def step(compute: Compute) -> None:
        with compute.autocast():
            model(inputs)

    return step


def random_images(shape: tuple[int, int, int, int], device: torch.device) -> torch.Tensor:
    """Random inputs float32 (N, C, H, W), channels last in memory."""
    return torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)


def architecture(model: torch.nn.Module) -> tuple:
    """What tells networks apart whatever their weights are: their modules, and the names and shapes of the weights."""
    return repr(model), [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def measure(step: Step, compute: Compute, clock: Callable[[], float] = time.perf_counter) -> tuple[str, float]:
    """The precision to use for `step`, and how many times as fast it is as the other one.

    Both are timed in turn after a warm-up, and the shortest time of each counts. bf16 is used unless fp32 is at least
    `MARGIN` times as fast.
    """
    best, spent = dict.fromkeys(PRECISIONS, math.inf), 0.0

    def ratio() -> float:
        return best["bf16"] / best["fp32"]

    for done in range(ROUNDS + 1):
        if (done > 1 and not 1 / CLEAR < ratio() < CLEAR) or (done > 2 and spent > BUDGET):
            break
        for precision in PRECISIONS:
            started = clock()
            step(replace(compute, precision=precision))
            if compute.device.type == "cuda":
                torch.cuda.synchronize(compute.device)
            seconds = clock() - started
            spent += seconds
            if done:  # the first call of each also prepares kernels
                best[precision] = min(best[precision], seconds)
    return ("fp32", ratio()) if ratio() >= MARGIN else ("bf16", 1 / ratio())


def cache_file() -> Path:
    """The file that keeps the choices of this user: $XDG_CACHE_HOME/segmentations-leak/precision.json."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "segmentations-leak" / "precision.json"


def _read_or_measure(compute: Compute, what: str, about: object, make_step: Callable[[], Step]) -> str:
    """The choice in the file or, if there is none, that of a measurement, which is then kept and printed."""
    key = hashlib.sha256(repr((what, about, _machine(compute.device), torch.__version__)).encode()).hexdigest()[:32]
    known = _read()
    if known.get(key) in PRECISIONS:
        return known[key]
    devices = [compute.device] if compute.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), alone():
            precision, factor = measure(make_step(), compute)
    except Exception:  # such as a model of other people that takes no images of this size
        return compute.precision
    where = "not kept"
    with suppress(UserError, RuntimeError):  # RuntimeError: the user has no home
        write_json(cache_file(), _read() | {key: precision})
        where = f"kept in {cache_file()}"
    other = PRECISIONS[1 - PRECISIONS.index(precision)]
    print(f"precision {precision} for the {what}: {factor:.2g} times as fast as {other} here (measured once, {where})")
    return precision


def _read() -> dict:
    """The content of the file of choices; empty if it is missing or broken."""
    with suppress(UserError, RuntimeError):
        found = read_json(cache_file())
        return found if isinstance(found, dict) else {}
    return {}


def _machine(device: torch.device) -> tuple:
    """The name of the GPU; or the processor, its instructions and the number of threads."""
    if device.type == "cuda":
        return (torch.cuda.get_device_name(device),)
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return name, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
