"""What each part of the residual is worth: leave it out, on the models of a bed that are never attacked there.

    python -m tools.ablation rotations-camvid --out tools/results/ablation.json        # half an hour on one core

The models of the other seeds of each part serve as targets, and all models of the two other parts as references. One
row for each variant: AUC, its difference to the complete attack, and TPR at an FPR of 1 %, the mean over these models
with 95 % intervals over groups of images and trainings. A stopped run resumes from --out.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import new_parser, run

if TYPE_CHECKING:
    from attacks.sample import Sample, Scored
    from reproduce.rotations import Model, Rotations

COUNTS = (8, 4, 2, 1, 0)  # of references
WHOLE = f"residual, {COUNTS[0]} references"
OTHERS = (("loss", {}), ("calibrated", {"c": 0.5}), ("calibrated", {"c": 0.75}), ("base", {}), ("rmia", {}))
HEADS = ["variant", "AUC", "minus the complete attack", "TPR at 1 % FPR"]


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.ablation")
    flags.add_argument("scale", metavar="SCALE", help="name of a bed whose models are trained")
    flags.add_argument("--out", metavar="FILE", type=Path, required=True, help="JSON file of the scores")
    return flags


def main(args: argparse.Namespace) -> None:
    from evaluation.pooled import Stratum, contrast, pooled_difference
    from reproduce.cells import pack, unpack
    from reproduce.forms import read
    from reproduce.rotations import PARTS, Model
    from reproduce.rotations_page import show_interval, show_percent
    from reproduce.tables import markdown
    from utils.files import read_json, write_json
    from utils.log import progress

    scale = read(args.scale)
    known = read_json(args.out) if args.out.exists() else {"images": {}, "scores": {}}
    models = [Model(part, seed) for part in PARTS for seed in range(scale.attacked, scale.seeds)]
    for model in progress(models, "models"):
        if model.name not in known["scores"]:
            found, images = measure(scale, model)
            known["scores"][model.name] = {name: pack(np.array(scores), "float16")
                                            for name, scores in found.items()}
            known["images"][model.part] = images
            write_json(args.out, known)

    def strata(first: str, second: str | None = None) -> list[Stratum]:
        """One stratum for each part, of one variant or of the difference of two."""
        made = []
        for part, images in known["images"].items():
            own = [scores for name, scores in known["scores"].items() if name.startswith(part)]
            arm = [contrast(*([unpack(scores[name])] if name else [] for name in (first, second))) for scores in own]
            made.append(Stratum("bed", [arm], np.array(images["member"]), images["group"]))
        return made

    rows = []
    for name in next(iter(known["scores"].values())):
        difference = pooled_difference(strata(name, WHOLE)) if name != WHOLE else None
        values = (pooled_difference(strata(name), metric) for metric in ("auc", "tpr_at_1_fpr"))
        auc, rate = (show_percent(one["difference"], one["interval"]) for one in values)
        rows.append([name, auc, f"{100 * difference['difference']:+.1f}{show_interval(difference['interval'], '+')}"
                     if difference else "–", rate])
    print(markdown(HEADS, rows))


def measure(scale: "Rotations", model: "Model") -> tuple[dict[str, list[float]], dict]:
    """The scores of all variants on a model, and the "member" and "group" of its images."""
    from attacks import build_attack
    from attacks.sample import AttackSettings
    from evaluation.attack_setup import choose_compute
    from predictors import open_predictor
    from predictors.base import PredictorOptions
    from predictors.reference import open_references
    from predictors.samples import Source, live_records
    from reproduce.rotations import PARTNER

    options = PredictorOptions(choose_compute(None), stride=4)
    records = live_records(scale.parts[model.part], scale.parts[PARTNER[model.part]], scale.root, "", "camvid")
    folders = [str(scale.runs / one.name) for one in scale.shadows_of(model, "all")]
    source = Source(records, open_predictor(str(scale.runs / model.name / "last.pth.tar"), options),
                    references=tuple(open_references(folders, options)))
    samples = list(source.samples(frozenset({"truth", "image"})))
    found = {name: [one.score for one in finish(rows)] for name, rows in variants(samples)}
    found[f"{WHOLE}, an image's own group left out of the fit"] = left_out(samples)
    for name, changes in OTHERS:
        attack = build_attack(name, AttackSettings(**changes))
        found[", ".join([name, *(f"{key} = {value}" for key, value in changes.items())])] = [
            one.score for one in attack.finish(list(attack.score(samples)))]
    return found, {"member": [one.member for one in samples], "group": [one.group for one in samples]}


def variants(samples: "Sequence[Sample]") -> "Iterator[tuple[str, list[Scored]]]":
    """Yield the name of each variant, and what its regression reads of each image."""
    from attacks.quantile import features

    for count in COUNTS:
        few = [replace(one, references=one.references[:count], in_reference=one.in_reference[:count])
               for one in samples]
        yield f"residual, {count} reference{'' if count == 1 else 's'}", columns(few)
    plain = len(features(samples[0]))
    yield f"{WHOLE}, without what image and label show", columns(samples, lambda found: found | {
        "features": found["features"][plain:]})
    yield f"{WHOLE}, without the losses of the classes", columns(samples, lambda found: found | {
        "features": found["features"][:plain]})
    yield f"{WHOLE}, without the loss of each of them", columns(samples, lambda found: found | {
        "references": [], "seen": []})
    yield f"{WHOLE}, losses without a logarithm", columns(samples, lambda found: found | {
        key: np.exp(found[key]).tolist() for key in ("observed", "references")})


def columns(samples: "Sequence[Sample]", change: Callable[[dict], dict] = dict) -> "list[Scored]":
    """What the regression reads of each sample, after a change."""
    from attacks import build_attack
    from attacks.sample import AttackSettings, Scored

    attack = build_attack("residual", AttackSettings())
    return [Scored(one.name, one.member, one.group, 0.0, statistics=change(attack.columns(one))) for one in samples]


def finish(rows: "list[Scored]") -> "Sequence[Scored]":
    """The scores of the residual."""
    from attacks import build_attack
    from attacks.sample import AttackSettings

    return build_attack("residual", AttackSettings()).finish(rows)


def left_out(samples: "Sequence[Sample]", folds: int = 5) -> list[float]:
    """The scores of the residual by regressions that were fitted on the images of other groups (folds of groups)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from attacks.quantile import STRENGTHS
    from attacks.residual import loss_columns

    rows = [one.statistics for one in columns(samples)]
    values = {key: np.array([row[key] for row in rows]) for key in ("observed", "features", "references", "seen")}
    table = np.hstack([values["features"], loss_columns(values["references"], values["seen"] > 0)])
    model, observed = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)), values["observed"][:, 0]
    groups = [one.group for one in samples]
    return (cross_val_predict(model, table, observed, cv=GroupKFold(folds), groups=groups) - observed).tolist()


if __name__ == "__main__":
    run(main, parser())
