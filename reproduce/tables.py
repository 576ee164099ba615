"""Table 2 and the defenses as Markdown, with the paper's values beside ours."""

import numpy as np

from reproduce import paper
from reproduce.measured import Measured

DASH = "–"
GAP_ATTACKS = ("threshold-loss", "loss-random")
TRAINED = ("dpsgd", "frozen", "clip")  # defenses that are in the training of the victim


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)) + "\n"


def table_two(measured: Measured) -> str:
    """Max-F / AUC in % of each attack in each setting: mean over seeds, range of the AUC, and the paper's values."""
    settings = [name for name in measured.scale.settings if measured.of_setting(name)]
    rows = []
    for method, printed in paper.TABLE.items():
        row = [paper.title(method)]
        for setting in settings:
            row.append(_ours(measured, setting, method))
            if setting in paper.COLUMNS:
                row.append(printed[paper.COLUMNS.index(setting)])
        rows.append(row)
    for name, text, printed_f in (("random_f", "F of a coin", paper.RANDOM_F),
                                  ("all_member_f", "F of calling all images members", paper.ALL_MEMBER_F)):
        row = [text]
        for setting in settings:
            ours = measured.results(measured.of_setting(setting)[0])["chance"]["image"][name]
            kind = "dependent" if measured.scale.settings[setting].dependent else "independent"
            row += [f"{100 * ours:.1f}", *([f"{printed_f[kind]:.1f}"] if setting in paper.COLUMNS else [])]
        rows.append(row)
    heads = [head for setting in settings for head in (measured.title(setting), "paper")
             if head != "paper" or setting in paper.COLUMNS]
    return markdown(["max-F / AUC, %", *heads], rows)


def _ours(measured: Measured, setting: str, method: str) -> str:
    cells = measured.seeds(setting, method)
    if not cells:
        return DASH
    aucs = [100 * measured.mean([cell]) for cell in cells]
    spread = f" ({min(aucs):.1f}-{max(aucs):.1f})" if len(aucs) > 1 else ""
    return f"{100 * measured.mean(cells, 'max_f'):.1f} / {sum(aucs) / len(aucs):.1f}{spread}"


def models(measured: Measured) -> str:
    """mIoU of each victim and shadow on its training images and on other images, and epsilon under DPSGD."""
    rows = []
    for name in measured.scale.models:
        if results := measured.model(name):
            private = results.get("dpsgd") or {}
            epsilon = private.get("epsilon")
            rows.append([name, f"{100 * results['miou_in']:.1f}", f"{100 * results['miou_out']:.1f}",
                         str(results["in"]), str(results["out"]), str(results["minutes"]),
                         DASH if not private else "infinite" if epsilon is None else f"{epsilon:.3g}"])
    return markdown(["model", "mIoU on training images", "mIoU on other images", "training images", "other images",
                     "minutes", "epsilon"], rows)


def activation(measured: Measured) -> str:
    """Numbers for fig. 5: correlations of CAM and loss map, and of the CAMs before and under a defense."""
    rows = []
    for cell in measured.cells.values():
        if results := measured.results(cell).get("cam"):
            same = measured.scale.attacker_of(cell).defense == "none"
            rows.append([measured.title(cell.setting), paper.title(cell.method), cell.defense,
                         *(_interval(results, f"{metric}_{side}") if same or metric == "correlation" else DASH
                           for metric in ("correlation", "cam_kept") for side in ("members", "non_members"))])
    heads = [f"{maps}, {side}" for maps in ("CAM and loss map", "CAM before and under the defense")
             for side in ("members", "non-members")]
    return markdown(["setting", "attacker", "defense", *heads], rows)


def _interval(results: dict, name: str) -> str:
    if results.get(name) is None:
        return DASH
    interval = results[f"{name}_interval"]
    return f"{results[name]:+.2f}" + (" [{:+.2f}, {:+.2f}]".format(*interval) if interval else "")


