"""Audit a model: run every attack that its inputs allow, with controls and under defenses, and say what follows.

Each attack is a run of `evaluation.attack_run` in a folder of its own, so an audit that was stopped goes on with the
attack at which it stopped.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from attacks import ATTACKS
from attacks.representation import FLOOR, loss_map
from attacks.sample import Attack
from defenses import DEFENSES, DefenseSpec
from defenses.base import NO_DEFENSE
from evaluation.attack_options import AttackRun
from evaluation.attack_run import existing_files, run_attack
from evaluation.attack_setup import (
    AttackChoices,
    live_source,
    make_attack,
    population_source,
    stored_source,
)
from evaluation.audit_page import write_page
from evaluation.audit_plan import BOUNDS, CONTROLS, VERSION, Audit, Trial
from evaluation.audit_plots import class_image, photograph, signed_image, value_image
from evaluation.controls import permuted_aucs
from evaluation.exposure import has_map, shown_regions
from evaluation.gate import check_segments, examine
from evaluation.metrics import RATES, Curves
from evaluation.set_level import was_used
from evaluation.stored_scores import read_scores
from predictors import file_of
from predictors.cache import cache_outputs
from predictors.samples import Source
from utils.cli import UserError
from utils.files import commit, read_json, write_json
from utils.log import progress
from utils.names import name_writer

PRIORS = (0.01, 0.1, 0.5)
EXPOSED = 10  # images that are shown
POINTS = 200  # of a ROC curve in audit.json


def run_audit(audit: Audit) -> dict:
    """Run all attacks, write audit.json, report.html and report.md into the folder of the audit, and return the result.

    Raises `UserError` if there is no attack that answers the question, or if it cannot run.
    """
    primary, trials, checked = audit.primary, audit.trials, check_model(audit)
    runs: dict[str | None, dict[Trial, dict]] = {}
    failed: dict[str, str] = {}
    with progress(trials, "auditing") as bar:
        for trial in bar:
            bar.set_description(" ".join(filter(None, (trial.title, trial.defense.describe()))))
            try:
                runs.setdefault(trial.defense.describe(), {})[trial] = run_once(audit, trial)
            except UserError as error:
                failed[" under ".join(filter(None, (trial.title, trial.defense.describe())))] = str(error)
    if primary in failed:
        raise UserError(failed[primary])
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


def run_once(audit: Audit, trial: Trial) -> dict:
    """The results of one attack under one defense, from its folder if it has run already.

    What the run prints is added to log.txt in the folder of the audit.
    """
    name, defense, folder = trial.name, trial.defense, audit.out / "attacks" / trial.folder
    marker, stamp = folder / "audit-stamp.json", audit.stamp(trial)
    if marker.is_file() and read_json(marker).get("stamp") == stamp:
        return read_json(folder / "results.json") | {"seconds": read_json(marker)["seconds"]}
    marker.unlink(missing_ok=True)
    first = trial == Trial(audit.primary, audit.plain)
    stored = audit.data and not {"queries", "weights"} & ATTACKS.load(name).needs
    started = time.monotonic()
    with log_of(audit.out):
        attack = make_attack(name, None, AttackChoices(seed=audit.seed), defense.build(), audit.compute)
        source = open_source(audit, attack, defense, trial.informed)
        known = None
        if "population" in attack.needs:
            known = population_source(audit.population, source, attack, audit.data)
        call = AttackRun(
            name, audit.arguments | {"attack": trial.title, "defense": defense.describe()},
            existing_files([audit.model, *audit.references]), audit.model if audit.data else None, audit.control,
            keep=str(answers_of(audit, defense)) if stored else None,
            keep_references=str(references_of(audit, trial)) if stored and source.references else None,
            defend_references=trial.informed, permuted=trial.permuted, allow=audit.allow, out=str(folder),
            seed=audit.seed, hash_names=audit.key, exposure=first and has_map(attack), features=audit.features,
            blind=first)
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


def open_source(audit: Audit, attack: Attack, defense: DefenseSpec, informed: bool = False) -> Source:
    """The source of the samples of an attack. References are left out where the attack reads none."""
    references = audit.references if "references" in attack.needs | attack.optional else ()
    if audit.data:
        data = replace(audit.data, defend_references=informed)
        return live_source(audit.model, data, attack, audit.stride, defense.build(), audit.compute, references)
    tree = audit.model.removeprefix("stored:")
    return stored_source(tree, attack, defense.build(), audit.compute, references)


def folder_of(audit: Audit, name: str) -> Path:
    """The folder of the run of an attack without a defense."""
    return audit.out / "attacks" / Trial(name, audit.plain).folder


def answers_of(audit: Audit, defense: DefenseSpec) -> Path:
    """The folder of the stored outputs: a defense at query time has outputs of its own."""
    return audit.out / f"answers{_at_query(defense)}"


def references_of(audit: Audit, trial: Trial) -> Path:
    """The folder of the stored outputs of the references."""
    return audit.out / f"references{_at_query(trial.defense) if trial.informed else ''}"


def _at_query(defense: DefenseSpec) -> str:
    return f"-{defense.describe().replace(' ', '-')}" if defense.stage == "query" else ""


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


def summarise(audit: Audit, runs: dict[str | None, dict[Trial, dict]], failed: dict[str, str]) -> dict:
    """The content of audit.json from the results of all runs. `runs`: defense (None: none) -> trial -> results."""
    primary = audit.primary
    first, used = runs[None][Trial(primary, audit.plain)], collection_test(audit, primary)
    rows = [describe(audit, trial, results) for trial, results in runs[None].items()]
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
        "controls": controls_of(audit, first, rows),
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


def describe(audit: Audit, trial: Trial, results: dict) -> dict:
    """The row of an attack: its metrics, its ROC curve and what it needs."""
    name, attack = trial.name, ATTACKS.load(trial.name)
    kind = "control" if name in CONTROLS or trial.permuted else "bound" if name in BOUNDS else "attack"
    reads = len(audit.references) if audit.reads_references(name) else 0
    return {"name": trial.title, "about": ATTACKS[name].about, "kind": kind, "references": reads,
            "queries": attack.queries_of_target(), "seconds": round(results["seconds"], 1),
            "chosen": results["chosen"], **results["image"], "roc": roc(audit.out / "attacks" / trial.folder)}


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
    member, group, score = zip(*read_scores(folder_of(audit, primary)).values(), strict=True)
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


def controls_of(audit: Audit, results: dict, rows: Sequence[dict]) -> list[dict]:
    """What must find nothing: classifiers without the model, the attack on another model, the references alone, and
    attacks whose groups are dealt to the two sides at random.

    Of the attack that answers the question the row "permuted" has the mean AUC over all deals, and the range of 95 % of
    them in the place of an interval.
    """
    found = [{"name": name, "auc": one["auc"], "interval": one["auc_interval"],
              "minus": one["attack_minus_control"], "minus_interval": one["attack_minus_control_interval"]}
             for name, one in results["controls"].items()]
    member, group, score = zip(*read_scores(folder_of(audit, audit.primary)).values(), strict=True)
    rest = [(row["name"], row["auc"], row["auc_interval"]) for row in rows if row["kind"] == "control"]
    if len(set(group)) > 1:
        dealt = permuted_aucs(np.array(score), np.array(member), group, audit.seed)
        rest.insert(0, ("permuted", float(dealt.mean()), np.quantile(dealt, (0.025, 0.975)).tolist()))
    return found + [{"name": name, "auc": auc, "interval": interval, "minus": None, "minus_interval": None}
                    for name, auc, interval in rest]


def frontier(runs: dict[str | None, dict[Trial, dict]], primary: str) -> list[dict]:
    """Leak against utility: for no defense and for each defense, the mIoU and the attack with the highest AUC."""
    rows = []
    for defense, results in runs.items():
        attacks = {trial.title: one for trial, one in results.items() if trial.name not in CONTROLS + BOUNDS}
        if attacks:
            worst = max(attacks, key=lambda title: attacks[title]["image"]["auc"])
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
    plain, write_name = audit.plain, name_writer(audit.key)
    with log_of(audit.out):
        attack = make_attack(primary, None, AttackChoices(seed=audit.seed), plain.build(), audit.compute)
        source = open_source(audit, attack, plain)
    scores = {name: score for name, (_, _, score) in read_scores(folder_of(audit, primary)).items()}
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
