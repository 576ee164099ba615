"""What the paper finds, claim by claim, and whether it holds in the cells of a scale.

A verdict is computed from a difference between attacks on the same images and its 95 % interval over blocks of
images: *holds* where the interval lies on the paper's side of 0, *does not hold* where it lies on the other, *not
decided* where it includes 0. "About as good" holds where the interval lies within 3 points of 0, an attack "fails"
where it ends below 3, and where a claim names another bound, that takes the place of 0.
An interval says what other images would give, not other trainings: victims and shadows are trained once, and where
a defense or a patch size is compared, so are the attackers. Where everything was trained again, the figures of that
training follow, under its name, and a verdict is one only where all trainings that have the figure give it. Any
scores reach the F of calling all images members, which lies above that of a coin; an attack is above guessing where
it goes further than shuffled memberships do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from evaluation.intervals import intervals, paired_difference
from evaluation.metrics import chance, compute_metrics
from reproduce import paper
from reproduce.collect import unpack
from reproduce.measured import Measured
from reproduce.plan import Cell
from utils.randomness import stream

CLOSE = 3.0  # points of AUC
LITTLE = 10.0  # points of AUC that a defense may take and still protect little
CHEAP = 2.0  # points of mIoU that a defense may cost and still cost little; the paper's DPSGD costs up to 1.4
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"


def _sign(low: float, high: float) -> str:
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN


@dataclass(frozen=True)
class Finding:
    """A figure in points (%) and its interval in one setting, and what `judge` says of a claim from an interval.

    `again` has what other trainings of everything found: their name -> `kept`. A verdict is one only where all agree.
    """

    where: str
    value: float
    low: float
    high: float
    judge: Callable[[float, float], str] = _sign
    note: str = ""
    again: dict[str, dict] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        said = self.judge(self.low, self.high)
        return said if all(other["verdict"] == said for other in self.again.values()) else OPEN

    @property
    def figures(self) -> str:
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]{self.note}"

    def kept(self) -> dict:
        """What is written for a page that shows this training beside another."""
        return {"figures": self.figures, "verdict": self.verdict}

    def __str__(self) -> str:
        return "; ".join([f"{self.where}: {self.figures}", *(f"{name} {other['figures']}"
                                                             for name, other in self.again.items())])


def _finding(where: str, found: dict, judge: Callable[[float, float], str] = _sign, factor: float = 100,
             note: str = "") -> Finding:
    low, high = (factor * bound for bound in found["interval"])
    return Finding(where, factor * found["difference"], low, high, judge, note)


def _close(low: float, high: float) -> str:
    return HOLDS if low > -CLOSE and high < CLOSE else FAILS if low > CLOSE or high < -CLOSE else OPEN


def _both(measured: Measured, setting: str, first: str, second: str, **of) -> tuple[list[Cell], list[Cell]] | None:
    """The cells of both, of the seeds that both have; a threshold has one for all."""
    pair = measured.seeds(setting, first, **of), measured.seeds(setting, second, **of)
    common = set.intersection(*({cell.seed for cell in own} for own in pair))
    if not any(name.startswith("threshold") for name in (first, second)):
        pair = tuple([cell for cell in own if cell.seed in common] for own in pair)
    return pair if all(pair) else None


def _above(*pairs: tuple[str, str]) -> Callable[[Measured], Iterator[Finding]]:
    """The first attack of each pair against the second, in every setting that has both."""
    def findings(measured: Measured) -> Iterator[Finding]:
        for setting in measured.scale.settings:
            for first, second in pairs:
                if cells := _both(measured, setting, first, second):
                    what = f", {paper.INPUTS[first.partition('-')[0]]}" if len(pairs) > 1 else ""
                    yield _finding(measured.title(setting) + what, measured.difference(*cells))
    return findings


def _sized(measured: Measured) -> tuple[Cell, Cell] | None:
    """The cells of the largest and of the smallest patch."""
    cells = measured.sizes()
    return (cells[0], cells[-1]) if len(cells) > 1 else None


def larger_patches(measured: Measured) -> Iterator[Finding]:
    if pair := _sized(measured):
        yield _finding(f"{pair[0].size} - {pair[1].size} positions", measured.difference([pair[0]], [pair[1]]))


def patches_weaken(measured: Measured) -> Iterator[Finding]:
    """Per-patch AUC over as many patches of each image, the first ones of both sizes."""
    if not (pair := _sized(measured)):
        return
    each = [[unpack(own) for own in measured.figures(cell)["patch_scores"]] for cell in pair]
    count = min(len(own[0]) for own in each)
    flat = [np.concatenate([scores[:count] for scores in own]) for own in each]
    member, group = measured.images(pair[0].setting)
    found = paired_difference(flat[:1], flat[1:], np.repeat(member, count), np.repeat(group, count))
    yield _finding(f"patches, {pair[0].size} - {pair[1].size}", found)


def images_stay(measured: Measured) -> Iterator[Finding]:
    if pair := _sized(measured):
        yield _finding(f"images, {pair[0].size} - {pair[1].size}", measured.difference([pair[0]], [pair[1]]), _close)


def sliding_as_random(measured: Measured) -> Iterator[Finding]:
    """At the usual number of patches; the random ones are the first of the curve's."""
    count = measured.scale.count
    for setting in measured.scale.selections["settings"]:
        for kind, name in paper.INPUTS.items():
            sliding = measured.seeds(setting, f"{kind}-sliding")
            walk = measured.seeds(setting, f"{kind}-random", count=max(measured.scale.selections["counts"]))
            if sliding and walk:
                yield _finding(f"{measured.title(setting)}, {name}",
                               measured.difference(sliding, walk, counts=(None, count)), _close)


