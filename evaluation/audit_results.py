"""What follows from the runs of an audit: the content of audit.json."""

import contextlib
import hashlib
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_curve

from attacks import ATTACKS
from evaluation.audit_plan import BOUNDS, CONTROLS, SAME, VERSION, Audit, Trial
from evaluation.audit_words import about
from evaluation.controls import permuted_aucs
from evaluation.exposure import shown_regions
from evaluation.intervals import paired_difference, split_groups
from evaluation.metrics import RATES
from evaluation.set_level import detectable, was_used
from evaluation.stored_scores import read_paired, read_scores
from predictors import files_of
from utils.cli import UserError
from utils.files import commit

PRIORS = (0.01, 0.1, 0.5)
COMPARED = ("blind", "model", *CONTROLS)  # controls that the attack must be above, if they are above chance
POINTS = 200  # of a ROC curve in audit.json
ONE_SIDE = 0.025  # by chance, the interval of an AUC lies above 0.5 in so many audits
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "onnxruntime", "transformers",
            "segmentation-models-pytorch")


def summarise(audit: Audit, runs: dict[str | None, dict[Trial, dict]], failed: dict[str, str]) -> dict:
    """The content of audit.json from the results of all runs. `runs`: defense (None: none) -> trial -> results."""
    primary = audit.primary
    first, used = runs[None][Trial(primary, audit.plain)], collection_test(audit, primary)
    rows = [describe(audit, trial, results) for trial, results in runs[None].items()]
    controls = controls_of(audit, first, rows)
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
        "answer": answer(first, used, controls),
        "claim": audit.claim,
        "collection": {key: used[key] for key in ("p", "method", "groups", "needed")} if audit.claim and used else None,
        "attacks": [row for row in rows if row["kind"] != "control"],
        "controls": controls,
        "regions": regions(first),
        "defenses": frontier(runs, primary),
        "priors": priors(audit, primary, first),
        "not_run": {name: audit.shown_text(reason) for name, reason in failed.items()},
        "named": audit.show_images,
        "settings": {"date": date.today().isoformat(), "commit": commit(), "python": platform.python_version()}
        | versions() | {"device": audit.compute.device.type, "precision": audit.compute.precision,
                        "features of the membership error": audit.features} | given(audit) | hashes(audit),
    }


