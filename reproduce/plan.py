"""A scale of the reproduction: its keys, its runs and cells, and the command line of each.

A *model* is a victim or a shadow. An *attacker* is trained on one or more shadows. A *cell* is one attack on a victim:
one value of a table, or one point of a curve. The name of a run contains all that determines it, so settings that need
the same run share it.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import yaml

from reproduce.packed import has_result
from reproduce.paper import TABLE
from utils.cli import UserError

FOLDER = Path(__file__).resolve().parent
INPUTS = ("concate", "loss")
WINDOWS = "windows"  # stands for a defense in the name of a cell: models are queried about windows, without a defense
DRAW = 1000  # distance between the seeds of two draws of patch locations


@dataclass(frozen=True)
class Attacker:
    """A_P: the name of its shadow, its representation, the shadow's defense, its seed, patch size and shadow count."""

    shadow: str
    input: str
    defense: str
    seed: int
    size: int
    shadow_count: int = 1

    @property
    def source(self) -> str:
        """The name of the shadow and, if there are several, their number."""
        return self.shadow if self.shadow_count == 1 else f"{self.shadow}-{self.shadow_count}shadows"

    @property
    def name(self) -> str:
        return f"{_variant(self.source, self.defense)}-{self.input}-s{self.size}_{self.defense}_{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One attack. `method` names the attacker and its selection of patches, e.g. loss-random or threshold-loss.

    With `curve` the cell has metrics for each number of patches of `Selections.counts`. With `patches` it has the
    scores of single patches. `draw`: draw of the patch locations; more than the first are for the table of variances.
    """

    setting: str
    method: str
    defense: str
    seed: int
    count: int
    size: int
    curve: bool = False
    patches: bool = False
    draw: int = 0

    @property
    def name(self) -> str:
        draw = f"-draw{self.draw}" if self.draw else ""
        return f"{self.setting}/{self.method}-n{self.count}-s{self.size}{draw}_{self.defense}_{self.seed}"


@dataclass(frozen=True)
class Setting:
    """A victim and its shadow: one column of table 2."""

    victim: str
    shadow: str
    dependent: bool = False  # the shadow has the victim's architecture, and data of the same distribution
    table_only: bool = False  # without smaller patches (fig. 1) and defenses (figs. 3 and 4)
    size: int | None = None  # patch size in positions; default: that of the scale
    shadow_count: int | None = None  # default: that of the scale
    title: str | None = None  # default: the paper's name of the setting


@dataclass(frozen=True)
class Selections:
    """Fig. 2: settings, numbers of patches, smallest number of patches for sliding, and number of attacker seeds."""

    settings: list[str]
    counts: list[int]
    sliding_from: int
    seeds: int


@dataclass(frozen=True)
class Dpsgd:
    """Flags of a DPSGD training, and the noise variances of each setting."""

    flags: str
    variances: dict[str, list[float]]


@dataclass(frozen=True)
class Windows:
    """Settings in which models are also queried about windows, as by `--windows`, and their height and width in pixels.

    Victim and shadow stay as they are; attackers are trained on the posteriors of the shadow for the windows.
    """

    settings: list[str]
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The keys of a scale file, and the runs and cells that follow from them. `read_scale` makes one.

    `again` 1, 2, ... is another training of all models, with other seeds for victims and shadows. Its cells are in the
    folder `again_folder`/N; the claims are tested on the cells of all trainings together.
    """

    OF_MODELS = ("models",)  # the folders of results of models

    name: str
    again: int
    runs: Path
    results: Path
    again_folder: Path  # folders with the cells of other trainings, and old files with only the metrics of their claims
    data_marks: Path  # folder with an empty file for each data set that has been written

    note: str
    threads: int
    data: dict[str, str]  # name -> arguments of `python -m datasets`
    network: str  # flags of every victim and shadow
    victims: dict[str, str]
    shadows: dict[str, str]
    target: dict[str, str]  # name of a victim -> flags of attack.py
    settings: dict[str, Setting]
    attacker: str  # flags of every attacker
    attacker_length: dict  # representation -> epochs or "N steps", or name of a shadow -> such a dict
    size: int  # patch size in positions
    count: int  # patches of an image
    seeds: int  # attackers of each row of table 2
    minutes: dict[str, float]  # minutes of one core for: model, dpsgd, attack and each representation
    attacker_flags: dict[str, str] = field(default_factory=dict)  # name of a shadow -> more flags of its attackers
    shadow_count: int = 1  # shadows of each setting, see `shadow_names`
    rows: list[str] = field(default_factory=lambda: list(TABLE))  # rows of table 2
    sizes: dict[int, int] = field(default_factory=dict)  # fig. 1: patch size -> patches of an image
    selections: Selections = Selections([], [], 0, 0)
    patch_count: int = 0  # patches of an image for metrics of single patches in dependent settings (33 in the paper)
    draws: int = 1  # draws of the patch locations, for the table of variances
    windows: Windows = Windows([], 0, 0)
    gauss: list[float] = field(default_factory=list)  # variances
    dropout: list[float] = field(default_factory=list)  # ratios
    dpsgd: Dpsgd = Dpsgd("", {})
    without_dropout: list[str] = field(default_factory=list)  # victims without Dropout at test time
    activation: str = ""  # setting of the activation maps (fig. 5)
    drawn_scenes: bool = False  # the images are no photographs, so the maps may be committed
    evidence: bool = True  # whether its verdicts say something about the paper
    launch: str = ""  # arguments of Python before the name of a training script, e.g. to start torchrun

    def other_trainings(self) -> list["Scale"]:
        """The scales of the other trainings whose folders exist; none for a scale that is itself another training."""
        numbers = sorted(int(path.name) for path in self.again_folder.glob("[0-9]*") if path.is_dir())
        return [] if self.again else [replace(self, again=number, results=self.again_folder / str(number))
                                      for number in numbers]

    # Cells

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """All cells by name. A cell that two figures share has the `curve` and `patches` of both."""
        parts = (self._table, self._selections, self._sizes, self._single_patches, self._draws, self._windows,
                 self._defended)
        cells: dict[str, Cell] = {}
        for cell in itertools.chain.from_iterable(part(setting) for setting in self.settings for part in parts):
            same = cells.get(cell.name, cell)
            cells[cell.name] = replace(cell, curve=cell.curve or same.curve, patches=cell.patches or same.patches)
        return cells

    def _cell(self, setting: str, method: str, defense: str = "none", seed: int = 0, **changes) -> Cell:
        return Cell(setting, method, defense, seed, **{"count": self.count, "size": self.size_of(setting), **changes})

    def size_of(self, setting: str) -> int:
        """The usual patch size of a setting, in positions."""
        return self.settings[setting].size or self.size

    def table_rows(self, setting: str, defense: str, seeds: int) -> list[Cell]:
        """The rows of table 2 under a defense. A threshold has no seed."""
        return [self._cell(setting, row, defense, seed) for row in self.rows
                for seed in range(1 if row.startswith("threshold") else seeds)]

    def _table(self, setting: str) -> list[Cell]:
        return self.table_rows(setting, "none", self.seeds)

    def _selections(self, setting: str) -> list[Cell]:
        """The cells of fig. 2.

        Random and rejection run once, with the largest number of patches; a smaller number uses the first of these
        patches. Sliding has another grid for each number of patches, so it runs once for each number.
        """
        if setting not in self.selections.settings:
            return []
        counts, seeds = self.selections.counts, range(self.selections.seeds)
        walks = [self._cell(setting, f"{kind}-{select}", seed=seed, count=max(counts), curve=True)
                 for kind in INPUTS for select in ("random", "rejection") for seed in seeds]
        grids = [self._cell(setting, f"{kind}-sliding", seed=seed, count=count)
                 for kind in INPUTS for count in counts if count >= self.selections.sliding_from for seed in seeds]
        return walks + grids

    def _sizes(self, setting: str) -> list[Cell]:
        """The cells of fig. 1: all patch sizes of the scale, in the dependent settings that are not `table_only`."""
        if not self.settings[setting].dependent or self.settings[setting].table_only:
            return []
        return [self._cell(setting, "loss-random", size=size, count=count, patches=True)
                for size, count in self.sizes.items()]

    def _single_patches(self, setting: str) -> list[Cell]:
        """The cells with as many single patches as in the paper, in the dependent settings."""
        if not self.patch_count or not self.settings[setting].dependent:
            return []
        return [self._cell(setting, f"{kind}-random", count=self.patch_count, patches=True) for kind in INPUTS]

    def _draws(self, setting: str) -> list[Cell]:
        """The attacks on random patches of table 2 with other patch locations, for the first attacker seed."""
        return [self._cell(setting, f"{kind}-random", draw=draw) for kind in INPUTS for draw in range(1, self.draws)]

    def _windows(self, setting: str) -> list[Cell]:
        """The cells of the queries about windows."""
        methods = ("threshold-loss", *(f"{kind}-random" for kind in INPUTS))
        return [self._cell(setting, method, WINDOWS) for method in methods] if setting in self.windows.settings else []

    def _defended(self, setting: str) -> list[Cell]:
        """The cells of figs. 3 and 4.

        These are all rows of table 2 under Argmax, and both representations on random patches under each other defense.
        """
        if self.settings[setting].table_only:
            return []
        cells = self.table_rows(setting, "argmax", 1)
        for defense in self._defenses(setting):
            cells += [self._cell(setting, f"{kind}-random", defense) for kind in INPUTS]
        return cells

    def _defenses(self, setting: str) -> list[str]:
        victim, private = self.settings[setting].victim, self.dpsgd.variances
        names = [*(f"gauss-{variance:g}" for variance in self.gauss),
                 *(f"dropout-{ratio:g}" for ratio in self.dropout if victim not in self.without_dropout),
                 *(f"dpsgd-{variance:g}" for variance in private.get(setting, ()))]
        return [*names, *(["frozen", "clip"] if setting in private else [])]

    # The models and the attacker of a cell

    def victim_of(self, cell: Cell) -> str:
        return _variant(self.settings[cell.setting].victim, cell.defense)

    def attacker_of(self, cell: Cell) -> Attacker:
        """The attacker of a cell.

        A dependent attacker is trained on a shadow under the defense of the victim. An independent attacker is trained
        without a defense, except Argmax. Windows are the same for victim and shadow. A threshold uses the patch size of
        the attacker on loss maps.
        """
        setting, kind = self.settings[cell.setting], cell.method.partition("-")[0]
        defense = cell.defense if setting.dependent or cell.defense in ("argmax", WINDOWS) else "none"
        if kind == "threshold":
            kind, defense = "loss", "none"
        return Attacker(setting.shadow, kind, defense, cell.seed, cell.size, setting.shadow_count or self.shadow_count)

    @cached_property
    def attackers(self) -> dict[str, Attacker]:
        return {attacker.name: attacker for attacker in map(self.attacker_of, self.cells.values())}

    def shadow_names(self, attacker: Attacker) -> list[str]:
        """The shadows that an attacker learns from.

        A single shadow is trained with its flags. Several shadows split D^S in different ways: the first as --train and
        --test say, the second with these two swapped, the others at random (seeds 1, 2, ...). If the flags have no
        --train, all of them split D^S at random.
        """
        name, count = attacker.shadow, attacker.shadow_count
        names = [name]
        if count > 1:
            names = [name, f"{name}-swapped"] if "--train" in self.shadows[name].split() else []
            names += [f"{name}-random{seed}" for seed in range(1, count - len(names) + 1)]
        return [_variant(split, attacker.defense) for split in names]

    @cached_property
    def models(self) -> list[str]:
        """The names of all models: `victim-NAME` and `shadow-NAME`. NAME includes a training defense."""
        return sorted({f"victim-{self.victim_of(cell)}" for cell in self.cells.values()}
                      | {f"shadow-{name}" for attacker in self.attackers.values()
                         for name in self.shadow_names(attacker)})

    # Command lines, without the interpreter

    def data_command(self, name: str) -> list[str]:
        return ["-m", "datasets", *self.data[name].split()]

    def model_command(self, model: str) -> list[str]:
        kind, _, variant = model.partition("-")
        name, _, defense = variant.partition("@")
        split, seed, table = "", self.again, {"victim": self.victims, "shadow": self.shadows}[kind]
        if name not in table:
            name, _, split = name.rpartition("-")
        words = f"{self.network} {table[name]}".format(runs=self.runs, under=f"@{defense}" if defense else "").split()
        if split:
            words = _split_flags(words, split)
            if split != "swapped":
                seed = 1000 * self.again + int(split.removeprefix("random"))
        elif "--train" in words and "--split" in words:  # --split is for the other shadows of a setting
            at = words.index("--split")
            del words[at : at + 2]
        if defense:
            training, _, variance = defense.partition("-")
            flags = {"frozen": "--freeze-norms", "clip": "-dpsgd -noise-variance 0",
                     "dpsgd": f"-dpsgd -noise-variance {variance}"}[training]
            words += f"{self.dpsgd.flags} {flags}".split()
        if seed:
            words += ["--seed", str(seed)]
        return [f"train_{kind}.py", "--out", str(self.runs / model), *words]

    def attacker_command(self, attacker: Attacker) -> list[str]:
        pixelwise = attacker.input == "pixelwise"
        shadows = [str(self.runs / f"shadow-{name}") for name in self.shadow_names(attacker)]
        return ["train_attacker.py", "--out", str(self.runs / "attackers" / attacker.name), "--shadow", *shadows,
                "-input", "concate" if pixelwise else attacker.input, "--patch-size", str(attacker.size),
                *self.length_of(attacker), "--seed", str(attacker.seed), *self.attacker.split(),
                *self.attacker_flags.get(attacker.shadow, "").split(), *(["--arch", "pixelwise"] if pixelwise else []),
                *self._defense_flags(attacker.defense)]

    def length_of(self, attacker: Attacker) -> list[str]:
        """--epochs or --steps of an attacker: what the scale gives for its shadows, or else for all attackers."""
        lengths = self.attacker_length
        length = lengths.get(attacker.source, lengths.get(attacker.shadow, lengths))[attacker.input]
        count, _, unit = str(length).partition(" ")
        return [f"--{unit or 'epochs'}", count]

    def cell_command(self, cell: Cell) -> list[str]:
        kind, _, select = cell.method.partition("-")
        attacker, victim = self.attacker_of(cell), self.runs / f"victim-{self.victim_of(cell)}"
        tree = "posteriors" + (f"-{cell.defense}" if cell.defense.startswith(("dropout", WINDOWS)) else "")
        flags = {"threshold": ["--threshold", select], "pixelwise": []}.get(kind, ["--select", select])
        if self.has_maps(cell):
            flags += ["-cam", str(self.run_of(cell) / "cam"), "--cam-images", "1"]
        return ["attack.py", "--out", str(self.run_of(cell)), "-resume",
                str(self.runs / "attackers" / attacker.name / "best.pth.tar"), "--victim", str(victim / "last.pth.tar"),
                "--keep", str(victim / tree), *self.target[self.settings[cell.setting].victim].split(),
                "-num-patch", str(cell.count), "--seed", str(self.seed_of(cell)), *flags,
                *self._defense_flags(cell.defense)]

    def seed_of(self, cell: Cell) -> int:
        """The seed of the patch locations."""
        return cell.seed + DRAW * cell.draw

    def _defense_flags(self, defense: str) -> list[str]:
        """Flags of attack.py and train_attacker.py for a defense. A training defense needs none: it is in the model."""
        name, _, value = defense.partition("-")
        if name == "gauss":  # the paper gives the variance, the flag takes the standard deviation
            return ["-gauss", f"{math.sqrt(float(value)):.6g}", "--gauss-floor", "0"]
        return {"argmax": ["-argmax"], "dropout": ["-test-dropout", value],
                WINDOWS: ["--windows", str(self.windows.height), str(self.windows.width)]}.get(name, [])

    def has_maps(self, cell: Cell) -> bool:
        """Whether a cell has activation maps (fig. 5): in one setting, one cell for each representation and defense."""
        return (cell.setting == self.activation and cell.method in ("loss-random", "concate-random")
                and (cell.seed, cell.draw, cell.count, cell.size) == (0, 0, self.count, self.size_of(cell.setting)))

    def run_of(self, cell: Cell) -> Path:
        return self.runs / "cells" / cell.name

    def cell_arguments(self, cell: Cell) -> dict:
        """The arguments of `reproduce.cells.write_cell` for a cell, after its run and its file."""
        return {"images": self.results / cell.setting / "images.json", "patches": cell.patches,
                "curve": self.selections.counts if cell.curve else (),
                "maps": self.has_maps(cell) and self.drawn_scenes}

    # Order and cost

    def batch_of(self, cell: Cell) -> str:
        """The name of the process that measures a cell: one for each attacker on each victim."""
        return f"{self.victim_of(cell)}_{self.attacker_of(cell).name}"

    def needs_of(self, cell: Cell) -> list[Path]:
        """results.json of each training that the attack of a cell reads."""
        return [self.runs / "attackers" / self.attacker_of(cell).name / "results.json",
                self.runs / f"victim-{self.victim_of(cell)}" / "results.json"]

    def needs_of_model(self, model: str) -> list[str]:
        """The victim by whose confidence a shadow's D^S is split, or an empty list."""
        words = self.model_command(model)
        return [Path(words[words.index("--victim") + 1]).parent.name] if "--victim" in words else []

    def budget(self, exists: Callable[[Path], bool]) -> dict[str, tuple[int, float]]:
        """Map each stage to (number of missing runs, predicted hours on one core). `exists` checks a path."""
        minutes = self.minutes
        cells = [c for c in self.cells.values() if not has_result(self.results / f"{c.name}.json", exists)]
        attackers = {self.attacker_of(c).name: self.attacker_of(c) for c in cells}
        needed = {f"victim-{self.victim_of(c)}" for c in cells}
        needed |= {f"shadow-{name}" for a in attackers.values() for name in self.shadow_names(a)}
        needed |= {model for model in self.models
                   if not has_result(self.results / "models" / f"{model}.json", exists)}
        models = {model for model in needed if not exists(self.runs / model / "results.json")}
        attackers = [a for a in attackers.values() if not exists(self.runs / "attackers" / a.name / "results.json")]
        private = [m for m in models if "@" in m]
        spent = {"models": [minutes["model"]] * (len(models) - len(private)),
                 "models with DPSGD and its controls": [minutes["dpsgd"]] * len(private),
                 "attackers": [minutes[a.input] for a in attackers], "attacks": [minutes["attack"]] * len(cells)}
        return {stage: (len(each), sum(each) / 60) for stage, each in spent.items()}


