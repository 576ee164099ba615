"""The most that this machine does: matrix products, convolutions, copying memory; and what a process took of it."""

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils.device import autocast

CPU = torch.device("cpu")


def times(work: Callable[[], object], device: torch.device = CPU, rounds: int = 5) -> list[float]:
    """Seconds of `rounds` calls, after two to warm up."""
    out = []
    for _ in range(2 + rounds):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        out.append(time.perf_counter() - begun)
    return out[2:]


@torch.inference_mode()
def limits(device: torch.device = CPU) -> dict[str, float]:
    """Rates in TFLOP/s (`product_*`, `convolution_*`) and GB/s (`copy`: read and written bytes)."""
    out = {}
    large = 4 if device.type == "cuda" else 1
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        emulated = dtype == torch.bfloat16 and not uses_bf16(device)  # which takes for ever
        side, count = (512, 1) if emulated else (2048 * large, 8 * large)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out[f"product_{name}"] = 2 * side**3 / min(times(lambda a=a, b=b: a @ b, device)) / 1e12
        layer = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False)
        layer = layer.to(device, dtype, memory_format=torch.channels_last)
        maps = torch.randn(count, 256, 48, 48, device=device).to(dtype, memory_format=torch.channels_last)
        flops = 2 * count * 48 * 48 * 256 * 256 * 9
        out[f"convolution_{name}"] = flops / min(times(lambda layer=layer, maps=maps: layer(maps), device)) / 1e12
    source = torch.randn(64 * large * 2**20, device=device)
    target = torch.empty_like(source)
    out["copy"] = 2 * source.numel() * 4 / min(times(lambda: target.copy_(source), device)) / 1e9
    return out


def uses_bf16(device: torch.device = CPU) -> bool:
    """Whether `--precision auto` computes in bf16 there."""
    with autocast(device):
        return torch.is_autocast_enabled(device.type)


def peak_mib() -> int:
    """Peak resident memory of this process in MiB; on Linux not that of the parent, which getrusage may give."""
    status = Path("/proc/self/status")
    if not status.exists():
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return round(int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024)
