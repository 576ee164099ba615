"""Run one job in several processes that torchrun starts. With one process, no communication takes place.

Work is divided by the position of the items, and results are gathered in the same order, so they do not depend on the
number of processes. Only the main process prints, and writes the files of a run.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from utils.cli import AFTER_SUCCESS, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # longest time that a process waits for the others, e.g. while the main process writes
WARNED: set[str] = set()  # the texts of `warn_once`


def process_rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Return whether this is the main process, which prints and writes files."""
    return process_rank() == 0


def join(device: "torch.device") -> None:
    """Connect this process to the others: with NCCL for tensors on GPUs, and with gloo for all other data."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)
    AFTER_SUCCESS.append(leave)


def leave() -> NoReturn:
    """Wait for the other processes, then end this one with exit code 0 and without the shutdown of the interpreter.

    During that shutdown PyTorch 2.14 aborted a process whose run was complete ("terminate called without an active
    exception", seen once in a test run, not again in 150 repetitions), and torchrun then reported a failure.
    """
    barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_on_main(work: Callable[[], T]) -> T:
    """Call `work` in the main process only and return its result in every process.

    If `work` raises `UserError`, the main process raises it and the others exit with code 2.
    """
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    answer: list = [None, None]  # result, error
    if is_main():
        try:
            answer[0] = work()
        except UserError as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1] if is_main() else SystemExit(2)
    return answer[0]


@contextmanager
def alone() -> Iterator[None]:
    """Within this context, this process computes as if it were the only one of the job."""
    before = os.environ.pop("WORLD_SIZE", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["WORLD_SIZE"] = before


def own_share(items: Sequence[T], block: int = 1) -> list[T]:
    """Return the items that this process handles: every world_size()-th block of `block` items."""
    rank, size = process_rank(), world_size()
    return [item for index, item in enumerate(items) if index // block % size == rank]


def gather(results: Sequence[T], block: int = 1) -> list[T]:
    """Gather the results of all processes, in the order of the items before `own_share`. Every process gets all."""
    if world_size() == 1:
        return list(results)
    import torch.distributed as dist

    shares: list = [None] * world_size()
    dist.all_gather_object(shares, list(results))
    return interleave(shares, block)


def interleave(shares: Sequence[Sequence[T]], block: int) -> list[T]:
    """Merge the shares of all processes into the original order: the inverse of `own_share`."""
    starts = range(0, max(map(len, shares)), block)
    return [item for start in starts for share in shares for item in share[start : start + block]]


def sum_over_processes(value: "torch.Tensor") -> "torch.Tensor":
    """Return the sum of a tensor over all processes; `value` itself does not change."""
    if world_size() > 1:
        import torch.distributed as dist

        value = value.clone()
        dist.all_reduce(value)
    return value


def barrier() -> None:
    """Wait until all processes have called this function."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def print_once(text: str) -> None:
    """Print `text` in the main process only."""
    if is_main():
        print(text)


def warn_once(text: str) -> None:
    """Print a warning on stderr, in the main process only, and each text once in a run of a script."""
    if is_main() and text not in WARNED:
        WARNED.add(text)
        print(f"warning: {text}", file=sys.stderr)