def rejection_at_few(measured: Measured) -> Iterator[Finding]:
    """Rejection minus random with the fewest patches, minus the same with the most."""
    for setting in measured.scale.selections["settings"]:
        few, many = (f(measured.scale.selections["counts"]) for f in (min, max))
        for kind, name in paper.INPUTS.items():
            cells = _both(measured, setting, f"{kind}-rejection", f"{kind}-random", count=many)
            if cells:
                rejection, random = ([[measured.scores(cell, count) for cell in own] for count in (few, many)]
                                     for own in cells)
                found = paired_difference([*rejection[0], *random[1]], [*random[0], *rejection[1]],
                                          *measured.images(setting))
                yield _finding(f"{measured.title(setting)}, {name}", found, factor=200)  # of two means, the halves


def above_guess(measured: Measured) -> Iterator[Finding]:
    """Max-F of every attack of table 2 over that of calling all members, and over what luck adds; the weakest.

    Any scores reach the F of calling all members, and with luck more. The interval is the excess minus the middle 95 %
    of what shuffled memberships give; whole blocks are shuffled where members and non-members come in such.
    """
    for setting in measured.scale.settings:
        found = []
        for method in paper.TABLE:
            for cell in measured.seeds(setting, method)[:1]:
                scores, (member, group) = measured.scores(cell), measured.images(setting)
                excess, luck = _excess(scores, member), [_excess(scores, one) for one in _shuffled(member, group)]
                low, high = (excess - bound for bound in np.quantile(luck, [0.975, 0.025]))
                found.append(_finding(measured.title(setting), {"difference": excess, "interval": [low, high]},
                                      note=f" ({paper.title(method)})"))
        if found:
            yield min(found, key=lambda one: one.low)


def _excess(scores: np.ndarray, member: np.ndarray) -> float:
    """Max-F minus the F of calling all members."""
    return compute_metrics(scores, member)["max_f"] - chance(int(member.sum()), int((~member).sum()))["all_member_f"]


def _shuffled(member: np.ndarray, group: list[str], times: int = 400) -> Iterator[np.ndarray]:
    """Memberships bool (n,) dealt anew: to whole blocks where each is of one kind, else to images."""
    _, block = np.unique(group, return_inverse=True)
    shares = np.bincount(block, weights=member) / np.bincount(block)
    rng = stream(0, "shuffle")
    for _ in range(times):
        yield rng.permutation(shares > 0)[block] if set(shares) <= {0, 1} else rng.permutation(member)


def _over(measured: Measured, cells: list[Cell], where: str, bound: float = 0.5,
          judge: Callable[[float, float], str] = _sign) -> Iterator[Finding]:
    """AUC of the first cell minus `bound`."""
    for cell in cells[:1]:
        member, group = measured.images(cell.setting)
        low, high = intervals(measured.scores(cell), member, group)["auc"]
        yield _finding(where, {"difference": measured.mean([cell]) - bound, "interval": [low - bound, high - bound]},
                       judge)


