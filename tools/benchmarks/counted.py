"""The cost of one attack on the shipped examples: its queries, which are counted, and its time."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from attacks import ATTACKS
from attacks.sample import Attack
from defenses import DefenseSpec
from defenses.base import NO_DEFENSE, Defense
from evaluation.attack_options import AttackRun
from evaluation.attack_setup import AttackChoices, LiveData, load_attacker, make_attack, population_source
from evaluation.roles import lend_references
from predictors import open_predictor
from predictors.base import Predictor, PredictorOptions, Query
from predictors.predictability import predictability_errors
from predictors.reference import open_references
from predictors.samples import Source, tree_source
from tools.benchmarks.limits import time_calls
from utils.device import Compute

TREE, VICTIM, ATTACKER = "examples", "weights/victim.pth.tar", "weights/loss.pth.tar"
REFERENCES = ("weights/reference-0", "weights/reference-1")
POPULATIONS = {"population": ("weights/reference-1", "images of known membership"),
               "non-members": ("splits/streets/shadow.txt", "non-members")}  # need -> where, and what they are
DATA = LiveData("splits/streets/victim_in.txt", "splits/streets/victim_out.txt", "data/streets")
STRIDE = 4  # of the shipped attacker
NOISE = DefenseSpec("gauss", 0.1)  # for an attack that averages noise


class Counted:
    """A predictor that counts the images that it is queried about, and the gradients that it computes."""

    def __init__(self, predictor: Predictor):
        self.predictor, self.queries, self.gradients = predictor, 0, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.predictor, name)

    def predict(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        self.queries += len(queries)
        return self.predictor.predict(queries)

    def gradient_norm(self, query: Query, truth: torch.Tensor) -> float:
        self.gradients += 1
        return self.predictor.gradient_norm(query, truth)


def measure_cost(name: str, references: Sequence[str], images: int, rounds: int, compute: Compute) -> dict:
    """The cost of an attack on `images` members and as many non-members, whose target model is queried.

    "scoring": for each image the counts of `count_queries`, and the "seconds" of each round. "learning": counts and
    seconds of the method `fit`, not divided by images; None if it has nothing to learn. Raises `UserError` if the
    attack cannot run on the examples.
    """
    defense = (NOISE if "noise" in ATTACKS.load(name).needs else NO_DEFENSE.spec).build()
    attacker = load_attacker(ATTACKER) if name == "learned" else None
    attack = make_attack(name, attacker, AttackChoices(), defense, compute)
    source = shipped_source(images, defense, compute, references)
    if references:
        attack.check_references([record.name for record in source.records], np.array(
            [[one.saw(record) for one in source.references] for record in source.records]))
    target, lent = source.predictor, [one.predictor for one in source.references]
    learning, known = None, population_of(attack, source)

    def fit() -> None:
        attack.fit(described(known, attack).samples(attack.needs))

    def score() -> None:
        samples = described(source, attack).samples(attack.needs)
        attack.finish(list(attack.score(samples, target if "weights" in attack.needs else None)))

    if known:
        started = time.perf_counter()
        own = [] if known.predictor is target else [known.predictor]
        learning = count_queries(fit, target, [*lent, *own]) | {"seconds": time.perf_counter() - started}
    count = len(source.records)
    scoring = {what: total / count for what, total in count_queries(score, target, lent).items()}  # also warms up
    scoring["seconds"] = [one / count for one in time_calls(score, compute.device, rounds, warm_up=0)]
    return {"attack": name, "defense": defense.spec.describe(), "references": len(references),
            "learns_from": learns_from(attack), "learning": learning, "scoring": scoring}


def references_for(name: str) -> list[tuple[str, ...]]:
    """With which references an attack is measured: without any and with those that ship, where both are possible.

    With a population it is one of them, because the other one is the model of the population.
    """
    attack = ATTACKS.load(name)
    given = REFERENCES[:1] if "population" in attack.needs else REFERENCES
    return [given] if "references" in attack.needs else [(), given] if "references" in attack.optional else [()]


def shipped_source(images: int, defense: Defense, compute: Compute, references: Sequence[str]) -> Source:
    """The first `images` members and non-members of the examples; the victim and references count their queries."""
    records = tree_source(TREE).records
    chosen = [record for side in (True, False) for record in [one for one in records if one.member is side][:images]]
    options = PredictorOptions(compute, STRIDE)
    models = [replace(one, predictor=Counted(one.predictor)) for one in open_references(references, options)]
    target = Counted(open_predictor(VICTIM, replace(options, defense=defense)))
    return Source(chosen, target, defense, tuple(models), names=target.class_names)


def population_of(attack: Attack, source: Source) -> Source | None:
    """The samples that an attack is fitted on, of models that count their queries; None if it is not fitted."""
    if "own" in attack.needs:
        return source
    where = next((where for need, (where, _) in POPULATIONS.items() if need in attack.needs), None)
    if not where:
        return None
    known = population_source(where, source, attack, DATA)
    if known.predictor is not source.predictor:
        known = replace(known, predictor=Counted(known.predictor))
    return lend_references(known, source.references) if source.references else known


def described(source: Source, attack: Attack) -> Source:
    """The source with the predictability errors of its images, computed anew, if the attack needs them."""
    if "predictability" not in attack.needs:
        return source
    with tempfile.TemporaryDirectory() as folder:
        errors = predictability_errors(source.records, AttackRun.features, attack.method,
                                       attack.settings.compute, Path(folder))
    return replace(source, predictability=errors)


def count_queries(work: Callable[[], object], target: Counted, others: Sequence[Counted]) -> dict[str, int]:
    """Call `work`, and count the queries and gradients of the target model, and of the other models together."""
    for one in (target, *others):
        one.queries = one.gradients = 0
    work()
    return {"queries": target.queries, "gradients": target.gradients,
            "other_queries": sum(one.queries for one in others),
            "other_gradients": sum(one.gradients for one in others)}


def learns_from(attack: Attack) -> str | None:
    """What an attack, or its attacker, learns from before an image can be scored; None if it does not learn."""
    if attack.settings.attacker:
        return "shadow model"
    if attack.widened > 1:
        return "attacked images"
    return next((what for need, (_, what) in POPULATIONS.items() if need in attack.needs), None)
