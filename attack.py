#!/usr/bin/env python3
"""Membership inference on a segmentation model (algorithm 2): which of these images was it trained on?

    python attack.py                                                     # structured loss map, on examples/
    python attack.py -resume weights/concate.pth.tar -input concate      # posterior and label concatenated
    python attack.py --attack loss                                       # a threshold on the loss; needs no attacker
    python attack.py -gauss 0.1                                          # against a defense
    python attack.py -argmax -cam runs/cam                               # activation maps, before and under a defense
    python attack.py --victim runs/victim/last.pth.tar --root data/streets \\
        --members splits/streets/victim_in.txt --non-members splits/streets/victim_out.txt
    ... --attack calibrated --references runs/shadow                     # with a reference model

Prints AUC and max-F of images and of patches with 95 % intervals, beside the metrics of guessing, and writes
results.json, scores.csv, patches.npz and the curves into the run's folder.
"""

import argparse
import time
from pathlib import Path

import datasets
import defenses
from attacks import ATTACKS, REPRESENTATIONS
from predictors import PREDICTORS
from utils.cli import UserError, add_run_flags, flag, new_parser, pick, positive, run

ATTACKER = "weights/loss.pth.tar"


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__)
    flags.add_argument("--attack", choices=ATTACKS, default="learned", help=f"{ATTACKS.help()} (default: learned)")
    flags.add_argument("--threshold", choices=("confidence", "loss"), help="the same as --attack confidence or loss, "
                       "with the patches of -resume")
    flag(flags, "resume", metavar="CHECKPOINT", help="the attacker, of this project or of the release (default: "
         f"{ATTACKER}); --attack loss, confidence and calibrated take its patch size, floor and tau, if it is given")
    flag(flags, "input", choices=REPRESENTATIONS, help=f"{REPRESENTATIONS.help()} (default: the attacker's own)")
    flags.add_argument("--score", choices=("paper", "release"), default="paper", help="score of an image: mean member "
                       "probability, or sum of member logits (default: paper)")
    flags.add_argument("--floor", type=float, metavar="P", help="posteriors below this count as this in the logarithm "
                       "(default: the attacker's own, 6e-8 of those trained here, 1e-30 of the release's)")
    flags.add_argument("--c", type=float, default=0.75, help="weight of the references, calibrated (default: 0.75)")
    flags.add_argument("--batch", type=positive, default=64, help="patches in memory, and in a forward pass of a GPU "
                       "(default: 64)")
    flags.add_argument("-a", "-arch", "--arch", choices=("resnet50", "resnet18"), default="resnet50",
                       help="architecture of a release checkpoint, which does not store it (default: resnet50)")
    flag(flags, "dilation", action="store_true", help="layer3 and layer4 of a release checkpoint are dilated")
    patches = flags.add_argument_group("patches")
    patches.add_argument("--select", choices=("random", "sliding", "rejection", "full"),
                         help="which patches (default: random; full for the pixelwise attacker)")
    flag(patches, "num-patch", type=int, default=6, metavar="N", help="patches of an image (default: 6)")
    flag(patches, "tau", type=float, help="rejection: reject patches with a higher mean true-class posterior (default: "
         "the attacker's, chosen on held-out shadow data)")
    patches.add_argument("--patch-size", type=positive, help="side of a patch in positions (default: the attacker's; "
                         "90 for the release's, 24 without an attacker)")
    where = flags.add_argument_group("posteriors on disk")
    where.add_argument("--examples", metavar="TREE", default="examples",
                       help="folder with {train,val}/{label,pred_sgd}, as in the release (default: examples)")
    live = flags.add_argument_group("a target model that is queried")
    live.add_argument("--victim", metavar="[KIND:]WHERE", help="V; then --members and --non-members name the images. "
                      f"KIND: {PREDICTORS.help()} (default: checkpoint)")
    live.add_argument("--members", metavar="SPLIT", help="D_in^V")
    live.add_argument("--non-members", metavar="SPLIT", help="D_out^V")
    live.add_argument("--stride", type=positive, help="pixels per position (default: the attacker's, or 8)")
    live.add_argument("--keep", metavar="TREE", help="store V's posteriors there, float16, in the layout of examples/; "
                      "later calls read them; another stride or precision replaces them")
    flags.add_argument("--references", nargs="+", metavar="DIR", default=[], help="reference models that were not "
                       "trained on the attacked images: runs of train_shadow.py, or [KIND:]WHERE as for --victim")
    flags.add_argument("--population", metavar="TREE", help="posteriors of known membership, for attacks that learn "
                       "from them")
    datasets.add_flags(flags)
    defenses.add_flags(flags, training=True)
    maps = flags.add_argument_group("activation maps")
    flag(maps, "cam", metavar="DIR", help="write class activation maps there (figure 5): drawings, and "
         "correlations.csv of CAMs with loss maps for all images")
    maps.add_argument("--cam-images", "--cam-pictures", type=int, default=4, metavar="N",
                      help="how many members and non-members are drawn, the first by name (default: 4)")
    flags.add_argument("--hash-names", metavar="KEYFILE", help="write keyed hashes (HMAC-SHA256) instead of the "
                       "images' names; the key is the content of this file, 16 bytes or more")
    flags.add_argument("--save-every", type=float, default=10, metavar="SECONDS", help="how often scores are saved; "
                       "the same command resumes there after a stop (default: 10)")
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
    if args.victim:
        source = setup.live_source(args.victim, pick(args, setup.LiveData), attack, args.stride, defense, compute,
                                   args.keep, args.references)
    else:
        source = setup.stored_source(args.examples, attack, defense, compute, args.references)
    population = setup.stored_source(args.population, attack, defense, compute) if args.population else None
    call = pick(args, setup.AttackRun, name=name, arguments=vars(args) | {"resume": resume}, compute=compute,
                files=setup.existing_files([resume, args.victim, *args.references]), started=started)
    setup.run_attack(attack, source, call, population)


def attacker_path(args: argparse.Namespace) -> str | None:
    """The attacker's checkpoint: that of -resume; the default one for --attack learned, and for --threshold if it is
    there."""
    if args.resume or (args.attack == "learned" and not args.threshold):
        return args.resume or ATTACKER
    return ATTACKER if args.threshold and Path(ATTACKER).is_file() else None


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict one another, before anything is loaded."""
    if args.victim and not (args.members and args.non_members):
        raise UserError("--victim needs --members SPLIT and --non-members SPLIT")
    if args.victim and args.dpsgd:
        raise UserError("-dpsgd selects stored posteriors; for a live victim give the DPSGD one as --victim")
    if not args.victim and (args.members or args.non_members or args.keep):
        raise UserError("--members, --non-members and --keep go with --victim CHECKPOINT")
    if args.threshold and args.attack not in ("learned", args.threshold):
        raise UserError(f"--threshold {args.threshold} and --attack {args.attack} are two attacks; give one of them")


if __name__ == "__main__":
    run(main, parser())
