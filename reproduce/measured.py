"""The cells of a scale as they were measured, and what may be said of two of them."""

from functools import cache
from pathlib import Path

import numpy as np

from evaluation.intervals import paired_difference
from reproduce.collect import unpack
from reproduce.paper import SETTINGS
from reproduce.plan import Cell, Scale
from utils.cli import UserError
from utils.files import read_json


class Measured:
    """Reads the JSONs of `scale`, each once. `missing` has the cells that are not there."""

    def __init__(self, scale: Scale):
        self.scale, self._read = scale, cache(read_json)
        self.there = {name: cell for name, cell in scale.cells.items() if self._path(cell).exists()}
        self._check()
        self.missing = [name for name in scale.cells if name not in self.there]

    def _path(self, cell: Cell) -> Path:
        return self.scale.results / f"{cell.name}.json"

    def _check(self) -> None:
        """Raises `UserError` when cells that are compared are of different victims."""
        first: dict[str, tuple[str, str]] = {}
        for name, cell in self.there.items():
            victim, found = self.scale.victim_of(cell), self.figures(cell)["victim"]["sha256"]
            other, known = first.setdefault(victim, (name, found))
            if known != found:
                raise UserError(f"{self.scale.results}: {name} and {other} are of different trainings of {victim}; "
                                "remove those of the older one")

    def again(self) -> dict[str, dict]:
        """Name -> what `reproduce.report --again` kept of other trainings of this scale."""
        return {} if self.scale.again else {path.stem: self._read(path) for path in self.scale.again_files()}

    def commits(self) -> list[str]:
        """Commits of attacks, victims and attackers."""
        found = map(self.figures, self.there.values())
        return sorted({commit for cell in found for commit in
                       (cell["commit"], cell["victim"]["commit"], cell["attacker"]["commit"])})

    def title(self, setting: str) -> str:
        """How a setting is called: as the paper's, or as the scale says."""
        return self.scale.settings[setting].get("title") or SETTINGS[setting]

    def figures(self, cell: Cell) -> dict:
        """What `reproduce.collect` kept of a cell."""
        return self._read(self._path(cell))

    def model(self, name: str) -> dict | None:
        """results.json of `victim-NAME` or `shadow-NAME`."""
        path = self.scale.results / "models" / f"{name}.json"
        return self._read(path) if path.exists() else None

    def images(self, setting: str) -> tuple[np.ndarray, list[str]]:
        """Membership bool (n,) and block of each image of a setting."""
        known = self._read(self.scale.results / setting / "images.json")
        return np.array([mark == "1" for mark in known["member"]]), known["group"]

    def seeds(self, setting: str, method: str, defense: str = "none", **of: int) -> list[Cell]:
        """The cells of an attack that are there, one a seed; `of` says count and size where these are not the usual."""
        wanted = {"count": self.scale.count, "size": self.scale.size_of(setting), **of}
        return [cell for cell in self.there.values()
                if (cell.setting, cell.method, cell.defense) == (setting, method, defense)
                and all(getattr(cell, key) == value for key, value in wanted.items())]

    def sizes(self) -> list[Cell]:
        """The cells of fig. 1, of the first setting that has them, from the largest patch to the smallest."""
        cells = [cell for cell in self.there.values() if cell.patches]
        return sorted((cell for cell in cells if cell.setting == cells[0].setting), key=lambda cell: -cell.size)

    def mean(self, cells: list[Cell], figure: str = "auc") -> float:
        """Mean of a figure of images over cells."""
        return float(np.mean([self.figures(cell)["image"][figure] for cell in cells]))

    def scores(self, cell: Cell, count: int | None = None) -> np.ndarray:
        """Scores (n,) of the images; of the first `count` patches where the cell is a curve."""
        found = self.figures(cell)
        return unpack(found["scores"] if count is None else found["curve"][str(count)]["scores"])

    def difference(self, first: list[Cell], second: list[Cell],
                   counts: tuple[int | None, int | None] = (None, None)) -> dict:
        """AUC of `first` minus that of `second`, attacks on one victim, means over seeds, with its interval."""
        columns = [[self.scores(cell, count) for cell in cells]
                   for cells, count in zip((first, second), counts, strict=True)]
        return paired_difference(*columns, *self.images(first[0].setting))
