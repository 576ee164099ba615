"""Run one attack from start to report, without a command line."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from attacks.activation import record_cams
from attacks.learned import LearnedAttack
from attacks.sample import Attack, Sample, Scored
from datasets.inspection import inspect
from datasets.provenance import IN, OUT, write_provenance
from evaluation import controls, exposure, roles
from evaluation.activation import describe_cams, write_cams
from evaluation.alignment import check_alignment, check_models
from evaluation.evidence_maps import write_evidence_maps
from evaluation.journal import Part, RunPlace, score_parts
from evaluation.label_spaces import share_classes, view_of_control
from evaluation.plots import plot_regions
from evaluation.report import query_curve, show_query_curve, table, write_report
from evaluation.utility import miou, record_confusion
from models.pixelwise import Pixelwise
from predictors import file_of, files_of, open_predictor
from predictors.base import Predictor, Record
from predictors.cache import cache_outputs, check_stride
from predictors.predictability import predictability_errors
from predictors.reference import Reference
from predictors.samples import Source
from predictors.stored import check_forms
from predictors.triples import TriplePredictor, check_outputs
from utils.cli import UserError
from utils.device import CPU_FP32, Compute
from utils.distributed import is_main, warn_once
from utils.files import commit, fingerprint, start_run
from utils.log import Timings
from utils.names import name_writer


@dataclass(frozen=True)
class AttackRun:
    """How a run of an attack is named and stored.

    `name`: name of the attack in the report; `arguments`: the arguments of the call, which are written to args.json;
    `files`: files whose contents, with `arguments`, identify the call; `victim`: place of a target model that is
    queried; `control`: predictor of a model that saw neither side; `keep`: folder for the posteriors of the target;
    `keep_references`: folder for those of the references; `allow`: what is not refused, of "copies", "overlap" and
    "unseen"; `out`: output folder (None: the next free runs/attack-N); `hash_names`: key file for names; `cam`: folder
    for activation maps; `cam_images`: number of members and of non-members that are drawn; `exposure`: whether regions
    of the images are measured; `exposure_maps`: folder for evidence maps of the most exposed images; `features`:
    feature extractor of the predictability error; `blind`: whether the control without a model is computed;
    `save_every`: seconds between saves; `started`: start of the call by
    `time.monotonic`.
    """

    name: str
    arguments: dict
    files: Sequence[Path] = ()
    victim: str | None = None
    control: str | None = None
    keep: str | None = None
    keep_references: str | None = None
    allow: Sequence[str] = ()
    out: str | None = None
    seed: int = 0
    hash_names: str | None = None
    cam: str | None = None
    cam_images: int = 4
    exposure: bool = False
    exposure_maps: str | None = None
    features: str = "efficientnet_lite0"
    blind: bool = True
    save_every: float = 10.0
    compute: Compute = CPU_FP32
    started: float | None = None

    def stamp(self, records: Sequence[Record], code: Sequence[Path] = ()) -> str:
        """A hash of the call. A later call with the same stamp resumes it. `code`: source files that it depends on."""
        free = ("out", "gpu", "save_every", "query_budget")
        same = {key: value for key, value in self.arguments.items() if key not in free}
        return fingerprint([*self.files, *code], same, commit(), torch.__version__,
                           self.compute.device.type, self.compute.precision,
                           [(r.name, r.member, r.group, r.dataset) for r in records])

    def needs(self, attack: Attack) -> frozenset[str]:
        """What the samples of the target model must have, in the words of `Attack.needs`."""
        return attack.needs | (exposure.NEEDS if self.exposure else frozenset())


def run_attack(attack: Attack, source: Source, run: AttackRun, population: Source | None = None) -> dict:
    """Score every record of `source`, write the report into the run's folder, print it, and return the results.

    `population`: samples of known membership for an attack that has "population" in `needs`.
    """
    timings, write_name = Timings(run.started), name_writer(run.hash_names)
    check_needs(attack, source, run, population)
    source, population = share_classes(attack, source, population)
    source, known = check_images(attack, source, run, population)
    if population and source.references:
        population = roles.lend_references(population, source.references)
    control = open_control(attack, source, run, known)
    roles.say(known)
    check_models(source, [*((f"the reference {one.predictor.where}", one.predictor, one.view)
                            for one in source.references),
                          *([("--control", control.predictor, control.view)] if control else [])])
    if population:
        check_alignment(population, "--population")
    if run.keep:
        kept = cache_outputs(Path(run.keep), source.predictor, source.records, existing_files([run.victim]))
        source = replace(source, predictor=kept)
    if run.keep_references:
        source = keep_references(source, Path(run.keep_references))
        population = population and keep_references(population, Path(run.keep_references) / "population")
    timings.lap("starting and comparing images")
    if "predictability" in attack.needs:
        source, population = (one and replace(one, predictability=predictability_errors(
            one.records, run.features, attack.method, run.compute)) for one in (source, population))
        timings.lap("predictability errors")
    if population:
        attack.fit(population.samples(attack.needs))
    drawn = first_by_name(source.records, run.cam_images) if run.cam else set()
    block, records = attack.images_per_batch, source.records
    parts = [records[first : first + block] for first in range(0, len(records), block)]
    code = source_files(attack, source.predictor, source.defense, control and control.predictor)
    place = RunPlace(run.out, run.stamp([*records, *(population.records if population else ())], code),
                     lambda record: [*source.files(record), *(control.predictor.files(record) if control else ())],
                     run.save_every, drawn)
    done, journal = score_parts(parts, make_scorer(attack, source, run, drawn, control),
                                lambda: start_run("attack", run.arguments, run.out, run.compute), place)
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


def keep_references(source: Source, folder: Path) -> Source:
    """The source with the outputs of each reference stored in a tree of its own below `folder`.

    References whose outputs are on disk already stay as they are.
    """
    def kept(reference: Reference) -> Reference:
        file = file_of(reference.predictor.where)
        if not file or not reference.predictor.reads_images:
            return reference
        tree = folder / f"{file.parent.name}-{fingerprint([file])[:8]}"
        return replace(reference, predictor=cache_outputs(tree, reference.predictor, source.records, [file]))

    return replace(source, references=tuple(map(kept, source.references)))


def existing_files(places: Sequence[str | None]) -> list[Path]:
    """The files that `places` name, as `predictors.files_of` finds them."""
    return [path for place in places for path in files_of(place)]


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
    for predictor in (source.predictor, *(reference.predictor for reference in source.references)):
        check_forms(predictor, records)
        if isinstance(predictor, TriplePredictor):
            check_outputs(predictor, records)
    check_stride(records, source.predictor.stride)
    for one, needs in ((source, run.needs(attack)), (population, attack.needs)):
        if one and "truth" in needs:
            roles.check_truth(one)
    for line in controls.describe_sides([inspect(*r.files) for r in records], [r.member for r in records]):
        warn_once(line)
    return replace(source, records=records), known


def open_control(attack: Attack, source: Source, run: AttackRun, known: roles.Roles) -> Reference | None:
    """The model of --control.

    Raises `UserError` if its model was trained on an attacked image, has other classes, or cannot be queried.
    """
    if not run.control:
        return None
    roles.compare_with_control(known, run.control)
    stride = source.predictor.stride or source.form()[1]
    control = open_predictor(run.control, replace(source.predictor.options, compute=run.compute, stride=stride,
                                                  defense=source.defense))
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


def check_needs(attack: Attack, source: Source, run: AttackRun, population: Source | None) -> None:
    """Raise `UserError` if an attack lacks an input that it needs, or if -cam or --allow is given and has no effect."""
    if "references" in attack.needs and not source.references:
        raise UserError(f"--attack {run.name} compares the target with reference models: give --references DIR, runs "
                        "of train_shadow.py on other images")
    if "references" not in attack.needs | attack.optional and source.references:
        raise UserError(f"--attack {run.name} reads no reference models; leave --references out")
    if "population" in attack.needs and population is None:
        raise UserError(f"--attack {run.name} is fitted on samples of known membership: give --population, a run of "
                        "train_shadow.py or a tree of posteriors")
    if "population" not in attack.needs and population:
        raise UserError(f"--attack {run.name} learns nothing from samples of known membership; leave --population out")
    if source.predictor.kind not in attack.kinds:
        raise UserError(f"--attack {run.name} reads posteriors, and {source.predictor.where} gives translated images; "
                        "give --attack reconstruction or membership-error")
    source.defense.check_kind(source.predictor.kind)
    check_queries(attack, run, [one.predictor for one in (source, *source.references)])
    if "noise" in attack.needs and not source.defense.draws_noise:
        raise UserError(f"--attack {run.name} averages the noise that a defense draws for each query, and none is "
                        "drawn here: give a defense that does, such as -gauss STD, or --attack augmented")
    if "unseen" in run.allow and not run.victim:
        raise UserError("--allow unseen has no effect on posteriors on disk, whose model is not known; leave it out")
    if "overlap" in run.allow and not (attack.settings.attacker or population):
        raise UserError("--allow overlap has no effect without an attacker and without --population; leave it out")
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
        samples = record_confusion(samples, part.matrices)
        if run.cam:
            samples = map(attack.add_context, samples)
            samples = record_cams(samples, attack.model, attack.spec, run.compute, drawn, part.cams)
        part.scored = scores(samples, predictor)
        check_scores(run.name, part.scored, records)
        if control:
            asked = replace(source, records=records, predictor=control.predictor, view=control.view)
            part.control = scores(asked.samples(needs), control.predictor if predictor else None)
            check_scores(f"{run.name}, on --control", part.control, records)
        return part

    return score


def check_scores(name: str, scored: Sequence[Scored], records: Sequence[Record]) -> None:
    """Raise `UserError` unless an attack gives one finite score for each record, in the same order."""
    if [one.name for one in scored] != [record.name for record in records]:
        raise UserError(f"--attack {name} gave {len(scored)} scores for {len(records)} images, or gave them in another "
                        "order; `score` must yield one `Scored` for each sample, in the order of the samples")
    if wrong := next((one for one in scored if not math.isfinite(one.score)), None):
        raise UserError(f"{wrong.name}: the score of --attack {name} is {wrong.score}; a score must be finite")


def first_by_name(records: Sequence[Record], count: int) -> set[str]:
    """Names of the first `count` members and the first `count` non-members."""
    return {name for side in (True, False)
            for name in sorted(record.name for record in records if record.member is side)[:count]}


def report(attack: Attack, source: Source, run: AttackRun, folder: Path, parts: Sequence[Part],
           write_name: Callable[[str], str], known: roles.Roles) -> dict:
    """Write the results into the run's folder and print them."""
    selection, utility = attack.settings.selection, miou(part.matrices for part in parts)
    kind = attack.spec.input if isinstance(attack, LearnedAttack) else run.name
    about = {"attack": run.name, "input": kind, "select": selection.scheme, "num_patch": selection.count,
             "tau": selection.tau if selection.scheme == "rejection" else None, "score": attack.settings.score,
             "miou": utility, "defense": source.defense.spec.describe(), "roles": known.summary,
             "chosen": attack.chosen} | ({"classes": list(source.names)} if source.view else {})
    scored = attack.finish([one for part in parts for one in part.scored])
    check_scores(run.name, scored, source.records)
    on_control = [one for part in parts for one in part.control]
    on_control = attack.finish(on_control) if on_control else []
    if curve := query_curve(scored):
        about["auc_by_queries"] = curve
    about["controls"] = write_controls(folder, source, scored, [one.score for one in on_control],
                                       run.seed if run.blind else None, write_name)
    if run.cam:
        cams = [replace(cam, name=write_name(cam.name)) for part in parts for cam in part.cams]
        about["cam"] = write_cams(Path(run.cam), cams, about["defense"])
    if run.exposure:
        names = source.names or (attack.settings.attacker and attack.settings.attacker.class_names)
        about["exposure"] = {"regions": exposure.measure(scored, names)} | (
            {"control": exposure.measure(on_control, names)} if on_control else {})
        ranking = exposure.write_ranking(folder / "exposure.csv", scored, write_name)
    results = write_report(folder, scored, about, write_name)
    title = f"attack {run.name}" + (f" on {kind}" if isinstance(attack, LearnedAttack) else "")
    sides = f"{results['members']} members, {results['non_members']} non-members"
    print(f"{title}, {selection.scheme} patches: {sides}, {results['patches']} patches" if attack.patches
          else f"{title}: {sides}")
    if attack.chosen:
        print("chosen on --population: " + ", ".join(f"{name} {value:.3g}" for name, value in attack.chosen.items()))
    print(table(results))
    if curve:
        print(show_query_curve(curve))
    for name, judged in about["controls"].items():
        print(controls.verdict(name, judged))
    if run.blind and "blind" not in about["controls"]:
        print("control without a model: none, because images and labels are missing or all alike, or a side has one "
              "group")
    if None not in utility.values():
        print(f"mIoU of the attacked output: {100 * utility['in']:.1f} members, {100 * utility['out']:.1f} non-members")
    if run.cam:
        print(f"{describe_cams(results['cam'])}; maps in {run.cam}")
    if run.exposure:
        plot_regions(folder, results["exposure"], results["image"]["auc"])
        print(exposure.table(**results["exposure"]))
        if run.exposure_maps:
            write_evidence_maps(Path(run.exposure_maps), attack, source, ranking, write_name)
    return results


def write_controls(folder: Path, source: Source, scored: Sequence[Scored], on_control: Sequence[float],
                   seed: int | None, write_name: Callable[[str], str]) -> dict:
    """Compute the blind control, write the scores of all controls, and return what they say.

    `on_control`: scores of the same attack on the control model; empty without one. `seed`: that of the blind control;
    None without it.
    """
    member, group = np.array([one.member for one in scored]), [one.group for one in scored]
    attack = np.array([one.score for one in scored])
    found = [inspect(*record.files) for record in source.records]
    columns = {"blind": None if seed is None else controls.blind_scores(found, member, group, seed),
               "model": np.array(on_control) if len(on_control) else None}
    columns = {name: scores for name, scores in columns.items() if scores is not None}
    controls.write_controls(folder, [write_name(one.name) for one in scored], member, columns)
    return {name: controls.judge(scores, attack, member, group, controls.CROSS_FITTED if name == "blind" else 1.0)
            for name, scores in columns.items()}
