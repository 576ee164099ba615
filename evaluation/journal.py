"""What an attack has scored so far, stored in its run's folder, so that the same call resumes after a stop.

Images are scored part by part. A part is identified by its images and the state of their files, so that an image that
was changed in the meantime is scored again. `DIR/unfinished/` is deleted once the results are written.
"""

import json
import shutil
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from attacks.activation import CamResult
from attacks.sample import Scored
from predictors.base import Record
from utils.cli import UserError
from utils.distributed import gather, is_main, own_share, process_rank, run_on_main, world_size
from utils.files import atomic_open, fingerprint, lock_run, read_json
from utils.log import progress
from utils.pause import Pause


@dataclass
class Part:
    """Some images after the attack: their scores, confusion matrices {member: (C, C)}, and CAM results, if any."""

    scored: list[Scored]
    matrices: dict[bool, np.ndarray] = field(default_factory=dict)
    cams: list[CamResult] = field(default_factory=list)


@dataclass(frozen=True)
class RunPlace:
    """Where an attack writes: `out`, or the next free runs/attack-N; what it may resume; how often it saves.

    `stamp` identifies the call; `files` gives the files that a record's sample is read from; `drawn` are the names
    whose maps are drawn and which are therefore scored again.
    """

    out: str | None
    stamp: str
    files: Callable[[Record], Sequence[Path]]
    save_every: float = 10.0
    drawn: Container[str] = ()


def find_unfinished(place: RunPlace) -> Path | None:
    """Find and lock an unfinished run with the same stamp: in `out`, or in one of runs/attack-N."""
    for folder in [Path(place.out)] if place.out else sorted(Path("runs").glob("attack-*")):
        if _has_stamp(folder / "unfinished", place.stamp):
            try:
                lock_run(folder)
                return folder
            except UserError:
                if place.out:
                    raise
    return None


def _has_stamp(folder: Path, stamp: str) -> bool:
    marker = folder / "stamp"
    return marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == stamp


class Journal:
    """The finished parts of one attack, in files of `folder`/unfinished; each save writes one file."""

    def __init__(self, folder: Path, stamp: str):
        self.run, self._folder, self._unsaved = folder, folder / "unfinished", {}
        if is_main() and not _has_stamp(self._folder, stamp):
            if self._folder.exists():
                shutil.rmtree(self._folder)
            with atomic_open(self._folder / "stamp", "w") as file:
                file.write(stamp)

    def add(self, key: str, part: Part) -> None:
        """Note a finished part; `save` writes it."""
        self._unsaved[key] = {
            "scored": [asdict(scored) for scored in part.scored],
            "matrices": [[member, matrix.tolist()] for member, matrix in part.matrices.items()],
            "cams": [asdict(replace(cam, maps=[])) for cam in part.cams]}

    def save(self) -> None:
        """Write the parts that were added since the last save."""
        if self._unsaved:
            number = sum(1 for _ in self._folder.glob(f"{process_rank()}-*.json"))
            with atomic_open(self._folder / f"{process_rank()}-{number}.json", "w") as file:
                json.dump(self._unsaved, file)
        self._unsaved = {}

    def delete(self) -> None:
        """Delete the parts once the run is finished."""
        shutil.rmtree(self._folder)


def _key(records: Sequence[Record], place: RunPlace) -> str:
    """Identifies a part by the names of its images, and the sizes and times of their files."""
    states = [path.stat() for record in records for path in place.files(record) if path.exists()]
    names = [record.name for record in records]
    return fingerprint([], names, [(state.st_size, state.st_mtime_ns) for state in states])


def _load_parts(folder: Path, parts: Sequence[Sequence[Record]], place: RunPlace) -> dict[int, Part]:
    """Number -> part, of those stored in `folder`; without those that have an image to draw, whose maps are missing."""
    stored = {key: part for path in folder.glob("unfinished/*.json") for key, part in read_json(path).items()}
    loaded = {}
    for number, records in enumerate(parts):
        part = stored.get(_key(records, place))
        if part and not any(record.name in place.drawn for record in records):
            loaded[number] = Part([Scored(**values) for values in part["scored"]],
                                  {member: np.array(matrix) for member, matrix in part["matrices"]},
                                  [CamResult(**values) for values in part["cams"]])
    return loaded


def score_parts(parts: Sequence[Sequence[Record]], score: Callable[[Sequence[Record]], Part],
                start: Callable[[], Path], place: RunPlace) -> tuple[list[Part], Journal]:
    """Score all parts, in order, or load those that an unfinished run has; returns them and the run's journal.

    `start` makes the run's folder, once the first part is scored. Saves every `place.save_every` seconds, when a signal
    asks to stop, and when an image cannot be used.
    """
    folder = run_on_main(lambda: find_unfinished(place))
    done = run_on_main(lambda: _load_parts(folder, parts, place) if folder else {})
    missing = [number for number in range(len(parts)) if number not in done]
    own, journal = own_share(missing), None
    total, loaded = sum(map(len, parts)), sum(len(parts[number]) for number in done)
    with (progress(None, "attacking", total, initial=loaded) as bar,
          Pause(place.save_every, "the same command resumes") as pause):
        try:
            for turn in range(-(-len(missing) // world_size())):  # as many on every process: they meet in `due`
                here = own[turn : turn + 1]
                done |= {number: score(parts[number]) for number in here}
                journal = journal or Journal(folder or run_on_main(start), place.stamp)
                for number in here:
                    journal.add(_key(parts[number], place), done[number])
                    bar.update(len(parts[number]) * world_size())
                if pause.due():
                    journal.save()
                    pause.saved()
        except UserError:
            if journal:
                journal.save()
            raise
    done |= dict(gather([(number, done[number]) for number in own]))
    return [done[number] for number in range(len(parts))], journal or Journal(folder, place.stamp)
