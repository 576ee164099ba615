"""Several processes on one job, as torchrun starts them. Alone, all of this is nothing.

Work is shared out by position and comes back in order, so that an attack does not depend on how many there are; the
main process is the one that prints and writes.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from utils.cli import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # of a process for the others, while one of them writes or asks


def process_rank() -> int:
    """This process among its like, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes share the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process prints and writes."""
    return process_rank() == 0


def join(device: "torch.device") -> None:
    """Meet the other processes, over NCCL for what lies on GPUs and gloo for the rest."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


def run_on_main(work: Callable[[], T]) -> T:
    """What `work` returns, done once, by the main process; all of them end when it raises `UserError`."""
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    answer: list = [None, None]
    if is_main():
        try:
            answer[0] = work()
        except UserError as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1] if is_main() else SystemExit(2)
    return answer[0]


def own_share(items: Sequence[T], block: int = 1) -> list[T]:
    """This process's share of `items`: every world_size()-th block of `block` items."""
    return [item for index, item in enumerate(items) if index // block % world_size() == process_rank()]


def gather(own: Sequence[T], block: int = 1) -> list[T]:
    """What all processes made of their shares, in the order of the items that were shared, for each of them."""
    if world_size() == 1:
        return list(own)
    import torch.distributed as dist

    shares: list = [None] * world_size()
    dist.all_gather_object(shares, list(own))
    return interleave(shares, block)


def interleave(shares: Sequence[Sequence[T]], block: int) -> list[T]:
    """The items whose shares these are: the inverse of `own_share`."""
    starts = range(0, max(map(len, shares)), block)
    return [item for start in starts for one in shares for item in one[start : start + block]]


def sum_over_processes(value: "torch.Tensor") -> "torch.Tensor":
    """Sum of a tensor over all processes."""
    if world_size() > 1:
        import torch.distributed as dist

        value = value.clone()
        dist.all_reduce(value)
    return value


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def print_once(text: str) -> None:
    """Print, once."""
    if is_main():
        print(text)