def independent_succeed(measured: Measured) -> Iterator[Finding]:
    for setting, own in measured.scale.settings.items():
        if not own.get("dependent"):
            yield from _over(measured, measured.seeds(setting, "loss-random"), measured.title(setting))


def learned_fails(measured: Measured) -> Iterator[Finding]:
    for setting in (name for name in measured.scale.settings if name.startswith("dpc")):
        yield from _over(measured, measured.seeds(setting, "pixelwise"), measured.title(setting), judge=
                         lambda low, high: HOLDS if high < CLOSE else FAILS if low > 0 else OPEN)


def argmax_takes_little(measured: Measured) -> Iterator[Finding]:
    """AUC of the loss map on random patches without Argmax, minus that under it."""
    for setting in measured.scale.settings:
        if cells := _drop(measured, setting, "loss-random", "argmax"):
            yield _finding(measured.title(setting), measured.difference(*cells),
                           lambda low, high: HOLDS if high < LITTLE else FAILS if low > LITTLE else OPEN)


def gauss_leaves(measured: Measured) -> Iterator[Finding]:
    """AUC under the strongest noise, where the shadow has it too, minus 75."""
    for setting, own in measured.scale.settings.items():
        cells = measured.seeds(setting, "loss-random", f"gauss-{_strongest(measured):g}")
        if own.get("dependent"):
            yield from _over(measured, cells, measured.title(setting), 0.75)


def _drop(measured: Measured, setting: str, method: str, defense: str) -> tuple[list[Cell], list[Cell]] | None:
    """The first seed's cells without and under a defense."""
    pair = measured.seeds(setting, method)[:1], measured.seeds(setting, method, defense)[:1]
    return pair if all(pair) else None


def gauss_protects(measured: Measured) -> Iterator[Finding]:
    for setting, own in measured.scale.settings.items():
        if not own.get("dependent") and (cells := _drop(measured, setting, "loss-random", _gauss(measured))):
            yield _finding(measured.title(setting), measured.difference(*cells))


def loss_more_sensitive(measured: Measured) -> Iterator[Finding]:
    """What Gauss takes from the loss attacker, minus what it takes from C+GT."""
    for setting in measured.scale.settings:
        loss, both = (_drop(measured, setting, f"{kind}-random", _gauss(measured)) for kind in ("loss", "concate"))
        if loss and both:
            found = measured.difference([*loss[0], *both[1]], [*loss[1], *both[0]])
            yield _finding(measured.title(setting), found, factor=200)  # of two means, the halves


def _gauss(measured: Measured) -> str:
    """The paper's strongest noise for independent attacks, or the strongest there is."""
    return f"gauss-{max((v for v in measured.scale.gauss if v <= 0.1), default=_strongest(measured)):g}"


def _strongest(measured: Measured) -> float:
    """The largest variance of Gauss."""
    return max(measured.scale.gauss, default=0)


def dropout_costs(measured: Measured) -> Iterator[Finding]:
    """Points of mIoU lost minus points of AUC lost; the interval is that of the AUC alone."""
    for setting in measured.scale.settings:
        for ratio in measured.scale.dropout:
            if cells := _drop(measured, setting, "loss-random", f"dropout-{ratio:g}"):
                lost, found = _utility_lost(measured, *cells), measured.difference(*cells)
                low, high = (lost - 100 * bound for bound in reversed(found["interval"]))
                yield Finding(f"{measured.title(setting)}, {ratio:g}", lost - 100 * found["difference"], low, high)


def _utility_lost(measured: Measured, plain: list[Cell], defended: list[Cell]) -> float:
    return 100 * (measured.figures(plain[0])["miou"]["out"] - measured.figures(defended[0])["miou"]["out"])


def private_protects(measured: Measured) -> Iterator[Finding]:
    """AUC that DPSGD takes; it counts where no more than `CHEAP` points of mIoU go with it."""
    for setting, variance in _private(measured):
        if cells := _drop(measured, setting, "loss-random", f"dpsgd-{variance:g}"):
            lost = _utility_lost(measured, *cells)
            judge = _dear if lost > CHEAP else _sign
            yield _protection(measured, setting, variance, cells, judge, f", mIoU {-lost:+.1f}")


