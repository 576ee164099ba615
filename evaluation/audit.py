"""Audit a model: run every attack that its inputs allow, with controls and under defenses, and say what follows.

Each attack is a run of `evaluation.attack_run` in a folder of its own, so an audit that was stopped goes on with the
attack at which it stopped. The attack that answers the question is fixed before any metric is known (`PRIMARY`).
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from attacks import ATTACKS
from attacks.representation import FLOOR, loss_map
from defenses import DEFENSES, DefenseSpec
from defenses.base import NO_DEFENSE
from evaluation.attack_options import AttackRun
from evaluation.attack_run import existing_files, run_attack
from evaluation.attack_setup import (
    AttackChoices,
    LiveData,
    live_source,
    make_attack,
    population_source,
    stored_source,
)
from evaluation.audit_page import write_page
from evaluation.audit_plots import class_image, photograph, signed_image, value_image
from evaluation.exposure import has_map, shown_regions
from evaluation.gate import check_segments, examine
from evaluation.metrics import RATES, Curves
from evaluation.set_level import was_used
from evaluation.stored_scores import read_scores
from predictors import file_of, kind_of
from predictors.cache import cache_outputs
from predictors.samples import Source
from utils.cli import UserError
from utils.device import CPU_FP32, Compute
from utils.files import commit, fingerprint, read_json, write_json
from utils.log import progress
from utils.names import name_writer

VERSION = 1  # of audit.json
PRIMARY = ("calibrated", "loss")  # the first that can run answers the question
CONTROLS = ("references-alone",)  # attacks that must find nothing
BOUNDS = ("statistics-crossfit",)  # that know more than an attacker does
LEFT_OUT = ("learned", "reconstruction", "membership-error-released")  # need an attacker, or repeat another attack
PRIORS = (0.01, 0.1, 0.5)
WITH_WEIGHTS = ("checkpoint", "torchvision", "smp", "hf")  # kinds of models whose gradients can be computed
QUERIED_ONCE = ("stored", "folder", "http", "https")  # kinds of models: answers on disk, and endpoints of others
EXPOSED = 10  # images that are shown
POINTS = 200  # of a ROC curve in audit.json


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
        return {"truth", "label", "image", "predictability"} | {what for what, there in (
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
        return [name for name in able if not self.attacks or name in self.attacks]

    @property
    def primary(self) -> str:
        """The attack that answers the question: the first of `PRIMARY` that can run, or else the first attack."""
        names = [name for name in self.names if name not in CONTROLS and self.suits(name)]
        return next((name for name in PRIMARY if name in names), names[0])

    def shown(self, where: str) -> str:
        """A place as the page has it, which is made to be handed on: of a path the last two parts.

        With `show_images` the complete path, and URLs always.
        """
        first, *parts = where.split("/")
        if self.show_images or "://" in where or len(parts) < 3:
            return where
        return "/".join([f"{first.partition(':')[0]}:…" if ":" in first else "…", *parts[-2:]])

    def stamp(self, name: str, defense: DefenseSpec) -> str:
        """What identifies the run of an attack: a finished run with the same stamp is not repeated."""
        same = {key: value for key, value in self.arguments.items() if key in SAME}
        files = existing_files([self.model, self.control, self.population, *self.references])
        lists = [Path(path) for path in (self.data.members, self.data.non_members)] if self.data else []
        return fingerprint([*files, *lists], name, defense, same, self.compute.precision, VERSION)


# arguments on which the scores, or the names beside them, depend
SAME = ("model", "images", "masks", "root", "strip_prefix", "members", "non_members", "claim", "null", "dataset",
        "classes", "class_names", "label_map", "references", "train_references", "reference_images", "population",
        "control", "stride", "windows", "preprocess", "show_images", "hash_names", "seed")


def run_audit(audit: Audit) -> dict:
    """Run all attacks, write audit.json, report.html and report.md into the folder of the audit, and return the result.

    Raises `UserError` if the attack that answers the question cannot run.
    """
    names, plain = audit.names, DefenseSpec(seed=audit.seed)
    checked = check_model(audit)
    plan = [(name, defense) for defense in (plain, *audit.defenses) for name in names
            if audit.suits(name, defense)]
    runs: dict[str | None, dict[str, dict]] = {}
    failed: dict[str, str] = {}
    with progress(plan, "auditing") as bar:
        for name, defense in bar:
            bar.set_description(" ".join(filter(None, (name, defense.describe()))))
            try:
                runs.setdefault(defense.describe(), {})[name] = run_once(audit, name, defense)
            except UserError as error:
                failed[" under ".join(filter(None, (name, defense.describe())))] = str(error)
    if audit.primary in failed:
        raise UserError(failed[audit.primary])
    found = summarise(audit, runs, failed)
    found["settings"]["check of the model"] = checked
    shown = exposed(audit, found["primary"])
    found["exposed"] = [{key: row[key] for key in ("name", "score", "above")} for row in shown]
    write_json(audit.out / "audit.json", found)
    write_page(found | {"exposed": shown}, audit.out)
    return found


def check_model(audit: Audit) -> str:
    """What `evaluation.gate` says about the model. Raises `UserError` if something is wrong, unless `skip_check`."""
    with log_of(audit.out):
        attack = make_attack("loss", None, AttackChoices(seed=audit.seed), NO_DEFENSE, audit.compute)
        source = open_source(audit, attack, NO_DEFENSE.spec)
        return str((examine if audit.skip_check else check_segments)(source.predictor, source.records))


def run_once(audit: Audit, name: str, defense: DefenseSpec) -> dict:
    """The results of one attack under one defense, from its folder if it has run already.

    What the run prints is added to log.txt in the folder of the audit.
    """
    folder = folder_of(audit, name, defense)
    marker, stamp = folder / "audit-stamp.json", audit.stamp(name, defense)
    if marker.is_file() and read_json(marker).get("stamp") == stamp:
        return read_json(folder / "results.json") | {"seconds": read_json(marker)["seconds"]}
    marker.unlink(missing_ok=True)
    first = name == audit.primary and not defense.name
    stored = audit.data and not {"queries", "weights"} & ATTACKS.load(name).needs
    started = time.monotonic()
    with log_of(audit.out):
        attack = make_attack(name, None, AttackChoices(seed=audit.seed), defense.build(), audit.compute)
        source = open_source(audit, attack, defense)
        known = None
        if "population" in attack.needs:
            known = population_source(audit.population, source, attack, audit.data)
        call = AttackRun(
            name, audit.arguments | {"attack": name, "defense": defense.describe()},
            existing_files([audit.model, *audit.references]), audit.model if audit.data else None, audit.control,
            keep=str(answers_of(audit, defense)) if stored else None,
            keep_references=str(audit.out / "references") if stored and source.references else None,
            allow=audit.allow, out=str(folder), seed=audit.seed, hash_names=audit.key,
            exposure=first and has_map(attack), features=audit.features, blind=first, compute=audit.compute)
        results = run_attack(attack, source, call, known)
    seconds = time.monotonic() - started
    write_json(marker, {"stamp": stamp, "seconds": seconds})
    return results | {"seconds": seconds}


@contextlib.contextmanager
def log_of(folder: Path) -> Iterator[None]:
    """Write what is printed to log.txt in the folder of an audit."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield


