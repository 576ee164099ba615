"""Build the attack, and the source of its samples, from the choices of a user."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from attacks import build_attack
from attacks.patches import CPU_BATCH, Selection
from attacks.representation import channels
from attacks.sample import Attack, AttackSettings
from datasets import find_dataset, show_dataset
from datasets.pairs import read_split
from defenses import DEFENSES, DefenseSpec
from defenses.base import NO_DEFENSE, Defense
from evaluation.attack_options import AttackRun
from evaluation.attack_run import existing_files, run_attack
from models import LoadedAttacker, load_attacker
from models.pixelwise import Pixelwise
from predictors import open_predictor
from predictors.base import Access, PredictorOptions, Record
from predictors.reference import open_references, read_shadow
from predictors.samples import Source, live_records, open_victim, tree_source
from predictors.stored import SIDES, TINY, describe_tree, warn_of_folders
from predictors.triples import TriplePredictor, list_triples
from utils.cli import UserError
from utils.device import Compute, choose_compute
from utils.distributed import print_once, warn_once
from utils.precision import architecture, forward_step, random_images, settle

__all__ = ["AttackChoices", "AttackRun", "LiveData", "choose_compute", "existing_files", "live_source", "load_attacker",
           "make_attack", "population_source", "run_attack", "stored_source", "triples_source"]

PATCH_SIZE = 24  # side of a patch in positions, if there is no attacker


@dataclass(frozen=True)
class AttackChoices:
    """The settings of an attack that a user can choose; each has the name of its flag.

    None stands for the setting of the attacker or, without an attacker, for the default.
    """

    input: str | None = None
    select: str | None = None
    num_patch: int = 6
    patch_size: int | None = None
    tau: float | None = None
    floor: float | None = None
    seed: int = 0
    score: str = "paper"
    batch: int = 64
    c: float = 0.75
    weight: float = 1.0
    offline_a: float = 0.3
    queries: int = 6


@dataclass(frozen=True)
class LiveData:
    """The images about which a target model is queried: two split files, and the settings to read them.

    `dataset`: None for that of the target model or, if it names none, streets. `windows`, `access`: as in
    `PredictorOptions`. `pseudo_labels`: the label files need not exist. `defend_references`: references are
    queried as the defense of the target model changes queries.
    """

    members: str
    non_members: str
    root: str
    strip_prefix: str = ""
    dataset: str | None = None
    windows: bool | tuple[int, int] = False
    access: Access = field(default_factory=Access)
    pseudo_labels: bool = False
    defend_references: bool = False


def make_attack(name: str, attacker: LoadedAttacker | None, choices: AttackChoices, defense: Defense,
                compute: Compute) -> Attack:
    """Build the attack `name`. Raises `UserError` for choices that contradict the attacker.

    An attack without training takes patch size, floor and tau from `attacker`, if there is one.
    """
    if choices.floor is not None and not 0 < choices.floor < 1:
        raise UserError(f"--floor {choices.floor}: must be above 0 (0 has no logarithm) and below 1")
    if attacker and name == "learned":
        warn_of_defense(attacker, defense)
    spec = attacker and replace(attacker.spec, argmax=defense.one_hot, floor=choices.floor or attacker.spec.floor)
    if spec and choices.input not in (None, spec.input):
        raise UserError(f"{attacker.path} reads -input {spec.input}; for -input {choices.input} give another -resume")
    pixelwise = name == "learned" and attacker and isinstance(attacker.model, Pixelwise)
    if name == "learned" and attacker:
        compute = settle_attacker(compute, attacker, choices.batch)
    selection = Selection(choices.select or ("full" if pixelwise else "random"), choices.num_patch,
                          spec.size if spec else choices.patch_size or PATCH_SIZE,
                          choices.tau if choices.tau is not None else spec.tau if spec else Selection().tau,
                          choices.seed)
    return build_attack(name, AttackSettings(
        selection, spec.floor if spec else choices.floor or TINY, attacker and replace(attacker, spec=spec),
        choices.score, choices.batch, choices.c, choices.weight, compute, choices.offline_a,
        choices.queries))


def settle_attacker(compute: Compute, attacker: LoadedAttacker, batch: int) -> Compute:
    """`compute` with the precision in which an attacker scores patches. `batch`: as in `AttackSettings`."""
    model, spec = attacker.model, attacker.spec
    patches = CPU_BATCH if compute.device.type == "cpu" else batch
    shape = (patches, channels(spec.input, attacker.classes or 1, spec.void), spec.size, spec.size)
    return settle(compute, "scores of A_P", (architecture(model), shape), lambda: forward_step(
        model.to(compute.device, memory_format=torch.channels_last), random_images(shape, compute.device)))


def stored_source(tree: str, attack: Attack, defense: Defense, compute: Compute,
                  references: Sequence[str] = (), sides: Collection[str] = tuple(SIDES)) -> Source:
    """The source of posteriors on disk. Reference models are queried about the images of the tree, or stored, too.

    `sides`: the sides of the tree that are read.
    """
    classes, stride = _expected(attack)
    folder = f"pred_{defense.spec.name}" if defense.spec.stage == "training" else "pred_sgd"
    source = tree_source(tree, folder, PredictorOptions(compute, stride, defense), classes, sides)
    print_once(describe_tree(tree, folder, source.records))
    warn_of_folders(tree, folder)
    if not references:
        return source
    models = open_references(references, PredictorOptions(compute, stride or source.form()[1]))
    if any(model.predictor.reads_images for model in models) and not source.records[0].image.is_file():
        raise UserError(f"{source.records[0].image} is missing, so references cannot be queried about it: give "
                        "--victim with split files, or references that are posteriors on disk (stored:TREE)")
    return replace(source, references=models)


def population_source(where: str, target: Source, attack: Attack, data: LiveData) -> Source:
    """The source of the samples that an attack is fitted on.

    Samples of known membership come from a run of train_shadow.py, whose model is queried at the stride of `target`
    under the same defense, or from a tree. For "non-members" see `non_members_source`.
    """
    if "non-members" in attack.needs:
        return non_members_source(where, target, attack, data)
    defense, compute = target.defense, target.predictor.options.compute
    if Path(where).is_file():
        raise UserError(f"--population {where} is a file, and a split file has non-members only; give members and "
                        "non-members of another model: a run of train_shadow.py, or a tree of posteriors")
    if not (Path(where) / "in.txt").is_file():
        return stored_source(where, attack, defense, compute)
    shadow, (classes, _) = read_shadow(where), _expected(attack)
    options = replace(target.predictor.options, stride=target.predictor.stride or target.form()[1])
    predictor = open_predictor(f"checkpoint:{shadow.checkpoint}", options)
    return Source(shadow.records(), predictor, defense, (), classes, names=predictor.class_names)


def non_members_source(where: str, target: Source, attack: Attack, data: LiveData) -> Source:
    """The outputs of the target model itself for images that it was not trained on.

    A target model that is queried needs a split file, which is read as the other two. Of stored posteriors it is
    another tree of the same model, of which only the side of the non-members is read.
    """
    if target.predictor.reads_images:
        pairs = read_split(where, data.root, data.strip_prefix, labels=not data.pseudo_labels)
        records = [Record.of_pair(pair, target.records[0].dataset, False) for pair in pairs]
        return replace(target, records=records, references=())
    if not Path(where).is_dir():
        raise UserError(f"--population {where} is no folder; posteriors on disk cannot be queried about other images: "
                        "give a tree with those of the same model for known non-members in val/")
    outside = [side for side, member in SIDES.items() if not member]
    return stored_source(where, attack, target.defense, target.predictor.options.compute, sides=outside)


def triples_source(root: str, defense: Defense, compute: Compute) -> Source:
    """The source of translated images on disk."""
    records, outputs = list_triples(root)
    print_once(f"{root}: {sum(bool(record.member) for record in records)} + "
               f"{sum(not record.member for record in records)} translated images")
    return Source(records, TriplePredictor(root, outputs, PredictorOptions(compute)), defense)


def live_source(victim: str, data: LiveData, attack: Attack, stride: int | None, defense: Defense, compute: Compute,
                references: Sequence[str] = ()) -> Source:
    """The source of a target model that is queried."""
    classes, expected_stride = _expected(attack)
    if stride and expected_stride and stride != expected_stride:
        raise UserError(f"--stride {stride}: the attacker was trained on posteriors at stride {expected_stride}; leave "
                        "--stride out")
    options = PredictorOptions(compute, stride or expected_stride or 8, defense, data.windows, data.access)
    predictor, dataset = open_victim(victim, data.dataset, options, ("posterior", "image"))
    if predictor.kind == "image" and stride:
        raise UserError(f"--stride has no effect on the images of {victim}; leave it out")
    wanted = dataset if data.dataset == "folder" else data.dataset  # with the classes of the model, if it has none
    if wanted and predictor.dataset not in (None, wanted):
        raise UserError(f"{victim} was trained on the data set {show_dataset(predictor.dataset)}, so its members are "
                        f"images of it, not of {show_dataset(wanted)}; leave --dataset out")
    records = live_records(data.members, data.non_members, data.root, data.strip_prefix, dataset,
                           not data.pseudo_labels)
    known = defense if data.defend_references else NO_DEFENSE
    models = open_references(references, replace(predictor.options, stride=options.stride, defense=known))
    named = predictor.kind == "posterior" and (data.dataset or predictor.dataset)
    names = find_dataset(dataset).CLASSES if named else None
    return Source(records, predictor, defense, models, classes, names=names)


def warn_of_defense(attacker: LoadedAttacker, defense: Defense) -> None:
    """Print a warning if an attacker was trained on defended posteriors, and attacks without or under another defense.

    An attacker that was trained without a defense may attack under any: it does not know the defense.
    """
    stored = attacker.arguments if isinstance(attacker.arguments, dict) else {}
    values = {name: stored.get(name.replace("-", "_")) for name in DEFENSES}
    trained = [DefenseSpec(name, None if value is True else value).describe() for name, value in values.items()
               if isinstance(value, (int, float)) and value is not False]
    if trained and trained[0] != (given := defense.spec.describe()):
        warn_once(f"{attacker.path} was trained under the defense {trained[0]}, and the attack is "
                  f"{f'under {given}' if given else 'without it'}; give the same flag, unless this is meant")


def _expected(attack: Attack) -> tuple[int | None, int | None]:
    """Classes and stride of the posteriors that the attacker of an attack was trained on (None: any)."""
    attacker = attack.settings.attacker
    return (attacker.classes, attacker.spec.stride or None) if attacker else (None, None)
