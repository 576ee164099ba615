"""The highest rates of this machine (matrix products, convolutions, copies of memory), and memory of this process."""

import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from utils.device import CPU, resolve_precision


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
def measure_limits(device: torch.device = CPU) -> dict[str, float]:
    """Rates of this machine: `product_*` and `convolution_*` in TFLOP/s, `copy` in GB/s (bytes read and written)."""
    rates = {}
    factor = 4 if device.type == "cuda" else 1
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        emulated = dtype == torch.bfloat16 and not uses_bf16(device)  # emulated bf16 is very slow, so do less work
        side, count = (512, 1) if emulated else (2048 * factor, 8 * factor)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[f"product_{name}"] = 2 * side**3 / min(time_calls(lambda a=a, b=b: a @ b, device)) / 1e12
        layer = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False)
        layer = layer.to(device, dtype, memory_format=torch.channels_last)
        maps = torch.randn(count, 256, 48, 48, device=device).to(dtype, memory_format=torch.channels_last)
        flops = 2 * count * 48 * 48 * 256 * 256 * 9
        seconds = min(time_calls(lambda layer=layer, maps=maps: layer(maps), device))
        rates[f"convolution_{name}"] = flops / seconds / 1e12
    source = torch.randn(64 * factor * 2**20, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.numel() * 4 / min(time_calls(lambda: target.copy_(source), device)) / 1e9
    return rates


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