def defenses(measured: Measured) -> str:
    """AUC of both attackers on random patches, and mIoU of the attacked posteriors, under each defense, in %."""
    rows = []
    for setting in measured.scale.settings:
        for defense in measured.defenses(setting):
            aucs, miou = [], {}
            for method in ("loss-random", "concate-random"):
                cells = [cell for cell in measured.seeds(setting, method, defense) if cell.seed == 0]
                aucs.append(f"{100 * measured.mean(cells):.1f}" if cells else DASH)
                miou = measured.results(cells[0])["miou"] if cells else miou
            if miou:
                rows.append([measured.title(setting), defense, *aucs,
                             *(f"{100 * miou[side]:.1f}" for side in ("in", "out"))])
    return markdown(["setting", "defense", "AUC, Loss", "AUC, C+GT", "mIoU on members", "mIoU on non-members"], rows)


def single_patches(measured: Measured) -> str:
    """AUC and max-F of single patches, with as many patches of both sides as in the paper (section 2.4)."""
    from evaluation.report import balanced  # imports torch, which --help of a script should not need

    rows = []
    for cell in measured.cells.values():
        if cell.patches and cell.count == measured.scale.patch_count:
            results, (member, _) = measured.results(cell), measured.images(cell.setting)
            level = "balanced" if "balanced" in results else "patch"
            kept = balanced(np.full(len(member), cell.count), member)
            rows.append([measured.title(cell.setting), paper.title(cell.method),
                         *(f"{kept[side].max()} ({kept[side].sum()})" for side in (member, ~member)),
                         *(f"{100 * results[level][metric]:.1f}" for metric in ("auc", "max_f")),
                         *(f"{100 * results['chance'][level][metric]:.2f}" for metric in ("random_f", "all_member_f"))])
    return markdown(["setting", "attack", "patches of a member (all)", "patches of a non-member (all)", "AUC", "max-F",
                     "F of a coin", "F of calling all patches members"], rows) if rows else ""


def victims(measured: Measured) -> dict[str, dict[str, float]]:
    """Map each victim to its gap (mIoU on members minus non-members) and the AUC of each of `GAP_ATTACKS`, in %.

    The AUC is a mean over the settings of the victim and the attacker seeds. The smallest gap comes first.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in measured.cells.values():
        trained = cell.defense == "none" or cell.defense.partition("-")[0] in TRAINED
        usual = (cell.count, cell.size, cell.draw) == (measured.scale.count, measured.scale.size_of(cell.setting), 0)
        if trained and usual and cell.method in GAP_ATTACKS:
            results = measured.results(cell)
            victim = found.setdefault(measured.scale.victim_of(cell), {})
            victim.setdefault("gap", []).append(100 * (results["miou"]["in"] - results["miou"]["out"]))
            victim.setdefault(cell.method, []).append(100 * results["image"]["auc"])
    means = {name: {key: float(np.mean(values)) for key, values in each.items()} for name, each in found.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]["gap"]))


def gap(measured: Measured) -> str:
    """AUC of the loss threshold and of the loss map against the generalisation gap of each victim."""
    from scipy.stats import spearmanr  # takes a second to import

    rows, all_victims = [], victims(measured)
    for number, (name, values) in enumerate(all_victims.items(), 1):
        rows.append([f"{number}. {name}", f"{values['gap']:.1f}",
                     *(f"{values[attack]:.1f}" if attack in values else DASH for attack in GAP_ATTACKS)])
    ranks = []
    for attack in GAP_ATTACKS:
        both = [(values["gap"], values[attack]) for values in all_victims.values() if attack in values]
        ranks.append(f"{spearmanr(*zip(*both, strict=True)).statistic:+.2f} ({len(both)})" if len(both) > 2 else DASH)
    rows.append(["rank correlation (victims)", "", *ranks])
    return markdown(["victim", "gap, mIoU", *(f"AUC, {paper.title(attack)}" for attack in GAP_ATTACKS)], rows)
