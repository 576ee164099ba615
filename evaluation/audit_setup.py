"""What the script of an audit composes: its folder, its inputs, its conditions, its comparison, and what it prints."""

import contextlib
import io
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attacks import ATTACKS
from datasets.sides import write_sides
from evaluation import audit_words as words
from evaluation.attack_setup import LiveData, choose_compute
from evaluation.audit import log_of, parse_defense, run_audit
from evaluation.audit_plan import VERSION, Audit, check_attacks
from evaluation.intervals import paired_difference
from evaluation.stored_scores import read_paired
from predictors import open_predictor
from predictors.base import Access, PredictorOptions
from utils.cli import UserError
from utils.device import Compute
from utils.files import atomic_open, read_json, start_run

__all__ = ["Audit", "Condition", "LiveData", "as_json", "as_text", "check_attacks", "choose_compute", "compare",
           "key_of", "list_sides", "parse_defense", "read_condition", "run_audit", "start"]

CONDITION = re.compile(r"(auc|max_f|tpr@([0-9.]+)%)\s*>\s*([0-9]+\.?[0-9]*|\.[0-9]+)")
PLACE_ONLY = ("out", "gpu", "quiet", "json", "fail_if")  # arguments that change no result


def start(arguments: dict, out: str | None, compute: Compute, queried: Sequence[str],
          access: Access) -> tuple[Path, Compute]:
    """The folder of an audit, locked: `out`, or an unfinished runs/audit-N of the same arguments, or the next free.

    Also returns device and precision. If nobody chose the precision, all models are queried in that of the first of
    `queried` that was measured. What a measurement prints goes to log.txt.
    """
    if out is None:
        out = next((str(folder) for folder in sorted(Path("runs").glob("audit-*"))
                    if not (folder / "audit.json").exists() and _same(folder, arguments)), None)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for where in queried:
            if compute.measure:
                compute = open_predictor(where, PredictorOptions(compute, access=access)).options.compute
    folder = start_run("audit", arguments, out, compute)
    with log_of(folder):
        print(said.getvalue(), end="")
    return folder, compute


def _same(folder: Path, arguments: dict) -> bool:
    """Whether an audit with the same arguments was started in `folder`."""
    if not (folder / "args.json").is_file():
        return False
    before, now = read_json(folder / "args.json").get("args", {}), json.loads(json.dumps(arguments))
    return all(before.get(key) == value for key, value in now.items() if key not in PLACE_ONLY)


def list_sides(images: str, masks: str, members: str, non_members: str | None, folder: Path,
               references: str | None = None) -> dict[str, str]:
    """The fields of `LiveData` for the images of two folders and lists, whose split files go to `folder`."""
    inside, outside, root = write_sides(images, masks, members, non_members, folder, references)
    return {"members": inside, "non_members": outside, "root": str(root), "strip_prefix": ""}


def key_of(folder: Path, key_file: str | None) -> str:
    """The key file of the hashes of names: `key_file`, or that in `folder`, which is made if there is none."""
    if key_file:
        return key_file
    own = folder / "key"
    if not own.exists():
        with atomic_open(own, private=True) as file:
            file.write(secrets.token_bytes(32))
    return str(own)


@dataclass(frozen=True)
class Condition:
    """A condition of --fail-if on the attack that answers the question: METRIC > LIMIT."""

    text: str
    metric: str
    limit: float

    def holds(self, found: dict) -> bool:
        """Whether it holds for the content of audit.json. Raises `UserError` if the metric could not be measured."""
        row = next(row for row in found["attacks"] if row["name"] == found["primary"])
        if row.get(self.metric) is None:
            raise UserError(f"--fail-if {self.text}: it cannot be measured with {found['images']['non_members']} "
                            "non-members; give more, or a larger FPR")
        return row[self.metric] > self.limit


def read_condition(text: str) -> Condition:
    """The condition of a text such as `auc>0.6` or `tpr@1%>0.05`. Raises `UserError` for another text."""
    found = CONDITION.fullmatch(text.strip())
    rates = {"10": "tpr_at_10_fpr", "5": "tpr_at_5_fpr", "1": "tpr_at_1_fpr", "0.1": "tpr_at_0.1_fpr"}
    metric = found and (rates.get(found[2]) if found[2] else found[1])
    if not metric:
        raise UserError(f"--fail-if {text}: give auc>X, max_f>X, or tpr@R%>X with R 10, 5, 1 or 0.1")
    return Condition(text, metric, float(found[3]))


def as_json(found: dict) -> str:
    """The content of audit.json."""
    return json.dumps(found, indent=2)


def as_text(found: dict, folder: Path) -> str:
    """What an audit prints: the answer, the attacks, and where the page is."""
    lines = [one for one in (words.sentence(found), words.meaning(found), words.collection(found)) if one]
    rows = [f"  {row['name']:28} AUC {row['auc']:.3f}" + (" [{:.3f}, {:.3f}]".format(*row["auc_interval"])
            if row["auc_interval"] else "") + (f"  ({words.BOUND})" if row["kind"] == "bound" else "")
            for row in found["attacks"]]
    steps = [f"- {step}" for step in words.advice(found)]
    page = f"page: {folder / 'report.html'}; also report.md and audit.json"
    return "\n".join([*lines, "", *rows, "", *steps, "", page])


def compare(first: str, second: str) -> str:
    """What changed between two audits: the AUC of each attack that both have, and the difference.

    The difference is paired, with a 95 % interval, where both audits scored the same images: their folders hold the
    scores, and their names are hashed with one key. Raises `UserError` if a file is no audit.json of this version.
    """
    audits = [_read_audit(path) for path in (first, second)]
    rows = [{row["name"]: row for row in audit["attacks"]} for audit in audits]
    lines = [f"{'attack':28} {'first':>7} {'second':>7} {'second - first':>15}  95 % interval (paired)"]
    reason = ""
    for name in [name for name in rows[0] if name in rows[1]]:
        one, two = (row[name]["auc"] for row in rows)
        try:
            folders = [Path(path).parent / "attacks" / name for path in (first, second)]
            scores, member, group = read_paired(folders)
            around = paired_difference([scores[1]], [scores[0]], member, group, "auc")["interval"]
            around = around and [two - one + _widened(name) * (end - (two - one)) for end in around]
        except UserError as error:
            around = None
            reason = (f"no paired interval: {error}. If both audits have the same images, give the second one "
                      f"--hash-names {Path(first).parent / 'key'}")
        shown = "[{:+.3f}, {:+.3f}]".format(*around) if around else "-"
        lines.append(f"{name:28} {one:7.3f} {two:7.3f} {two - one:+15.3f}  {shown}")
    utility = [audit["miou"]["out"] for audit in audits]
    if None not in utility:
        lines.append(f"{'mIoU of non-members':28} {utility[0]:7.3f} {utility[1]:7.3f} {utility[1] - utility[0]:+15.3f}")
    return "\n".join([*lines, *([reason] if reason else [])])


def _widened(title: str) -> float:
    """By how much the intervals of an attack are widened."""
    return ATTACKS.load(title).widened if title in ATTACKS else 1.0


def _read_audit(path: str) -> dict:
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION or not isinstance(found.get("attacks"), list):
        raise UserError(f"{path} is no audit.json of version {VERSION}; give one that audit.py has written")
    return found
