"""Table 2 and the defenses, ours beside the paper's, as Markdown."""

import math

from reproduce import paper
from reproduce.measured import Measured

DASH = "–"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)) + "\n"


def table_two(measured: Measured) -> str:
    """Max-F / AUC in % of every attack in every setting: mean over seeds, range of the AUC, the paper's."""
    settings = [name for name in measured.scale.settings if any(c.setting == name for c in measured.there.values())]
    rows = []
    for method, printed in paper.TABLE.items():
        row = [paper.title(method)]
        for setting in settings:
            row.append(_ours(measured, setting, method))
            if setting in paper.COLUMNS:
                row.append(printed[paper.COLUMNS.index(setting)])
        rows.append(row)
    for name, text in (("random_f", "F of a coin"), ("all_member_f", "F of calling all members")):
        row = [text]
        for setting in settings:
            any_cell = next(cell for cell in measured.there.values() if cell.setting == setting)
            ours = measured.figures(any_cell)["chance"]["image"][name]
            kind = "dependent" if measured.scale.settings[setting].get("dependent") else "independent"
            printed = {"random_f": paper.RANDOM_F, "all_member_f": paper.ALL_MEMBER_F}[name][kind]
            row += [f"{100 * ours:.1f}", *([f"{printed:.1f}"] if setting in paper.COLUMNS else [])]
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
    """mIoU of every victim and shadow on what it was and was not trained on, and the epsilon of private ones."""
    rows = []
    for name in measured.scale.models:
        if found := measured.model(name):
            private = found.get("dpsgd") or {}
            epsilon = private.get("epsilon")
            rows.append([name, f"{100 * found['miou_in']:.1f}", f"{100 * found['miou_out']:.1f}", str(found["in"]),
                         str(found["out"]), str(found["minutes"]),
                         DASH if not private else "infinite" if epsilon is None else f"{epsilon:.3g}"])
    return markdown(["model", "mIoU in", "mIoU out", "in", "out", "minutes", "epsilon"], rows)


def activation(measured: Measured) -> str:
    """Fig. 5 in figures: correlation of activation map and loss map, and of the map with that before the defense."""
    rows = []
    for cell in measured.there.values():
        if found := measured.figures(cell).get("cam"):
            same = measured.scale.attacker_of(cell).defense == "none"
            rows.append([measured.title(cell.setting), paper.title(cell.method), cell.defense,
                         *(_interval(found, f"{figure}_{side}") if same or figure == "correlation" else DASH
                           for figure in ("correlation", "cam_kept") for side in ("members", "non_members"))])
    return markdown(["setting", "attacker", "defense", "CAM and loss map, members", "non-members",
                     "CAM before and under the defense, members", "non-members"], rows)


def _interval(found: dict, name: str) -> str:
    if found.get(name) is None:
        return DASH
    low, high = found[f"{name}_interval"]
    return f"{found[name]:+.2f} [{low:+.2f}, {high:+.2f}]"


def defenses(measured: Measured) -> str:
    """AUC of the attackers on random patches, and mIoU of what they met, under each defense of each setting, in %."""
    rows = []
    for setting in measured.scale.settings:
        for defense in dict.fromkeys(cell.defense for cell in measured.there.values() if cell.setting == setting):
            aucs, miou = [], {}
            for method in ("loss-random", "concate-random"):
                cells = [cell for cell in measured.seeds(setting, method, defense) if cell.seed == 0]
                aucs.append(f"{100 * measured.mean(cells):.1f}" if cells else DASH)
                miou = measured.figures(cells[0])["miou"] if cells else miou
            rows.append([measured.title(setting), defense, *aucs,
                         *(f"{100 * miou.get(side, math.nan):.1f}" for side in ("in", "out"))])
    return markdown(["setting", "defense", "AUC, Loss", "AUC, C+GT", "mIoU of members", "of non-members"], rows)