def open_source(audit: Audit, attack: object, defense: DefenseSpec) -> Source:
    """The source of the samples of an attack. References are left out where the attack reads none."""
    references = audit.references if "references" in attack.needs | attack.optional else ()
    if audit.data:
        return live_source(audit.model, audit.data, attack, audit.stride, defense.build(), audit.compute, references)
    tree = audit.model.removeprefix("stored:")
    return stored_source(tree, attack, defense.build(), audit.compute, references)


def folder_of(audit: Audit, name: str, defense: DefenseSpec) -> Path:
    """The folder of a run: attacks/NAME or, under a defense, attacks/DEFENSE-STRENGTH/NAME."""
    return audit.out / "attacks" / (defense.describe() or "").replace(" ", "-") / name


def answers_of(audit: Audit, defense: DefenseSpec) -> Path:
    """The folder of the stored outputs: a defense at query time has outputs of its own."""
    under = f"-{defense.describe().replace(' ', '-')}" if defense.stage == "query" else ""
    return audit.out / f"answers{under}"


def parse_defense(text: str, seed: int) -> DefenseSpec:
    """The defense of `NAME` or `NAME:STRENGTH`. Raises `UserError` for another text."""
    name, _, value = text.partition(":")
    entry = DEFENSES.get(name)
    usual = [f"{one}:{found.strength}" if found.strength else one for one, found in DEFENSES.items()
             if found.stage != "training"]
    try:
        strength = float(value) if value else None
    except ValueError:
        strength = float("nan")
    if not entry or entry.stage == "training" or strength != strength or bool(entry.strength) != bool(value):
        raise UserError(f"--try {text}: give {', '.join(usual)}")
    return DefenseSpec(name, strength, seed=seed)


