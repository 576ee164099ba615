"""The paper's claims, and whether each holds in the cells of a scale."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from evaluation.intervals import intervals, paired_difference
from evaluation.metrics import chance, compute_metrics
from reproduce import paper
from reproduce.cells import unpack
from reproduce.measured import Measured
from reproduce.plan import Cell, Setting
from utils.randomness import stream

CLOSE = 3.0  # points of AUC: a smaller difference counts as none
LITTLE = 10.0  # a defense "protects little" if it takes at most so many points of AUC
CHEAP = 2.0  # a defense has "little cost" if mIoU falls by at most so many points; the paper's DPSGD costs up to 1.4
UNKNOWN = (-inf, inf)  # bounds of a value without an interval
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
RULE = f"""\
Each value has a 95 % interval over groups of images. Most values are the difference between two attacks on the same
images. A claim *holds* if the interval is above 0, *does not hold* if it is below 0, and is *not decided* if it
includes 0. The claims "about as good" and "changes little" hold if the interval is within {CLOSE:g} points of 0. The
claim that an attack fails holds if the interval ends below {CLOSE:g}. If a claim names another bound, this bound
replaces 0. The claim about the cost of DPSGD does not hold if mIoU falls by more than {CHEAP:g} points and the interval
excludes 0. A DPSGD victim on which the AUC is below 50 ("down to") decides nothing: there the attack ranks members and
non-members in the wrong order.

An interval covers the choice of images, but not the training. Each victim and each shadow was trained once; for the
claims about defenses and patch sizes, each attacker was also trained once. The camvid scale was trained again: the
column *other trainings* has the values of these trainings. If the verdicts of the trainings differ, the verdict is *not
decided*. A dash in this column means that the verdict rests on one training. The intervals of the other trainings are
percentile bootstrap intervals of an earlier commit, which are narrower.

Every attack reaches at least the F of calling all images members, and this F is above the F of a coin. So an attack is
above guessing only if its max-F is above the max-F of the same scores with shuffled memberships."""

Judge = Callable[[float, float], str]


def within(lowest: float, highest: float) -> Judge:
    """A claim about a range: it holds if the interval is inside the range, and does not hold if it is outside."""
    def judge(low: float, high: float) -> str:
        return HOLDS if low > lowest and high < highest else FAILS if low > highest or high < lowest else OPEN
    return judge


ABOVE, NEAR, SMALL = within(0, inf), within(-CLOSE, CLOSE), within(-inf, LITTLE)


def _fails(low: float, high: float) -> str:
    """The claim that an attack fails: it holds if the AUC is less than `CLOSE` points above 50."""
    return HOLDS if high < CLOSE else FAILS if low > 0 else OPEN


def _too_dear(low: float, high: float) -> str:
    """The claim that a defense protects at little cost, if the defense costs too much: it cannot hold."""
    return FAILS if low > 0 or high < 0 else OPEN


def _open(low: float, high: float) -> str:
    return OPEN


@dataclass(frozen=True)
class Finding:
    """A value in points (%) with its interval, for one claim in one setting. `judge` computes the verdict.

    `others`: name of another training -> the `record` of its finding.
    """

    label: str
    value: float
    low: float
    high: float
    judge: Judge = ABOVE
    note: str = ""
    others: dict[str, dict] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        verdict = self.judge(self.low, self.high)
        return verdict if all(other["verdict"] == verdict for other in self.others.values()) else OPEN

    @property
    def metrics(self) -> str:
        interval = "no interval" if inf in (-self.low, self.high) else f"[{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.value:+.1f} {interval}{self.note}"

    def record(self) -> dict:
        """The value and the verdict, as `reproduce.report --again` writes them."""
        return {"metrics": self.metrics, "verdict": self.verdict}


Findings = Callable[[Measured, str], Iterator[Finding]]  # the findings of one claim in one setting


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. `key` is its name in the committed files of other trainings, so it must not change."""

    key: str
    text: str
    findings: Findings


def _finding(label: str, result: dict, judge: Judge = ABOVE, factor: float = 100, note: str = "") -> Finding:
    low, high = (factor * bound for bound in result["interval"] or UNKNOWN)
    return Finding(label, factor * result["difference"], low, high, judge, note)


# Patches and attacks

def above(*pairs: tuple[str, str]) -> Findings:
    """Findings: the AUC of the first attack of each pair minus the AUC of the second."""
    def findings(measured: Measured, setting: str) -> Iterator[Finding]:
        for first, second in pairs:
            if cells := _same_seeds(measured, setting, first, second):
                kind = f", {paper.INPUTS[first.partition('-')[0]]}" if len(pairs) > 1 else ""
                yield _finding(measured.title(setting) + kind, measured.difference(*cells))
    return findings


