"""The committed cells of a scale."""

from functools import cache, cached_property
from pathlib import Path

import numpy as np

from reproduce.cells import unpack
from reproduce.packed import has_result, read_result
from reproduce.paper import SETTINGS
from reproduce.plan import WINDOWS, Cell, Scale
from utils.cli import UserError


class Measured:
    """The results of a scale. Each JSON file is read once.

    `cells`: the cells whose files exist; `missing`: the names of the others. Raises `UserError` if two cells attack
    different trainings of the same victim.
    """

    def __init__(self, scale: Scale):
        self.scale, self._read = scale, cache(read_result)
        self.cells = {name: cell for name, cell in scale.cells.items() if has_result(self._path(cell))}
        self.missing = [name for name in scale.cells if name not in self.cells]
        self._check_victims()

    def _path(self, cell: Cell) -> Path:
        return self.scale.results / f"{cell.name}.json"

    def _check_victims(self) -> None:
        folder = self.scale.results
        first_cells: dict[str, tuple[str, str]] = {}
        for name, cell in self.cells.items():
            victim, digest = self.scale.victim_of(cell), self.results(cell)["victim"]["sha256"]
            first_name, first_digest = first_cells.setdefault(victim, (name, digest))
            if first_digest != digest:
                raise UserError(f"{folder}: {name} and {first_name} are of different trainings of {victim}; remove the "
                                "cells of the older one")

    @cached_property
    def trainings(self) -> list["Measured"]:
        """The other trainings of all models whose cells are there, see `Scale.again`."""
        return [training for training in map(Measured, self.scale.other_trainings()) if training.cells]

    def records(self) -> dict[str, dict]:
        """Map the name of each other training of which only metrics are kept to these, as an old commit wrote them."""
        return {path.stem: self._read(path) for path in sorted(self.scale.again_folder.glob("*.json"))}

    def commits(self) -> list[str]:
        """The commits of all attacks, victims and attackers."""
        return sorted({commit for cell in map(self.results, self.cells.values()) for commit in
                       (cell["commit"], cell["victim"]["commit"], cell["attacker"]["commit"])})

    def title(self, setting: str) -> str:
        """The title of a setting in the scale file, or else the paper's."""
        return self.scale.settings[setting].title or SETTINGS[setting]

    def results(self, cell: Cell) -> dict:
        """The JSON file of a cell: metrics, scores, victim and attacker."""
        return self._read(self._path(cell))

    def model(self, name: str) -> dict | None:
        """results.json of `victim-NAME` or `shadow-NAME`."""
        path = self.scale.results / "models" / f"{name}.json"
        return self._read(path) if has_result(path) else None

    def images(self, setting: str) -> tuple[np.ndarray, list[str]]:
        """Membership bool (n,) and group of each image of a setting."""
        images = self._read(self.scale.results / setting / "images.json")
        return np.array([mark == "1" for mark in images["member"]]), images["group"]

    def of_setting(self, setting: str) -> list[Cell]:
        """All cells of a setting."""
        return [cell for cell in self.cells.values() if cell.setting == setting]

    def defenses(self, setting: str) -> list[str]:
        """The defenses under which a setting was attacked, "none" among them."""
        return list(dict.fromkeys(cell.defense for cell in self.of_setting(setting) if cell.defense != WINDOWS))

    def seeds(self, setting: str, method: str, defense: str = "none", **values: int) -> list[Cell]:
        """The cells of an attack, one for each attacker seed. `values`: `count` or `size`, if not the usual."""
        wanted = {"count": self.scale.count, "size": self.scale.size_of(setting), "draw": 0, **values}
        return [cell for cell in self.of_setting(setting) if (cell.method, cell.defense) == (method, defense)
                and all(getattr(cell, key) == value for key, value in wanted.items())]

    def sizes(self) -> list[Cell]:
        """The cells of fig. 1, of the first setting that has them, from the largest patch to the smallest."""
        cells = [cell for cell in self.cells.values() if cell.patches and self.scale.sizes.get(cell.size) == cell.count]
        return sorted((cell for cell in cells if cell.setting == cells[0].setting), key=lambda cell: -cell.size)

    def mean(self, cells: list[Cell], metric: str = "auc") -> float:
        """Mean of a metric of images over cells."""
        return float(np.mean([self.results(cell)["image"][metric] for cell in cells]))

    def windows(self, cell: Cell) -> int | None:
        """Number of patches of an image; more than `Cell.count` in some sliding grids. None if an old cell lacks it."""
        results = self.results(cell)
        return results["patches"] // (results["members"] + results["non_members"]) if "patches" in results else None

    def scores(self, cell: Cell, count: int | None = None) -> np.ndarray:
        """Scores (n,) of the images; with `count`, from the first `count` patches of a cell that has a curve."""
        results = self.results(cell)
        return unpack(results["scores"] if count is None else results["curve"][str(count)]["scores"])
