"""Write the page that compares one shadow with several, from results of an earlier script.

    python -m reproduce.shadows                 # reproduce/results/shadows/report.md and auc.png

These results do not contain the scores of single images. The scale reproduce/scales/camvid-shadows.yaml measures the
same and keeps the scores; `shadow_count` in its file is the number of shadows.
"""

import argparse
from pathlib import Path

from reproduce import paper
from reproduce.tables import DASH, markdown
from utils.cli import UserError, new_parser, run

RESULTS = Path(__file__).resolve().parent / "results" / "shadows"
METHODS = ("threshold-confidence", "threshold-loss", "concate-full", "loss-full", "concate-sliding", "loss-sliding",
           "concate-random", "loss-random", "concate-rejection", "loss-rejection")
# In the paper's table 2, the first attack is above the second.
PAIRS = (("loss-random", "concate-random"), ("loss-full", "concate-full"), ("loss-random", "loss-full"),
         ("loss-rejection", "loss-random"), ("concate-rejection", "concate-random"), ("loss-full", "threshold-loss"),
         ("loss-random", "threshold-loss"), ("concate-random", "threshold-loss"))
START = {"imagenet": "ImageNet weights", "scratch": "from scratch", "longer": "from scratch, longer"}
SHADOWS = {"dealt": "one shadow", "eight": "eight shadows"}
INTRODUCTION = """\
# One shadow or several

The JSON files beside this page were measured by `camvid.sh`, a script of the commits in the first table (`+`: with
uncommitted changes; `unknown`: before the first commit). It attacked five victims of CamVid, with attackers that were
trained on one, two or eight shadows. *streets-confidence* is the demo's victim. **The scores of single images were not
kept. So the numbers cannot be recomputed, and other pairs of attacks cannot be compared.** Each AUC is the mean over
three attacker seeds (one seed for thresholds and for *streets-confidence*). The interval beside it is that of seed 0
only, so a mean can lie outside its interval. A paired difference, and its interval, is between means over attacker
seeds. All intervals are 95 % percentile bootstrap intervals over groups of neighbouring frames. There are only 21
groups (block split) or 43 (random split), so the intervals are too narrow. The five victims share these two splits, so
their results are not independent.

Written by `python -m reproduce.shadows`. `make reproduce SCALE=camvid-shadows` has the commands of *dealt* and *eight*
and keeps the scores; it was not run. [results.md](../../../docs/results.md) discusses the numbers.

The name of a setting has these parts. Start of the victim: *imagenet* (ImageNet weights), *scratch*, or *longer* (from
scratch, with more epochs and a higher learning rate). Split of CamVid: *block* or *random*. Shadows: *dealt* (one
shadow, D^S split at random), *confidence* (one shadow, D^S split by the victim's confidence, as in the paper), *both*
(two shadows, the dealt split and the same halves swapped), or *eight* (these two, and six shadows with other random
splits). *short*: the attackers on C+GT had 15 epochs instead of 120, which is too few with one or two shadows.
*stride2*: patches of 45 x 45 at stride 2. *cpu*: trained in float32 on a CPU.
"""


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.shadows")
    flags.add_argument("--results", metavar="DIR", type=Path, default=RESULTS,
                       help="folder of the JSON files and of the page (default: reproduce/results/shadows)")
    return flags


def main(args: argparse.Namespace) -> None:
    from evaluation.plots import save_small
    from utils.files import atomic_open, read_json

    settings = {path.stem: read_json(path) for path in sorted(args.results.glob("*.json"))}
    if not any(name.endswith("-eight") for name in settings):
        raise UserError(f"{args.results} has no *-eight.json; give --results the folder reproduce/results/shadows")
    save_small(plot(settings), args.results / "auc.png", 130)
    with atomic_open(args.results / "report.md", "w") as file:
        file.write("\n".join([
            INTRODUCTION, "## Victims and shadows", "", "*in*: training images; *out*: other images.", "",
            models(settings), "## AUC", "", aucs(settings),
            "![AUC on each victim with one shadow and with eight](auc.png)", "",
            "Marks are means over attacker seeds, and bars are their ranges. *From scratch, random split* was not run "
            "with one shadow and 120 epochs of C+GT, so it has no marks for one shadow.", "",
            "## Paired differences in AUC", "",
            "Bold: the interval excludes 0. The last row is the paper's table 2 (PSP→PSP, dependent).", "",
            differences(settings)]))
    print(args.results / "report.md")


