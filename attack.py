#!/usr/bin/env python3
"""Membership inference on a segmentation model (algorithm 2): was it trained on these images?

    python attack.py                                                     # structured loss map, on examples/
    python attack.py -resume weights/concate.pth.tar -input concate      # posterior and label concatenated
    python attack.py -gauss 0.1                                          # against a defense
    python attack.py -argmax -cam runs/cam                               # where the attacker looks, before and under it
    python attack.py --victim runs/victim/last.pth.tar --root data/streets \\
        --members splits/streets/victim_in.txt --non-members splits/streets/victim_out.txt

Prints image-level and per-patch AUC and max-F with 95 % intervals, beside what guessing gives, and writes
results.json, scores.csv, patches.npz and the curves into the run's folder.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import defenses
from utils.cli import UserError, add_run_flags, flag, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from attacks.scoring import Selection, View
    from evaluation.unfinished import Part


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(flags, "resume", metavar="CHECKPOINT", default="weights/loss.pth.tar",
         help="the attacker, ours or of the release (default: weights/loss.pth.tar)")
    flag(flags, "input", choices=("loss", "concate"), help="representation (default: the attacker's own)")
    flags.add_argument("--threshold", choices=("confidence", "loss"), help="a learning-free attack in place of the "
                       "attacker, which then tells only patch size and stride")
    flags.add_argument("--score", choices=("paper", "release"), default="paper",
                       help="score of an image: mean member probability, or sum of member logits (default: paper)")
    flags.add_argument("--floor", type=float, metavar="P", help="posteriors are clamped there from below before the "
                       "logarithm (default: the attacker's own, 6e-8 of those trained here, 1e-30 of the release's)")
    flags.add_argument("--batch", type=int, default=64, help="patches that are held at once, and that go through the "
                       "attacker together on a GPU (default: 64)")
    flags.add_argument("-a", "-arch", "--arch", choices=("resnet50", "resnet18"), default="resnet50", dest="arch",
         help="architecture of a release checkpoint, which does not tell its own (default: resnet50)")
    flag(flags, "dilation", action="store_true", help="layer3 and layer4 of a release checkpoint are dilated")
    patches = flags.add_argument_group("patches")
    patches.add_argument("--select", choices=("random", "sliding", "rejection", "full"),
                         help="where to look (default: random; full for the pixelwise attacker)")
    flag(patches, "num-patch", type=int, default=6, metavar="N", help="patches of an image (default: 6)")
    flag(patches, "tau", type=float, help="rejection: patches with a higher mean true-class posterior are skipped "
         "(default: the attacker's, chosen on held-out shadow data)")
    patches.add_argument("--patch-size", type=int, help="of a release checkpoint (default: 90)")
    where = flags.add_argument_group("posteriors on disk")
    where.add_argument("--examples", metavar="TREE", default="examples",
                       help="{train,val}/{label,pred_sgd}, as in the release (default: examples)")
    live = flags.add_argument_group("a victim that is asked live")
    live.add_argument("--victim", metavar="CHECKPOINT", help="V; then --members and --non-members name the images")
    live.add_argument("--members", metavar="SPLIT", help="D_in^V")
    live.add_argument("--non-members", metavar="SPLIT", help="D_out^V")
    live.add_argument("--stride", type=int, help="pixels per position (default: the attacker's, 8 for the release's)")
    live.add_argument("--keep", metavar="TREE", help="keep V's posteriors there, float16, in the layout of "
                      "examples/; calls that follow read them (at another stride it is made anew)")
    datasets.add_flags(flags)
    group = defenses.add_flags(flags)
    flag(group, "dpsgd", action="store_true", help="attack the posteriors of the DPSGD victim, pred_dpsgd")
    maps = flags.add_argument_group("activation maps")
    flag(maps, "cam", metavar="DIR", help="write there where the attacker looks (figure 5): correlations.csv of class "
         "activation maps with loss maps, of all images, and drawings")
    maps.add_argument("--cam-images", "--cam-pictures", type=int, default=4, metavar="N",
                      help="members and as many non-members, the first by name, that are drawn (default: 4)")
    flags.add_argument("--hash-names", metavar="KEYFILE", help="write keyed hashes (HMAC-SHA256) in place of the "
                       "images' names; the key is the content of this file, 16 bytes or more")
    flags.add_argument("--save-every", type=float, default=10, metavar="SECONDS", help="how often what is scored is "
                       "saved: the same command goes on there after a stop (default: 10)")
    add_run_flags(flags, "attack")
    return flags


def main(args: argparse.Namespace) -> None:
    from utils.log import Timings

    laps = Timings()
    import torch

    from attacks.scoring import Selection
    from datasets.posteriors import list_tree
    from defenses.victim import ask_victim
    from evaluation.unfinished import find, score_parts
    from models.pixelwise import Pixelwise
    from utils.device import choose_device
    from utils.distributed import is_main, run_on_main
    from utils.files import commit, fingerprint, start_run
    from utils.names import name_writer

    check(args)
    device, hide = choose_device(args.gpu), name_writer(args.hash_names)
    model, view, classes = load_attacker(args)
    if args.cam and isinstance(model, Pixelwise):
        raise UserError("-cam shows where an attacker of patches looks; a pixelwise one looks at every position alike")
    args.select = args.select or ("full" if isinstance(model, Pixelwise) and not args.threshold else "random")
    selection = Selection(args.select, args.num_patch, view.tau if args.tau is None else args.tau, args.seed)
    if args.victim:
        items = ask_victim(args, view.stride or 8, classes, device)
    else:
        items = list_tree(args.examples, "pred_dpsgd" if args.dpsgd else "pred_sgd", classes, view.stride or None)
    drawn = first_by_name(items, args.cam_images) if args.cam else set()
    score = scorer(args, model.to(device, memory_format=torch.channels_last), view, selection, device, drawn)
    block = selection.images(args.batch)
    parts = [items[first : first + block] for first in range(0, len(items), block)]
    same = {name: value for name, value in vars(args).items() if name not in ("out", "gpu", "save_every")}
    stamp = fingerprint([Path(path) for path in (args.resume, args.victim) if path], same, commit(), torch.__version__,
                        device.type, [(item.name, item.member) for item in items])
    found = run_on_main(lambda: find("attack", args.out, stamp))
    laps.lap("starting")
    done, unfinished = score_parts(parts, score, lambda: start_run("attack", vars(args), args.out), found, stamp,
                                   args.save_every, drawn)
    laps.lap("attacking")
    if is_main():
        report(args, unfinished.run, done, selection, view, hide)
        unfinished.clear()
        laps.lap("figures and plots")
        print(f"{laps}; all in {unfinished.run}")


def scorer(args: argparse.Namespace, model: "torch.nn.Module", view: "View", selection: "Selection",
           device: "torch.device", drawn: set[str]) -> "Callable[[Sequence], Part]":
    """What scores a few images at once, under the defense that the flags name."""
    from attacks.activation import watch
    from attacks.scoring import attack_patches, attack_threshold, meet
    from defenses.apply import Defense
    from evaluation import utility
    from evaluation.unfinished import Part

    defense = Defense(args.argmax, args.gauss, args.seed, args.gauss_floor)
    undefended = Defense() if args.cam and (args.argmax or args.gauss) else None

    def score(items: "Sequence") -> Part:
        matrices, looks = {}, []
        examples = utility.watch(meet(items, defense, undefended), matrices)
        if args.threshold:
            scored = attack_threshold(examples, args.threshold, view.size, selection, view.floor)
        else:
            if args.cam:
                examples = watch(examples, model, view, device, args.precision, drawn, looks)
            scored = attack_patches(examples, model, view, selection, device, args.precision, args.score, args.batch)
        return Part(list(scored), matrices, looks)

    return score


def report(args: argparse.Namespace, folder: Path, parts: "Sequence[Part]", selection: "Selection", view: "View",
           hide: "Callable[[str], str]") -> None:
    """Write the figures into the run's folder and print them."""
    from evaluation.report import table, write_report
    from evaluation.utility import miou

    useful = miou(part.matrices for part in parts)
    about = {"input": args.threshold or view.input, "select": args.select, "num_patch": args.num_patch,
             "tau": selection.tau if args.select == "rejection" else None, "score": args.score, "miou": useful,
             "defense": defenses.describe(args)}
    if args.cam:
        from evaluation.activation import sentence, write_looks

        looks = [replace(look, name=hide(look.name)) for part in parts for look in part.looks]
        about["cam"] = write_looks(Path(args.cam), looks, about["defense"], args.seed)
    results = write_report(folder, [one for part in parts for one in part.scored], about, args.seed, hide)
    print(f"{about['input']}, {args.select} patches: {results['members']} members, {results['non_members']} "
          f"non-members, {results['patches']} patches")
    print(table(results))
    print(f"mIoU of what was attacked: {100 * useful['in']:.1f} members, {100 * useful['out']:.1f} non-members")
    if args.cam:
        print(f"{sentence(results['cam'])}; maps in {args.cam}")


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict one another, before anything is loaded."""
    if args.num_patch < 1 or args.batch < 1:
        raise UserError("-num-patch and --batch are 1 or more")
    if args.floor is not None and not 0 < args.floor < 1:
        raise UserError(f"--floor {args.floor}: a posterior lies between 0 and 1, and 0 has no logarithm")
    if args.victim and not (args.members and args.non_members):
        raise UserError("--victim needs --members SPLIT and --non-members SPLIT")
    if args.victim and args.dpsgd:
        raise UserError("-dpsgd picks stored posteriors; for a live victim give the DPSGD one as --victim")
    if args.test_dropout is not None and not args.victim:
        raise UserError("-test-dropout changes how a victim is asked: give --victim CHECKPOINT")
    if not args.victim and (args.members or args.non_members or args.keep):
        raise UserError("--members, --non-members and --keep go with --victim CHECKPOINT")
    if args.threshold and args.select == "full":
        raise UserError("a threshold always reads the full image; --select says which patches its per-patch figures "
                        "are of: random, sliding or rejection")
    if args.cam and args.threshold:
        raise UserError("-cam shows where a trained attacker looks; a threshold has no activation map: leave one out")
    if args.cam and (args.cam_images < 0 or Path(args.cam).is_file()):
        raise UserError("-cam DIR is a folder, and --cam-images 0 or more")


def first_by_name(items: list, count: int) -> set[str]:
    """Names of the first `count` members and the first `count` non-members."""
    return {name for side in (True, False)
            for name in sorted(item.name for item in items if item.member is side)[:count]}


def load_attacker(args: argparse.Namespace) -> tuple:
    """A_P ready to score, how it looks at posteriors, and the number of classes it knows (None: any).

    A release checkpoint holds weights alone: its channels tell its input, the flags tell the rest.
    """
    from attacks.representation import FLOOR
    from attacks.scoring import View
    from models.attacker import Attacker, build_attacker
    from utils.checkpoints import load_checkpoint, rebuild, require

    checkpoint = load_checkpoint(args.resume)
    spec, state = checkpoint.get("model"), checkpoint["state_dict"]
    if spec is None:
        first = state.get("conv1.0.weight", state.get("module.conv1.0.weight"))
        if first is None or first.ndim != 4:
            raise UserError(f"{args.resume} is no attacker: it has no conv1.0.weight")
        channels = first.shape[1]
        kind, classes = ("loss", None) if channels == 1 else ("concate", channels // 2)
        model = rebuild(lambda: Attacker(args.arch, channels, dilated=args.dilation), state, args.resume)
        view = View(kind, args.patch_size or 90, FLOOR)
    elif spec["name"] != "attacker":
        raise UserError(f"{args.resume} is no attacker but a {spec['name'][:40]}; ask it with --victim {args.resume}")
    else:
        model = rebuild(lambda: build_attacker(**spec["arguments"]), state, args.resume)
        view, classes = View.from_checkpoint(checkpoint, args.resume), require(spec, "classes", int, args.resume)
        if args.patch_size not in (None, view.size):
            raise UserError(f"{args.resume} was trained on patches of {view.size}; leave --patch-size out")
    if args.input not in (None, view.input):
        raise UserError(f"{args.resume} reads -input {view.input}; for -input {args.input} give another -resume")
    return model.fold_norms(), replace(view, argmax=args.argmax, floor=args.floor or view.floor), classes


if __name__ == "__main__":
    run(main, parser())