def _same_seeds(measured: Measured, setting: str, first: str, second: str,
                **values: int) -> tuple[list[Cell], list[Cell]] | None:
    """The cells of two attacks with the seeds that both have. A threshold has one cell for all seeds."""
    pair = measured.seeds(setting, first, **values), measured.seeds(setting, second, **values)
    common = set.intersection(*({cell.seed for cell in cells} for cells in pair))
    if not any(name.startswith("threshold") for name in (first, second)):
        pair = tuple([cell for cell in cells if cell.seed in common] for cells in pair)
    return pair if all(pair) else None


def largest_minus_smallest(label: str, judge: Judge) -> Findings:
    """Findings: the AUC of images with the largest patches minus the AUC with the smallest.

    `label`: a format string for the two sizes.
    """
    def findings(measured: Measured, setting: str) -> Iterator[Finding]:
        if pair := _largest_and_smallest(measured, setting):
            first, second = pair
            yield _finding(label.format(first.size, second.size), measured.difference([first], [second]), judge)
    return findings


def _largest_and_smallest(measured: Measured, setting: str) -> tuple[Cell, Cell] | None:
    cells = [cell for cell in measured.sizes() if cell.setting == setting]
    return (cells[0], cells[-1]) if len(cells) > 1 else None


def single_patches(measured: Measured, setting: str) -> Iterator[Finding]:
    """AUC of the largest single patches minus AUC of the smallest, with the same number of patches of each image."""
    if not (pair := _largest_and_smallest(measured, setting)):
        return
    scores = [[unpack(patches) for patches in measured.results(cell)["patch_scores"]] for cell in pair]
    count = min(len(images[0]) for images in scores)
    flat = [np.concatenate([patches[:count] for patches in images]) for images in scores]
    member, group = measured.images(setting)
    result = paired_difference(flat[:1], flat[1:], np.repeat(member, count), np.repeat(group, count))
    yield _finding(f"patches, {pair[0].size} - {pair[1].size}", result)


def sliding_as_random(measured: Measured, setting: str) -> Iterator[Finding]:
    """AUC of sliding minus AUC of random, with the usual number of patches.

    The random cells have more patches; only the first ones are used.
    """
    count, selections = measured.scale.count, measured.scale.selections
    for kind, name in paper.INPUTS.items() if setting in selections.settings else ():
        sliding = measured.seeds(setting, f"{kind}-sliding")
        walk = measured.seeds(setting, f"{kind}-random", count=max(selections.counts))
        if sliding and walk:
            yield _finding(f"{measured.title(setting)}, {name}",
                           measured.difference(sliding, walk, counts=(None, count)), NEAR)


def rejection_at_few(measured: Measured, setting: str) -> Iterator[Finding]:
    """The gain of rejection over random (in AUC) with the fewest patches, minus this gain with the most patches."""
    selections = measured.scale.selections
    for kind, name in paper.INPUTS.items() if setting in selections.settings else ():
        few, many = min(selections.counts), max(selections.counts)
        if cells := _same_seeds(measured, setting, f"{kind}-rejection", f"{kind}-random", count=many):
            rejection, random = ([[measured.scores(cell, count) for cell in attack] for count in (few, many)]
                                 for attack in cells)
            result = paired_difference([*rejection[0], *random[1]], [*random[0], *rejection[1]],
                                       *measured.images(setting))
            yield _finding(f"{measured.title(setting)}, {name}", result, factor=200)  # factor 2: means of two attacks


def above_guessing(measured: Measured, setting: str) -> Iterator[Finding]:
    """Max-F minus the F of calling all images members, for the attack of table 2 with the lowest interval.

    The interval is this difference minus the middle 95 % of the differences with shuffled memberships.
    """
    findings = []
    member, group = measured.images(setting) if measured.of_setting(setting) else (None, None)
    for method in paper.TABLE:
        for cell in measured.seeds(setting, method)[:1]:
            scores = measured.scores(cell)
            excess, by_chance = _excess(scores, member), [_excess(scores, mixed) for mixed in _shuffled(member, group)]
            low, high = (excess - bound for bound in np.quantile(by_chance, [0.975, 0.025]))
            findings.append(_finding(measured.title(setting), {"difference": excess, "interval": [low, high]},
                                     note=f" ({paper.title(method)})"))
    if findings:
        yield min(findings, key=lambda finding: finding.low)


def _excess(scores: np.ndarray, member: np.ndarray) -> float:
    """Max-F minus the F of calling all images members."""
    return compute_metrics(scores, member)["max_f"] - chance(int(member.sum()), int((~member).sum()))["all_member_f"]