def models(settings: dict[str, dict]) -> str:
    """mIoU of victims and shadows, minutes of training, groups, and the F of two ways of guessing."""
    rows = []
    for name, setting in settings.items():
        (victim, shadow), attack = (setting["victim"], setting["shadow"]), next(iter(setting["attacks"].values()))
        guess = attack["chance"]["image"]
        rows.append([name, *(f"{100 * model['miou_in']:.1f} / {100 * model['miou_out']:.1f} ({model['in']} / "
                             f"{model['out']})" for model in (victim, shadow)),
                     f"{victim['minutes']} + {shadow['minutes']}", str(attack["blocks"]),
                     f"{100 * guess['random_f']:.1f} / {100 * guess['all_member_f']:.1f}",
                     ", ".join(setting["commits"])])
    miou = "mIoU in / out, % (images)"
    return markdown(["setting", f"victim, {miou}", f"first shadow, {miou}", "minutes, victim + all shadows", "groups",
                     "F of a coin / of calling all images members, %", "commits"], rows)


def aucs(settings: dict[str, dict]) -> str:
    """Mean AUC of each attack over attacker seeds, with the interval of seed 0."""
    rows = []
    for name, setting in settings.items():
        row = [name]
        for method in METHODS:
            seeds = seeds_of(setting, method)
            if seeds:
                low, high = (100 * bound for bound in seeds[0]["auc_interval"])
                row.append(f"{100 * mean_and_range(seeds)[0]:.1f} [{low:.1f}, {high:.1f}]")
            else:
                row.append(DASH)
        rows.append(row)
    return markdown(["AUC in %, mean [interval of seed 0]", *map(paper.title, METHODS)], rows)


def differences(settings: dict[str, dict]) -> str:
    """The paired differences of `PAIRS` in each setting, and the paper's."""
    rows = []
    for name, setting in settings.items():
        row = [name]
        for first, second in PAIRS:
            result = setting["paired"].get(f"{first} {second}")
            row.append(_difference(result) if result else DASH)
        rows.append(row)
    heads = [f"{paper.title(first)} - {paper.title(second)}" for first, second in PAIRS]
    printed = [f"{paper.auc(first) - paper.auc(second):+.1f}" for first, second in PAIRS]
    return markdown(["difference [95 % interval]", *heads], [*rows, ["paper", *printed]])


def _difference(result: dict) -> str:
    low, high = (100 * bound for bound in result["interval"])
    mark = "**" if low > 0 or high < 0 else ""
    return f"{mark}{100 * result['difference']:+.1f}{mark} [{low:+.1f}, {high:+.1f}]"


def seeds_of(setting: dict, method: str) -> list[dict]:
    """The image metrics of an attack for each attacker seed, starting with seed 0."""
    return [attack["image"] for name, attack in sorted(setting["attacks"].items())
            if name.rpartition("-")[0] == method]


def mean_and_range(seeds: list[dict]) -> tuple[float, list[list[float]]]:
    """Mean AUC over attacker seeds, and the distances of the lowest and the highest AUC from it."""
    values = [metrics["auc"] for metrics in seeds]
    mean = sum(values) / len(values)
    return mean, [[mean - min(values)], [max(values) - mean]]


def plot(settings: dict[str, dict]):
    """AUC of the thresholds and of both representations (full image) on each victim, with one shadow and with eight."""
    from matplotlib.figure import Figure

    victims = sorted(name.removesuffix("-eight") for name in settings if name.endswith("-eight"))
    figure = Figure(figsize=(7.5, 1.6 + 0.8 * len(victims)), layout="constrained")
    axes = figure.subplots()
    for row, victim in enumerate(victims):
        for method, mark in (("threshold-confidence", "|"), ("threshold-loss", "x")):
            mean, _ = mean_and_range(seeds_of(settings[f"{victim}-eight"], method))
            axes.plot(100 * mean, row, f"k{mark}", label=paper.title(method), markersize=9)
        for shadows, text in SHADOWS.items():
            for offset, method, mark in ((-0.18, "loss-full", "o"), (0.18, "concate-full", "s")):
                if setting := settings.get(f"{victim}-{shadows}"):
                    mean, spread = mean_and_range(seeds_of(setting, method))
                    axes.errorbar(100 * mean, row + offset, xerr=[[100 * side[0]] for side in spread], fmt=f"k{mark}",
                                  capsize=2, label=f"{paper.title(method)}, {text}",
                                  markerfacecolor="white" if shadows == "dealt" else "black")
    titles = [f"{START[start]},\n{split} split" for _, start, split in (victim.split("-") for victim in victims)]
    axes.set_yticks(range(len(victims)), titles)
    axes.set(xlabel="AUC, % (dotted: guessing)", ylim=(len(victims) - 0.5, -0.5), xlim=(48, 101))
    axes.axvline(50, color="grey", linestyle=":", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    run(main, parser())
