"""The device and the precision of a run."""

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from utils.cli import UserError
from utils.distributed import is_main, join
from utils.memory import keep_freed_memory

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16")
OVERRIDE = "SEGLEAK_PRECISION"  # environment variable that sets the meaning of `auto`, for tests of both precisions


@dataclass(frozen=True)
class Compute:
    """A device and the precision of the networks on it, "fp32" or "bf16".

    `measure`: nobody chose the precision, so `utils.precision.settle` may replace it by the faster one.
    """

    device: torch.device = CPU
    precision: str = "fp32"
    measure: bool = False

    def autocast(self) -> AbstractContextManager:
        """A context with bf16 autocast if the precision is bf16, and without autocast otherwise."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


CPU_FP32 = Compute()


def choose_compute(gpu: int | None, precision: str = "auto") -> Compute:
    """The device of `-gpu` and the precision of `--precision`. Under torchrun, the process joins the group."""
    return compute_on(choose_device(gpu), precision)


def compute_on(device: torch.device, precision: str = "auto") -> Compute:
    """A device with the precision of `--precision`. "auto" is measured where the processor has bf16 units.

    Without them fp32 is used, and the value of SEGLEAK_PRECISION is used as it is.
    """
    resolved = resolve_precision(precision, device)
    return Compute(device, resolved, precision == "auto" and resolved == "bf16" and not os.environ.get(OVERRIDE))


def choose_device(gpu: int | None) -> torch.device:
    """The CUDA device number `gpu` (None: the first one), or the CPU if there is no CUDA.

    Without CUDA, a line on stderr says that -gpu is ignored. Under torchrun each process uses the GPU of its local
    rank, and joins the process group here. Raises `UserError` if CUDA is available but has no device of this number.
    """
    device = CPU
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", gpu or 0))
        if not 0 <= number < torch.cuda.device_count():
            raise UserError(f"-gpu {number}: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    elif gpu is not None and is_main():
        print(f"this machine has no CUDA: -gpu {gpu} is ignored, and the CPU is used", file=sys.stderr)
    if device == CPU:
        keep_freed_memory()
    join(device)
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "fp32" or "bf16". "auto" is bf16 if the processor has bf16 units, unless SEGLEAK_PRECISION is set.

    This is the choice without a measurement (`Compute.measure`).
    A processor without bf16 units emulates bf16: one 3x3 convolution layer, forward and backward, took 11 times as long
    as in float32 on an AVX2 machine. Raises `UserError` for another value of SEGLEAK_PRECISION.
    """
    if precision != "auto":
        return precision
    if override := os.environ.get(OVERRIDE):
        if override not in PRECISIONS:
            raise UserError(f"{OVERRIDE}={override}: expected one of {', '.join(PRECISIONS)}")
        return override
    return "bf16" if has_bf16_units(device) else "fp32"


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device computes in bf16 itself, and does not emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
