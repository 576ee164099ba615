"""The report of one attack: results.json, the files beside it, and what is printed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.learned import LearnedAttack
from attacks.sample import Attack, Scored
from evaluation import controls, exposure, roles
from evaluation.activation import describe_cams, write_cams
from evaluation.attack_checks import check_scores
from evaluation.attack_options import AttackRun
from evaluation.evidence_maps import write_evidence_maps
from evaluation.journal import Part
from evaluation.plots import plot_regions
from evaluation.report import query_curve, show_query_curve, table, write_report
from evaluation.utility import miou
from predictors.samples import Source


def report(attack: Attack, source: Source, run: AttackRun, folder: Path, parts: Sequence[Part],
           write_name: Callable[[str], str], known: roles.Roles) -> dict:
    """Write the results into the run's folder and print them."""
    selection, utility = attack.settings.selection, miou(part.matrices for part in parts)
    kind = attack.spec.input if isinstance(attack, LearnedAttack) else run.name
    about = {"attack": run.name, "input": kind, "select": selection.scheme, "num_patch": selection.count,
             "tau": selection.tau if selection.scheme == "rejection" else None, "score": attack.settings.score,
             "miou": utility, "defense": source.defense.spec.describe(), "roles": known.summary,
             "chosen": attack.chosen} | ({"classes": list(source.names)} if source.view else {})
    if run.pseudo_labels:
        about["pseudo_labels"] = True
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
    results = write_report(folder, scored, about, write_name, attack.widened)
    title = f"attack {run.name}" + (f" on {kind}" if isinstance(attack, LearnedAttack) else "")
    sides = f"{results['members']} members, {results['non_members']} non-members"
    print(f"{title}, {selection.scheme} patches: {sides}, {results['patches']} patches" if attack.patches
          else f"{title}: {sides}")
    if attack.chosen:
        print("chosen on --population: " + ", ".join(f"{name} {value:.3g}" for name, value in attack.chosen.items()))
    if run.pseudo_labels:
        print("ground truth: the argmax of each attacked output (--pseudo-labels); no score and no control reads a "
              "label file")
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
    columns = {"blind": None if seed is None else controls.blind_scores(source.inspections(), member, group, seed),
               "model": np.array(on_control) if len(on_control) else None}
    columns = {name: scores for name, scores in columns.items() if scores is not None}
    controls.write_controls(folder, [write_name(one.name) for one in scored], member, columns)
    return {name: controls.judge(scores, attack, member, group, controls.CROSS_FITTED if name == "blind" else 1.0)
            for name, scores in columns.items()}
