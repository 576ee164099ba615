"""Collect the results of one setting; print settings side by side, and each beside the paper's table.

    python -m reproduce.shadows.table --collect RUNS --victim RUN --shadow RUN --into reproduce/results/shadows/X.json
    python -m reproduce.shadows.table reproduce/results/shadows/*.json
    python -m reproduce.shadows.table --brief reproduce/results/shadows/*.json      # side by side only
"""

import argparse
from pathlib import Path

from reproduce import paper
from reproduce.tables import markdown
from utils.cli import UserError, run
from utils.files import read_json, write_json

METHODS = ("threshold-confidence", "threshold-loss", "concate-full", "loss-full", "concate-sliding", "loss-sliding",
           "concate-random", "loss-random", "concate-rejection", "loss-rejection")
# What the paper claims of table 2: the first is above the second.
CLAIMS = (("loss-random", "concate-random"), ("loss-full", "concate-full"), ("loss-random", "loss-full"),
          ("loss-rejection", "loss-random"), ("concate-rejection", "concate-random"), ("loss-full", "threshold-loss"),
          ("loss-random", "threshold-loss"), ("concate-random", "threshold-loss"))
KEPT = ("image", "patch", "chance", "members", "non_members", "blocks", "tau")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.shadows.table", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("settings", nargs="*", metavar="JSON", help="collected settings to print")
    flags.add_argument("--brief", action="store_true", help="leave out the table of each setting")
    flags.add_argument("--collect", metavar="RUNS", help="folder with the attacks of one setting")
    flags.add_argument("--victim", metavar="RUN", help="its victim, for the mIoU")
    flags.add_argument("--shadow", metavar="RUN", nargs="+", help="its shadows; the mIoU is the first's")
    flags.add_argument("--into", metavar="JSON", help="where the collected setting goes")
    return flags


def main(args: argparse.Namespace) -> None:
    if args.collect:
        if not (args.victim and args.shadow and args.into):
            raise UserError("--collect needs --victim, --shadow and --into")
        collect(Path(args.collect), Path(args.victim), [Path(run) for run in args.shadow], Path(args.into))
    settings = {Path(path).stem: read_json(Path(path)) for path in args.settings}
    if len(settings) > 1 or (settings and args.brief):
        print(summary(settings))
        print(claims(settings))
    for name, setting in settings.items() if not args.brief else ():
        print(as_markdown(name, setting))


def collect(runs: Path, victim: Path, shadows: list[Path], into: Path) -> None:
    """Gather results.json of every run of one setting, with the commit that made it, into one file."""
    attacks, attackers = {}, {}
    for path in sorted(runs.glob("*/results.json")):
        found = read_json(path)
        if path.parent.name.startswith("attacker-"):
            attackers[path.parent.name] = found | {"epochs": read_json(path.parent / "args.json")["args"]["epochs"]}
        else:
            attacks[path.parent.name] = {key: found[key] for key in KEPT if key in found}
    models = [folder / "args.json" for folder in (victim, *shadows)]
    commits = sorted({read_json(path)["commit"] for path in [*runs.glob("*/args.json"), *models]})
    shadow = read_json(shadows[0] / "results.json")
    shadow["minutes"] = round(sum(read_json(folder / "results.json")["minutes"] for folder in shadows), 1)
    paired = {f"{first} {second}": compare_seeds(runs, first, second) for first, second in CLAIMS
              if {first, second} <= {name.rpartition("-")[0] for name in attacks}}
    write_json(into, {"victim": read_json(victim / "results.json"), "shadow": shadow,
                      "attackers": attackers, "attacks": attacks, "paired": paired, "commits": commits})


def compare_seeds(runs: Path, first: str, second: str) -> dict:
    """Difference in AUC of two attacks, means over their attacker seeds, paired over the same images."""
    from evaluation.compare import read_paired
    from evaluation.intervals import paired_difference

    folders = [sorted(path for path in runs.glob(f"{name}-*") if (path / "scores.csv").exists())
               for name in (first, second)]
    columns, member, group = read_paired([*folders[0], *folders[1]])
    return paired_difference(columns[: len(folders[0])], columns[len(folders[0]) :], member, group)


