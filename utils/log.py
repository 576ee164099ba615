"""The record of a run: a progress bar to watch, log.jsonl to keep, TensorBoard events to plot."""

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
    """What a run spent its seconds on; prints as `5.1 s: starting 2.9, ...`."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._laps: list[str] = []

    def lap(self, name: str) -> None:
        """All since the last lap was `name`."""
        now = time.monotonic()
        self._laps.append(f"{name} {now - self._last:.1f}")
        self._last = now

    def __str__(self) -> str:
        return f"{self._last - self._begun:.1f} s: {', '.join(self._laps)}"


class RunLog:
    """Figures of a run in DIR/log.jsonl and, for TensorBoard, in DIR/events.

    `done` steps are behind it when it begins: what an earlier process noted of later ones is dropped.
    """

    def __init__(self, folder: Path, done: int = 0):
        self._path = folder / "log.jsonl"
        self._lines = [line for line in _lines(self._path) if line["step"] <= done]
        # TensorBoard follows a file that grows, and reads its last record only once it is whole.
        self._events = folder / "events" / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._begun = {"step": done + 1, "session_log": {"status": "START"}} if done else {}

    def add(self, step: int, **figures: float) -> None:
        """Record `figures` at `step` (an epoch, counted from 1)."""
        if not is_main():
            return
        self._lines.append({"step": step, **figures})
        with atomic_open(self._path, "w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in self._lines)
        if not self._events.exists():
            self._events.parent.mkdir(exist_ok=True)
            self._event(file_version="brain.Event:2")
            if self._begun:
                self._event(**self._begun)
        self._event(step=step, summary={"value": [{"tag": name, "simple_value": value}
                                                  for name, value in figures.items()]})

    def _event(self, **what: object) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with open(self._events, "ab") as file:
            RecordWriter(file).write(Event(wall_time=time.time(), **what).SerializeToString())


def _lines(path: Path) -> list[dict]:
    """What a log holds; lines of another form are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def progress(items: Iterable | None, what: str | None, total: int | None = None, hidden: bool = False,
             **options: object) -> tqdm:
    """A progress bar on stderr; not shown where stderr is no terminal, or `hidden`."""
    shown = is_main() and sys.stderr.isatty() and not hidden
    return tqdm(items, desc=what, total=total, file=sys.stderr, disable=not shown, leave=False, dynamic_ncols=True,
                **options)