def read_scale(path: str | Path, again: int = 0) -> Scale:
    """Read `reproduce/scales/NAME.yaml`, or another file of the same form.

    Raises `UserError` if a key is unknown or missing, or if a setting has a number of shadows that the flags of its
    shadow do not allow.
    """
    path, keys = load_keys(path)
    runs, results = keys.pop("runs"), keys.pop("results")
    keys |= {"again_folder": results / "again", "data_marks": runs / "data"}
    if again:
        runs = runs.with_name(f"{runs.name}-again{again}")
        results = keys["again_folder"] / str(again)
    try:
        keys["settings"] = {name: Setting(**setting) for name, setting in keys["settings"].items()}
        parts = {"selections": Selections, "dpsgd": Dpsgd, "windows": Windows}
        keys |= {key: kind(**keys[key]) for key, kind in parts.items() if key in keys}
        scale = Scale(name=path.stem, again=again, runs=runs, results=results, **keys)
    except KeyError as error:
        raise UserError(f"{path} has no key {error}") from None
    except TypeError as error:
        raise UserError(f"{path}: {error}; the keys are listed in reproduce/plan.py") from None
    _check_shadows(path, scale)
    return scale


def load_keys(path: str | Path) -> tuple[Path, dict]:
    """The path of a scale file, and its keys; `runs` and `results` are folders, by default those of its name."""
    path = Path(path) if str(path).endswith(".yaml") else FOLDER / "scales" / f"{path}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in (FOLDER / "scales").glob("*.yaml"))
        raise UserError(f"there is no scale {path}; there are {', '.join(names)}")
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    return path, keys | {"runs": Path(keys.get("runs", f"runs/reproduce/{path.stem}")),
                         "results": Path(keys.get("results", f"reproduce/results/{path.stem}"))}


