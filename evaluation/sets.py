"""Test whether a collection of images was used to train a model, and how much of it.

    python -m evaluation.sets RUN --claim LIST --null LIST
    python -m evaluation.sets RUN --claim LIST --null LIST --shadow-run SHADOW-RUN

RUN is the folder of a run of attack.py on the claim and the null. The claim are the images that were perhaps used; the
null are images of the same distribution that were certainly not. A LIST has the name of an image in each line, or is a
split file. Without lists, the members of the run are the claim, and its non-members the null.
"""

import argparse
from functools import partial
from pathlib import Path

from utils.cli import UserError, natural, new_parser, run

CHECKS = 500  # deals of --check


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "evaluation.sets")
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folders that attack.py wrote; the scores of several "
                       "attacks are combined, with weights from half of the groups, and the other half is tested")
    flags.add_argument("--claim", metavar="LIST", help="images that were perhaps used")
    flags.add_argument("--null", metavar="LIST", help="images of the same distribution that were not used")
    flags.add_argument("--shadow-run", metavar="RUN", help="run of the same attack on a model of known membership, "
                       "from which the share of the claim that was used is estimated")
    flags.add_argument("--check", action="store_true", help="also test random halves of the null against each other "
                       f"{CHECKS} times: the share of p-values of at most 0.05 must be about 5 %% or less")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the random deals of groups (default: 0)")
    flags.add_argument("--into", metavar="FILE", help="also write the results to a JSON file")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np
    from tqdm import tqdm

    from evaluation.set_level import describe_share, null_check, share_used, verdict, was_used
    from evaluation.stored_scores import read_list, read_paired, read_population, read_scores
    from utils.distributed import warn_once
    from utils.files import write_json

    if bool(args.claim) != bool(args.null):
        raise UserError("--claim and --null belong together: give both, or neither to test members against non-members")
    if args.shadow_run and len(args.runs) > 1:
        raise UserError("--shadow-run is for one attack; give one RUN with it")
    folders = [Path(name) for name in args.runs]
    columns, member, group = read_paired(folders)
    names = sorted(read_scores(folders[0]))  # as `read_paired` sorts them
    claim, null = member, ~member
    if args.claim:
        claim, null = (read_list(Path(path), names, folders[0]) for path in (args.claim, args.null))
        for both, why in ((claim & null, "the claim lists it, too; list it once"),
                          (null & member, f"it is a member in {folders[0]}; the null must not have been used")):
            if both.any():
                raise UserError(f"{args.null} lists {names[int(both.argmax())]}, but {why}")
    else:
        warn_once("without --claim and --null the members of the run are the claim, so the answer is known: this shows "
                  "what the test can find, and is no evidence about a model")
    group = np.array(group)
    population = read_population(Path(args.shadow_run), folders[0]) if args.shadow_run else None
    kept = claim | null
    found = was_used([column[kept] for column in columns], claim[kept], group[kept], args.seed)
    print(verdict(found))
    if population:
        found["share"], found["share_of_null"] = (share_used(columns[0][side], group[side], *population)
                                                  for side in (claim, null))
        print(describe_share(found["share"], found["share_of_null"]))
    if args.check:
        found["check"] = null_check([column[null] for column in columns], group[null], CHECKS, args.seed,
                                    progress=partial(tqdm, desc="halves of the null", leave=False, disable=None))
        print(f"check: of {CHECKS} random deals of the null's groups into two halves, " + ", ".join(
            f"{100 * share:.1f} % have p <= {level}" for level, share in found["check"].items()))
    if args.into:
        write_json(args.into, {"runs": args.runs, "claim": args.claim, "null": args.null, "shadow_run": args.shadow_run,
                               "seed": args.seed} | found)


if __name__ == "__main__":
    run(main, parser())