def summarise(audit: Audit, runs: dict[str | None, dict[str, dict]], failed: dict[str, str]) -> dict:
    """The content of audit.json from the results of all runs. `runs`: defense (None: none) -> attack -> results."""
    plain = runs[None]
    primary = audit.primary
    first, used = plain[primary], collection_test(audit, primary)
    rows = [describe(audit, name, DefenseSpec(seed=audit.seed), results) for name, results in plain.items()]
    declared = {"members": audit.data.members, "non_members": audit.data.non_members} if audit.data else {
        "members": f"{audit.model}/train", "non_members": f"{audit.model}/val"}
    return {
        "version": VERSION,
        "model": {"where": audit.shown(audit.model)},
        "declared": {side: audit.shown(where) for side, where in declared.items()},
        "images": {key: first[key] for key in ("members", "non_members", "groups", "blocks")},
        "compared_with": first["roles"]["compared_with"],
        "miou": first["miou"],
        "primary": primary,
        "answer": answer(first, used),
        "collection": {key: used[key] for key in ("p", "method", "groups", "needed")} if audit.claim and used else None,
        "attacks": [row for row in rows if row["kind"] != "control"],
        "controls": controls_of(first, rows),
        "regions": regions(first),
        "defenses": frontier(runs, primary),
        "priors": priors(audit, primary, first),
        "not_run": failed,
        "named": audit.show_images,
        "settings": {"date": date.today().isoformat(), "commit": commit(), "torch": torch.__version__,
                     "device": audit.compute.device.type, "precision": audit.compute.precision, "seed": audit.seed,
                     "features of the membership error": audit.features} | hashes(audit),
    }


