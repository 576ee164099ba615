#!/usr/bin/env python3
"""Audit a segmentation model: does it give away which images it was trained on?

    python audit.py                                                       # the shipped answers, in examples/
    python audit.py --model runs/victim --images data/my/images --masks data/my/masks \\
        --classes 5 --members list.txt                                    # all other images are non-members
    python audit.py --model runs/victim --root data/streets --members splits/streets/victim_in.txt \\
        --non-members splits/streets/victim_out.txt                       # split files, as for attack.py
    ... --references runs/shadow --try argmax gauss:0.1                   # with a reference model, and under defenses
    ... --claim mine.txt --null newer.txt                                 # was a collection of images used?
    python audit.py --compare runs/audit-1/audit.json runs/audit-2/audit.json

Runs every attack whose inputs are at hand, with controls, and writes a page (report.html, report.md) and its content
(audit.json) into the folder of the audit. A stopped audit goes on with the same command.

Exit code: 0; 1 if a condition of --fail-if holds; 2 after an error.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import evaluation
import predictors
from datasets.sides import REFERENCES
from evaluation.audit_words import ATTACKS
from utils.cli import UserError, add_run_flags, new_parser, pick, positive, refuse_unused, run

if TYPE_CHECKING:
    from evaluation.attack_setup import LiveData
    from utils.device import Compute

EXAMPLES = "stored:examples"


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__)
    flags.add_argument("--model", metavar="[KIND:]WHERE", default=EXAMPLES, help=f"the target model. KIND: "
                       f"{predictors.PREDICTORS.help()} (default: {EXAMPLES})")
    flags.add_argument("--stride", type=positive, help="pixels per position of the posteriors (default: 8)")
    predictors.add_windows_flag(flags, "the model and its references")
    predictors.add_access_flags(flags)
    sides = flags.add_argument_group("members and non-members")
    sides.add_argument("--images", metavar="DIR", help="folder of the images")
    sides.add_argument("--masks", metavar="DIR", help="folder of their ground truth: masks of the names of the images")
    sides.add_argument("--members", metavar="LIST", help="the images that the model was trained on: with --images, a "
                       "list of names, a folder inside --images or with files of the same names, or a CSV file with "
                       "the columns image and member; else a split file")
    sides.add_argument("--non-members", metavar="LIST", help="the images that it was not trained on: a list or a "
                       "folder as for --members (default, with --images: all others)")
    sides.add_argument("--claim", metavar="LIST", help="in the place of --members: images of which you ask whether the "
                       "model was trained on them; a list or a folder")
    sides.add_argument("--null", metavar="LIST", help="in the place of --non-members: images of the same kind that "
                       "cannot have been used; a list or a folder")
    flags.add_argument("--references", nargs="+", metavar="DIR", default=[], help="models of the same task that were "
                       "not trained on these images: runs of train_shadow.py, or [KIND:]WHERE")
    flags.add_argument("--train-references", type=positive, metavar="N", help="train so many reference models first, "
                       "each on a half of --reference-images, as the target model was trained if it is a checkpoint of "
                       "train_victim.py; more are better, and three or more allow more attacks")
    flags.add_argument("--reference-images", metavar="LIST", help="images of the same kind that are on neither side: a "
                       "list or a folder as for --members")
    flags.add_argument("--population", metavar="WHERE", help="images whose membership in another model is known: a run "
                       "of train_shadow.py")
    flags.add_argument("--control", metavar="[KIND:]WHERE", help="a model that saw neither side; the attacks on it "
                       "must find nothing")
    flags.add_argument("--attacks", nargs="+", metavar="NAME", default=[], help=f"only these attacks, of "
                       f"{', '.join(ATTACKS)} (default: all whose inputs are at hand)")
    flags.add_argument("--try", nargs="+", metavar="DEFENSE", default=[], dest="tries", help="defenses whose effect is "
                       "measured: argmax, gauss:STD, rounding:STEP, top-k:K, temperature:T, dropout:RATIO")
    flags.add_argument("--fail-if", nargs="+", metavar="CONDITION", default=[], help="exit code 1 if a condition such "
                       "as auc>0.6 or tpr@1%%>0.05 holds for the attack that answers the question")
    flags.add_argument("--show-images", action="store_true", help="the page shows photographs and plain names of the "
                       "most exposed images; without it, only maps and keyed hashes")
    flags.add_argument("--hash-names", metavar="KEYFILE", help="key of the hashes of names (default: a new key in the "
                       "folder of the audit)")
    flags.add_argument("--compare", nargs=2, metavar="JSON", help="compare two audits by their audit.json, and stop")
    evaluation.add_allow_flag(flags, ("copies", "unseen", "unbalanced"))
    flags.add_argument("--skip-check", action="store_true", help="audit a model although it does not seem to segment "
                       "the images")
    flags.add_argument("--quiet", action="store_true", help="print nothing but errors: no answer, warnings or progress")
    flags.add_argument("--json", action="store_true", help="print audit.json instead of the answer")
    datasets.add_flags(flags, of_victim=True)
    add_run_flags(flags, "audit")
    return flags


def main(args: argparse.Namespace) -> None:
    check(args)
    from evaluation import audit_setup as setup

    if args.compare:
        print(setup.compare(*args.compare))
        return
    conditions = [setup.read_condition(text) for text in args.fail_if]
    with contextlib.redirect_stderr(io.StringIO()) if args.quiet else contextlib.nullcontext():
        found, folder = audit_model(args)
    if not args.quiet:
        print(setup.as_json(found) if args.json else setup.as_text(found, folder))
    failed = [one.text for one in conditions if one.holds(found)]
    if failed:
        print(f"--fail-if {failed[0]}: the condition holds", file=sys.stderr)
        sys.exit(1)


def audit_model(args: argparse.Namespace) -> tuple[dict, Path]:
    """Run the audit, and return the content of audit.json and the folder."""
    from evaluation import audit_setup as setup

    setup.check_attacks(args.attacks)
    tries = [setup.parse_defense(text, args.seed) for text in args.tries]
    members, non_members = args.members or args.claim, args.non_members or args.null
    compute, access = setup.choose_compute(args.gpu, args.precision), predictors.chosen(args)
    queried = [*([args.model] if members else []), *args.references, *([args.control] if args.control else [])]
    folder, queries = setup.start(vars(args), args.out, compute, queried, access)
    data = None
    if members:
        lists = (setup.list_sides(args.images, args.masks, members, non_members, folder, args.reference_images)
                 if args.images else {"members": members, "non_members": non_members})
        told = any((args.classes, args.class_names, args.label_map))
        usual = "folder" if args.images and (told or predictors.kind_of(args.model) != "checkpoint") else None
        data = pick(args, setup.LiveData, **lists, dataset=datasets.chosen(args, of_model=True, usual=usual),
                    access=access)
    trained = train_references(args, data, folder, compute) if args.train_references else []
    allow = [*args.allow, *(["unseen"] if args.claim else [])]  # whether the model saw them is the question
    key = None if args.show_images else setup.key_of(folder, args.hash_names)
    audit = pick(args, setup.Audit, data=data, out=folder, defenses=tries, key=key, compute=queries,
                 claim=bool(args.claim), allow=allow, references=[*args.references, *trained],
                 population=args.population or (trained[1] if len(trained) > 2 else None), arguments=vars(args))
    return setup.run_audit(audit), folder


def train_references(args: argparse.Namespace, data: "LiveData", folder: Path, compute: "Compute") -> list[str]:
    """Train the references of --train-references below the folder of the audit, and return their folders."""
    from evaluation.audit import log_of
    from training.reference_models import for_audit

    listed = folder / REFERENCES if args.images else args.reference_images

    with log_of(folder):
        return for_audit(args.model, data, listed, args.train_references, args.seed, folder / "trained", compute,
                         lambda text: print(text, file=sys.stderr))


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict one another, or have no effect, before anything is loaded."""
    own = {action.option_strings[0] for action in parser()._actions if action.dest not in ("compare", "help")}
    refuse_unused(args, parser(), [
        (args.compare, "with --compare; leave it out", sorted(own)),
        (args.quiet, "with --quiet; leave one of them out", ["--json"]),
        (not args.images, "without --images; give both, or leave it out", ["--masks"]),
        (args.claim, "with --claim, which names the same images; leave one of them out",
         ["--members", "--non-members"]),
        (not args.claim, "without --claim; give both, or leave it out", ["--null"]),
        (not args.train_references, "without --train-references; give both, or leave it out", ["--reference-images"]),
        (not (args.members or args.claim), "without --members; give both, or leave it out",
         ["--images", "--non-members", "--train-references", "--dataset", "--windows", *predictors.ACCESS]),
        (args.show_images, "with --show-images, which writes plain names; leave it out", ["--hash-names"])])
    if args.train_references and not args.reference_images:
        raise UserError("--train-references needs --reference-images LIST, images of the same kind on neither side")
    if args.images and not args.masks:
        raise UserError("--images needs --masks, the folder of the ground truth")
    if (args.members or args.claim) and not args.images and not (args.non_members or args.null):
        raise UserError("split files are needed of both sides: --members and --non-members, or --claim and --null; or "
                        "give --images and --masks, and lists of names")


if __name__ == "__main__":
    run(main, parser())