def _shuffled(member: np.ndarray, group: list[str], times: int = 400) -> Iterator[np.ndarray]:
    """Yield shuffled memberships bool (n,). If no group has both kinds of images, complete groups are shuffled."""
    _, index = np.unique(group, return_inverse=True)
    shares = np.bincount(index, weights=member) / np.bincount(index)
    rng = stream(0, "shuffle")
    for _ in range(times):
        yield rng.permutation(shares > 0)[index] if set(shares) <= {0, 1} else rng.permutation(member)


# Defenses, and AUCs above a bound. These findings use only the first attacker seed.

def auc_over(method: str, applies: Callable[[str, Setting], bool], bound: float = 0.5, judge: Judge = ABOVE,
             defense: Callable[[Measured], str] = lambda measured: "none") -> Findings:
    """Findings: the AUC minus `bound`, in the settings to which the claim applies."""
    def findings(measured: Measured, setting: str) -> Iterator[Finding]:
        cells = measured.seeds(setting, method, defense(measured))[:1]
        if cells and applies(setting, measured.scale.settings[setting]):
            member, group = measured.images(setting)
            low, high = intervals(measured.scores(cells[0]), member, group)["auc"] or UNKNOWN
            result = {"difference": measured.mean(cells) - bound, "interval": [low - bound, high - bound]}
            yield _finding(measured.title(setting), result, judge)
    return findings


def _independent(name: str, setting: Setting) -> bool:
    return not setting.dependent


def _pair(measured: Measured, setting: str, method: str, *defenses: str) -> tuple[list[Cell], list[Cell]] | None:
    """The cells of an attack under two defenses."""
    pair = tuple(measured.seeds(setting, method, defense)[:1] for defense in defenses)
    return pair if all(pair) else None


def auc_taken(defense: Callable[[Measured], str], judge: Judge = ABOVE,
              applies: Callable[[str, Setting], bool] = lambda name, setting: True) -> Findings:
    """Findings: the AUC that a defense takes from the loss map on random patches, in the settings of the claim."""
    def findings(measured: Measured, setting: str) -> Iterator[Finding]:
        cells = _pair(measured, setting, "loss-random", "none", defense(measured))
        if cells and applies(setting, measured.scale.settings[setting]):
            yield _finding(measured.title(setting), measured.difference(*cells), judge)
    return findings


def loss_more_sensitive(measured: Measured, setting: str) -> Iterator[Finding]:
    """AUC that Gauss takes from the loss map minus what it takes from C+GT."""
    loss, concate = (_pair(measured, setting, f"{kind}-random", "none", _gauss(measured)) for kind in KINDS)
    if loss and concate:
        result = measured.difference([*loss[0], *concate[1]], [*loss[1], *concate[0]])
        yield _finding(measured.title(setting), result, factor=200)  # factor 2: means of two attacks


def _gauss(measured: Measured) -> str:
    """The strongest noise up to variance 0.1, the paper's largest in independent settings, or else the strongest."""
    return f"gauss-{max((v for v in measured.scale.gauss if v <= 0.1), default=max(measured.scale.gauss, default=0)):g}"


def _strongest_gauss(measured: Measured) -> str:
    return f"gauss-{max(measured.scale.gauss, default=0):g}"


def dropout_costs(measured: Measured, setting: str) -> Iterator[Finding]:
    """Points of mIoU lost minus points of AUC lost. The interval is that of the AUC; the mIoU has none."""
    for ratio in measured.scale.dropout:
        if cells := _pair(measured, setting, "loss-random", "none", f"dropout-{ratio:g}"):
            lost, result = _miou_lost(measured, cells), measured.difference(*cells)
            low, high = (lost - 100 * bound for bound in reversed(result["interval"] or UNKNOWN))
            yield Finding(f"{measured.title(setting)}, {ratio:g}", lost - 100 * result["difference"], low, high)


def _miou_lost(measured: Measured, pair: tuple[list[Cell], list[Cell]]) -> float:
    """mIoU on non-members of the first cell minus that of the second, in points."""
    first, second = (measured.results(cells[0])["miou"]["out"] for cells in pair)
    return 100 * (first - second)


def dpsgd_protects(measured: Measured, setting: str) -> Iterator[Finding]:
    """AUC that DPSGD takes. The claim can hold only if mIoU falls by at most `CHEAP` points."""
    for variance in measured.scale.dpsgd.variances.get(setting, ()):
        if cells := _pair(measured, setting, "loss-random", "none", f"dpsgd-{variance:g}"):
            lost = _miou_lost(measured, cells)
            judge = _too_dear if lost > CHEAP else ABOVE
            yield _protection(measured, setting, variance, cells, judge, f", mIoU {-lost:+.1f}")


