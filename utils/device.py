"""Where a run computes, and in which precision."""

import os
import sys
from contextlib import AbstractContextManager

import torch

from utils.cli import UserError
from utils.distributed import is_main, join


def choose_device(gpu: int | None) -> torch.device:
    """Device of `-gpu`: CUDA where there is one, else the CPU with a line that says so.

    Under torchrun each process takes the GPU of its local rank, and meets the others here. Raises `UserError` when CUDA
    is there but has no device of that number.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", gpu or 0))
        if not 0 <= number < torch.cuda.device_count():
            raise UserError(f"-gpu {number}: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    elif gpu is not None and is_main():
        print(f"no CUDA here: -gpu {gpu} is ignored and the CPU does the work", file=sys.stderr)
    join(device)
    return device


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bf16 autocast, on for `bf16`, off for `fp32`, and for `auto` where the processor computes bf16 itself.

    A processor without bf16 units emulates it: one 3x3 convolution layer, forward and backward, took 11 times
    as long as in float32 on an AVX2 machine.
    """
    if precision == "auto":
        wanted = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    else:
        wanted = precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
