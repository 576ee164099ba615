"""The plan of an audit: which attacks run, under which defenses, and with which controls.

The attack that answers the question is fixed before any metric is known (`PRIMARY`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from attacks import ATTACKS
from datasets.pairs import Pair, read_split
from defenses import DefenseSpec
from defenses.base import NO_DEFENSE
from evaluation.attack_run import existing_files
from evaluation.attack_setup import LiveData
from predictors import kind_of
from predictors.stored import list_records
from utils.cli import UserError
from utils.device import CPU_FP32, Compute
from utils.files import commit, fingerprint

VERSION = 1  # of audit.json
PRIMARY = ("calibrated", "loss")  # the first that can run answers the question
CONTROLS = ("references-alone",)  # attacks that must find nothing
BOUNDS = ("statistics-crossfit", "learned-crossfit")  # that know more than an attacker does
NO_ANSWER = ("--attacks {}: controls, upper bounds and attacks on a defense alone do not answer the question; add an "
             "attack on the model without a defense, such as loss")
# they need an attacker or images that are certainly no members, or repeat another attack
LEFT_OUT = ("learned", "base", "quantile", "reconstruction", "membership-error-released")
WITH_WEIGHTS = ("checkpoint", "torchvision", "smp", "hf")  # kinds of models whose gradients can be computed
ON_DISK = ("stored", "folder")  # kinds of models whose answers are on disk
QUERIED_ONCE = (*ON_DISK, "http", "https")  # and endpoints of others
# arguments on which the scores, or the names beside them, depend
SAME = ("model", "images", "masks", "root", "strip_prefix", "members", "non_members", "claim", "null", "dataset",
        "classes", "class_names", "label_map", "references", "train_references", "reference_images", "population",
        "control", "stride", "windows", "preprocess", "show_images", "hash_names", "seed", "allow", "skip_check")


FILES = ("preprocess", "class_names", "label_map")  # arguments that may name a file
IMAGE = r"\.(?:png|jpe?g|tiff?|bmp|webp|gif|npy|npz)"
PLACE = re.compile(rf"\S*/\S*[^\s,:;.]|\S+{IMAGE}\b", re.IGNORECASE)  # in a message: a path, a URL, or an image


def check_attacks(names: Sequence[str]) -> None:
    """Raise `UserError` if all attacks that are named are controls and upper bounds."""
    if names and set(names) <= {*CONTROLS, *BOUNDS}:
        raise UserError(NO_ANSWER.format(" ".join(names)))


@dataclass(frozen=True)
class Trial:
    """One attack of an audit under one defense.

    `permuted`: membership is dealt to the groups at random, a control for attacks that are trained on the lists.
    `informed`: the attacker knows the defense, which also changes the outputs of the references.
    """

    name: str
    defense: DefenseSpec
    permuted: bool = False
    informed: bool = False

    @property
    def title(self) -> str:
        """The name of the attack with what is special about it."""
        special = ", permuted" if self.permuted else ", references under the defense" if self.informed else ""
        return f"{self.name}{special}"

    @property
    def folder(self) -> Path:
        """NAME or, under a defense, DEFENSE-STRENGTH/NAME; with what is special about it."""
        special = "-permuted" if self.permuted else "-informed" if self.informed else ""
        return Path((self.defense.describe() or "").replace(" ", "-")) / f"{self.name}{special}"


@dataclass(frozen=True)
class Audit:
    """What is audited, and how.

    `model`: the target model, as [KIND:]WHERE; `data`: members and non-members, None for those of a stored tree;
    `references`, `population`, `control`: as in attack.py; `attacks`: names of attacks (empty: all that can run);
    `defenses`: what is tried beside the model as it is; `out`: folder of the audit; `key`: key file for hashed names
    (None: plain names); `claim`: whether the members are images of which the user asks if they were used;
    `show_images`: whether the page shows photographs; `skip_check`: whether a model is audited that does not seem to
    segment the images; `arguments`: of the call.
    """

    model: str
    data: LiveData | None
    out: Path
    references: Sequence[str] = ()
    population: str | None = None
    control: str | None = None
    attacks: Sequence[str] = ()
    defenses: Sequence[DefenseSpec] = ()
    stride: int | None = None
    features: str = "efficientnet_lite0"
    allow: Sequence[str] = ()
    key: str | None = None
    claim: bool = False
    show_images: bool = False
    skip_check: bool = False
    seed: int = 0
    compute: Compute = CPU_FP32
    arguments: dict = field(default_factory=dict)

    def have(self, defense: DefenseSpec = NO_DEFENSE.spec) -> set[str]:
        """The inputs that are at hand, in the words of `Attack.needs`."""
        queries = self.data and kind_of(self.model) not in QUERIED_ONCE
        models = [self.model, *self.references, *([self.control] if self.control else [])]
        weights = self.data and all(kind_of(one) in WITH_WEIGHTS for one in models)
        return {"truth", "label", "image", "predictability", "own"} | {what for what, there in (
            ("references", self.references), ("population", self.population), ("queries", queries),
            ("weights", weights and defense.stage != "output"),
            ("noise", queries and defense.build().draws_noise)) if there}

    def suits(self, name: str, defense: DefenseSpec = NO_DEFENSE.spec) -> bool:
        """Whether the inputs of an attack are at hand."""
        attack = ATTACKS.load(name)
        return name not in LEFT_OUT and attack.needs <= self.have(defense) and "posterior" in attack.kinds

    @property
    def names(self) -> list[str]:
        """The attacks whose inputs are at hand, in the order of `ATTACKS`; controls are among them."""
        have = set.union(*map(self.have, (NO_DEFENSE.spec, *self.defenses)))
        able = [name for name in ATTACKS if any(self.suits(name, one) for one in (NO_DEFENSE.spec, *self.defenses))]
        if unable := [name for name in self.attacks if name not in able]:
            raise UserError(f"--attacks {unable[0]} needs {', '.join(sorted(ATTACKS.load(unable[0]).needs - have))}, "
                            "which the audit does not have; leave it out, or give --references or --population"
                            if unable[0] in ATTACKS and unable[0] not in LEFT_OUT
                            else f"--attacks {unable[0]}: an audit has the attacks {', '.join(able)}")
        controls = [name for name in CONTROLS if any(map(self.reads_references, self.attacks))]
        return [name for name in able if not self.attacks or name in self.attacks or name in controls]

    @property
    def primary(self) -> str:
        """The attack that answers the question: the first of `PRIMARY` that can run, or else the first attack.

        Raises `UserError` if there is none: a control or an upper bound does not answer it, and an attack that needs a
        defense does not attack the plain model.
        """
        names = [name for name in self.names if name not in CONTROLS + BOUNDS and self.suits(name)]
        if not names:
            raise UserError(NO_ANSWER.format(" ".join(self.attacks)))
        return next((name for name in PRIMARY if name in names), names[0])

    def shown(self, where: str) -> str:
        """A place as the page has it, which is made to be handed on: of a path the last two parts.

        Of a URL all but the query, which may hold a key. With `show_images` it is complete.
        """
        first, *parts = where.split("/")
        if "://" in where and not self.show_images:
            return where.partition("?")[0]
        if self.show_images or len(parts) < 3:
            return where
        return "/".join([f"{first.partition(':')[0]}:…" if ":" in first else "…", *parts[-2:]])

    def shown_text(self, message: str) -> str:
        """A message as the page has it: with `show_images` as it is, else without names of images and long paths."""
        def short(found: re.Match) -> str:
            return "an image" if re.search(f"{IMAGE}$", found[0], re.IGNORECASE) else self.shown(found[0])

        if self.show_images:
            return message
        for name in self._names:
            if name in message:
                message = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "an image", message)
        return PLACE.sub(short, message)

    @cached_property
    def _pairs(self) -> list[Pair]:
        """The attacked images of split files."""
        return [pair for file in (self.data.members, self.data.non_members) for pair in read_split(
            file, self.data.root, self.data.strip_prefix, must_exist=False)] if self.data else []

    @cached_property
    def _names(self) -> list[str]:
        """The names and the paths of the attacked images, the longest first."""
        if self.data:
            found = {name for pair in self._pairs for name in (pair.image, pair.label, pair.name)}
        else:
            found = {record.name for record in list_records(Path(self.model.removeprefix("stored:")))}
        return sorted(found, key=len, reverse=True)

    def plain_trial(self, name: str) -> Trial:
        """An attack without a defense."""
        return Trial(name, self.plain)

    def folder_of(self, trial: Trial) -> Path:
        """The folder of the run of an attack."""
        return self.out / "attacks" / trial.folder

    @property
    def trials(self) -> list[Trial]:
        """All runs of attacks, in order: without a defense, with the permuted controls, and under each defense.

        Under a defense only attackers count who could be real, each with and without knowing the defense.
        """
        plain = [Trial(name, self.plain, permuted) for name in self.names if self.suits(name)
                 for permuted in ((False, True) if name in BOUNDS else (False,))]
        return plain + [Trial(name, defense, informed=informed) for defense in self.defenses for name in self.names
                        if self.suits(name, defense) and name not in CONTROLS + BOUNDS
                        for informed in ((False, True) if self.knows(name, defense) else (False,))]

    @property
    def plain(self) -> DefenseSpec:
        """No defense."""
        return DefenseSpec(seed=self.seed)

    def knows(self, name: str, defense: DefenseSpec) -> bool:
        """Whether an attack can put its references under a defense, too."""
        return defense.stage in ("output", "query") and self.reads_references(name)

    def reads_references(self, name: str) -> bool:
        """Whether references are at hand, and an attack reads them."""
        attack = ATTACKS.load(name)
        return bool(self.references) and "references" in attack.needs | attack.optional

    def stamp(self, trial: Trial) -> str:
        """What identifies the run of an attack: a finished run with the same stamp is not repeated."""
        return fingerprint([], trial, self._inputs, commit(), self.compute.precision, VERSION)

    @cached_property
    def _inputs(self) -> str:
        """What identifies the inputs: models, lists and settings by content, images and stored answers by date."""
        same = {key: value for key, value in self.arguments.items() if key in SAME}
        files = existing_files([self.model, self.control, self.population, *self.references])
        files += [Path(same[key]) for key in FILES if same.get(key) and Path(same[key]).is_file()]
        files += [Path(self.data.members), Path(self.data.non_members)] if self.data else []
        images = [pair.root / name for pair in self._pairs for name in (pair.image, pair.label)]
        trees = [Path(one.partition(":")[2]) for one in (self.model, *self.references, self.control or "")
                 if one and kind_of(one) in ON_DISK]
        answers = [path for tree in trees for path in sorted(tree.rglob("*"))]
        dates = [(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in (*images, *answers)
                 if path.is_file()]
        return fingerprint(files, same, dates)
