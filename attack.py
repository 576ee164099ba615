#!/usr/bin/env python3
"""Membership inference on a segmentation model (algorithm 2): which of these images was it trained on?

    python attack.py                                                     # structured loss map, on examples/
    python attack.py -resume weights/concate.pth.tar -input concate      # posterior and label concatenated
    python attack.py --attack loss                                       # a threshold on the loss; needs no attacker
    python attack.py -gauss 0.1                                          # under a defense
    python attack.py -argmax -cam runs/cam                               # activation maps, before and under a defense
    python attack.py --victim runs/victim/last.pth.tar --root data/streets \\
        --members splits/streets/victim_in.txt --non-members splits/streets/victim_out.txt
    ... --attack calibrated --references runs/shadow                     # with a reference model

Prints AUC and max-F of images and of patches with 95 % intervals, and the F that guessing would reach. Writes
results.json, scores.csv, patches.npz and the curves into the folder of the run.
"""

import argparse
import time
from pathlib import Path

import attacks
import datasets
import defenses
import evaluation
import predictors
from attacks import ATTACKS, REPRESENTATIONS, SETTINGS
from utils.cli import UserError, add_run_flags, flag, new_parser, number, pick, positive, refuse_unused, run

ATTACKER = "weights/loss.pth.tar"
QUERY = ("--members", "--non-members", "--keep", "--stride", "--windows", "--root", "--strip-prefix", "--dataset",
         "--classes", "--class-names", "--label-map", *predictors.ACCESS)  # flags of a target model that is queried


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__)
    flags.add_argument("--attack", choices=ATTACKS, default="learned", help=f"{ATTACKS.help()} (default: learned)")
    flags.add_argument("--threshold", choices=("confidence", "loss"), help="the same as --attack confidence or loss, "
                       "with the patches of -resume")
    flag(flags, "resume", metavar="CHECKPOINT", help="checkpoint of the attacker, of this project or of the release "
         f"(default: {ATTACKER}); if given, --attack loss, confidence and calibrated use its patch size, floor and tau")
    flag(flags, "input", choices=REPRESENTATIONS, help=f"{REPRESENTATIONS.help()} (default: that of the attacker)")
    flags.add_argument("--batch", type=positive, default=64, help="number of patches in memory, and in one forward "
                       "pass on a GPU (default: 64)")
    flags.add_argument("-a", "-arch", "--arch", choices=("resnet50", "resnet18"), default="resnet50",
                       help="architecture of a release checkpoint, which does not store it (default: resnet50)")
    flag(flags, "dilation", action="store_true", help="the release checkpoint has dilated layer3 and layer4")
    attacks.add_flags(flags)
    where = flags.add_argument_group("outputs on disk")
    where.add_argument("--examples", metavar="TREE", default="examples",
                       help="folder with {train,val}/{label,pred_sgd}, as in the release (default: examples)")
    where.add_argument("--triples", metavar="DIR", help="translated images: folder with "
                       "{train,val}/{input,output,truth}, for --attack reconstruction and membership-error")
    live = flags.add_argument_group("a target model that is queried")
    live.add_argument("--victim", metavar="[KIND:]WHERE", help="the target model V; needs --members and "
                      f"--non-members. KIND: {predictors.PREDICTORS.help()} (default: checkpoint)")
    live.add_argument("--members", metavar="SPLIT", help="split file of the members, D_in^V")
    live.add_argument("--non-members", metavar="SPLIT", help="split file of the non-members, D_out^V")
    live.add_argument("--stride", type=positive, help="pixels per position of the posteriors (default: that of the "
                      "attacker, or 8)")
    predictors.add_windows_flag(live, "V and the references")
    predictors.add_access_flags(live)
    live.add_argument("--keep", metavar="TREE", help="store the posteriors of V in this folder for later calls, in "
                      "float16 and in the layout of examples/; those of another query are replaced")
    flags.add_argument("--control", metavar="[KIND:]WHERE", help="a model that was trained on no attacked image, such "
                       "as a run of train_shadow.py: the same attack on it shows what is found without membership")
    evaluation.add_allow_flag(flags)
    flags.add_argument("--references", nargs="+", metavar="DIR", default=[], help="models to compare the target "
                       "model with: runs of train_shadow.py, or [KIND:]WHERE as for --victim; see docs/attacks.md")
    flags.add_argument("--population", metavar="WHERE", help="images whose membership is known, for attacks that "
                       "learn from them: a run of train_shadow.py, or a folder as for --examples; --attack quantile: "
                       "a split file of non-members of the target model, or a folder with its posteriors in val/")
    flags.add_argument("--keep-references", metavar="DIR", help="store the posteriors of the reference models in this "
                       "folder, one tree for each, for later calls with the same images")
    datasets.add_flags(flags, of_victim=True)
    defenses.add_flags(flags, training=True)
    evaluation.add_flags(flags)
    flags.add_argument("--hash-names", metavar="KEYFILE", help="write keyed hashes (HMAC-SHA256) instead of the "
                       "images' names; the key is the content of this file, 16 bytes or more")
    flags.add_argument("--save-every", type=number(0), default=10, metavar="SECONDS", help="time between two saves of "
                       "the scores; after a stop, the same command resumes from the last save (default: 10)")
    add_run_flags(flags, "attack")
    return flags