def _check_shadows(path: Path, scale: Scale) -> None:
    """Raise `UserError` if a number of shadows is not an integer of 1 or more, or a shadow's flags do not allow it."""
    for name, setting in scale.settings.items():
        count = scale.shadow_count if setting.shadow_count is None else setting.shadow_count
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{path}: setting {name}: shadow_count must be a whole number of 1 or more, not {count!r}")
        flags = scale.shadows[setting.shadow].split()
        if count > (2 if "--train" in flags else 1) and "--split" not in flags:
            raise UserError(f"{path}: setting {name} has {count} shadows, but shadow {setting.shadow} has no --split; "
                            "add --split and a file that lists all of D^S")


def _split_flags(words: list[str], split: str) -> list[str]:
    """The flags of a shadow with D_in^S and D_out^S swapped, or with a random split of D^S."""
    words = list(words)
    values = {flag: words.pop(words.index(flag) + 1) for flag in ("--train", "--test", "--split", "--victim")
              if flag in words}
    words = [word for word in words if word not in values]
    if split == "swapped":
        return [*words, "--train", values["--test"], "--test", values["--train"]]
    return [*words, "--split", values["--split"], "--partition", "random"]


def _variant(name: str, defense: str) -> str:
    """The name of a model under a training defense. Other defenses do not change the model."""
    return f"{name}@{defense}" if defense.partition("-")[0] in ("dpsgd", "frozen", "clip") else name
