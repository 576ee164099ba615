"""The report of a bed of models, from its committed cells."""

import argparse
from collections.abc import Sequence
from functools import cache

import numpy as np

from attacks import ATTACKS, add_flags
from evaluation.metrics import RATES, Curves
from evaluation.plots import save_small
from evaluation.pooled import Stratum, contrast, pooled_difference
from reproduce.cells import unpack
from reproduce.packed import has_result, read_result
from reproduce.rotations import CONTROL, ELSEWHERE, PARTNER, PARTS, BedCell, Rotations
from reproduce.tables import DASH, markdown
from reproduce.variance import ABOUT, FACTORS, Observation, variances
from reproduce.verdicts import ABOVE, LEVEL, OPEN, PROVISIONAL, UNKNOWN, holm
from utils.cli import UserError

BASE = "loss"  # the attack with which the others are compared
PALETTE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")  # Okabe and Ito
METRICS = {"auc": "AUC", "tpr_at_5_fpr": "TPR at 5 % FPR", "tpr_at_1_fpr": "TPR at 1 % FPR"}


class Bed:
    """The committed cells of a bed. Each file is read once."""

    def __init__(self, scale: Rotations):
        self.scale, self._read = scale, cache(read_result)
        self.cells = {name: cell for name, cell in scale.cells.items()
                      if has_result(scale.results / f"{name}.json")}

    def results(self, cell: BedCell) -> dict:
        """The JSON file of a cell."""
        return self._read(self.scale.results / f"{cell.name}.json")

    def model(self, name: str) -> dict | None:
        """results.json of a training."""
        path = self.scale.results / "models" / f"{name}.json"
        return self._read(path) if has_result(path) else None

    def methods(self, defense: str = "") -> list[str]:
        """The attacks on models under a defense, or without one, that have cells, in the order of the scale file."""
        measured = {cell.method for cell in self.cells.values()}
        return [name for name in dict.fromkeys(cell.method for cell in self.scale.cells.values()) if name in measured
                and self.scale.defense_of(name) == defense]

    def independent(self) -> list[str]:
        """The attacks whose attacker was trained on shadows of another data set."""
        attackers = {cell.method: self.scale.attacker_of(cell) for cell in self.cells.values()}
        return [name for name in self.methods() if (one := attackers[name]) and one.shadows[0].part in ELSEWHERE]

    def scores(self, method: str, part: str) -> dict[int, list[np.ndarray]]:
        """Seed of a model of a part -> scores (n,) of an attack on it, one array for each attacker seed."""
        found: dict[int, list[np.ndarray]] = {}
        for cell in self.cells.values():
            if (cell.method, cell.model.part, cell.shadow) == (method, part, None):
                found.setdefault(cell.model.seed, []).append(unpack(self.results(cell)["scores"]))
        return found

    def observations(self, method: str) -> list[Observation]:
        """All cells of an attack, those of `Rotations.repeats` too, with their models, attacker and patch locations."""
        found = []
        for cell in (cell for cell in self.cells.values() if cell.method == method):
            attacker = None if method in self.scale.direct else self.scale.attacker_of(cell)
            others = attacker.shadows if attacker else self.scale.references_of(cell)
            drawn = attacker and not method.endswith("-full")
            levels = (cell.model.name, " ".join(one.name for one in others), attacker.name if attacker else "",
                      str(self.scale.seed_of(cell)) if drawn else "")
            found.append(Observation(cell.model.part, dict(zip(FACTORS, levels, strict=True)),
                                     unpack(self.results(cell)["scores"]), *self.images(cell.model.part)))
        return found

    def images(self, part: str) -> tuple[np.ndarray, list[str]]:
        """Membership bool (n,) and group of the images of a part and of its partner."""
        images = self._read(self.scale.results / "images" / f"{part}.json")
        return np.array([mark == "1" for mark in images["member"]]), images["group"]

    def strata(self, first: str, second: str | None = None, parts: Sequence[str] = PARTS) -> list[Stratum]:
        """The contrast of two attacks within each model that has both, one stratum for each part.

        Without `second`, that of `first` alone. The groups of all parts belong to one set of images.
        """
        strata = []
        for part in parts:
            ours, others = self.scores(first, part), self.scores(second, part) if second else None
            arm = [contrast(ours[seed], others[seed] if second else []) for seed in ours
                   if others is None or seed in others]
            if arm:
                strata.append(Stratum("bed", [arm], *self.images(part)))
        return strata

    def pooled(self, first: str, second: str | None = None, metric: str = "auc", parts: Sequence[str] = PARTS) -> dict:
        """`pooled_difference` of two attacks, or of one alone, over images, victims and attackers."""
        return pooled_difference(self.strata(first, second, parts), metric,
                                 self._by_attacker(first, second, metric, parts))

    def _by_attacker(self, first: str, second: str | None, metric: str,
                     parts: Sequence[str]) -> list[list[np.ndarray]]:
        """For A and B, and for C and D, which share attackers: the contrast by each of several attacker seeds."""
        found = []
        for pair in ("AB", "CD"):
            columns = []
            for part in (part for part in pair if part in parts):
                arms = [self.scores(method, part) for method in (first, second) if method]
                columns += [(self.images(part)[0], [arm[seed] for arm in arms]) for seed in arms[0]
                            if all(seed in arm for arm in arms)]
            count = min((max(map(len, arms)) for _, arms in columns), default=0)
            values = [[contrast(*_pick(arms, number)).value(metric, member) for member, arms in columns]
                      for number in range(count)]
            found += [[np.mean(values, axis=1)]] if count > 1 else []
        return found

    def commits(self) -> list[str]:
        """The commits of all attacks, models and attackers."""
        return sorted({one["commit"] for cell in map(self.results, self.cells.values())
                       for one in (cell, cell["victim"], cell.get("attacker", cell))})


