"""Freed memory is kept for the next arrays."""

import subprocess
import sys

import pytest
from conftest import ROOT

COUNT = """
import resource
import torch
from utils.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for keep in (False, True):
    keep_freed_memory(keep)
    torch.empty(10_000_000).fill_(1)
    before = faults()
    for _ in range(100):
        torch.empty(10_000_000).fill_(1)
    print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is a function of glibc")
def test_new_arrays_get_the_freed_pages():
    """The size of a page differs between machines, so the two counts are compared."""
    done = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 1000 and kept < given_back / 4


def test_another_c_library(monkeypatch):
    from utils import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
