"""A bed of models in which every image is a member once and a non-member once: its models, attackers and attacks.

The images are dealt to four *parts*, A, B, C and D, and several models are trained on each part. A and B are partners,
and so are C and D. A model of A is attacked with the images of A as members and those of B as non-members; a model of B
the other way round. So what makes the images of one part easier than those of another cancels in the mean over the
parts. The models of the other two parts are the shadows and the references: none of them saw an image of A or B, and
every image of C or D is in the training of half of them. An *oracle* has the models of other seeds on A and B instead:
they were trained on the complete parts, so it knows which images belong together. It is an upper bound, and no attack.
An *independent* attack has only models of another data set, on two parts E and F of it.

A *cell* is one attack on one model. A *control* asks a shadow in the place of the target model: it saw none of the
images, so its AUC must be near 0.5 in the mean over the parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from reproduce.packed import has_result
from reproduce.plan import DRAW, load_keys
from utils.cli import UserError

PARTS = ("A", "B", "C", "D")
ELSEWHERE = ("E", "F")  # two parts of another data set, for independent attacks
PARTNER = {"A": "B", "B": "A", "C": "D", "D": "C", "E": "F", "F": "E"}
OTHERS = {"A": "CD", "B": "DC", "C": "AB", "D": "BA"}  # the parts of the shadows; a single shadow is of the first
CONTROL = "control"
# of the results of an attack; its metrics are computed from its scores
KEPT = ("members", "non_members", "blocks", "miou", "defense", "controls", "auc_by_queries")


@dataclass(frozen=True)
class Learned:
    """A learned attacker: flags of train_attacker.py, its shadows, seeds, and selections of patches.

    `shadows`: one, all or independent, as in `Rotations.shadows_of`. `references`: those of the attack, as of `Direct`.
    In training the shadows are compared with one another.
    """

    flags: str
    shadows: str = "one"
    seeds: int = 1
    select: tuple[str, ...] = ("random",)
    references: str = "none"


@dataclass(frozen=True)
class Direct:
    """An attack that is no learned attacker: flags of attack.py, and its references, as in `Rotations.shadows_of`.

    In the flags, {shadow} is the run of the shadow of the same seed, whose images an attack can learn from, and {other}
    is the split file of its part, whose images the target model was not trained on. `asks`: whether the attack queries
    the models itself, so that no outputs are stored. `resume`: the learned attacker to whose classes it is restricted,
    for references of another data set. `defense`: the one of `Rotations.defenses` that the attack knows. Against a
    change of the answers: `undoes`: the attack knows how to undo it, so that it reads the answers without it; `clean`:
    the answers of the references are not changed.
    """

    flags: str
    references: str = "none"
    asks: bool = False
    resume: str = ""
    defense: str = ""
    undoes: bool = False
    clean: bool = False


@dataclass(frozen=True)
class Defended:
    """A defense, and the attacks that know it, by name.

    `model`: further flags of train_shadow.py. With them one model of each part is trained (seed 0), to be attacked and
    to be a shadow of the others. `answer`: further flags of attack.py; the references answer under them, too, unless
    the attack asks the models itself. `plain`: whether it is no defense, but a model that the defended ones are
    compared with, such as one of fewer epochs.
    """

    attacks: dict[str, Direct]
    model: str = ""
    answer: str = ""
    plain: bool = False


@dataclass(frozen=True)
class Repeats:
    """More cells of a learned attacker with one shadow, for the table of variances alone.

    `shadows`: whether each model is attacked with the attackers of the shadows of all attacked seeds, not only its own;
    `seeds`: attacker seeds on each of these shadows; `draws`: draws of the patch locations.
    """

    shadows: bool = False
    seeds: int = 1
    draws: int = 1


@dataclass(frozen=True)
class Independent:
    """Models of another data set, one for each seed on each of its parts E and F: `parts` maps them to split files.

    `model`: flags of train_shadow.py.
    """

    root: str
    parts: dict[str, str]
    model: str
    seeds: int = 1


@dataclass(frozen=True)
class Model:
    """A training on a part. `defense`: the one of `Rotations.defenses` with which it was trained."""

    part: str
    seed: int
    defense: str = ""

    @property
    def name(self) -> str:
        return f"{self.part}{self.seed}" + (f"-{self.defense}" if self.defense else "")

    @property
    def pair(self) -> str:
        """The two parts whose images are its members and its non-members: AB, CD or EF."""
        return "".join(sorted((self.part, PARTNER[self.part])))


@dataclass(frozen=True)
class Attacker:
    """A training of a learned attacker on shadows, all of one pair of parts."""

    kind: str
    shadows: tuple[Model, ...]
    seed: int

    @property
    def name(self) -> str:
        source = self.shadows[0].name if len(self.shadows) == 1 else self.shadows[0].pair
        return f"{self.kind}_{source}_{self.seed}"


@dataclass(frozen=True)
class BedCell:
    """One attack on one model: `method` is the name of an attack, or `NAME-SELECTION` of a learned attacker.

    `shadow` is set in the cells of `Repeats` only: the seed of the shadow. `draw`: draw of the patch locations.
    """

    model: Model
    method: str
    seed: int = 0
    shadow: int | None = None
    draw: int = 0

    @property
    def name(self) -> str:
        repeat = "" if self.shadow is None else f"-shadow{self.shadow}-draw{self.draw}"
        return f"{self.method}/{self.model.name}{repeat}_{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Rotations:
    """The keys of a scale file of this kind, and the runs and cells that follow from them. `read_rotations` makes one.

    `parts`: A, B, C and D -> split file. `seeds`: trainings on each part. `attacked`: number of seeds whose models are
    attacked (0: all); the others are shadows and references alone. `learned` and `direct`: attacks by name. `repeats`:
    more cells of some learned attackers. `independent`: models of another data set. `defenses`: by name; their attacks
    are in `direct`, too, as `ATTACK-under-DEFENSE`. `minutes`: minutes of one core for: model, attacker and attack.
    `count`: patches of an image of learned attackers. `stored`: start of the name of the folders of posteriors in the
    run of a model; a scale of another stride than that of the scale it shares its runs with needs another one.
    """

    OF_MODELS = ("models",)  # the folders of results of models

    name: str
    runs: Path
    results: Path
    data_marks: Path
    note: str
    threads: int
    data: dict[str, str]
    root: str
    parts: dict[str, str]
    seeds: int
    model: str
    attack: str
    learned: dict[str, Learned]
    direct: dict[str, Direct]
    minutes: dict[str, float]
    attacked: int = 0
    count: int = 10
    stored: str = "posteriors"
    repeats: dict[str, Repeats] = field(default_factory=dict)
    independent: Independent | None = None
    defenses: dict[str, Defended] = field(default_factory=dict)
    claims: list[dict] = field(default_factory=list)
    launch: str = ""

    @cached_property
    def models(self) -> dict[str, Model]:
        """All trainings by name."""
        models = [Model(part, seed) for seed in range(self.seeds) for part in PARTS] + self._elsewhere
        models += [model for name in self.defenses for model in self._trained_with(name)]
        return {model.name: model for model in models}

    @property
    def _elsewhere(self) -> list[Model]:
        seeds = self.independent.seeds if self.independent else 0
        return [Model(part, seed) for seed in range(seeds) for part in ELSEWHERE]

    def _trained_with(self, defense: str) -> list[Model]:
        return [Model(part, 0, defense) for part in PARTS if self.defenses[defense].model]

    @cached_property
    def targets(self) -> list[Model]:
        """The models that are attacked, without those that were trained with a defense."""
        return [Model(part, seed) for seed in range(self.attacked or self.seeds) for part in PARTS]

    def defense_of(self, method: str) -> str:
        """The defense that an attack knows; empty if it attacks models without one."""
        return self.direct[method].defense if method in self.direct else ""

    def targets_of(self, method: str) -> list[Model]:
        """The models that an attack is measured on."""
        defense = self.defense_of(method)
        return (self._trained_with(defense) if defense else []) or self.targets

    def shadows_of(self, model: Model, which: str) -> tuple[Model, ...]:
        """The shadows of a model: "one", of the same seed, or "all" models of the other two parts, or "none".

        "oracle": the models of other seeds on the part of the model and on its partner. "independent": the models of
        another data set.
        """
        if which == "none":
            return ()
        if which == "independent":
            return tuple(self._elsewhere)
        if which == "oracle":
            return tuple(Model(part, seed) for seed in range(self.seeds) for part in model.pair if seed != model.seed)
        if which == "one":
            return (replace(model, part=OTHERS[model.part][0]),)
        seeds = range(1 if model.defense else self.seeds)
        return tuple(replace(model, part=part, seed=seed) for seed in seeds for part in sorted(OTHERS[model.part]))

    def attacker_of(self, cell: BedCell) -> Attacker | None:
        """The attacker that a cell reads; None for an attack without one."""
        kind = self.direct[cell.method].resume if cell.method in self.direct else cell.method.rpartition("-")[0]
        if not kind:
            return None
        of = cell.model if cell.shadow is None else Model(cell.model.part, cell.shadow)
        return Attacker(kind, self.shadows_of(of, self.learned[kind].shadows), cell.seed)

    def is_oracle(self, cell: BedCell) -> bool:
        return cell.method in self.direct and self.direct[cell.method].references == "oracle"

    def references_of(self, cell: BedCell) -> tuple[Model, ...]:
        if cell.method == CONTROL:
            return ()
        attack = self.direct.get(cell.method) or self.learned[cell.method.rpartition("-")[0]]
        return self.shadows_of(cell.model, attack.references)

    @cached_property
    def cells(self) -> dict[str, BedCell]:
        """All cells by name."""
        methods = [*((CONTROL, 0), *((name, 0) for name in self.direct)),
                   *((f"{name}-{select}", seed) for name, one in self.learned.items() for select in one.select
                     for seed in range(one.seeds))]
        cells = [BedCell(model, method, seed) for method, seed in methods for model in self.targets_of(method)]
        cells += [cell for method in self.repeats for model in self.targets for cell in self._repeated(method, model)]
        return {cell.name: cell for cell in cells}

    def _repeated(self, method: str, model: Model) -> list[BedCell]:
        """The cells of `repeats` on a model. Those that exist anyway are left out."""
        repeats, usual = self.repeats[method], self.learned[method.rpartition("-")[0]].seeds
        shadows = range(self.attacked or self.seeds) if repeats.shadows else [model.seed]
        return [*(BedCell(model, method, seed, shadow) for shadow in shadows for seed in range(repeats.seeds)
                  if shadow != model.seed or seed >= usual),
                *(BedCell(model, method, 0, model.seed, draw) for draw in range(1, repeats.draws))]

    @cached_property
    def attackers(self) -> dict[str, Attacker]:
        found = filter(None, map(self.attacker_of, self.cells.values()))
        return {attacker.name: attacker for attacker in found}

    # Command lines, without the interpreter

    def data_command(self, name: str) -> list[str]:
        return ["-m", "datasets", *self.data[name].split()]

    def model_command(self, name: str) -> list[str]:
        model = self.models[name]
        of, defense = self if model.part in PARTS else self.independent, self.defenses.get(model.defense)
        return ["train_shadow.py", "--out", str(self.runs / name), "--root", of.root, "--train",
                of.parts[model.part], "--test", of.parts[PARTNER[model.part]], "--seed", str(model.seed),
                *of.model.split(), *(defense.model.split() if defense else [])]

    def attacker_command(self, attacker: Attacker) -> list[str]:
        return ["train_attacker.py", "--out", str(self.runs / "attackers" / attacker.name), "--shadow",
                *(str(self.runs / shadow.name) for shadow in attacker.shadows), "--seed", str(attacker.seed),
                *self.learned[attacker.kind].flags.split()]

    def cell_command(self, cell: BedCell) -> list[str]:
        """The attack of a cell. A control asks the first shadow, about the images of the model."""
        asked, attacker, references = cell.model, self.attacker_of(cell), self.references_of(cell)
        if cell.method == CONTROL:
            asked, words = self.control_of(cell.model), ["--attack", "loss", "--allow", "unseen"]
        elif cell.method in self.direct:
            other = self.control_of(cell.model)
            words = self.direct[cell.method].flags.format(shadow=self.runs / other.name,
                                                          other=self.parts[other.part]).split()
        else:
            words = ["--select", cell.method.rpartition("-")[2], "-num-patch", str(self.count)]
        words += ["-resume", str(self.runs / "attackers" / attacker.name / "best.pth.tar")] if attacker else []
        asks = cell.method in self.direct and self.direct[cell.method].asks
        if references:
            words += ["--allow", "unbalanced"] if self.is_oracle(cell) else []
            words += ["--references", *(str(self.runs / one.name) for one in references)]
            words += [] if asks else ["--keep-references", str(self.runs / "answers" / cell.model.part)]
        keep = [] if asks else ["--keep", str(self.runs / asked.name / f"{self.stored}-{cell.model.part}")]
        return ["attack.py", "--out", str(self.run_of(cell)), "--victim", str(self.runs / asked.name / "last.pth.tar"),
                *keep, "--root", self.root, "--members", self.parts[cell.model.part], "--non-members",
                self.parts[PARTNER[cell.model.part]], "--seed", str(self.seed_of(cell)), *words, *self.attack.split()]

    def seed_of(self, cell: BedCell) -> int:
        """The seed of the patch locations."""
        return cell.seed + DRAW * cell.draw

    def control_of(self, model: Model) -> Model:
        """The model that is asked in the place of `model`: that of its seed on one of the other two parts."""
        return self.shadows_of(model, "one")[0]

    def run_of(self, cell: BedCell) -> Path:
        return self.runs / "cells" / cell.name

    def cell_arguments(self, cell: BedCell) -> dict:
        """The arguments of `reproduce.cells.write_cell` for a cell, after its run and its file."""
        return {"images": self.results / "images" / f"{cell.model.part}.json", "kept": KEPT}

    # Order and cost

    def batch_of(self, cell: BedCell) -> str:
        """The name of the process that measures a cell.

        There are two for each attacked model: for attacks that read no trained attacker, and for the others.
        """
        return f"{cell.model.name}-{'learned' if self.attacker_of(cell) else 'direct'}"

    def needs_of(self, cell: BedCell) -> list[Path]:
        """results.json of each training that the attack of a cell reads."""
        asked = self.control_of(cell.model) if cell.method == CONTROL else cell.model
        attacker = self.attacker_of(cell)
        return [*(self.runs / model.name / "results.json" for model in (asked, *self.references_of(cell))),
                *([self.runs / "attackers" / attacker.name / "results.json"] if attacker else [])]

    def budget(self, exists: Callable[[Path], bool]) -> dict[str, tuple[int, float]]:
        """Map each stage to (number of missing runs, predicted hours on one core). `exists` checks a path."""
        cells = [cell for cell in self.cells.values() if not has_result(self.results / f"{cell.name}.json", exists)]
        needed = {path for cell in cells for path in self.needs_of(cell)}
        needed |= {self.runs / shadow.name / "results.json" for cell in cells if (attacker := self.attacker_of(cell))
                   for shadow in attacker.shadows}
        missing = {path for path in needed if not exists(path)}
        attackers = {path for path in missing if path.parent.parent.name == "attackers"}
        spent = {"models": (len(missing - attackers), "model"), "attackers": (len(attackers), "attacker"),
                 "attacks": (len(cells), "attack")}
        return {stage: (count, count * self.minutes[key] / 60) for stage, (count, key) in spent.items()}


def read_rotations(path: str | Path) -> Rotations:
    """Read a scale file of this kind, as `reproduce.plan.read_scale` does.

    Raises `UserError` if a key is unknown or missing, or an attack is named that the file does not have.
    """
    path, keys = load_keys(path)
    del keys["form"]
    try:
        keys["learned"] = {name: Learned(**one | {"select": tuple(one.get("select", ("random",)))})
                           for name, one in keys["learned"].items()}
        keys["direct"] = {name: Direct(**one) for name, one in keys["direct"].items()}
        keys["defenses"] = {name: Defended(**one | {"attacks": {attack: Direct(**each) for attack, each
                                                                in one["attacks"].items()}})
                            for name, one in keys.get("defenses", {}).items()}
        keys["direct"] |= {f"{attack}-under-{name}": _under(name, one, each)
                           for name, one in keys["defenses"].items() for attack, each in one.attacks.items()}
        keys["repeats"] = {name: Repeats(**one) for name, one in keys.get("repeats", {}).items()}
        keys["independent"] = Independent(**keys["independent"]) if "independent" in keys else None
        bed = Rotations(name=path.stem, data_marks=keys["runs"] / "data", **keys)
    except KeyError as error:
        raise UserError(f"{path} has no key {error}") from None
    except TypeError as error:
        raise UserError(f"{path}: {error}; the keys are listed in reproduce/rotations.py") from None
    _check(bed, path)
    return bed


def _under(name: str, defense: Defended, attack: Direct) -> Direct:
    """An attack on a model under a defense. The references of an attack that asks the models answer without it."""
    clean = attack.clean or attack.asks or attack.references == "none"
    changed = [defense.answer, "" if clean or not defense.answer else "--defend-references"]
    flags = [attack.flags] if attack.undoes else [attack.flags, *changed]
    return replace(attack, flags=" ".join(filter(None, flags)), defense=name)


def _check(bed: Rotations, path: Path) -> None:
    """Raise `UserError` if a value of a scale file is not one of those that are known, or names what it has not."""
    if set(bed.parts) != set(PARTS):
        raise UserError(f"{path}: `parts` must name a split file for each of {', '.join(PARTS)}")
    if bed.independent and set(bed.independent.parts) != set(ELSEWHERE):
        raise UserError(f"{path}: `parts` of `independent` must name a split file for each of {', '.join(ELSEWHERE)}")
    attacks, models = [*bed.learned.values(), *bed.direct.values()], ["one", "all"]
    models += ["independent"] if bed.independent else []
    if wrong := [one for one in attacks if getattr(one, "shadows", "one") not in models
                 or one.references not in ("none", *models, *(["oracle"] if isinstance(one, Direct) else []))]:
        raise UserError(f"{path}: {wrong[0]}: `shadows` is one of {', '.join(models)}; `references` is one of these or "
                        "none, or oracle for an attack without a trained attacker")
    if wrong := {one.resume for one in bed.direct.values()} - {"", *bed.learned}:
        raise UserError(f"{path}: `resume` names {min(wrong)}, which is no learned attacker")
    if wrong := set(bed.repeats) - {f"{name}-{select}" for name, one in bed.learned.items() if one.shadows == "one"
                                    for select in one.select}:
        raise UserError(f"{path}: `repeats` names {min(wrong)}, which is no selection of an attacker with one shadow")
    if bed.seeds < 3 and any(one.references == "oracle" for one in bed.direct.values()):
        raise UserError(f"{path}: an oracle needs two references that were trained on an image: three seeds or more")
    if not 0 <= bed.attacked <= bed.seeds:
        raise UserError(f"{path}: `attacked` is {bed.attacked}, but there are {bed.seeds} seeds")
    if untimed := [key for key in ("model", "attacker", "attack") if key not in bed.minutes]:
        raise UserError(f"{path}: `minutes` has no entry for {untimed[0]}")
