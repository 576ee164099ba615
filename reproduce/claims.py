"""The paper's claims, their values in the cells of a scale, and the verdicts on the primary ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from reproduce import paper
from reproduce.attack_cases import (
    CHANGED,
    above,
    auc_of,
    largest_minus_smallest,
    rejection_at_few,
    rejection_gain,
    single_patches,
    sliding_as_random,
)
from reproduce.cases import Case, Cases, Value, pool
from reproduce.defense_cases import (
    FREE,
    argmax,
    clipping,
    dpsgd,
    dropout,
    gauss_at_no_cost,
    gauss_dependent,
    loss_more_sensitive,
)
from reproduce.measured import Measured
from reproduce.plan import Setting
from reproduce.verdicts import ABOVE, FAILS, HOLDS, LEVEL, OPEN, UNKNOWN, Range, holm

CLOSE = 3.0  # points of AUC: a smaller difference counts as none
LITTLE = 10.0  # a defense "protects little" if it takes at most so many points of AUC
CHEAP = 1.4  # points of mIoU: the paper's DPSGD costs up to 1.36
NEAR, SMALL, SOME = Range(-CLOSE, CLOSE), Range(high=LITTLE), Range(0, LITTLE)
RULE = f"""\
Each claim has one value, in points: the mean over the settings of the scale. The settings share their images, so a
group of images is left out of all settings at once. The 95 % interval covers the choice of images, and the variance
between trainings where there are several (the column *trainings* has its degrees of freedom; 0: it is not covered). If
each victim and each shadow was trained once, it is the variance between attackers only, and an attacker that two
settings share counts twice. `again=1` trains all models of a scale again; the cells of all trainings then make one
value. A training of which only metrics are kept is shown beside the settings and is not counted.

The claims of the first table were chosen as primary, at most ten. A claim *holds* if its value is inside the range that
it asks for, and *does not hold* if the value is outside, each if the p-value is at most {LEVEL:g} after Holm's
adjustment over the primary claims; else it is *not decided*. *Detectable* is the distance from the end of the range at
which the 95 % interval decides with a probability of 80 %. The claims of the second table have no verdict: the last
column says where the 95 % interval is. mIoU has no interval: a claim about a defense "at little cost" does not hold if
the mean mIoU falls by more than the bound.

