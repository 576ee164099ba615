"""The most that this machine does: matrix products, convolutions, copying memory."""

import time
from collections.abc import Callable

import torch

from utils.device import autocast


def best(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds of the quickest of `rounds` calls, after one to warm up."""
    work()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


@torch.inference_mode()
def limits() -> dict[str, float]:
    """Rates in TFLOP/s (`product_*`, `convolution_*`) and GB/s (`copy`: read and written bytes)."""
    out = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        side, count = (2048, 8) if dtype == torch.float32 or uses_bf16() else (512, 1)  # emulated, it takes for ever
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        out[f"product_{name}"] = 2 * side**3 / best(lambda a=a, b=b: a @ b) / 1e12
        layer = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False).to(dtype, memory_format=torch.channels_last)
        maps = torch.randn(count, 256, 48, 48).to(dtype, memory_format=torch.channels_last)
        flops = 2 * count * 48 * 48 * 256 * 256 * 9
        out[f"convolution_{name}"] = flops / best(lambda layer=layer, maps=maps: layer(maps)) / 1e12
    source = torch.randn(64 * 2**20)
    target = torch.empty_like(source)
    out["copy"] = 2 * source.numel() * 4 / best(lambda: target.copy_(source)) / 1e9
    return out


def uses_bf16() -> bool:
    """Whether `--precision auto` computes in bf16 here."""
    with autocast(torch.device("cpu")):
        return torch.is_autocast_enabled("cpu")