def private_beyond_control(measured: Measured) -> Iterator[Finding]:
    """AUC that the noise takes from a victim that is otherwise trained alike: clipped, with the same frozen norms."""
    for setting, variance in _private(measured):
        pair = (measured.seeds(setting, "loss-random", "clip")[:1],
                measured.seeds(setting, "loss-random", f"dpsgd-{variance:g}")[:1])
        if all(pair):
            yield _protection(measured, setting, variance, pair)


def _private(measured: Measured) -> Iterator[tuple[str, float]]:
    """Settings and noise variances of DPSGD."""
    for setting in measured.scale.settings:
        yield from ((setting, variance) for variance in measured.scale.dpsgd["variances"].get(setting, ()))


def _protection(measured: Measured, setting: str, variance: float, pair: tuple[list[Cell], list[Cell]],
                judge: Callable[[float, float], str] = _sign, note: str = "") -> Finding:
    """AUC that is lost from the first cell to the second; nothing is said where that one points the wrong way."""
    auc = measured.mean(pair[1])
    if auc < 0.5:
        judge, note = _unsaid, f"{note}, down to {100 * auc:.1f}"
    return _finding(f"{measured.title(setting)}, variance {variance:g}", measured.difference(*pair), judge, note=note)


def _dear(low: float, high: float) -> str:
    """Of protection that costs too much: it counts against the claim."""
    return FAILS if low > 0 else _sign(low, high)


def _unsaid(low: float, high: float) -> str:
    return OPEN


KINDS = ("loss", "concate")
CLAIMS: dict[str, Callable[[Measured], Iterator[Finding]]] = {
    "structure helps: the largest patches above the smallest (AUC of images)": larger_patches,
    "structure helps: learned (loss map, full) above the loss threshold": _above(("loss-full", "threshold-loss")),
    "structure helps: C+GT patches above the learned 1x1 attack": _above(("concate-random", "pixelwise")),
    "single patches tell less as they shrink": patches_weaken,
    f"images stay close as patches shrink (within {CLOSE:g} points)": images_stay,
    "loss map above C+GT (random)": _above(("loss-random", "concate-random")),
    "patches above the full image": _above(*((f"{kind}-random", f"{kind}-full") for kind in KINDS)),
    f"sliding about as good as random (within {CLOSE:g} points)": sliding_as_random,
    "rejection above random": _above(*((f"{kind}-rejection", f"{kind}-random") for kind in KINDS)),
    "rejection helps most at few patches": rejection_at_few,
    "every attack above guessing, here: above the F of calling all members (the weakest of each setting)": above_guess,
    "independent attacks succeed (AUC over 50)": independent_succeed,
    "Salem's learned attack fails with a DPC shadow (AUC over 50)": learned_fails,
    f"Argmax protects little (AUC that it takes from the loss map, at most {LITTLE:g})": argmax_takes_little,
    "Gauss protects in independent settings (AUC that it takes)": gauss_protects,
    "Gauss does not protect in the dependent one (AUC over 75 under the strongest noise)": gauss_leaves,
    "the loss attacker is more sensitive to Gauss than C+GT": loss_more_sensitive,
    "Dropout costs more utility than it protects (mIoU lost - AUC lost)": dropout_costs,
    f"DPSGD protects at little utility (AUC that it takes, at {CHEAP:g} points of mIoU at most)": private_protects,
    "and by its noise, beyond clipping alone": private_beyond_control,
}


def measure(measured: Measured) -> dict[str, list[Finding]]:
    """What was found of each claim, beside the same of the scale's other trainings."""
    others, found = measured.again(), {}
    for claim, findings in CLAIMS.items():
        known = {name: other["claims"].get(claim, {}) for name, other in others.items()}
        found[claim] = [replace(one, again={name: kept[one.where] for name, kept in known.items() if one.where in kept})
                        for one in findings(measured)]
    return found


def overall(found: list[Finding]) -> str:
    """One verdict of several settings: what all of them say, or how many say what."""
    said = [one.verdict for one in found]
    kinds = [kind for kind in (HOLDS, FAILS, OPEN) if kind in said]
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{kind} in {said.count(kind)}" for kind in kinds)