def versions() -> dict[str, str]:
    """The versions of those of `PACKAGES` that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def given(audit: Audit) -> dict[str, str]:
    """The flags of the call on which results depend, with the places as the page has them."""
    found = {}
    for name, value in audit.arguments.items():
        idle = name == "root" and (audit.arguments.get("images") or not audit.data)  # its default has no effect there
        if name == "seed" or (name in SAME and not idle and value not in (None, "", [], False)):
            words = value if isinstance(value, (list, tuple)) else [value]
            found[f"--{name.replace('_', '-')}"] = " ".join(audit.shown(str(word)) for word in words)
    return found


def hashes(audit: Audit) -> dict[str, str]:
    """The SHA-256 of the files of the models and lists, by which a reader can tell whether they are the same.

    Of a model in several files it is that of their hashes.
    """
    places = {"the model": audit.model, "the control": audit.control} | {
        f"reference {number}": place for number, place in enumerate(audit.references, 1)}
    files = {name: files_of(place) for name, place in places.items()}
    if audit.data:
        files |= {"the list of members": [Path(audit.data.members)],
                  "the list of non-members": [Path(audit.data.non_members)]}
    digests = {name: [hashlib.sha256(path.read_bytes()) for path in paths] for name, paths in files.items() if paths}
    return {f"SHA-256 of {name}": (found[0] if len(found) == 1 else hashlib.sha256(
        b"".join(one.digest() for one in found))).hexdigest() for name, found in digests.items()}


def describe(audit: Audit, trial: Trial, results: dict) -> dict:
    """The row of an attack: its metrics, its ROC curve and what it needs."""
    name, attack = trial.name, ATTACKS.load(trial.name)
    kind = "control" if name in CONTROLS or trial.permuted else "bound" if name in BOUNDS else "attack"
    reads = len(audit.references) if audit.reads_references(name) else 0
    return {"name": trial.title, "about": about(name, ATTACKS[name].about), "kind": kind, "references": reads,
            "queries": attack.queries_of_target(), "seconds": round(results["seconds"], 1),
            "chosen": results["chosen"], **results["image"], "roc": roc(audit.folder_of(trial))}


def roc(folder: Path) -> list[list[float]]:
    """At most `POINTS` points [FPR, TPR] of the ROC curve of a run.

    If it has more corners, those at FPRs at equal distances and, below 0.1, also at equal ratios are kept.
    """
    rows = read_scores(folder).values()
    false, true, _ = roc_curve([member for member, _, _ in rows], [score for _, _, score in rows])
    if len(false) > POINTS:
        grid = [0, *np.geomspace(1e-5, 0.1, POINTS // 2), *np.linspace(0.1, 1, POINTS // 2 - 2)]
        kept = np.unique([0, *(np.searchsorted(false, np.array(grid) + 1e-9, side="right") - 1)])
        false, true = false[kept], true[kept]
    return np.stack([false, true], axis=1).round(6).tolist()


def collection_test(audit: Audit, primary: str) -> dict | None:
    """The test of `evaluation.set_level.was_used` that members score higher. None with too few groups.

    "detectable" is that of an interval which lies above 0.5: the answer needs one.
    """
    (score,), member, group = read_paired([audit.folder_of(audit.plain_trial(primary))])
    try:
        found = was_used([score], member, group, audit.seed)
    except UserError:
        return None
    return found | {"detectable": detectable(split_groups(group, member), found["correlation"], ONE_SIDE)}


def answer(results: dict, used: dict | None, controls: Sequence[dict]) -> dict:
    """What the primary attack says: "leak", "no evidence", "other difference" or "undecided", and why.

    "other difference": a control is above chance, and the attack does not find more than it does. `used`: the result
    of `collection_test`, from which is "detectable", the AUC that would have been found with a probability of 80 %.
    """
    auc, interval = results["image"]["auc"], results["image"]["auc_interval"]
    found = {"auc": auc, "interval": interval, "detectable": used and used["detectable"]}
    if interval is None:
        return found | {"verdict": "undecided"}
    if interval[0] <= 0.5:
        return found | {"verdict": "no evidence"}
    above = [row for row in controls if row["name"] in COMPARED and row["interval"] and row["interval"][0] > 0.5]
    explained = any(not row["minus_interval"] or row["minus_interval"][0] <= 0 for row in above)
    return found | {"verdict": "other difference" if explained else "leak"}


def regions(results: dict) -> list[dict]:
    """The rows of "Where the leak is": kind, region, share of the positions, AUC and its interval."""
    found = results.get("exposure", {}).get("regions", {})
    return [{"kind": kind, "region": region} | {
        key: found[kind][region][key] for key in ("share", "members", "non_members", "auc", "auc_interval")}
        for kind, region in (shown_regions(found) if found else ())]


def controls_of(audit: Audit, results: dict, rows: Sequence[dict]) -> list[dict]:
    """What must find nothing: classifiers without the model, the attack on another model, the references alone, and
    attacks whose groups are dealt to the two sides at random.

    Those of `COMPARED` have the paired difference to the attack that answers the question. Of this attack the row
    "permuted" has the mean AUC over all deals, and the range of 95 % of them in the place of an interval.
    """
    found = [{"name": name, "auc": one["auc"], "interval": one["auc_interval"],
              "minus": one["attack_minus_control"], "minus_interval": one["attack_minus_control_interval"]}
             for name, one in results["controls"].items()]
    primary = audit.folder_of(audit.plain_trial(audit.primary))
    (score,), member, group = read_paired([primary])
    if len(set(group)) > 1:
        dealt = permuted_aucs(score, member, group, audit.seed)
        found.append(_control("permuted", float(dealt.mean()), np.quantile(dealt, (0.025, 0.975)).tolist()))
    for row in (row for row in rows if row["kind"] == "control"):
        more = None
        if row["name"] in COMPARED:
            (ours, others), member, group = read_paired([primary, audit.folder_of(audit.plain_trial(row["name"]))])
            more = paired_difference([ours], [others], member, group)
        found.append(_control(row["name"], row["auc"], row["auc_interval"], more))
    return found


def _control(name: str, auc: float, interval: list[float] | None, more: dict | None = None) -> dict:
    more = more or {"difference": None, "interval": None}
    return {"name": name, "auc": auc, "interval": interval, "minus": more["difference"],
            "minus_interval": more["interval"]}


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
