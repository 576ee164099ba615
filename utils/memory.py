"""The memory of a process."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt (malloc.h of glibc)
KEPT = 2**30  # bytes of freed memory that a process keeps
DEFAULTS = {TRIM_THRESHOLD: 2**17, MMAP_MAX: 2**16}


def keep_freed_memory(keep: bool = True) -> None:
    """Make this process keep freed memory for its next arrays, up to `KEPT` bytes at the end of its heap.

    glibc gives each freed array of more than some MiB back to the kernel, and must ask it for new pages for the next
    one, which takes time. A training step makes hundreds of such arrays. `keep`: False for what glibc does by default,
    for comparisons. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, value in ({TRIM_THRESHOLD: KEPT, MMAP_MAX: 0} if keep else DEFAULTS).items():
            mallopt(parameter, value)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's search for circular references, which looks at all objects again and again while many are made."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
