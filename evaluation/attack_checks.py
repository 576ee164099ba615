"""The checks of an attack: of its inputs before it runs, and of the scores that it gives."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.learned import LearnedAttack
from attacks.sample import Attack, Scored
from evaluation import controls, exposure, roles
from evaluation.attack_options import AttackRun
from models.pixelwise import Pixelwise
from predictors.base import Predictor, Record
from predictors.cache import check_stride
from predictors.samples import Source
from predictors.stored import check_forms
from predictors.triples import TriplePredictor, check_outputs
from utils.cli import UserError
from utils.distributed import warn_once


def check_needs(attack: Attack, source: Source, run: AttackRun, population: Source | None) -> None:
    """Raise `UserError` if an attack lacks an input that it needs, or if -cam or --allow is given and has no effect."""
    if "references" in attack.needs and not source.references:
        raise UserError(f"--attack {run.name} compares the target with reference models: give --references DIR, runs "
                        "of train_shadow.py on other images, such as weights/reference-0 for the shipped examples")
    if "references" not in attack.needs | attack.optional and source.references:
        raise UserError(f"--attack {run.name} reads no reference models; leave --references out")
    if "population" in attack.needs and population is None:
        raise UserError(f"--attack {run.name} is fitted on samples of known membership: give --population, a run of "
                        "train_shadow.py or a tree of posteriors")
    if "non-members" in attack.needs and population is None:
        raise UserError(f"--attack {run.name} is fitted on other images that the target model was not trained on: give "
                        "--population, a split file of them or, for posteriors on disk, a tree")
    if not {"population", "non-members"} & attack.needs and population:
        raise UserError(f"--attack {run.name} learns nothing from samples of known membership; leave --population out")
    if source.predictor.kind not in attack.kinds:
        raise UserError(f"--attack {run.name} reads posteriors, and {source.predictor.where} gives translated images; "
                        "give --attack reconstruction or membership-error")
    source.defense.check_kind(source.predictor.kind)
    if source.pseudo_labels:
        check_pseudo_labels(attack, source, run)
    check_queries(attack, run, [one.predictor for one in (source, *source.references)])
    if "noise" in attack.needs and not source.defense.draws_noise:
        raise UserError(f"--attack {run.name} averages the noise that a defense draws for each query, and none is "
                        "drawn here: give a defense that does, such as -gauss STD, or --attack augmented")
    if run.defend_references and source.defense.spec.stage not in ("output", "query"):
        raise UserError("--defend-references has no effect without a defense of the output; give both, or leave it out")
    if "weights" in attack.needs and source.defense.spec.stage == "output":
        raise UserError(f"--attack {run.name} reads weights, and -{source.defense.spec.name} changes outputs only; "
                        "leave it out")
    if "unseen" in run.allow and not run.victim:
        raise UserError("--allow unseen has no effect on posteriors on disk, whose model is not known; leave it out")
    if "overlap" in run.allow and not (attack.settings.attacker or population):
        raise UserError("--allow overlap has no effect without an attacker and without --population; leave it out")
    if "unbalanced" in run.allow and not source.references:
        raise UserError("--allow unbalanced has no effect without --references; leave it out")
    if run.cam and not isinstance(attack, LearnedAttack):
        raise UserError("-cam shows where a trained attacker finds evidence; a threshold has no activation map: leave "
                        "-cam out, or give --attack learned")
    if run.cam and isinstance(attack.model, Pixelwise):
        raise UserError("-cam shows where an attacker of patches finds evidence; a pixelwise attacker scores every "
                        "position by itself and has no activation map")
    if run.exposure and not exposure.has_map(attack):
        raise UserError(f"--exposure reads a map of evidence, and --attack {run.name} has none: leave --exposure out, "
                        "or give an attack that scores positions, such as --attack loss or calibrated")
    if run.exposure and source.predictor.kind == "image":
        raise UserError("--exposure divides images by their labels, and translated images have none; leave it out")
    if run.exposure_maps and Path(run.exposure_maps).is_file():
        raise UserError(f"--exposure-maps {run.exposure_maps} must be a folder")
    if run.cam and (run.cam_images < 0 or Path(run.cam).is_file()):
        raise UserError(f"-cam {run.cam} must be a folder, and --cam-images {run.cam_images} must be 0 or more")


def check_queries(attack: Attack, run: AttackRun, models: Sequence[Predictor]) -> None:
    """Raise `UserError` if an attack queries one of `models` itself, and its outputs are, or would be, stored."""
    if not {"queries", "weights"} & attack.needs:
        return
    for name, folder in (("--keep", run.keep), ("--keep-references", run.keep_references)):
        if folder:
            raise UserError(f"{name} stores one output of each image, and --attack {run.name} queries the models "
                            "itself; leave it out")
    if stored := next((one for one in models if not one.reads_images), None):
        raise UserError(f"--attack {run.name} queries the models, and the outputs in {stored.where} are stored: give "
                        "--victim, and references and a control that can be queried, too")
    if "weights" in attack.needs and (closed := next((one for one in models if not one.has_weights), None)):
        raise UserError(f"--attack {run.name} computes gradients, and the weights of {closed.where} are not at hand: "
                        "give checkpoints, or --attack loss")


def check_pseudo_labels(attack: Attack, source: Source, run: AttackRun) -> None:
    """Raise `UserError` if the argmax of the outputs of `source` cannot stand for the ground truth of an attack."""
    if "truth" not in attack.needs:
        raise UserError(f"--pseudo-labels has no effect with --attack {run.name}, which reads no ground truth; leave "
                        "it out")
    if "predictability" in attack.needs or source.predictor.kind == "image":
        raise UserError(f"--pseudo-labels replaces the labels of posteriors, and --attack {run.name} reads other "
                        "ground truth here; leave it out")
    if run.exposure:
        raise UserError("--exposure divides images by their labels, and --pseudo-labels reads no label; leave one of "
                        "them out")
    sees_argmax = source.defense.one_hot or attack.label_only
    if sees_argmax and not source.references and "queries" not in attack.needs:
        raise UserError(f"--pseudo-labels: all that --attack {run.name} sees here is the argmax of the outputs, which "
                        "is then their ground truth, too; leave it out, or give --references to an attack that reads "
                        "them")


def check_images(attack: Attack, source: Source, run: AttackRun,
                 population: Source | None) -> tuple[Source, roles.Roles]:
    """Compare the attacked images with one another and with the images of the models, before anything is computed.

    Returns the source, with copies of an image in one group, and the images by content. Raises `UserError` if an image
    has two roles that exclude one another or lacks a label that is needed, if its output is too small, or if the stored
    posteriors have different forms.
    """
    known, records = roles.examine(source.records, source.predictor, run.allow)
    if run.victim:
        roles.compare_with_victim(known, run.victim)
    roles.compare_with_references(known, source.references)
    if source.references:
        attack.check_references([record.name for record in records], np.array(
            [[reference.saw(record) for reference in source.references] for record in records]))
    if attacker := attack.settings.attacker:
        roles.compare_with_attacker(known, Path(attacker.path))
    if population:
        roles.compare_with_population(known, population.records)
        check_forms(population.predictor, population.records)
        if "non-members" in attack.needs and run.victim:
            roles.check_non_members(population.records, run.victim)
    for predictor in (source.predictor, *(reference.predictor for reference in source.references)):
        check_forms(predictor, records)
        if isinstance(predictor, TriplePredictor):
            check_outputs(predictor, records)
    check_stride(records, source.predictor.stride)
    for one, needs in ((source, run.needs(attack)), (population, attack.needs)):
        if one and "truth" in needs and not run.pseudo_labels:
            roles.check_truth(one)
    for line in controls.describe_sides(source.inspections(), [r.member for r in records]):
        warn_once(line)
    return replace(source, records=records), known


def check_scores(name: str, scored: Sequence[Scored], records: Sequence[Record]) -> None:
    """Raise `UserError` unless an attack gives one finite score for each record, in the same order."""
    if [one.name for one in scored] != [record.name for record in records]:
        raise UserError(f"--attack {name} gave {len(scored)} scores for {len(records)} images, or gave them in another "
                        "order; `score` must yield one `Scored` for each sample, in the order of the samples")
    if wrong := next((one for one in scored if not math.isfinite(one.score)), None):
        raise UserError(f"{wrong.name}: the score of --attack {name} is {wrong.score}; a score must be finite")
