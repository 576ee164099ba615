"""Save the scores of an unfinished attack in the folder of its run, so that the same call can resume after a stop.

Images are scored in parts of a few images. The key of a part contains the names of its images and the sizes and times
of their files, so an image that has changed is scored again. `DIR/unfinished/` is deleted when the results are written.
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
    """The results of one part: scores, confusion matrices {member: (C, C)}, CAM results, and scores of the control.

    The last two are empty if they are not asked for.
    """

    scored: list[Scored]
    matrices: dict[bool, np.ndarray] = field(default_factory=dict)
    cams: list[CamResult] = field(default_factory=list)
    control: list[Scored] = field(default_factory=list)


@dataclass(frozen=True)
class RunPlace:
    """The folder of a run, and the data that decide whether an unfinished run can be resumed.

    `out`: the folder (None: the next free runs/attack-N); `stamp`: identifies the call; `files`: returns the files from
    which the sample of a record is read; `save_every`: seconds between saves; `drawn`: names of the images whose maps
    are drawn. These images are always scored again, because maps are not saved.
    """

    out: str | None
    stamp: str
    files: Callable[[Record], Sequence[Path]]
    save_every: float = 10.0
    drawn: Container[str] = ()


def find_unfinished(place: RunPlace) -> Path | None:
    """Find and lock an unfinished run with the same stamp: `out`, or without `out` one of runs/attack-N."""
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
    """The finished parts of one attack, in files in `folder`/unfinished. Each save writes one file."""

    def __init__(self, folder: Path, stamp: str):
        self.run, self._folder, self._unsaved = folder, folder / "unfinished", {}
        if is_main() and not _has_stamp(self._folder, stamp):
            if self._folder.exists():
                shutil.rmtree(self._folder)
            with atomic_open(self._folder / "stamp", "w") as file:
                file.write(stamp)

    def add(self, key: str, part: Part) -> None:
        """Add a finished part. The next `save` writes it."""
        self._unsaved[key] = {
            "scored": [asdict(scored) for scored in part.scored],
            "matrices": [[member, matrix.tolist()] for member, matrix in part.matrices.items()],
            "cams": [asdict(replace(cam, maps=[])) for cam in part.cams],
            "control": [asdict(scored) for scored in part.control]}

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
    """The key of a part: a hash of the names of its images, and of the sizes and times of their files."""
    states = [path.stat() for record in records for path in place.files(record) if path.exists()]
    names = [record.name for record in records]
    return fingerprint([], names, [(state.st_size, state.st_mtime_ns) for state in states])


def _load_parts(folder: Path, parts: Sequence[Sequence[Record]], place: RunPlace) -> dict[int, Part]:
    """Map numbers to the parts that are stored in `folder`. Parts with an image to draw are left out (no maps)."""
    stored = {key: part for path in folder.glob("unfinished/*.json") for key, part in read_json(path).items()}
    loaded = {}
    for number, records in enumerate(parts):
        part = stored.get(_key(records, place))
        if part and not any(record.name in place.drawn for record in records):
            loaded[number] = Part([Scored(**values) for values in part["scored"]],
                                  {member: np.array(matrix) for member, matrix in part["matrices"]},
                                  [CamResult(**values) for values in part["cams"]],
                                  [Scored(**values) for values in part["control"]])
    return loaded


def score_parts(parts: Sequence[Sequence[Record]], score: Callable[[Sequence[Record]], Part],
                start: Callable[[], Path], place: RunPlace) -> tuple[list[Part], Journal]:
    """Score all parts, or load those that an unfinished run has saved. Returns the parts, in order, and the journal.

    `start` makes the folder of the run after the first part is scored. Scores are saved every `place.save_every`
    seconds, when a signal asks to stop, and when `UserError` is raised.
    """
    folder = run_on_main(lambda: find_unfinished(place))
    done = run_on_main(lambda: _load_parts(folder, parts, place) if folder else {})
    missing = [number for number in range(len(parts)) if number not in done]
    share, journal = own_share(missing), None
    total, loaded = sum(map(len, parts)), sum(len(parts[number]) for number in done)
    with (progress(None, "attacking", total, initial=loaded) as bar,
          Pause(place.save_every, "the same command resumes") as pause):
        try:
            # Every process makes the same number of turns, because `due` waits for all processes.
            for turn in range(-(-len(missing) // world_size())):
                numbers = share[turn : turn + 1]
                done |= {number: score(parts[number]) for number in numbers}
                journal = journal or Journal(folder or run_on_main(start), place.stamp)
                for number in numbers:
                    journal.add(_key(parts[number], place), done[number])
                    bar.update(len(parts[number]) * world_size())
                if pause.due():
                    journal.save()
                    pause.saved()
        except UserError:
            if journal:
                journal.save()
            raise
    done |= dict(gather([(number, done[number]) for number in share]))
    return [done[number] for number in range(len(parts))], journal or Journal(folder, place.stamp)
