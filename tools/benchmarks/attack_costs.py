"""Count the queries of each attack, and measure its time, on the shipped examples.

    python -m datasets streets                                  # what some attacks are fitted on
    python -m tools.benchmarks.attack_costs                     # all attacks; run nothing else at the same time
    python -m tools.benchmarks.attack_costs --attack loss augmented --images 4 --rounds 1

The target model is the shipped victim, which is queried. An attack that reads references, but does not need them, has
two rows.
"""

import argparse
from pathlib import Path
from statistics import median

from attacks import ATTACKS
from reproduce.tables import DASH, markdown
from utils.cli import UserError, new_parser, number, positive, run
from utils.files import read_json, write_json
from utils.log import progress

HEADS = ["attack", "references", "queries of the target", "queries of references", "ms an image", "learns from",
         "queries of the target to learn", "queries of other models to learn", "s to learn"]


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks.attack_costs")
    flags.add_argument("--attack", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="NAME",
                       help="attacks to measure (default: all)")
    flags.add_argument("--images", type=number(1, 60, int), default=20, help="members, and as many non-members, that "
                       "are scored (default: 20)")
    flags.add_argument("--rounds", type=positive, default=3, help="measured rounds of scoring (default: 3)")
    flags.add_argument("--out", help="JSON file for the measurements; a later call with the same settings completes "
                       "it (default: none)")
    return flags


def main(args: argparse.Namespace) -> None:
    from tools.benchmarks.counted import measure_cost, references_for
    from tools.benchmarks.measure import describe_machine
    from utils.device import choose_compute

    compute, failed = choose_compute(None), {}
    about = {"machine": describe_machine() | {"device": compute.device.type, "precision": compute.precision},
             "images": 2 * args.images, "rounds": args.rounds}
    measured = known_rows(args.out, about)
    cases = [(name, references) for name in args.attack for references in references_for(name)]
    for name, references in progress(cases, "attacks"):
        try:
            if (name, len(references)) not in measured:
                measured[name, len(references)] = measure_cost(name, references, args.images, args.rounds, compute)
        except UserError as error:
            failed[name] = str(error)
        if args.out:
            write_json(args.out, about | {"attacks": list(measured.values()), "not measured": failed})
    rows = [measured[name, len(references)] for name, references in cases if (name, len(references)) in measured]
    print(table(rows))
    for name, reason in failed.items():
        print(f"not measured: {name}: {reason}")


def known_rows(path: str | None, about: dict) -> dict[tuple[str, int], dict]:
    """Attack and number of references -> the row in the file of an earlier call on this machine, with these settings.

    Raises `UserError` for a file of other settings.
    """
    if not path or not Path(path).exists():
        return {}
    earlier = read_json(path)
    if any(earlier.get(key) != value for key, value in about.items()):
        raise UserError(f"{path} was measured with other settings, or on another machine; give another --out")
    return {(row["attack"], row["references"]): row for row in earlier["attacks"]}


def table(measured: list[dict]) -> str:
    """The measurements in Markdown."""
    rows = []
    for one in measured:
        scoring, learning = one["scoring"], one["learning"]
        rows.append([
            " under ".join(filter(None, (one["attack"], one["defense"]))), str(one["references"]),
            queries(scoring), queries(scoring, "other_"), f"{1000 * median(scoring['seconds']):.1f}",
            one["learns_from"] or DASH,
            *([queries(learning), queries(learning, "other_"), f"{learning['seconds']:.1f}"] if learning
              else [DASH] * 3)])
    return markdown(HEADS, rows)


def queries(counts: dict, whose: str = "") -> str:
    """The number of queries and, if there are some, of gradients."""
    gradients = counts[f"{whose}gradients"]
    return f"{counts[f'{whose}queries']:g}" + (f" + {gradients:g} gradient" if gradients else "")


if __name__ == "__main__":
    run(main, parser())
