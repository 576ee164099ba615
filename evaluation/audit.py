"""Audit a model: run every attack that its inputs allow, with controls and under defenses, and say what follows.

Each attack is a run of `evaluation.attack_run` in a folder of its own, so an audit that was stopped goes on with the
attack at which it stopped.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

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
from evaluation.audit_plan import Audit, Trial
from evaluation.audit_plots import class_image, photograph, signed_image, value_image
from evaluation.audit_results import summarise
from evaluation.exposure import has_map
from evaluation.gate import check_segments, examine
from evaluation.stored_scores import read_scores
from predictors import open_predictor
from predictors.cache import cache_outputs
from predictors.foreign import ForeignPredictor
from predictors.predictability import predictability_errors
from predictors.samples import Source
from utils.cli import UserError
from utils.files import read_json, write_json
from utils.log import progress
from utils.names import name_writer

EXPOSED = 10  # images that are shown
ALIASES = {"dropout": "test-dropout"}  # of defenses


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
    """What `evaluation.gate` says about the model. Raises `UserError` if something is wrong, unless `skip_check`.

    References and a control of other libraries are checked, too, because they may get a wrong input, as the model may.
    """
    check = examine if audit.skip_check else check_segments
    with log_of(audit.out):
        reader = next((name for name in audit.names if audit.reads_references(name)), audit.primary)
        attack = make_attack(reader, None, AttackChoices(seed=audit.seed), NO_DEFENSE, audit.compute)
        source = open_source(audit, attack, NO_DEFENSE.spec)
        others = [one.predictor for one in source.references]
        others += [open_predictor(audit.control, source.predictor.options)] if audit.control else []
        others = [one for one in others if isinstance(one, ForeignPredictor)]
        found = [check(one, source.records) for one in progress([source.predictor, *others], "checking the models")]
        return str(found[0])


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
            defend_references=trial.informed, permuted=trial.permuted, out=str(folder),
            allow=[one for one in audit.allow if one != "unbalanced" or source.references],
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
    name = ALIASES.get(name, name)
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


def exposed(audit: Audit, primary: str) -> list[dict]:
    """The `EXPOSED` members with the highest scores of an attack with a map: names, scores, and their maps as images.

    "above": the number of non-members with such a score. The maps are the output, the loss, and the evidence of the
    attack; `Audit.show_images` adds the photograph. Empty for an attack without a map.
    """
    plain, write_name = audit.plain, name_writer(audit.key)
    with log_of(audit.out):
        fitted = read_json(audit.folder_of(audit.plain_trial(primary)) / "results.json")["chosen"]
        choices = AttackChoices(seed=audit.seed, c=fitted.get("c", AttackChoices.c))
        attack = make_attack(primary, None, choices, plain.build(), audit.compute)
        if not has_map(attack):
            return []
        source = open_source(audit, attack, plain)
    scores = {name: score for name, (_, _, score) in read_scores(audit.folder_of(audit.plain_trial(primary))).items()}
    stored = cache_outputs(answers_of(audit, plain), source.predictor, source.records,
                           existing_files([audit.model])) if audit.data else source.predictor
    others = np.array([scores[write_name(one.name)] for one in source.records if not one.member])
    members = sorted((one for one in source.records if one.member), key=lambda one: -scores[write_name(one.name)])
    shown = replace(source, records=members[:EXPOSED], predictor=stored)
    photographs = audit.show_images and all(record.image.is_file() for record in shown.records)
    if "predictability" in attack.needs:
        shown = replace(shown, predictability=predictability_errors(shown.records, audit.features, attack.method,
                                                                    audit.compute))
    needs = attack.needs | {"truth"} | ({"image"} if photographs else set())
    rows = []
    for sample in progress(shown.samples(needs), "maps of the most exposed images", len(shown.records)):
        score, loss = scores[write_name(sample.name)], loss_map(sample.output, sample.truth, FLOOR).squeeze(0).numpy()
        known, evidence = sample.known.numpy(), attack.evidence(sample).numpy()
        evidence = evidence - np.median(evidence[known])
        limit = float(np.quantile(np.abs(evidence[known]), 0.98))
        maps = [(class_image(sample.output.argmax(0).numpy()), "output"),
                (value_image(loss, known, float(np.quantile(loss[known], 0.98))), "loss"),
                (signed_image(evidence, known, limit), "evidence")]
        if photographs:
            maps.insert(0, (photograph(sample.image.numpy().transpose(1, 2, 0)), "image"))
        rows.append({"name": write_name(sample.name), "score": score, "above": int((others >= score).sum()),
                     "maps": maps})
    return rows