def _pick(arms: list[list[np.ndarray]], number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The scores by one attacker seed of one or two attacks, for `contrast`. An attack without an attacker has one."""
    first, *second = ([arm[number % len(arm)]] for arm in arms)
    return first, second[0] if second else []


def bed_page(bed: Bed) -> str:
    """The report. Draws roc.png beside it. Raises `UserError` if the bed has no cells."""
    scale = bed.scale
    if not bed.cells:
        raise UserError(f"{scale.results} has no cells; run make reproduce SCALE={scale.name}")
    missing = len(scale.cells) - len(bed.cells)
    draw_roc(bed)
    return "\n".join([
        f"# Scale {scale.name}: a bed of models", "",
        f"{scale.note.strip()} The commands are those of `make reproduce SCALE={scale.name}`. They ran at commits "
        f"{', '.join(bed.commits())} (`+`: with uncommitted changes)."
        + (f" {missing} of {len(scale.cells)} cells are missing{PROVISIONAL}" if missing else ""), "",
        "The images are dealt to the parts A, B, C and D. A model of a part is attacked with the images of this part "
        "as members and those of its partner (A and B, C and D) as non-members, so every image is a member once and a "
        "non-member once. Shadows and references are models of the other two parts"
        + (f"; those of {', '.join(bed.independent())} are models of another data set, and these attacks read only the "
           "classes of its labels." if bed.independent() else "."), "",
        "## Attacks", "",
        "Means over parts of the means over models, in %. The 95 % interval covers groups of images, which are left "
        "out of all parts at once, the trainings of models and, where an attacker has several seeds, the trainings of "
        "attackers. *Minus loss*: paired difference in AUC to the loss "
        "threshold; bold: its interval excludes 0. *Detectable*: the smallest difference that would have been found "
        "with a probability of 80 %. *Queries*: those of the target model about each attacked image. "
        f"*{CONTROL}*: the loss threshold on a model that saw none of the images. *references-alone* is a control, "
        "too. Attacks with *crossfit* in their name are trained on the attacked images, and the references of those "
        "with *oracle* are models of other seeds on the same two parts: these are upper bounds, and no attacks.", "",
        attacks(bed),
        *(["## Claims", "",
           "A claim *holds* if the difference is above 0, and *does not hold* if it is below, at a level of 5 % after "
           "Holm's correction for the number of claims.", "", claims(bed)] if scale.claims else []),
        *(["## Defenses", "",
           "The strongest of the attacks that know a defense, by AUC. Where the defense changes the training, the "
           "references were trained with it, too; where it changes the answers, those of the references are changed, "
           "too. *A plain model of this mIoU*: the same for models without a defense, interpolated between the two "
           "whose mIoU on other images is next to that of the row; a dash where there is none on one side. The "
           "strongest attack is chosen on these images, so its metrics are slightly too high.", "",
           defenses(bed), ""] if scale.defenses else []),
        "## Do the two sides differ without a model?", "",
        "AUC in % with 95 % intervals. *Blind*: classifiers that see image and label but no model. *References alone*: "
        "minus the loss of all references, which saw neither side. For B against A and D against C these two have 100 "
        "minus the value, because they read the same images and models; so the mean of each over all parts is 50 and "
        f"says nothing. *{CONTROL}*: the loss threshold on models of the other parts.", "", sides(bed), "",
        *(["## AUC by the number of queries", "", "Means over models, in %.", "", by_queries(bed), ""]
          if by_queries(bed) else []),
        "## AUC of each part", "",
        "AUC in %, the models of a part in the order of their seeds (means over attacker seeds). What makes one part "
        "easier than its partner cancels in the mean of the two.", "", parts(bed),
        *(["## Where the variance comes from", "", f"{ABOUT} Attacks on the same part are compared.", "",
           variances({method: bed.observations(method) for method in compared(scale)})] if compared(scale) else []),
        "## Models", "", models(bed),
        "![ROC curves](roc.png)", ""])


def attacks(bed: Bed) -> str:
    """One row for each attack: metrics over all models, and the difference to the loss threshold."""
    rows = []
    for method in bed.methods():
        strata = bed.strata(method)
        cell = next(one for one in bed.cells.values() if one.method == method)
        row = [method, str(sum(len(one.arms[0]) for one in strata))]
        for metric in METRICS:
            row.append(show_metric(bed, method, metric))
        if method not in (BASE, CONTROL) and bed.strata(method, BASE):
            found = bed.pooled(method, BASE)
            low, high = found["interval"] or UNKNOWN
            mark = "**" if low > 0 or high < 0 else ""
            row += [f"{mark}{100 * found['difference']:+.1f}{mark}{show_interval(found['interval'], '+')}",
                    DASH if found["detectable"] is None else f"{100 * found['detectable']:.1f}"]
        else:
            row += [DASH, DASH]
        rows.append([*row, str(queries_of(bed.scale, cell)), str(len(bed.scale.references_of(cell)))])
    return markdown(["attack", "models", *METRICS.values(), "AUC minus loss", "detectable", "queries", "references"],
                    rows)


def queries_of(scale: Rotations, cell: BedCell) -> int:
    """Number of queries of the target model about each image, by the command of a cell."""
    flags = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_argument("--attack", default="learned")
    add_flags(flags)
    given, _ = flags.parse_known_args(scale.cell_command(cell)[1:])
    return ATTACKS.load(given.attack).queries_of_target(given.queries)


def show_metric(bed: Bed, method: str, metric: str, parts: Sequence[str] = PARTS) -> str:
    """A metric of an attack in % with its interval, which is cut at 0 and 100; a dash if it cannot be measured."""
    strata = bed.strata(method, parts=parts)
    if not strata or min(int((~one.member).sum()) for one in strata) * RATES.get(metric, 1) < 1:
        return DASH
    found = bed.pooled(method, metric=metric, parts=parts)
    return show_percent(found["difference"], found["interval"] and np.clip(found["interval"], 0, 1).tolist())


def show_percent(value: float, interval: list[float] | None) -> str:
    """A metric in % with its interval."""
    return f"{100 * value:.1f}{show_interval(interval)}"


def show_interval(interval: list[float] | None, sign: str = "") -> str:
    return "" if interval is None else " [{}]".format(", ".join(f"{100 * end:{sign}.1f}" for end in interval))


def claims(bed: Bed) -> str:
    """The claims of the scale file: the paper's words, the pooled difference, and the verdict."""
    found = []
    for claim in bed.scale.claims:
        if bed.strata(claim["first"], claim["second"]):
            found.append((claim, bed.pooled(claim["first"], claim["second"], claim.get("metric", "auc"))))
    tested = [(OPEN, 1.0) if one["error"] is None else ABOVE.test(one["difference"], one["error"], one["freedom"])
              for _, one in found]
    rows = []
    for (claim, one), (verdict, _), p in zip(found, tested, holm([p for _, p in tested]), strict=True):
        rows.append([claim["text"], f"{claim['first']} − {claim['second']}", METRICS[claim.get("metric", "auc")],
                     claim.get("paper", DASH), f"{100 * one['difference']:+.1f}{show_interval(one['interval'], '+')}",
                     DASH if one["detectable"] is None else f"{100 * one['detectable']:.1f}", f"{p:.2g}",
                     f"**{verdict if p <= LEVEL else OPEN}**"])
    return "\n".join([markdown(["claim", "attacks", "metric", "the paper", "difference", "detectable", "p (Holm)",
                               "verdict"], rows), *rejected(bed)])


def rejected(bed: Bed) -> list[str]:
    """For each attacker with both selections, the share of images whose score rejection changes."""
    lines = []
    for name in bed.scale.learned:
        changed = [float(np.mean(one != other)) for part in PARTS for seed, scores in bed.scores(
            f"{name}-random", part).items() for one, other in zip(scores, bed.scores(
                f"{name}-rejection", part).get(seed, []), strict=False)]
        if changed:
            low, mean, high = (100 * float(one(changed)) for one in (min, np.mean, max))
            lines += ["", f"{name}: rejection changes the scores of {low:.0f} to {high:.0f} % of the images of a "
                      f"model; the mean is {mean:.0f} %."]
    return lines


def compared(scale: Rotations) -> list[str]:
    """The attacks of the table of variances: those with repeats, and those of the claims."""
    claimed = (claim[side] for claim in scale.claims for side in ("first", "second"))
    return list(dict.fromkeys([*scale.repeats, *claimed]))


def defenses(bed: Bed) -> str:
    """One row for each defense: mIoU, and the strongest of its attacks beside that on plain models of equal mIoU."""
    scale = bed.scale
    known = {attack for one in scale.defenses.values() for attack in one.attacks}
    found = {}
    for name in ("", *scale.defenses):
        methods = [method for method in bed.methods(name) if name or method in known]
        if methods:
            found[name] = max(methods, key=lambda method: _mean(bed, method)), _miou(bed, methods[0])
    plain = sorted((miou[1], _mean(bed, method)) for name, (method, miou) in found.items()
                   if not name or scale.defenses[name].plain)
    rows = []
    for name, (method, miou) in sorted(found.items(), key=lambda one: -one[1][1][1]):
        defense = scale.defenses.get(name)
        inside = defense and not defense.plain and plain and plain[0][0] <= miou[1] <= plain[-1][0]
        rows.append([name or "none", f"{defense.model} {defense.answer}".strip() if defense else DASH,
                     *(f"{100 * value:.1f}" for value in miou), method.removesuffix(f"-under-{name}"),
                     *(show_metric(bed, method, metric) for metric in METRICS),
                     f"{100 * np.interp(miou[1], *zip(*plain, strict=True)):.1f}" if inside else DASH])
    return markdown(["defense", "flags", "mIoU, training images", "mIoU, other images", "strongest attack",
                     *METRICS.values(), "AUC, a plain model of this mIoU"], rows)


def _mean(bed: Bed, method: str) -> float:
    """AUC of an attack, the mean over parts of the means over models."""
    return bed.pooled(method)["difference"]


def _miou(bed: Bed, method: str) -> tuple[float, float]:
    """mIoU on training images and on others, of the answers that an attack got; means over its cells."""
    found = [bed.results(cell)["miou"] for cell in bed.cells.values() if cell.method == method]
    return tuple(float(np.mean([one[side] for one in found])) for side in ("in", "out"))


def parts(bed: Bed) -> str:
    """AUC of each attack on each model."""
    rows = []
    for method in bed.methods():
        values = [one.values("auc")[0] for one in bed.strata(method)]
        if len(values) == len(PARTS):
            rows.append([method, *(" / ".join(f"{100 * value:.1f}" for value in each) for each in values)])
    return markdown(["attack", *(f"{part} against {PARTNER[part]}" for part in PARTS)], rows)


def sides(bed: Bed) -> str:
    """What tells the members of A and of C from their non-members, and knows no model that was trained on one side."""
    rows = []
    for part in ("A", "C"):
        blind = next((found for cell in bed.cells.values() if cell.model.part == part
                      and (found := bed.results(cell).get("controls", {}).get("blind"))), None)
        models = (show_metric(bed, method, "auc", (part,)) for method in ("references-alone", CONTROL))
        rows.append([f"{part} against {PARTNER[part]}", show_percent(blind["auc"], blind["auc_interval"]) if blind
                     else DASH, *models])
    return markdown(["sides", "blind", "references alone", CONTROL], rows)


def by_queries(bed: Bed) -> str:
    """The AUC of each attack that queries a model several times, by the first N queries; empty if there is none."""
    found: dict[str, list[dict]] = {}
    for cell in bed.cells.values():
        if curve := bed.results(cell).get("auc_by_queries"):
            found.setdefault(cell.method, []).append(curve)
    counts = sorted({int(count) for curves in found.values() for count in curves[0]})
    rows = [[method, *(f"{100 * np.mean([curve[str(count)] for curve in curves]):.1f}" if str(count) in curves[0]
                       else DASH for count in counts)] for method, curves in found.items()]
    return markdown(["attack", *map(str, counts)], rows) if rows else ""


def models(bed: Bed) -> str:
    """mIoU of each training, in % on its own part and on its partner."""
    rows = [[name, *(f"{100 * found[f'miou_{side}']:.1f}" for side in ("in", "out")), str(found["in"]),
             str(found["out"]), str(found["epochs"]), str(found["minutes"])]
            for name in bed.scale.models if (found := bed.model(name))]
    return markdown(["model", "mIoU, training images", "mIoU, other images", "training images", "other images",
                     "epochs", "minutes"], rows)


def draw_roc(bed: Bed) -> None:
    """Draw roc.png: the mean TPR over models at each FPR, linear and log-log, for the attacks of the claims."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = np.unique(np.concatenate([np.logspace(-3, 0, 200), np.linspace(0, 1, 200)]))
    axes = figure.subplots(1, 2)
    shown = compared(bed.scale) or bed.methods()
    for number, method in enumerate(method for method in bed.methods() if method in shown):
        curves = [_tpr(column, one.member, grid) for one in bed.strata(method) for each in one.arms[0]
                  for column in each.columns]
        for panel in axes:
            panel.plot(100 * grid, 100 * np.mean(curves, axis=0), color=PALETTE[number % len(PALETTE)],
                       linestyle=("-", "--", ":")[number // len(PALETTE) % 3], linewidth=1.3, label=method)
    axes[0].plot([0, 100], [0, 100], color="grey", linewidth=0.8)
    axes[0].set(xlabel="FPR, %", ylabel="TPR, %", xlim=(0, 100), ylim=(0, 100))
    axes[1].plot([0.1, 100], [0.1, 100], color="grey", linewidth=0.8)
    axes[1].set(xlabel="FPR, %", xscale="log", yscale="log", xlim=(0.1, 100), ylim=(0.1, 100))
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save_small(figure, bed.scale.results / "roc.png", 130)


def _tpr(score: np.ndarray, member: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """TPR (g,) at each FPR of `grid` (g,), at the lowest threshold that does not exceed it."""
    curves = Curves(score, member)
    true = np.concatenate([[0], curves.true / curves.true[-1]])
    return true[np.searchsorted(curves.false / curves.false[-1], grid + 1e-12, side="right")]
