"""Run one attack from start to report, without a command line."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from attacks.activation import record_cams
from attacks.sample import Attack, Sample, Scored
from datasets.provenance import IN, OUT, write_provenance
from evaluation import controls, exposure, roles
from evaluation.alignment import check_alignment, check_models
from evaluation.attack_checks import check_images, check_needs, check_queries, check_scores
from evaluation.attack_options import AttackRun
from evaluation.attack_report import report
from evaluation.journal import Part, RunPlace, score_parts
from evaluation.label_spaces import share_classes, view_of_control
from evaluation.utility import record_confusion
from predictors import file_of, files_of, open_predictor
from predictors.base import Predictor, Record, precision_of
from predictors.cache import cache_outputs
from predictors.predictability import predictability_errors
from predictors.reference import Reference
from predictors.samples import Source
from predictors.stored import check_forms
from utils.cli import UserError
from utils.distributed import is_main
from utils.files import fingerprint, start_run
from utils.log import Timings
from utils.names import name_writer


def run_attack(attack: Attack, source: Source, run: AttackRun, population: Source | None = None) -> dict:
    """Score every record of `source`, write the report into the run's folder, print it, and return the results.

    `population`: samples for the method `fit` of an attack that has "population" or "non-members" in `needs`.
    """
    timings, write_name = Timings(run.started), name_writer(run.hash_names)
    source, population = (one and replace(one, pseudo_labels=run.pseudo_labels,
                                          defend_references=run.defend_references) for one in (source, population))
    check_needs(attack, source, run, population)
    source, population = share_classes(attack, source, population)
    source, known = check_images(attack, source, run, population)
    if population and source.references:
        population = roles.lend_references(population, source.references)
    control = open_control(attack, source, run, known)
    roles.say(known)
    compute, queries = attack.settings.compute, precision_of([
        *source.predictors, *(population.predictors if population else ()), *([control.predictor] if control else ())])
    if compute.measure and queries:  # no network of the attack was measured, because it has none
        compute = replace(compute, precision=queries)
    names = [f"the reference {one.predictor.where}" for one in source.references]
    source, population = keep_outputs(source, population, run, compute=False)  # so the checks read what is stored
    check_models(source, [*((name, one.predictor, one.view)
                            for name, one in zip(names, source.references, strict=True)),
                          *([("--control", control.predictor, control.view)] if control else [])])
    if population:
        check_alignment(population, "--population")
    source, population = keep_outputs(source, population, run)
    timings.lap("starting and comparing images")
    if "predictability" in attack.needs:
        source, population = (one and replace(one, predictability=predictability_errors(
            one.records, run.features, attack.method, compute)) for one in (source, population))
        timings.lap("predictability errors")
    if run.permuted:
        source = replace(source, records=controls.permuted_records(source.records, run.seed))
    if population or "own" in attack.needs:
        attack.fit((population or source).samples(attack.needs))
    drawn = first_by_name(source.records, run.cam_images) if run.cam else set()
    block, records = attack.images_per_batch, source.records
    parts = [records[first : first + block] for first in range(0, len(records), block)]
    code = source_files(attack, source.predictor, source.defense, control and control.predictor)
    stamp = run.stamp(compute, queries, [*records, *(population.records if population else ())], code)
    place = RunPlace(run.out, stamp,
                     lambda record: [*source.files(record), *(control.predictor.files(record) if control else ())],
                     run.save_every, drawn)
    done, journal = score_parts(parts, make_scorer(attack, source, run, drawn, control),
                                lambda: start_run("attack", run.arguments, run.out, compute, queries), place)
    timings.lap("attacking")
    if not is_main():
        return {}
    results = report(attack, source, run, journal.run, done, write_name, known)
    write_provenance(journal.run, {role: [one.hashed(write_name) if run.hash_names else one for one in side.all]
                                   for role, side in ((IN, known.members), (OUT, known.non_members))})
    journal.delete()
    timings.lap("metrics and plots")
    print(f"{timings}; all in {journal.run}")
    return results


def keep_outputs(source: Source, population: Source | None, run: AttackRun,
                 compute: bool = True) -> tuple[Source, Source | None]:
    """The source and the population with the outputs that --keep and --keep-references store.

    Without `compute` only the models whose outputs are all stored already are replaced.
    """
    if run.keep and source.predictor.reads_images:
        source = replace(source, predictor=cache_outputs(Path(run.keep), source.predictor, source.records,
                                                         existing_files([run.victim]), compute, label_classes(source)))
    if run.keep_references:
        source = keep_references(source, Path(run.keep_references), compute)
        population = population and keep_references(population, Path(run.keep_references) / "population", compute)
    return source, population


def keep_references(source: Source, folder: Path, compute: bool) -> Source:
    """The source with the outputs of each reference stored in a tree of its own below `folder`.

    References whose outputs are on disk already stay as they are. `compute`: as of `cache_outputs`.
    """
    def kept(reference: Reference) -> Reference:
        file = file_of(reference.predictor.where)
        if not file or not reference.predictor.reads_images:
            return reference
        tree = folder / f"{file.parent.name}-{fingerprint([file])[:8]}"
        return replace(reference, predictor=cache_outputs(tree, reference.predictor, source.records, [file], compute,
                                                          label_classes(source)))

    return replace(source, references=tuple(map(kept, source.references)))


def label_classes(source: Source) -> int | None:
    """Number of classes of the labels of a source; None if it is that of the outputs."""
    return len(source.label_view.space) if source.label_view else None


def existing_files(places: Sequence[str | None]) -> list[Path]:
    """The files that `places` name, as `predictors.files_of` finds them."""
    return [path for place in places for path in files_of(place)]


def open_control(attack: Attack, source: Source, run: AttackRun, known: roles.Roles) -> Reference | None:
    """The model of --control.

    Raises `UserError` if its model was trained on an attacked image, has other classes, or cannot be queried.
    """
    if not run.control:
        return None
    roles.compare_with_control(known, run.control)
    stride = source.predictor.stride or source.form()[1]
    control = open_predictor(run.control, replace(source.predictor.options, stride=stride, defense=source.defense))
    if control.reads_images and not source.records[0].image.is_file():
        raise UserError(f"{source.records[0].image} is missing, so --control cannot be queried about it; give "
                        "posteriors on disk (stored:TREE)")
    check_queries(attack, run, [control])
    check_forms(control, source.records)
    return Reference(control, view=view_of_control(control, source))


def source_files(*objects: object) -> list[Path]:
    """The source files of the classes of `objects` and of their base classes.

    After an edit of one of them, an unfinished run is not resumed.
    """
    files = (getattr(sys.modules[one.__module__], "__file__", None) for item in objects for one in type(item).__mro__)
    return sorted({Path(file) for file in files if file})


def make_scorer(attack: Attack, source: Source, run: AttackRun, drawn: set[str],
                control: Reference | None) -> Callable[[Sequence[Record]], Part]:
    """Return the function that scores records, and also computes their confusion matrices, CAM results and controls."""
    undefended = bool(run.cam and source.defense.spec.stage == "output")
    predictor = source.predictor if "weights" in attack.needs else None
    needs = run.needs(attack)

    def scores(samples: Iterable[Sample], queried: Predictor | None) -> list[Scored]:
        return list(exposure.score_regions(attack, samples) if run.exposure else attack.score(samples, queried))

    def score(records: Sequence[Record]) -> Part:
        part = Part([])
        samples = replace(source, records=records).samples(needs, undefended)
        if not run.pseudo_labels:
            samples = record_confusion(samples, part.matrices)
        if run.cam:
            samples = map(attack.add_context, samples)
            samples = record_cams(samples, attack.model, attack.spec, attack.settings.compute, drawn, part.cams)
        part.scored = scores(samples, predictor)
        check_scores(run.name, part.scored, records)
        if control:
            asked = replace(source, records=records, predictor=control.predictor, view=control.view)
            part.control = scores(asked.samples(needs), control.predictor if predictor else None)
            check_scores(f"{run.name}, on --control", part.control, records)
        return part

    return score


def first_by_name(records: Sequence[Record], count: int) -> set[str]:
    """Names of the first `count` members and the first `count` non-members."""
    return {name for side in (True, False)
            for name in sorted(record.name for record in records if record.member is side)[:count]}


