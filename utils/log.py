"""Progress bars, timings, and the logs of a run: log.jsonl and events for TensorBoard."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.distributed import is_main
from utils.files import atomic_open


class Timings:
    """Measure the time of each stage of a run. `str` gives, for example, `5.1 s: starting 2.9, ...`."""

    def __init__(self, started: float | None = None) -> None:
        self._start = self._last = time.monotonic() if started is None else started
        self._laps: list[str] = []

    def lap(self, name: str) -> None:
        """Record the time since the previous call as the stage `name`."""
        now = time.monotonic()
        self._laps.append(f"{name} {now - self._last:.1f}")
        self._last = now

    def __str__(self) -> str:
        return f"{self._last - self._start:.1f} s: {', '.join(self._laps)}"


class RunLog:
    """Write the metrics of a run to DIR/log.jsonl and, for TensorBoard, to DIR/events.

    `done`: number of complete steps when the run starts or resumes. Lines of later steps, which an earlier process
    wrote, are removed.
    """

    def __init__(self, folder: Path, done: int = 0):
        self._path = folder / "log.jsonl"
        self._lines = [line for line in _read_lines(self._path) if line["step"] <= done]
        # One file that grows: TensorBoard follows it, and reads the last record only when the record is complete.
        self._events = folder / "events" / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._resume_event = {"step": done + 1, "session_log": {"status": "START"}} if done else {}

    def add(self, step: int, **metrics: float) -> None:
        """Record `metrics` at `step` (an epoch, counted from 1). Only the main process writes."""
        if not is_main():
            return
        self._lines.append({"step": step, **metrics})
        with atomic_open(self._path, "w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in self._lines)
        if not self._events.exists():
            self._events.parent.mkdir(exist_ok=True)
            self._write_event(file_version="brain.Event:2")
            if self._resume_event:
                self._write_event(**self._resume_event)
        self._write_event(step=step, summary={"value": [{"tag": name, "simple_value": value}
                                                        for name, value in metrics.items()]})

    def _write_event(self, **fields: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with open(self._events, "ab") as file:
            RecordWriter(file).write(Event(wall_time=time.time(), **fields).SerializeToString())


def _read_lines(path: Path) -> list[dict]:
    """Read the valid lines of a log; skip all others, for example a line that a killed process left incomplete."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def progress(items: Iterable | None, title: str | None, total: int | None = None, hidden: bool = False,
             **options: object) -> tqdm:
    """A progress bar on stderr. It is shown only in the main process, on a terminal, and if not `hidden`."""
    visible = is_main() and sys.stderr.isatty() and not hidden
    return tqdm(items, desc=title, total=total, file=sys.stderr, disable=not visible, leave=False, dynamic_ncols=True,
                **options)