The column *paper* has the value of table 2 in each setting, in the order of that table, and for two attackers that of
the loss map before that of C+GT; *curves*: the paper only draws it."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. `key` is its name in the committed records of other trainings.

    `asks`: the range of the value in points of AUC; `printed`: the paper's value; `cost`: largest cost of a defense in
    points of mIoU; `primary`: whether it has a verdict; `level`: the value is an AUC, and no difference of two.
    """

    key: str
    text: str
    printed: str
    cases: Cases
    asks: Range = ABOVE
    cost: float = inf
    primary: bool = False
    level: bool = False


def _independent(name: str, setting: Setting) -> bool:
    return not setting.dependent


def _with_dpc(name: str, setting: Setting) -> bool:
    return setting.shadow == "dpc"


KINDS = ("loss", "concate")
CLAIMS = (
    Claim("loss-above-threshold", "The loss map (random patches) is above the loss threshold",
          paper.differences("loss-random", "threshold-loss"), above(("loss-random", "threshold-loss")), primary=True),
    Claim("patches-above-1x1", "C+GT (random patches) is above the learned 1x1 attack",
          paper.differences("concate-random", "pixelwise"), above(("concate-random", "pixelwise")), primary=True),
    Claim("loss-above-concate", "The loss map is above C+GT (random patches)",
          paper.differences("loss-random", "concate-random"), above(("loss-random", "concate-random")), primary=True),
    Claim("patches-above-full", "Random patches are above the full image",
          "; ".join(paper.differences(f"{kind}-random", f"{kind}-full") for kind in KINDS),
          above(*((f"{kind}-random", f"{kind}-full") for kind in KINDS)), primary=True),
    Claim("sliding-equal-counts", f"Sliding is as good as random with as many patches (within {CLOSE:g})", "curves",
          sliding_as_random, NEAR, primary=True),
    Claim("rejection-above-random", f"Rejection is above random (attackers for which it changes {100 * CHANGED:g} % of "
          "the scores)",
          "; ".join(paper.differences(f"{kind}-rejection", f"{kind}-random") for kind in KINDS), rejection_gain,
          primary=True),
    Claim("independent-auc", "Independent attacks succeed (AUC, loss map, random)",
          ", ".join(f"{paper.auc('loss-random', name):.1f}" for name in paper.COLUMNS[1:]),
          auc_of("loss-random", _independent), Range(low=50), primary=True, level=True),
    Claim("argmax-all", f"Argmax takes little (at most {LITTLE:g}, mean over all attacks)", "curves", argmax, SMALL,
          primary=True),
    Claim("gauss-below-60", f"Gauss protects in independent settings: AUC below 60 for {FREE:g} mIoU",
          "90 → below 60 for 0.2 mIoU", gauss_at_no_cost, Range(high=60), primary=True, level=True),
    Claim("dpsgd-reference", "DPSGD protects at little cost: AUC that the smallest noise takes, against SGD with the "
          f"same steps, batch and head factor (at most {CHEAP:g} mIoU)", "curves; mIoU -1.12, -1.36, -0.75",
          dpsgd("frozen", lambda variances: variances[:1]), ABOVE, CHEAP, primary=True),
    Claim("full-above-threshold", "The loss map of the full image is above the loss threshold",
          paper.differences("loss-full", "threshold-loss"), above(("loss-full", "threshold-loss"))),
    Claim("patch-sizes", "The largest patches give the best AUC of images (one architecture)", "curves",
          largest_minus_smallest("{} - {} positions")),
    Claim("images-stay", f"Smaller patches give a close AUC of images (within {CLOSE:g}, one architecture)", "curves",
          largest_minus_smallest("images, {} - {}"), NEAR),
    Claim("single-patches", "The AUC of single patches falls as they shrink (one architecture)", "curves",
          single_patches),
    Claim("rejection-few", "Rejection helps most with few patches", "curves", rejection_at_few),
    Claim("confidence-auc", "The weakest attack is above guessing (AUC of the confidence threshold)",
          ", ".join(f"{paper.auc('threshold-confidence', name):.1f}" for name in paper.COLUMNS),
          auc_of("threshold-confidence"), Range(low=50), level=True),
    Claim("learned-auc", f"The learned 1x1 attack fails with a DPC shadow (AUC below {50 + CLOSE:g})", "it fails",
          auc_of("pixelwise", _with_dpc), Range(high=50 + CLOSE), level=True),
    Claim("gauss-dependent-taken", f"Gauss of variance 0.4 takes little in the dependent setting (at most {LITTLE:g})",
          "at most 9.6 and 7.7; mIoU 59.88 → 23.17", gauss_dependent, SMALL),
    Claim("gauss-loss", "Gauss takes more AUC from the loss map than from C+GT", "curves", loss_more_sensitive),
    Claim("dropout-taken", f"Dropout at test time takes a little (at most {LITTLE:g}); the largest ratio costs much "
          "mIoU", "curves", dropout, SOME),
    Claim("dpsgd-larger", "DPSGD, larger noise, against the same SGD", "curves",
          dpsgd("frozen", lambda variances: variances[1:]), ABOVE, CHEAP),
    Claim("dpsgd-per-layer", "DPSGD, noise of each layer's own bound: clipping alone, against the same SGD", "curves",
          clipping, ABOVE, CHEAP),
    Claim("dpsgd-undefended", "DPSGD against the victim of table 2, which has other steps, batch and head factor",
          "curves", dpsgd("none", lambda variances: variances), ABOVE, CHEAP),
    Claim("dpsgd-noise", "DPSGD protects by its noise: against clipping alone", "curves",
          dpsgd("clip", lambda variances: variances)),
)


@dataclass(frozen=True)
class Result:
    """A claim in the cells of a scale: its cases, and its value over those that are counted (None if there is none)."""

    claim: Claim
    cases: Sequence[Case]
    auc: Value | None

    def show(self, value: Value | None) -> str:
        """A value of this claim as text: a difference has a sign, an AUC or a TPR has none."""
        return "–" if value is None else value.show("-" if self.claim.level else "+")

    @property
    def reading(self) -> str:
        """Where the 95 % interval is: inside the range that the claim asks for, outside, or neither."""
        if self.auc is None:
            return "–"
        return {HOLDS: "inside", FAILS: "outside", OPEN: "contains an end"}[
            self.claim.asks.judge(*(self.auc.interval or UNKNOWN))]

    @property
    def enough(self) -> list[Case]:
        return [case for case in self.cases if case.counted]

    @property
    def lost(self) -> float:
        """Points of mIoU that the defense costs, a mean over the cases that are counted."""
        return float(np.mean([case.lost for case in self.enough])) if self.enough else 0.0

    @property
    def test(self) -> tuple[str, float]:
        """The verdict that the value allows, and its p-value; without an interval nothing is decided."""
        if self.auc is None or self.auc.error is None:
            return OPEN, 1.0
        verdict, p_value = self.claim.asks.test(self.auc.value, self.auc.error, self.auc.freedom)
        return FAILS if self.lost > self.claim.cost and verdict == HOLDS else verdict, p_value


def measure(measured: Measured) -> list[Result]:
    """The claims in the cells of all trainings of a scale. A case of several trainings has the contrasts of each."""
    return [Result(claim, cases, pool([case for case in cases if case.counted]))
            for claim in CLAIMS for cases in [_merged(claim, measured)]]


def _merged(claim: Claim, measured: Measured) -> list[Case]:
    cases: dict[str, Case] = {}
    for training in (measured, *measured.trainings):
        for setting in training.scale.settings:
            for case in claim.cases(training, setting):
                known = cases.setdefault(case.label, case)
                if known is not case and case.counted:
                    earlier = known.trainings if known.counted else ()
                    cases[case.label] = replace(case, trainings=[*earlier, *case.trainings])
    return list(cases.values())


def verdicts(results: Sequence[Result]) -> dict[str, tuple[str, float]]:
    """Map the key of each primary claim with a value to its verdict and its p-value adjusted by Holm."""
    tested = [result for result in results if result.claim.primary and result.auc]
    adjusted = holm([result.test[1] for result in tested])
    return {result.claim.key: (result.test[0] if p_value <= LEVEL else OPEN, p_value)
            for result, p_value in zip(tested, adjusted, strict=True)}
