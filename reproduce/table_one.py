"""Table 1 of the second paper at the scale of one file: its models and attacks, and the command line of each.

A *target* is a model on one split of a data set, trained once for each seed. A *cell* is one attack on one of these
trainings. Reconstruction error and membership error need no shadow and no attacker.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from reproduce.packed import has_result
from reproduce.plan import load_keys
from reproduce.shafran import TABLE_ONE
from utils.cli import UserError

ATTACKS = ("reconstruction", "membership-error-released", "membership-error")
OF_POSTERIORS = ("confidence",)  # the loss threshold is the reconstruction error of posteriors
DEFENDED = ("reconstruction", "membership-error")


@dataclass(frozen=True)
class Target:
    """A model on one split of a data set.

    `row`: its row of table 1; None for a model beside the table. `about`: task and size, for the table. `train`: the
    script and its flags. `sides`: split files of the training images and of other images. `root`: folder of the images.
    `attack`: flags of attack.py. `defenses`: name -> flag of attack.py, of the defenses that are measured on it.
    """

    about: str
    train: str
    root: str
    sides: tuple[str, str]
    row: str | None = None
    attack: str = ""
    seeds: int = 1
    defenses: tuple[str, ...] = ()

    @property
    def translates(self) -> bool:
        """Whether the outputs are images."""
        return self.train.startswith("train_translator.py")


@dataclass(frozen=True)
class ErrorCell:
    """One attack, perhaps under a defense (a flag of attack.py, such as `--jpeg 50`), on one training of a target."""

    target: str
    attack: str
    seed: int
    defense: str = ""

    @property
    def name(self) -> str:
        under = f"_{self.defense.strip('-').replace(' ', '-')}" if self.defense else ""
        return f"{self.target}/{self.attack}{under}_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class TableOne:
    """The keys of a scale file of table 1, and the runs and cells that follow from them. `read_table_one` makes one.

    `missing`: row of table 1 -> why it has no target. `compared`: pairs of targets on the same images, the more certain
    task first. `pooled`: name -> targets, or pairs as in `compared`, over which one verdict is given.
    """

    OF_MODELS = ("models", "dimension")  # the folders of results of models

    name: str
    runs: Path
    results: Path
    data_marks: Path
    note: str
    threads: int
    data: dict[str, str]
    targets: dict[str, Target]
    missing: dict[str, str]
    attack: str
    minutes: dict[str, float]
    launch: str = ""
    compared: tuple[tuple[str, str], ...] = ()
    pooled: dict[str, list[str | list[str]]] = field(default_factory=dict)

    @cached_property
    def models(self) -> dict[str, tuple[str, int]]:
        """All trainings: name -> (target, seed)."""
        return {f"{name}_{seed}": (name, seed) for name, target in self.targets.items() for seed in range(target.seeds)}

    @cached_property
    def cells(self) -> dict[str, ErrorCell]:
        """All cells by name."""
        found = []
        for name, seed in self.models.values():
            target = self.targets[name]
            attacks = ATTACKS if target.translates else (*ATTACKS, *OF_POSTERIORS)
            found += [ErrorCell(name, attack, seed) for attack in attacks]
            found += [ErrorCell(name, attack, seed, defense)
                      for defense, attack in itertools.product(target.defenses, DEFENDED)]
        return {cell.name: cell for cell in found}

    def data_command(self, name: str) -> list[str]:
        return ["-m", "datasets", *self.data[name].split()]

    def model_command(self, model: str) -> list[str]:
        name, seed = self.models[model]
        target = self.targets[name]
        script, *flags = target.train.split()
        inside, outside = target.sides
        return [script, "--out", str(self.runs / model), "--root", target.root, "--train", inside, "--test", outside,
                "--seed", str(seed), *flags]

    def cell_command(self, cell: ErrorCell) -> list[str]:
        target = self.targets[cell.target]
        victim, (inside, outside) = self.victim_of(cell), target.sides
        return ["attack.py", "--out", str(self.run_of(cell)), "--attack", cell.attack, "--victim",
                str(victim / "last.pth.tar"), "--keep", str(victim / "outputs"), "--root", target.root, "--members",
                inside, "--non-members", outside, *self.attack.split(), *target.attack.split(), *cell.defense.split()]

    def reconstruction_of(self, model: str) -> str:
        """The file of the cell of the reconstruction error, whose run stores the outputs of a model."""
        name, seed = self.models[model]
        return f"{self.results}/{ErrorCell(name, 'reconstruction', seed).name}.json"

    def dimension_command(self, model: str) -> list[str]:
        return ["-m", "reproduce.dimension", str(self.runs / model / "outputs"), "--into",
                str(self.results / "dimension" / f"{model}.json")]

    def victim_of(self, cell: ErrorCell) -> Path:
        """The folder of the training that a cell attacks."""
        return self.runs / f"{cell.target}_{cell.seed}"

    def run_of(self, cell: ErrorCell) -> Path:
        return self.runs / "cells" / cell.name

    def cell_arguments(self, cell: ErrorCell) -> dict:
        """The arguments of `reproduce.cells.write_cell` for a cell, after its run and its file."""
        return {"images": self.results / cell.target / "images.json"}

    def batch_of(self, cell: ErrorCell) -> str:
        """The name of the process that measures a cell: one for each training."""
        return self.victim_of(cell).name

    def needs_of(self, cell: ErrorCell) -> list[Path]:
        """results.json of the training that a cell attacks."""
        return [self.victim_of(cell) / "results.json"]

    def budget(self, exists: Callable[[Path], bool]) -> dict[str, tuple[int, float]]:
        """Map each stage to (number of missing runs, predicted hours on one core). `exists` checks a path."""
        cells = [cell for cell in self.cells.values() if not has_result(self.results / f"{cell.name}.json", exists)]
        models = {self.victim_of(cell): cell.target for cell in cells}
        models = [name for folder, name in models.items() if not exists(folder / "results.json")]
        spent = {"models": [self.minutes[name] for name in models], "attacks": [self.minutes["attack"]] * len(cells)}
        return {stage: (len(each), sum(each) / 60) for stage, each in spent.items()}


def read_table_one(path: str | Path) -> TableOne:
    """Read a scale file of table 1, as `reproduce.plan.read_scale` does.

    Raises `UserError` if a key is unknown or missing, or if a row of table 1 has neither a target nor a reason.
    """
    path, keys = load_keys(path)
    del keys["form"]
    try:
        targets = {name: Target(**target | {key: tuple(target[key]) for key in ("sides", "defenses") if key in target})
                   for name, target in keys.pop("targets").items()}
        keys["compared"] = tuple(map(tuple, keys.get("compared", ())))
        scale = TableOne(name=path.stem, data_marks=keys["runs"] / "data", targets=targets, **keys)
    except KeyError as error:
        raise UserError(f"{path} has no key {error}") from None
    except TypeError as error:
        raise UserError(f"{path}: {error}; the keys are listed in reproduce/table_one.py") from None
    rows = {target.row for target in targets.values()} - {None}
    if wrong := [*sorted((rows | set(scale.missing)) - set(TABLE_ONE)), *(set(TABLE_ONE) - rows - set(scale.missing))]:
        raise UserError(f"{path}: {wrong[0]!r} is no row of table 1, or has neither a target nor an entry in `missing`")
    for key, entries in (("compared", scale.compared), ("pooled", itertools.chain(*scale.pooled.values()))):
        names = {name for one in entries for name in ([one] if isinstance(one, str) else one)}
        if unknown := sorted(names - set(targets)):
            raise UserError(f"{path}: `{key}` names {unknown[0]}, which is no target")
    if untimed := [name for name in (*targets, "attack") if name not in scale.minutes]:
        raise UserError(f"{path}: `minutes` has no entry for {untimed[0]}")
    return scale