def hashes(audit: Audit) -> dict[str, str]:
    """The SHA-256 of the files of the models, by which a reader can tell whether they are the same."""
    places = {"the model": audit.model, "the control": audit.control} | {
        f"reference {number}": place for number, place in enumerate(audit.references, 1)}
    return {f"SHA-256 of {name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for name, place in places.items() if (path := file_of(place))}


def describe(audit: Audit, name: str, defense: DefenseSpec, results: dict) -> dict:
    """The row of an attack: its metrics, its ROC curve and what it needs."""
    attack = ATTACKS.load(name)
    kind = "control" if name in CONTROLS else "bound" if name in BOUNDS else "attack"
    reads = len(audit.references) if "references" in attack.needs | attack.optional else 0
    queries = AttackChoices().queries if "queries" in attack.needs else 1
    return {"name": name, "about": ATTACKS[name].about, "kind": kind, "references": reads, "queries": queries,
            "seconds": round(results["seconds"], 1), "chosen": results["chosen"],
            **results["image"], "roc": roc(folder_of(audit, name, defense))}


def roc(folder: Path) -> list[list[float]]:
    """At most `POINTS` points [FPR, TPR] of the ROC curve of a run; the low FPR keep all of theirs."""
    rows = read_scores(folder).values()
    curves = Curves(np.array([score for _, _, score in rows]), np.array([member for member, _, _ in rows]))
    points = np.stack([curves.false / curves.false[-1], curves.true / curves.true[-1]], axis=1)
    points = np.concatenate([[[0.0, 0.0]], points])
    low = int(np.searchsorted(points[:, 0], 0.1))
    rest = np.linspace(low, len(points) - 1, max(2, POINTS - low)).round().astype(int)
    kept = np.unique([*range(min(low, POINTS)), *rest])
    return points[kept].round(6).tolist()


def collection_test(audit: Audit, primary: str) -> dict | None:
    """The test of `evaluation.set_level.was_used` that members score higher. None with too few groups."""
    member, group, score = zip(*read_scores(folder_of(audit, primary, NO_DEFENSE.spec)).values(), strict=True)
    try:
        return was_used([np.array(score)], np.array(member), group, audit.seed)
    except UserError:
        return None


def answer(results: dict, used: dict | None) -> dict:
    """What the primary attack says: "leak", "no evidence", "other difference" or "undecided", and why.

    "other difference": classifiers that do not see the model tell the two sides apart as well. `used`: the result of
    `collection_test`, from which is "detectable", the AUC that would have been found with a probability of 80 %.
    """
    auc, interval = results["image"]["auc"], results["image"]["auc_interval"]
    found = {"auc": auc, "interval": interval, "detectable": used and used["detectable"]}
    if interval is None:
        return found | {"verdict": "undecided"}
    blind = results["controls"].get("blind")
    if interval[0] <= 0.5:
        return found | {"verdict": "no evidence"}
    if blind and blind["sides_differ"] == "above":
        more = blind["attack_minus_control_interval"]
        if not more or more[0] <= 0:
            return found | {"verdict": "other difference"}
    return found | {"verdict": "leak"}


def regions(results: dict) -> list[dict]:
    """The rows of "Where the leak is": kind, region, share of the positions, AUC and its interval."""
    found = results.get("exposure", {}).get("regions", {})
    return [{"kind": kind, "region": region} | {
        key: found[kind][region][key] for key in ("share", "members", "non_members", "auc", "auc_interval")}
        for kind, region in (shown_regions(found) if found else ())]


def controls_of(results: dict, rows: Sequence[dict]) -> list[dict]:
    """What must find nothing: classifiers without the model, the attack on another model, the references alone."""
    found = [{"name": name, "auc": one["auc"], "interval": one["auc_interval"],
              "minus": one["attack_minus_control"], "minus_interval": one["attack_minus_control_interval"]}
             for name, one in results["controls"].items()]
    return found + [{"name": row["name"], "auc": row["auc"], "interval": row["auc_interval"], "minus": None,
                     "minus_interval": None} for row in rows if row["kind"] == "control"]


def frontier(runs: dict[str | None, dict[str, dict]], primary: str) -> list[dict]:
    """Leak against utility: for no defense and for each defense, the mIoU and the attack with the highest AUC."""
    rows = []
    for defense, results in runs.items():
        attacks = {name: one for name, one in results.items() if name not in CONTROLS + BOUNDS}
        if attacks:
            worst = max(attacks, key=lambda name: attacks[name]["image"]["auc"])
            one = attacks[worst]
            rows.append({"defense": defense, "miou": one["miou"], "worst": worst, "auc": one["image"]["auc"],
                         "interval": one["image"]["auc_interval"],
                         "primary_auc": attacks[primary]["image"]["auc"] if primary in attacks else None})
    return rows


def priors(audit: Audit, primary: str, results: dict) -> list[dict]:
    """How often a call of the primary attack is right, if 1, 10 or 50 % of the images were in the training data.

    At the FPR of 1 and of 10 %, where there are enough non-members. "right": the share of members among the images that
    are called members.
    """
    rows = []
    for metric in ("tpr_at_1_fpr", "tpr_at_10_fpr"):
        tpr = results["image"][metric]
        for prior in PRIORS if tpr is not None else ():
            called = prior * tpr + (1 - prior) * RATES[metric]
            rows.append({"fpr": RATES[metric], "tpr": tpr, "prior": prior, "right": prior * tpr / called})
    return rows


def exposed(audit: Audit, primary: str) -> list[dict]:
    """The `EXPOSED` members with the highest scores of an attack with a map: names, scores, and their maps as images.

    "above": the number of non-members with such a score. The maps are the output, the loss, and the evidence of the
    attack; `Audit.show_images` adds the photograph.
    """
    plain, write_name = DefenseSpec(seed=audit.seed), name_writer(audit.key)
    with log_of(audit.out):
        attack = make_attack(primary, None, AttackChoices(seed=audit.seed), plain.build(), audit.compute)
        source = open_source(audit, attack, plain)
    scores = {name: score for name, (_, _, score) in read_scores(folder_of(audit, primary, plain)).items()}
    stored = cache_outputs(answers_of(audit, plain), source.predictor, source.records,
                           existing_files([audit.model])) if audit.data else source.predictor
    others = np.array([scores[write_name(one.name)] for one in source.records if not one.member])
    members = sorted((one for one in source.records if one.member), key=lambda one: -scores[write_name(one.name)])
    shown = replace(source, records=members[:EXPOSED], predictor=stored)
    photographs = audit.show_images and all(record.image.is_file() for record in shown.records)
    needs = {"truth"} | ({"image"} if photographs else set())
    rows = []
    for sample in shown.samples(frozenset(needs)):
        score, loss = scores[write_name(sample.name)], loss_map(sample.output, sample.truth, FLOOR).squeeze(0).numpy()
        known, evidence = sample.known.numpy(), attack.evidence(sample).numpy()
        limit = float(np.quantile(np.abs(evidence[known]), 0.98))
        maps = [(class_image(sample.output.argmax(0).numpy()), "output"),
                (value_image(loss, known, float(np.quantile(loss[known], 0.98))), "loss"),
                (signed_image(evidence - np.median(evidence[known]), known, limit), "evidence")]
        if photographs:
            maps.insert(0, (photograph(sample.image.numpy().transpose(1, 2, 0)), "image"))
        rows.append({"name": write_name(sample.name), "score": score, "above": int((others >= score).sum()),
                     "maps": maps})
    return rows
