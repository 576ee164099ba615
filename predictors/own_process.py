"""Models in files that can run code: TorchScript, torch.export, and a function in a file of Python.

Loading such a file can do anything that its user can do. So it is loaded only with --trust-code, and in a process of
its own, which answers with plain arrays. That process cannot change or stop this one, but it is no sandbox: it can read
and write files.
"""

import io
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from predictors.arrays import ArrayPredictor
from predictors.base import PredictorOptions, Query
from predictors.preprocess import Preprocess
from utils.arrays import parse_npy
from utils.cli import UserError

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 300.0  # seconds for an answer; the first one includes loading the file
LIMIT = 4 * 2**30  # largest answer in bytes


class Worker:
    """A process of `worker.py`. It starts with this object and is killed with it, or with this process."""

    def __init__(self, where: str, *words: str):
        self.where, self.log = where, tempfile.TemporaryFile()  # noqa: SIM115, it is open as long as the process runs
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), *words], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
        os.set_blocking(self.process.stdin.fileno(), False)
        self.close = weakref.finalize(self, _end, self.process)

    def ask(self, image: np.ndarray) -> np.ndarray:
        """The array that the process answers. Raises `UserError` if it ends, hangs, or writes anything else."""
        content, deadline = io.BytesIO(), time.monotonic() + TIMEOUT
        np.save(content, image, allow_pickle=False)
        try:
            self._write(content.tell().to_bytes(8, "little") + content.getvalue(), deadline)
            size = int.from_bytes(self._read(8, deadline), "little")
            if size > LIMIT:
                raise ValueError(f"its answer has more than {LIMIT / 2**30:g} GiB")
            return parse_npy(self._read(size, deadline))
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, (EOFError, BrokenPipeError)):
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)  # its exit code comes after the end of its pipes
            self.close()
            raise UserError(f"{self.where}: {self._reason(error)}") from None

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait([], [self.process.stdin], deadline)
            rest = rest[os.write(self.process.stdin.fileno(), rest) :]

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            _wait([self.process.stdout], [], deadline)
            data += (part := os.read(self.process.stdout.fileno(), min(size - len(data), 2**20)))
            if not part:
                raise EOFError
        return bytes(data)

    def _reason(self, error: Exception) -> str:
        """What went wrong, with the last line that the process wrote to stderr."""
        if isinstance(error, TimeoutError):
            return f"its process gave no answer within {TIMEOUT:g} seconds and was ended; give a file that answers"
        if isinstance(error, ValueError):
            return f"its process gave no plain array ({error}); let it return an array of numbers"
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 2000))
        lines = self.log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {self.process.returncode}")
        return f"its process ended: {last[:300]}"


def _wait(readers: list, writers: list, deadline: float) -> None:
    """Wait until a pipe is ready. Raises `TimeoutError` after the deadline."""
    if not any(select.select(readers, writers, [], max(0, deadline - time.monotonic()))):
        raise TimeoutError


def _end(process: subprocess.Popen) -> None:
    """Kill a process and those that it started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


class OwnProcessPredictor(ArrayPredictor):
    """A model that another process loads. It starts at the first query, and only with --trust-code."""

    takes = frozenset({"preprocess", "trust_code"})
    language: str

    def __init__(self, where: str, options: PredictorOptions):
        super().__init__(where, options)
        self.words = [self.language, *self.split(where)]
        if not Path(self.words[1]).is_file():
            raise UserError(f"{self.words[1]}: no such file; give the file of a model")
        if not options.access.trust_code:
            raise UserError(f"{where} can run any code on this machine when it is loaded; give --trust-code if you "
                            "trust the one who made it, or export the model as ONNX, which runs no code")
        self.worker: Worker | None = None

    def split(self, where: str) -> list[str]:
        """The words after the language on the command line of the worker: file and device."""
        return [where, str(self.options.compute.device)]

    def answer(self, inputs: torch.Tensor, key: str) -> np.ndarray:
        return self.send(inputs.numpy())

    def send(self, array: np.ndarray) -> np.ndarray:
        """The answer of the process, which starts here."""
        self.worker = self.worker or Worker(self.where, *self.words)
        return self.worker.ask(array)


class TorchScript(OwnProcessPredictor):
    """A network of torch.jit that maps float32 (1, C, H, W) to (1, classes, h, w)."""

    language = "torchscript"


class Exported(OwnProcessPredictor):
    """A program of torch.export with the same arguments, in a file that torch.export.save wrote."""

    language = "exported"


class PythonFunction(OwnProcessPredictor):
    """A function of an image uint8 (H, W, 3). It returns posteriors or logits (C, h, w), or a label map (H, W)."""

    prepares = False
    language = "python"

    def split(self, where: str) -> list[str]:
        file, _, function = where.rpartition(":")
        if not function.isidentifier():
            raise UserError(f"python:{where}: give FILE.py:FUNCTION, for example python:model.py:predict")
        return [file, str(self.options.compute.device), function]

    def fetch(self, query: Query, preprocess: Preprocess) -> np.ndarray:
        return self.send(query.image)
