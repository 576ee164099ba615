"""What an attack has scored so far, kept in its run's folder, so that the same call goes on after a stop.

Images are scored part by part; a part is known by its images and the state of their files, so one that was mended
meanwhile is scored anew. `DIR/unfinished/` is gone once the figures are written.
"""

import json
import shutil
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attacks.scoring import Item, Scored
from utils.cli import UserError
from utils.distributed import gather, is_main, own_share, process_rank, run_on_main, world_size
from utils.files import atomic_open, fingerprint, lock_run, read_json
from utils.log import progress
from utils.pause import Pause

if TYPE_CHECKING:
    from attacks.activation import Look


@dataclass
class Part:
    """Some images after the attack: their scores, their confusion matrices {member: (C, C)}, and looks, if any."""

    scored: list[Scored]
    matrices: dict[bool, np.ndarray]
    looks: list["Look"]


def find(stage: str, out: str | None, stamp: str) -> Path | None:
    """The unfinished run of this very call: in the folder `out`, or in one of `runs/STAGE-N`, and held from now on."""
    for folder in [Path(out)] if out else sorted(Path("runs").glob(f"{stage}-*")):
        marker = folder / "unfinished" / "stamp"
        if marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == stamp:
            try:
                lock_run(folder)
                return folder
            except UserError:
                if out:
                    raise
    return None


class Unfinished:
    """The parts of one attack that are done, in files of `folder`, one file each time that it is saved."""

    def __init__(self, folder: Path, stamp: str):
        self.run, self._folder, self._new = folder, folder / "unfinished", {}
        marker = self._folder / "stamp"
        if is_main() and not (marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == stamp):
            if self._folder.exists():
                shutil.rmtree(self._folder)
            with atomic_open(marker, "w") as file:
                file.write(stamp)

    def add(self, part: Sequence[Item], done: Part) -> None:
        """Note what is to be saved."""
        self._new[_key(part)] = {
            "scored": [[s.corners, s.patch_scores, s.score] for s in done.scored],
            "matrices": [[member, matrix.tolist()] for member, matrix in done.matrices.items()],
            "looks": [[look.pearson, look.spearman, look.kept] for look in done.looks]}

    def save(self) -> None:
        """Write what was noted since the last time."""
        if self._new:
            number = sum(1 for _ in self._folder.glob(f"{process_rank()}-*.json"))
            with atomic_open(self._folder / f"{process_rank()}-{number}.json", "w") as file:
                json.dump(self._new, file)
        self._new = {}

    def clear(self) -> None:
        """The run is finished."""
        shutil.rmtree(self._folder)


def _key(part: Sequence[Item]) -> str:
    """Names the part by its images and the sizes and times of their files."""
    states = [path.stat() for item in part for path in item.files if path.exists()]
    return fingerprint([], [item.name for item in part], [(state.st_size, state.st_mtime_ns) for state in states])


def _known(folder: Path, parts: Sequence[Sequence[Item]], drawn: Container[str]) -> dict[int, Part]:
    """Number -> part, of those that `folder` has on disk; none with an image to draw, whose maps it has not."""
    from attacks.activation import Look

    stored = {key: one for path in folder.glob("unfinished/*.json") for key, one in read_json(path).items()}
    found = {}
    for number, part in enumerate(parts):
        one = stored.get(_key(part))
        if one and not any(item.name in drawn for item in part):
            found[number] = Part(
                [Scored(item.name, item.member, item.group, *values)
                 for item, values in zip(part, one["scored"], strict=True)],
                {member: np.array(matrix) for member, matrix in one["matrices"]},
                [Look(item.name, item.member, item.group, tuple(pearson), tuple(spearman), kept, [])
                 for item, (pearson, spearman, kept) in zip(part, one["looks"], strict=False)])
    return found


def score_parts(parts: Sequence[Sequence[Item]], score: Callable[[Sequence[Item]], Part], begin: Callable[[], Path],
                folder: Path | None, stamp: str, every: float, drawn: Container[str]) -> tuple[list[Part], Unfinished]:
    """All parts, in order, scored here or before; and what the run has on disk, to be cleared once it is finished.

    `folder` is that of the unfinished run that goes on; without one, `begin` makes it, once the first part is scored.
    What is scored is saved every `every` seconds, when a signal asks to end, and when an image cannot be used.
    """
    done = run_on_main(lambda: _known(folder, parts, drawn) if folder else {})
    missing = [number for number in range(len(parts)) if number not in done]
    own, kept = own_share(missing), None
    total, behind = sum(map(len, parts)), sum(len(parts[number]) for number in done)
    with progress(None, "attacking", total, initial=behind) as bar, Pause(every, "the same command goes on") as pause:
        try:
            for turn in range(-(-len(missing) // world_size())):  # as many on every process, since they meet in `due`
                here = own[turn : turn + 1]
                done |= {number: score(parts[number]) for number in here}
                kept = kept or Unfinished(folder or run_on_main(begin), stamp)
                for number in here:
                    kept.add(parts[number], done[number])
                    bar.update(len(parts[number]) * world_size())
                if pause.due():
                    kept.save()
                    pause.saved()
        except UserError:
            if kept:
                kept.save()
            raise
    done |= dict(gather([(number, done[number]) for number in own]))
    return [done[number] for number in range(len(parts))], kept or Unfinished(folder, stamp)
