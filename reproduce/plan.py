"""A scale of the reproduction as runs and cells, and the command line of each.

A *model* is a victim or a shadow, an *attacker* is trained on a shadow, a *cell* is one attack on a victim: a figure
of a table, a point of a curve. All are named by what they are, so that a name says which settings share a run.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import yaml

from reproduce.paper import TABLE

HERE = Path(__file__).resolve().parent
INPUTS = ("concate", "loss")


@dataclass(frozen=True)
class Attacker:
    """A_P: its representation, the shadow it learns from, the defense it meets there, its seed and patch size."""

    shadow: str
    input: str
    defense: str
    seed: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.shadow}-{self.input}-s{self.size}_{self.defense}_{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One attack: `method` is what is attacked with and where it looks, e.g. loss-random or threshold-loss.

    `curve` asks for the figures at every patch count up to `count`, `patches` for the scores of single patches.
    """

    setting: str
    method: str
    defense: str
    seed: int
    count: int
    size: int
    curve: bool = False
    patches: bool = False

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.method}-n{self.count}-s{self.size}_{self.defense}_{self.seed}"


class Scale:
    """`reproduce/scales/NAME.yaml`, or another file of that form, with the runs and cells it asks for.

    `again` 1, 2, ... is the same with other seeds for victims and shadows, to see what another training changes. Its
    cells stay with its runs; only the figures of its claims go to `again_folder`.
    """

    def __init__(self, path: str | Path, again: int = 0):
        path = Path(path) if str(path).endswith(".yaml") else HERE / "scales" / f"{path}.yaml"
        self.name, self.config, self.again = path.stem, yaml.safe_load(path.read_text(encoding="utf-8")), again
        self.runs = Path(self.config.get("runs", f"runs/reproduce/{self.name}"))
        self.results = Path(self.config.get("results", f"reproduce/results/{self.name}"))
        self.again_folder, self.data_marks = self.results / "again", self.runs / "data"
        if again:
            self.runs = self.runs.with_name(f"{self.runs.name}-again{again}")
            self.results = self.runs / "results"
        self.settings: dict[str, dict] = self.config["settings"]

    def __getattr__(self, name: str):
        try:
            return self.config[name]
        except KeyError:
            raise AttributeError(name) from None

    def again_files(self) -> list[Path]:
        """The figures of other trainings that are there."""
        return sorted(self.again_folder.glob("*.json"))

    # What there is

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every cell by its name; one that two figures share keeps what either asks for."""
        found = itertools.chain.from_iterable(
            part(setting) for setting in self.settings
            for part in (self._table, self._selections, self._sizes, self._defended))
        cells: dict[str, Cell] = {}
        for cell in found:
            same = cells.get(cell.name, cell)
            cells[cell.name] = replace(cell, curve=cell.curve or same.curve, patches=cell.patches or same.patches)
        return cells

    def _cell(self, setting: str, method: str, defense: str = "none", seed: int = 0, **rest) -> Cell:
        return Cell(setting, method, defense, seed, **{"count": self.count, "size": self.size_of(setting), **rest})

    def size_of(self, setting: str) -> int:
        """The usual patch size of a setting, in positions."""
        return self.settings[setting].get("size", self.size)

    def attacks(self, setting: str, defense: str, seeds: int) -> list[Cell]:
        """The rows of table 2 under a defense."""
        return [self._cell(setting, row, defense, seed) for row in self.config.get("rows", TABLE)
                for seed in range(1 if row.startswith("threshold") else seeds)]

    def _table(self, setting: str) -> list[Cell]:
        return self.attacks(setting, "none", self.seeds)

    def _selections(self, setting: str) -> list[Cell]:
        """Fig. 2: random and rejection once with the most patches, of which fewer are the first; sliding each."""
        if setting not in self.selections["settings"]:
            return []
        counts, seeds = self.selections["counts"], range(self.selections["seeds"])
        walks = [self._cell(setting, f"{kind}-{select}", seed=seed, count=max(counts), curve=True)
                 for kind in INPUTS for select in ("random", "rejection") for seed in seeds]
        grids = [self._cell(setting, f"{kind}-sliding", seed=seed, count=count)
                 for kind in INPUTS for count in counts if count >= self.selections["sliding_from"] for seed in seeds]
        return walks + grids

    def _sizes(self, setting: str) -> list[Cell]:
        """Fig. 1: smaller patches, more of them."""
        if not self.settings[setting].get("dependent") or self.settings[setting].get("table_only"):
            return []
        return [self._cell(setting, "loss-random", size=size, count=count, patches=True)
                for size, count in self.sizes.items()]

    def _defended(self, setting: str) -> list[Cell]:
        """Figs. 3 and 4: everything under Argmax, both attackers on random patches under the others."""
        if self.settings[setting].get("table_only"):
            return []
        cells = self.attacks(setting, "argmax", 1)
        for defense in self._defenses(setting):
            cells += [self._cell(setting, f"{kind}-random", defense) for kind in INPUTS]
        return cells

    def _defenses(self, setting: str) -> list[str]:
        victim = self.settings[setting]["victim"]
        kinds = [*(f"gauss-{variance:g}" for variance in self.gauss),
                 *(f"dropout-{ratio:g}" for ratio in self.dropout if victim not in self.without_dropout),
                 *(f"dpsgd-{variance:g}" for variance in self.dpsgd["variances"].get(setting, ()))]
        return [*kinds, *(["frozen", "clip"] if setting in self.dpsgd["variances"] else [])]

    # What a cell needs

    def victim_of(self, cell: Cell) -> str:
        return _variant(self.settings[cell.setting]["victim"], cell.defense)

    def attacker_of(self, cell: Cell) -> Attacker:
        """Dependent attackers meet the same defense in the shadow, independent ones only Argmax, which they can do
        to the shadow's posteriors themselves. A threshold takes its grid of patches from the loss attacker."""
        setting, kind = self.settings[cell.setting], cell.method.partition("-")[0]
        known = cell.defense if setting.get("dependent") or cell.defense == "argmax" else "none"
        if kind == "threshold":
            known = "none"
        shadow = _variant(setting["shadow"], known)
        return Attacker(shadow, "loss" if kind == "threshold" else kind, known, cell.seed, cell.size)

    @cached_property
    def attackers(self) -> dict[str, Attacker]:
        return {a.name: a for a in map(self.attacker_of, self.cells.values())}

    @cached_property
    def models(self) -> list[str]:
        """`victim-NAME` and `shadow-NAME`, with the training defenses they appear under."""
        return sorted({f"victim-{self.victim_of(cell)}" for cell in self.cells.values()}
                      | {f"shadow-{attacker.shadow}" for attacker in self.attackers.values()})

    # Command lines, without the interpreter

    def data_command(self, name: str) -> list[str]:
        return ["-m", "datasets", *self.data[name].split()]

    def model_command(self, model: str) -> list[str]:
        kind, _, variant = model.partition("-")
        name, _, defense = variant.partition("@")
        own = {"victim": self.victims, "shadow": self.shadows}[kind][name]
        flags = f"{self.network} {own}".format(runs=self.runs, under=f"@{defense}" if defense else "")
        if defense:
            how, _, variance = defense.partition("-")
            extra = {"frozen": "--freeze-norms", "clip": "-dpsgd -noise-variance 0",
                     "dpsgd": f"-dpsgd -noise-variance {variance}"}[how]
            flags += f" {self.dpsgd['flags']} {extra}"
        if self.again:
            flags += f" --seed {self.again}"
        return [f"train_{kind}.py", "--out", str(self.runs / model), *flags.split()]

    def attacker_command(self, attacker: Attacker) -> list[str]:
        pixelwise = attacker.input == "pixelwise"
        return ["train_attacker.py", "--out", str(self.runs / "attackers" / attacker.name), "--shadow",
                str(self.runs / f"shadow-{attacker.shadow}"), "-input", "concate" if pixelwise else attacker.input,
                "--patch-size", str(attacker.size), "--epochs", str(self.epochs_of(attacker)),
                "--seed", str(attacker.seed), *self.attacker.split(), *(["--arch", "pixelwise"] if pixelwise else []),
                *_flags(attacker.defense)]

    def epochs_of(self, attacker: Attacker) -> int:
        """Epochs by representation, and by shadow where their numbers of images differ much."""
        own = self.attacker_epochs.get(attacker.shadow.partition("@")[0], self.attacker_epochs)
        return own[attacker.input]

    def cell_command(self, cell: Cell) -> list[str]:
        kind, _, select = cell.method.partition("-")
        attacker, victim = self.attacker_of(cell), self.runs / f"victim-{self.victim_of(cell)}"
        tree = "posteriors" + (f"-{cell.defense}" if cell.defense.startswith("dropout") else "")
        how = {"threshold": ["--threshold", select], "pixelwise": []}.get(kind, ["--select", select])
        if self.looked_at(cell):
            how += ["-cam", str(self.run_of(cell) / "cam"), "--cam-images", "1"]
        return ["attack.py", "--out", str(self.run_of(cell)), "-resume",
                str(self.runs / "attackers" / attacker.name / "best.pth.tar"), "--victim", str(victim / "last.pth.tar"),
                "--keep", str(victim / tree), *self.target[self.settings[cell.setting]["victim"]].split(),
                "-num-patch", str(cell.count), "--seed", str(cell.seed), *how, *_flags(cell.defense)]

    def looked_at(self, cell: Cell) -> bool:
        """Fig. 5: whether activation maps are made of a cell, once for each defense of one setting."""
        return (cell.setting == self.config.get("activation") and cell.method in ("loss-random", "concate-random")
                and (cell.seed, cell.count, cell.size) == (0, self.count, self.size_of(cell.setting)))

    def run_of(self, cell: Cell) -> Path:
        return self.runs / "cells" / cell.name

    # What comes before what

    def needs_of_model(self, model: str) -> list[str]:
        """The victim whose confidence splits a shadow's images, under the same defense, if one does."""
        flags = self.model_command(model)
        return [Path(flags[flags.index("--victim") + 1]).parent.name] if "--victim" in flags else []

    def budget(self, done) -> dict[str, tuple[int, float]]:
        """Stage -> (runs that are left, hours on one core by the scale's `minutes`); `done` says whether a file is
        there."""
        minutes, left = self.minutes, [c for c in self.cells.values() if not done(self.results / f"{c.name}.json")]
        attackers = {self.attacker_of(c).name: self.attacker_of(c) for c in left}
        needed = {f"victim-{self.victim_of(c)}" for c in left} | {f"shadow-{a.shadow}" for a in attackers.values()}
        needed |= {model for model in self.models if not done(self.results / "models" / f"{model}.json")}
        models = {model for model in needed if not done(self.runs / model / "results.json")}
        attackers = [a for a in attackers.values() if not done(self.runs / "attackers" / a.name / "results.json")]
        private = [m for m in models if "@" in m]
        spent = {"models": [minutes["model"]] * (len(models) - len(private)),
                 "models with DPSGD and its controls": [minutes["dpsgd"]] * len(private),
                 "attackers": [minutes[a.input] for a in attackers], "attacks": [minutes["attack"]] * len(left)}
        return {stage: (len(each), sum(each) / 60) for stage, each in spent.items()}


def _variant(name: str, defense: str) -> str:
    """A model under a training defense, or as it is."""
    return f"{name}@{defense}" if defense.partition("-")[0] in ("dpsgd", "frozen", "clip") else name


def _flags(defense: str) -> list[str]:
    """What a script is told of a defense; those of training are in the model."""
    name, _, value = defense.partition("-")
    if name == "gauss":  # the paper quotes variances, the flag is a standard deviation
        return ["-gauss", f"{math.sqrt(float(value)):.6g}", "--gauss-floor", "0"]
    return {"argmax": ["-argmax"], "dropout": ["-test-dropout", value]}.get(name, [])