def as_markdown(name: str, setting: dict) -> str:
    """One setting as a table: mean over attacker seeds, their range, and the interval of the first seed, in %."""
    victim, shadow = setting["victim"], setting["shadow"]
    any_attack = next(iter(setting["attacks"].values()))
    luck = any_attack["chance"]["image"]
    lines = [f"### {name}", "",
             f"Victim mIoU {victim['miou_in']:.1%} in ({victim['in']} images), {victim['miou_out']:.1%} out "
             f"({victim['out']}); shadow {shadow['miou_in']:.1%} in ({shadow['in']}), {shadow['miou_out']:.1%} out "
             f"({shadow['out']}); training {victim['minutes']} + {shadow['minutes']} minutes; {any_attack['blocks']} "
             f"blocks. Random F {luck['random_f']:.1%}, all-member F {luck['all_member_f']:.1%}. "
             f"Commits {', '.join(setting['commits'])}.", "",
             "| attack | AUC | seeds | 95 % interval | max-F | TPR at 5 % FPR | per-patch AUC | paper, F / AUC |",
             "|---|---|---|---|---|---|---|---|"]
    for method in METHODS:
        if seeds := _seeds(setting, method):
            printed = paper.TABLE[method][0] if method in paper.TABLE else ""
            lines.append(_row(paper.title(method), seeds, printed))
    if setting["paired"]:
        lines += ["", "| AUC, paired: the paper puts the first above the second | difference | 95 % interval | here | "
                  "paper |", "|---|---|---|---|---|"]
        lines += [_claim(*names.split(), found) for names, found in setting["paired"].items()]
    return "\n".join(lines) + "\n"


def _claim(first: str, second: str, found: dict) -> str:
    low, high = (100 * bound for bound in found["interval"])
    verdict = "holds" if low > 0 else "reversed" if high < 0 else "undecided"
    return (f"| {paper.title(first)} > {paper.title(second)} | {100 * found['difference']:+.1f} | "
            f"{low:+.1f} to {high:+.1f} | {verdict} | {_paper_difference(first, second):+.1f} |")


def summary(settings: dict[str, dict]) -> str:
    """A row a setting: mIoU of the victim in and out, and the mean AUC of each attack, in %."""
    rows = []
    for name, setting in settings.items():
        victim = setting["victim"]
        row = [name, f"{100 * victim['miou_in']:.1f} / {100 * victim['miou_out']:.1f}"]
        for method in METHODS:
            aucs = [100 * attack["image"]["auc"] for attack in _seeds(setting, method)]
            row.append(f"{sum(aucs) / len(aucs):.1f}" if aucs else "")
        rows.append(row)
    return markdown(["AUC", "victim mIoU, in / out", *map(paper.title, METHODS)], rows)


def claims(settings: dict[str, dict]) -> str:
    """A row a setting: the paired differences in AUC of `CLAIMS`, in %; bold where the interval excludes 0."""
    rows = []
    for name, setting in settings.items():
        row = [name]
        for first, second in CLAIMS:
            found = setting["paired"].get(f"{first} {second}")
            row.append(_difference(found) if found else "")
        rows.append(row)
    heads = [f"{paper.title(first)} - {paper.title(second)}" for first, second in CLAIMS]
    return markdown(["paired difference in AUC", *heads],
                     [*rows, ["paper", *(f"{_paper_difference(*pair):+.1f}" for pair in CLAIMS)]])


def _difference(found: dict) -> str:
    low, high = (100 * bound for bound in found["interval"])
    mark = "**" if low > 0 or high < 0 else ""
    return f"{mark}{100 * found['difference']:+.1f}{mark} [{low:+.1f}, {high:+.1f}]"


def _paper_difference(first: str, second: str) -> float:
    return paper.auc(first) - paper.auc(second)


def _seeds(setting: dict, method: str) -> list[dict]:
    return [attack for name, attack in setting["attacks"].items() if name.rpartition("-")[0] == method]


def _row(title: str, seeds: list[dict], printed: str) -> str:
    def mean(level: str, figure: str) -> float:
        return 100 * sum(seed[level][figure] for seed in seeds) / len(seeds)

    aucs = [100 * seed["image"]["auc"] for seed in seeds]
    spread = f"{min(aucs):.1f}-{max(aucs):.1f}" if len(seeds) > 1 else ""
    low, high = (100 * bound for bound in seeds[0]["image"]["auc_interval"])
    cells = [title, f"{mean('image', 'auc'):.1f}", spread, f"{low:.1f}-{high:.1f}", f"{mean('image', 'max_f'):.1f}",
             f"{mean('image', 'tpr_at_5_fpr'):.1f}", f"{mean('patch', 'auc'):.1f}", printed]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main, parser())
