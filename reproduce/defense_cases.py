"""The cases of the paper's claims about defenses (section 3.1). They use only the first attacker seed."""

from collections.abc import Callable, Iterator

from evaluation.pooled import Contrast
from reproduce import paper
from reproduce.cases import Case, Cases, difference, level, new_case
from reproduce.measured import Measured
from reproduce.plan import INPUTS, Cell

FREE = 0.2  # points of mIoU: the paper's Gauss protects at this cost


def taken(measured: Measured, setting: str, method: str, defense: str, reference: str = "none", label: str = "",
          **more: object) -> Iterator[Case]:
    """What a defense takes from an attack: the metric under `reference` minus that under the defense."""
    cells = [measured.seeds(setting, method, name)[:1] for name in (reference, defense)]
    if all(cells):
        pair = cells[0][0], cells[1][0]
        yield new_case(measured, setting, label, [difference(measured, pair)], lost=miou_lost(measured, pair), **more)


def miou_lost(measured: Measured, pair: tuple[Cell, Cell]) -> float:
    """mIoU on non-members of the first cell minus that of the second, in points."""
    first, second = (measured.results(cell)["miou"]["out"] for cell in pair)
    return 100 * (first - second)


def argmax(measured: Measured, setting: str) -> Iterator[Case]:
    """What Argmax takes from each attack of table 2. The confidence threshold is left out: all scores become 1."""
    for method in paper.TABLE:
        if method != "threshold-confidence":
            yield from taken(measured, setting, method, "argmax", label=paper.title(method))


def gauss_at_no_cost(measured: Measured, setting: str) -> Iterator[Case]:
    """The loss map under the strongest noise that costs at most `FREE` points of mIoU, in independent settings."""
    found = [cell for variance in measured.scale.gauss for cell in measured.seeds(setting, "loss-random",
                                                                                 f"gauss-{variance:g}")[:1]]
    before = measured.seeds(setting, "loss-random")[:1]
    lost = [miou_lost(measured, (before[0], cell)) for cell in found] if before else []
    cheap = [(cell, cost) for cell, cost in zip(found, lost, strict=False) if cost <= FREE]
    if cheap and not measured.scale.settings[setting].dependent:
        cell, cost = cheap[-1]
        note = f"variance {cell.defense.partition('-')[2]}, {measured.mean(before) * 100:.1f} without noise"
        yield new_case(measured, setting, "", [level(measured.scores(cell))], note=note, lost=cost)


def gauss_dependent(measured: Measured, setting: str) -> Iterator[Case]:
    """What the strongest noise takes from each attacker in the dependent setting."""
    if measured.scale.settings[setting].dependent:
        for kind in INPUTS:
            yield from taken(measured, setting, f"{kind}-random", f"gauss-{max(measured.scale.gauss, default=0):g}",
                             label=paper.INPUTS[kind])


def loss_more_sensitive(measured: Measured, setting: str) -> Iterator[Case]:
    """What Gauss takes from the loss map minus what it takes from C+GT.

    The noise has the largest variance up to 0.1, the paper's largest in independent settings, or else the largest.
    """
    strongest = max((v for v in measured.scale.gauss if v <= 0.1), default=max(measured.scale.gauss, default=0))
    parts = [case.trainings[0][0] for kind in ("loss", "concate")
             for case in taken(measured, setting, f"{kind}-random", f"gauss-{strongest:g}")]
    if len(parts) == 2:
        loss, concate = parts
        signs = [*loss.signs, *(-sign for sign in concate.signs)]
        yield new_case(measured, setting, "", [Contrast([*loss.columns, *concate.columns], signs)])


def dropout(measured: Measured, setting: str) -> Iterator[Case]:
    """What dropout at test time takes from the loss map. Only the largest ratio is counted."""
    largest = max(measured.scale.dropout, default=0)
    for ratio in measured.scale.dropout:
        name = f"dropout-{ratio:g}"
        for cell in measured.seeds(setting, "loss-random", name)[:1]:
            kept = f"AUC kept: {100 * measured.mean([cell]):.1f}"
            yield from taken(measured, setting, "loss-random", name, label=f"{ratio:g}", counted=ratio == largest,
                             note=kept if ratio == largest else f"{kept}; a smaller ratio is not counted")


def dpsgd(reference: str, chosen: Callable[[list[float]], list[float]]) -> Cases:
    """Cases: what DPSGD takes from the loss map, against another training. `chosen`: the variances that are counted.

    A victim on which the AUC is below 50 is not counted: there the attack ranks members and non-members in the wrong
    order.
    """
    def cases(measured: Measured, setting: str) -> Iterator[Case]:
        for variance in chosen(measured.scale.dpsgd.variances.get(setting, [])):
            yield from _protection(measured, setting, f"dpsgd-{variance:g}", reference, f"variance {variance:g}")
    return cases


def clipping(measured: Measured, setting: str) -> Iterator[Case]:
    """What clipping without noise takes from the loss map, against SGD with the same steps."""
    if setting in measured.scale.dpsgd.variances:
        yield from _protection(measured, setting, "clip", "frozen", "clipping")


def _protection(measured: Measured, setting: str, defense: str, reference: str, label: str) -> Iterator[Case]:
    for cell in measured.seeds(setting, "loss-random", defense)[:1]:
        auc = measured.mean([cell])
        wrong = "" if auc >= 0.5 else f"is not counted: down to {100 * auc:.1f}"
        yield from taken(measured, setting, "loss-random", defense, reference, label, note=wrong, counted=not wrong)