def main(args: argparse.Namespace) -> None:
    started = time.monotonic()
    check(args)
    from evaluation import attack_setup as setup

    compute, defense = setup.choose_compute(args.gpu, args.precision), defenses.chosen(args).build()
    name, resume = args.threshold or args.attack, attacker_path(args)
    attacker = resume and setup.load_attacker(resume, args.arch, args.dilation, args.patch_size)
    attack = setup.make_attack(name, attacker, pick(args, setup.AttackChoices), defense, compute)
    data = pick(args, setup.LiveData, dataset=datasets.chosen(args, of_model=True), access=predictors.chosen(args))
    if args.triples:
        source = setup.triples_source(args.triples, defense, compute)
    elif args.victim:
        source = setup.live_source(args.victim, data, attack, args.stride, defense, compute, args.references)
    else:
        source = setup.stored_source(args.examples, attack, defense, compute, args.references)
    known = args.population and setup.population_source(args.population, source, attack, data)
    call = pick(args, setup.AttackRun, name=name, arguments=vars(args) | {"resume": resume},
                files=setup.existing_files([resume, args.victim, args.control, args.population, args.preprocess,
                                            *args.references]), started=started)
    setup.run_attack(attack, source, call, known)


def attacker_path(args: argparse.Namespace) -> str | None:
    """The path of -resume, or `ATTACKER` for --attack learned, and for --threshold if the file exists."""
    if args.resume or (args.attack == "learned" and not args.threshold):
        return args.resume or ATTACKER
    return ATTACKER if args.threshold and Path(ATTACKER).is_file() else None


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict one another, or have no effect, before anything is loaded."""
    if args.victim and not (args.members and args.non_members):
        raise UserError("--victim needs --members SPLIT and --non-members SPLIT")
    if args.victim and args.dpsgd:
        raise UserError("-dpsgd selects stored posteriors; to query a DPSGD victim, give its checkpoint as --victim "
                        "and leave -dpsgd out")
    if args.threshold and args.attack not in ("learned", args.threshold):
        raise UserError(f"--threshold {args.threshold} and --attack {args.attack} are two attacks; give one of them")
    name = args.threshold or args.attack
    attack = ATTACKS.load(name)
    unread = set(SETTINGS) - attack.reads
    refuse_unused(args, parser(), [
        (not args.victim, "on posteriors on disk; leave it out, or give --victim CHECKPOINT", QUERY),
        (args.victim, "with --victim; leave one of them out", ["--examples", "--triples"]),
        (args.triples, "with --triples; leave one of them out",
         ["--examples", "--references", "--population", "--control"]),
        (not attacker_path(args), f"with --attack {name}, which reads no attacker here; leave it out, or give -resume",
         ["-input", "-arch", "-dilation"]),
        (not args.references, "without --references; give both, or leave it out",
         ["--keep-references", "--c", "--defend-references"]),
        (True, f"with --attack {name}; leave it out", [f"--{field}" for field in sorted(unread)]),
        (not attack.patches, f"with --attack {name}, which scores whole images; leave it out",
         ["--select", "-num-patch", "--patch-size"]),
        (args.select != "rejection", "without --select rejection; give both, or leave it out", ["-tau"]),
        (not args.cam, "without -cam DIR; give both, or leave it out", ["--cam-images"]),
        (not args.exposure, "without --exposure; give both, or leave it out", ["--exposure-maps"]),
        (args.gauss is None, "without -gauss STD; give both, or leave it out", ["--gauss-floor"])])


if __name__ == "__main__":
    run(main, parser())
