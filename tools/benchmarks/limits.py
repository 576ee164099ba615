"""The highest rates of this machine (matrix products, convolutions, copies of memory), and the costs of a process."""

import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from utils.cli import UserError
from utils.device import CPU, resolve_precision
from utils.files import ROOT
from utils.memory import keep_freed_memory

SHAPES = tuple(itertools.product((256, 512, 1024), (3, 1), (48, 24, 96)))  # channels, side of the kernel, side of a map
WORK = {"fp32": 22e9, "bf16": 44e9}  # FLOPs of a measured convolution on a CPU; a GPU gets 16 times as many


def time_calls(work: Callable[[], object], device: torch.device = CPU, rounds: int = 5,
               warm_up: int = 2) -> list[float]:
    """Seconds of each of `rounds` calls. The `warm_up` calls before them are not counted."""
    seconds = []
    for _ in range(warm_up + rounds):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[warm_up:]


@torch.inference_mode()
def measure_limits(device: torch.device = CPU) -> dict[str, float | str]:
    """Rates of this machine: `product_*` and `convolution_*` in TFLOP/s, `copy` in GB/s (bytes read and written).

    `convolution_*_shape` says which of `SHAPES` has the rate `convolution_*`. Where bf16 is emulated, which is very
    slow, less work is measured in bf16, and only the first shape. On a CPU the process keeps the memory that it frees
    from then on, as in a training; otherwise the pages of each result take a part of the time.
    """
    if device.type == "cpu":
        keep_freed_memory()
    rates = {}
    factor = 4 if device.type == "cuda" else 1
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        emulated = dtype == torch.bfloat16 and not uses_bf16(device)
        side = 512 if emulated else 2048 * factor
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[f"product_{name}"] = 2 * side**3 / min(time_calls(lambda a=a, b=b: a @ b, device)) / 1e12
        shapes, work = (SHAPES[:1], 3e9) if emulated else (SHAPES, WORK[name] * factor**2)
        rate, shape = fastest_convolution(dtype, device, shapes, work)
        rates |= {f"convolution_{name}": rate, f"convolution_{name}_shape": shape}
    source = torch.randn(64 * factor * 2**20, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.numel() * 4 / min(time_calls(lambda: target.copy_(source), device)) / 1e9
    return rates


def fastest_convolution(dtype: torch.dtype, device: torch.device, shapes: Sequence[tuple[int, int, int]],
                        work: float) -> tuple[float, str]:
    """The highest rate of `shapes` in TFLOP/s, after two calls as warm-up, and in words which shape has it.

    A shape is (channels before and after the convolution, side of the kernel, side of a map). Its batch is as large as
    `work` FLOPs allow; a shape is left out if one map takes more. Maps are in channels_last.
    """
    measured = []
    for channels, kernel, side in shapes:
        flops = 2 * channels**2 * kernel**2 * side**2  # of one map
        batch = int(work // flops)
        if batch:
            layer = torch.nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
            layer = layer.to(device, dtype, memory_format=torch.channels_last)
            maps = torch.randn(1, channels, side, side, device=device).to(dtype).expand(batch, -1, -1, -1)
            maps = maps.contiguous(memory_format=torch.channels_last)
            seconds = min(time_calls(lambda layer=layer, maps=maps: layer(maps), device, rounds=3))
            shape = f"{kernel} x {kernel}, {channels} channels, {side} x {side}, batch {batch}"
            measured.append((batch * flops / seconds / 1e12, shape))
    return max(measured)


def describe_limits(limits: dict[str, float | str]) -> str:
    """The limits in one line, each convolution with its shape. Measurements of earlier versions have no shapes."""
    shapes = {name.removesuffix("_shape"): f" ({value})" for name, value in limits.items() if name.endswith("_shape")}
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}{shapes.get(name, '')}" for name, value in limits.items()
                     if not name.endswith("_shape")) + " (TFLOP/s; copy in GB/s)"


def uses_bf16(device: torch.device = CPU) -> bool:
    """Whether `--precision auto` means bf16 on this device."""
    return resolve_precision("auto", device) == "bf16"


def in_new_process(work: Callable, *args: object) -> dict:
    """`work(*args)`, computed in a new process, so that its peak memory is not that of other work."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def peak_mib() -> int:
    """Peak resident memory of this process in MiB. On Linux `getrusage` may return that of the parent process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return round(int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024)


def measure_command(words: Sequence[str]) -> tuple[dict, str]:
    """Run a Python command in a new process: its costs and its output.

    The costs: "seconds", "cpu_seconds" (processor time) and "mib_peak" (peak memory of its largest process). Raises
    `UserError` with the end of the output if it fails.
    """
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        said = log.read()
    if status:
        raise UserError(f"{' '.join(words)} stopped: {said[-2000:]}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "mib_peak": round(usage.ru_maxrss / 1024)}, said
