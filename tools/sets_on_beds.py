"""Are the tests of collections right on trained models? From the committed scores of beds, without any image.

    python -m tools.sets_on_beds rotations-camvid rotations-cityscapes --out tools/results/sets.json      # 5 minutes

For each attack, over the attacked models of a bed: how often random halves of the groups of non-members have a p-value
of at most 1, 5 and 10 %; and, for claims of as many groups as a side has, of which 0, 50 or 100 % are members, the mean
share that is found, and how often its interval contains the true share (with 0 and 100 % a model has one such claim).
The population of known membership is the attack on a model of the other two parts.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.cli import natural, new_parser, positive, run
from utils.randomness import stream

if TYPE_CHECKING:
    from reproduce.rotations_page import Bed

ATTACKS = ("loss", "calibrated-all")
SHARES = (0.0, 0.5, 1.0)
HEADS = ["bed", "attack", "p at most 0.01 / 0.05 / 0.1", *(f"share {one:g}: mean, in the interval" for one in SHARES)]


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.sets_on_beds")
    flags.add_argument("scales", nargs="+", metavar="SCALE", help="beds with committed scores")
    flags.add_argument("--deals", type=positive, default=100, help="halves, and claims, of each model (default: 100)")
    flags.add_argument("--seed", type=natural, default=0, help="(default: 0)")
    flags.add_argument("--out", metavar="FILE", type=Path, help="JSON file of the results")
    return flags


def main(args: argparse.Namespace) -> None:
    from reproduce.forms import read
    from reproduce.rotations_page import Bed
    from reproduce.tables import markdown
    from utils.files import write_json

    rows, found = [], {}
    for name in args.scales:
        bed = Bed(read(name))
        for attack in ATTACKS:
            halves = halves_of(bed, attack, args.deals, args.seed)
            shares = {str(share): shares_of(bed, attack, share, args.deals, args.seed) for share in SHARES}
            found[f"{name}/{attack}"] = {"p": halves, "shares": shares}
            rows.append([name, attack, " / ".join(f"{value:.3f}" for value in halves.values()),
                         *(f"{one['mean']:.2f}, {100 * one['inside']:.1f} %" for one in shares.values())])
            if args.out:
                write_json(args.out, {"deals": args.deals, "seed": args.seed, "beds": found})
    print(markdown(HEADS, rows))


def scored(bed: "Bed", attack: str, part: str) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """The seed of each model of a part, and the scores (n,), membership and group of its images."""
    member, group = bed.images(part)
    for seed, (score, *_) in bed.scores(attack, part).items():
        yield seed, score, member, np.array(group)


def halves_of(bed: "Bed", attack: str, deals: int, seed: int) -> dict[str, float]:
    """Level -> share of the p-values of random halves of the non-members that are at most the level."""
    from evaluation.set_level import null_check
    from reproduce.rotations import PARTS

    found = [null_check([score[~member]], group[~member], deals, seed)
             for part in PARTS for _, score, member, group in scored(bed, attack, part)]
    return {level: float(np.mean([one[level] for one in found])) for level in found[0]}


def shares_of(bed: "Bed", attack: str, share: float, deals: int, seed: int) -> dict[str, float]:
    """The mean of the shares that are found, and how often the interval contains the true one, over models and claims.

    A claim without an interval counts as one that contains it.
    """
    from evaluation.set_level import share_used
    from reproduce.rotations import OTHERS, PARTS

    values, inside = [], []
    for part in PARTS:
        known = {one: rest for one, *rest in scored(bed, attack, OTHERS[part][0])}
        for model, score, member, group in scored(bed, attack, part):
            names = [np.unique(group[side]) for side in (member, ~member)]
            count = min(map(len, names))
            for number in range(deals):
                rng = stream(seed, "claim", part, model, share, number)
                chosen = [rng.permutation(groups)[:take] for groups, take in zip(
                    names, (round(share * count), count - round(share * count)), strict=True)]
                claim = (np.isin(group, chosen[0]) & member) | (np.isin(group, chosen[1]) & ~member)
                found = share_used(score[claim], group[claim], *known[model])
                true = member[claim].mean()
                values.append(found["share"])
                inside.append(found["interval"] is None or found["interval"][0] <= true <= found["interval"][1])
    return {"mean": float(np.mean([value for value in values if value is not None])), "inside": float(np.mean(inside))}


if __name__ == "__main__":
    run(main, parser())