def dpsgd_beyond_clipping(measured: Measured, setting: str) -> Iterator[Finding]:
    """AUC that the noise takes, compared with a victim that is trained with clipping but without noise."""
    for variance in measured.scale.dpsgd.variances.get(setting, ()):
        if cells := _pair(measured, setting, "loss-random", "clip", f"dpsgd-{variance:g}"):
            yield _protection(measured, setting, variance, cells)


def _protection(measured: Measured, setting: str, variance: float, pair: tuple[list[Cell], list[Cell]],
                judge: Judge = ABOVE, note: str = "") -> Finding:
    """AUC of the first cell minus that of the second. It is not decided if the second AUC is below 50."""
    auc = measured.mean(pair[1])
    if auc < 0.5:
        judge, note = _open, f"{note}, down to {100 * auc:.1f}"
    return _finding(f"{measured.title(setting)}, variance {variance:g}", measured.difference(*pair), judge, note=note)


KINDS = ("loss", "concate")
CLAIMS = (
    Claim("patch-sizes", "Structure helps: the AUC of images is higher with the largest patches than the smallest",
          largest_minus_smallest("{} - {} positions", ABOVE)),
    Claim("full-above-threshold", "Structure helps: the learned attack on full loss maps is above the loss threshold",
          above(("loss-full", "threshold-loss"))),
    Claim("patches-above-1x1", "Structure helps: C+GT on random patches is above the learned 1x1 attack",
          above(("concate-random", "pixelwise"))),
    Claim("single-patches", "The AUC of single patches falls as they shrink", single_patches),
    Claim("images-stay", f"The AUC of images changes little as patches shrink (within {CLOSE:g} points)",
          largest_minus_smallest("images, {} - {}", NEAR)),
    Claim("loss-above-concate", "The loss map is above C+GT (random patches)",
          above(("loss-random", "concate-random"))),
    Claim("patches-above-full", "Random patches are above the full image",
          above(*((f"{kind}-random", f"{kind}-full") for kind in KINDS))),
    Claim("sliding-as-random", f"Sliding is about as good as random (within {CLOSE:g} points)", sliding_as_random),
    Claim("rejection-above-random", "Rejection is above random",
          above(*((f"{kind}-rejection", f"{kind}-random") for kind in KINDS))),
    Claim("rejection-at-few", "Rejection helps most with few patches", rejection_at_few),
    Claim("above-guessing", "Every attack is above guessing: max-F minus the F of calling all images members (the "
          "weakest attack of each setting)", above_guessing),
    Claim("independent", "Independent attacks succeed (AUC - 50)", auc_over("loss-random", _independent)),
    Claim("learned-fails", "Salem's learned attack fails with a DPC shadow (AUC - 50)",
          auc_over("pixelwise", lambda name, _: name.startswith("dpc"), judge=_fails)),
    Claim("argmax", f"Argmax protects little: it takes at most {LITTLE:g} points of AUC from the loss map",
          auc_taken(lambda measured: "argmax", SMALL)),
    Claim("gauss-independent", "Gauss protects in independent settings (AUC that it takes)",
          auc_taken(_gauss, applies=_independent)),
    Claim("gauss-dependent", "Gauss does not protect in the dependent setting (AUC under the strongest noise - 75)",
          auc_over("loss-random", lambda _, setting: setting.dependent, 0.75, defense=_strongest_gauss)),
    Claim("gauss-loss", "Gauss takes more AUC from the loss map than from C+GT", loss_more_sensitive),
    Claim("dropout", "Dropout costs more utility than it protects (mIoU lost - AUC lost)", dropout_costs),
    Claim("dpsgd", f"DPSGD protects at little cost (AUC that it takes; mIoU falls by at most {CHEAP:g} points)",
          dpsgd_protects),
    Claim("dpsgd-noise", "DPSGD protects by its noise, and not only by clipping", dpsgd_beyond_clipping),
)


def measure(measured: Measured) -> dict[str, list[Finding]]:
    """Map the key of each claim to its findings in all settings, with the records of the scale's other trainings."""
    others = measured.others()
    findings = {}
    for claim in CLAIMS:
        records = {name: other["claims"].get(claim.key, {}) for name, other in others.items()}
        findings[claim.key] = [
            replace(finding, others={name: record[finding.label] for name, record in records.items()
                                     if finding.label in record})
            for setting in measured.scale.settings for finding in claim.findings(measured, setting)]
    return findings


def overall(findings: list[Finding]) -> str:
    """The verdict that all findings share, or the number of findings with each verdict."""
    verdicts = [finding.verdict for finding in findings]
    kinds = [kind for kind in (HOLDS, FAILS, OPEN) if kind in verdicts]
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{kind} in {verdicts.count(kind)}" for kind in kinds)
