"""Attacks: compute a membership score from the output of a model and its ground truth.

No module here reads a file or imports a data set.

A new attack is one file with a subclass of `attacks.sample.Attack`, and one line in `ATTACKS`. A new representation is
one file with an `attacks.representation.Representation`, and one line in `REPRESENTATIONS`.
"""

import argparse
from typing import TYPE_CHECKING

from models import FEATURES
from utils.cli import flag, number, thousands
from utils.tables import Entry, Table

if TYPE_CHECKING:
    from attacks.sample import Attack, AttackSettings

ATTACKS = Table("attack", {
    "learned": Entry("attacks.learned:LearnedAttack", "the attacker of -resume, on patches"),
    "confidence": Entry("attacks.thresholds:ConfidenceThreshold", "mean of the largest posterior (Salem et al.)"),
    "loss": Entry("attacks.thresholds:LossThreshold", "mean of minus the loss (Sablayrolles et al.)"),
    "calibrated": Entry("attacks.calibrated:CalibratedScore", "log-posterior minus c times that of --references"),
    "calibrated-weighted": Entry("attacks.calibrated:WeightedCalibratedScore", "the same, with a c that is chosen on "
                                 "--population"),
    "base": Entry("attacks.calibrated:Base", "calibrated with c = 1 (Lassila et al.)"),
    "rmia": Entry("attacks.calibrated:RMIA", "log-ratio of the posterior and its mean over models (Zarifzadeh et al.)"),
    "lira": Entry("attacks.lira:LiRA", "likelihood under --references that did not see an image (Carlini et al.)"),
    "lira-online": Entry("attacks.lira:OnlineLiRA", "likelihood ratio of --references that saw an image and others"),
    "lira-bayes": Entry("attacks.lira:BayesianLiRA", "lira with a prior for the variance of each image (BaVarIA)"),
    "lira-bayes-online": Entry("attacks.lira:OnlineBayesianLiRA", "lira-online with such a prior"),
    "statistics": Entry("attacks.statistics:StatisticsAttack", "logistic model of statistics of the loss, trained on "
                        "--population"),
    "statistics-crossfit": Entry("attacks.statistics:CrossFittedStatistics", "the same, trained on the other groups of "
                                 "the attacked images, so it knows more than an attacker"),
    "learned-crossfit": Entry("attacks.learned_crossfit:CrossFittedNetwork", "a small network on the loss map or, with "
                              "--references, the calibrated map, trained on the other groups of the attacked images"),
    "references-alone": Entry("attacks.calibrated:ReferencesAlone", "the loss of --references alone: a control"),
    "augmented": Entry("attacks.queries:Augmented", "calibrated, or loss without --references, mean over transformed "
                       "versions of the image"),
    "agreement": Entry("attacks.queries:Agreement", "share of correct classes over transformed versions of the image "
                       "(label only, Choquette-Choo et al.)"),
    "repeated": Entry("attacks.queries:Repeated", "calibrated, or loss without --references, of the mean posterior "
                      "over queries under a defense that draws noise"),
    "quantile": Entry("attacks.quantile:QuantileRegression", "loss that a non-member would have, predicted from image "
                      "and label, minus the loss; fitted on --population (Bertran et al.)"),
    "residual": Entry("attacks.residual:Residual", "expected minus observed loss: a regression on image, label and, if "
                      "given, --references, fitted on the attacked images without their membership"),
    "repeated-residual": Entry("attacks.residual:RepeatedResidual", "residual of the mean posterior over queries under "
                               "a defense that draws noise"),
    "correctness": Entry("attacks.label_only:Correctness", "share of positions whose argmax is right; with "
                         "--references, minus theirs"),
    "gradient": Entry("attacks.gradient:GradientNorm", "minus the log norm of the gradient of the loss in the weights; "
                      "with --references, plus the mean of theirs (white box)"),
    "reconstruction": Entry("attacks.membership_error:ReconstructionError", "minus the error of the output"),
    "membership-error": Entry("attacks.membership_error:MembershipError", "reconstruction error, corrected by how "
                              "predictable an image is (Shafran et al.)"),
    "membership-error-weighted": Entry("attacks.membership_error:WeightedMembershipError", "the same, with a weight "
                                       "that is chosen on --population"),
    "membership-error-released": Entry("attacks.membership_error:ReleasedMembershipError", "the membership error as "
                                       "in their code"),
})

SETTINGS = ("floor", "score", "c", "offline-a", "weight", "features", "queries")  # flags that some attacks read

SCHEMES = ("random", "sliding", "rejection", "full")  # how the patches of an image are selected

REPRESENTATIONS = Table("representation", {
    "loss": Entry("attacks.representation:LOSS_MAP", "structured loss map"),
    "concate": Entry("attacks.representation:CONCATENATION", "posterior and one-hot label concatenated"),
    "log-concate": Entry("attacks.representation:LOG_CONCATENATION", "log-posterior and one-hot label concatenated"),
    "calibrated": Entry("attacks.calibrated_map:CALIBRATED_MAP", "loss map, and how it differs from that of reference "
                        "models"),
})


def build_attack(name: str, settings: "AttackSettings") -> "Attack":
    """Return the attack `name`. Raises `UserError` if `ATTACKS` has no such name, or if `settings` do not suit it."""
    return ATTACKS.load(name)(settings)


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags of the settings of attacks, and of the selection of patches."""
    own = flags.add_argument_group("settings of some attacks")
    own.add_argument("--score", choices=("paper", "release"), default="paper", help="--attack learned: score of an "
                       "image; paper: mean member probability; release: sum of member logits (default: paper)")
    own.add_argument("--floor", type=float, metavar="P", help="lower bound of posteriors before the logarithm "
                       "(default: that of the attacker, which is 1e-30 in the release; without an attacker 6e-8)")
    own.add_argument("--c", type=float, default=0.75, help="--attack calibrated, augmented and repeated: weight of "
                       "the references (default: 0.75)")
    own.add_argument("--offline-a", type=float, default=0.3, metavar="A", help="--attack rmia: how far the mean over "
                       "references is that over models that were trained on an image, too, 0 to 1 (default: 0.3)")
    own.add_argument("--queries", type=thousands, default=6, metavar="N", help="--attack augmented, agreement, "
                       "repeated and repeated-residual: number of queries about each image (default: 6)")
    own.add_argument("--weight", type=number(0), default=1.0, help="--attack membership-error: weight of the "
                       "predictability error (default: 1)")
    own.add_argument("--features", choices=FEATURES, default="efficientnet_lite0", help="--attack membership-error: "
                       f"{FEATURES.help()} (default: efficientnet_lite0)")
    own.add_argument("--pseudo-labels", action="store_true", help="attack without ground truth: the argmax of the "
                     "output that is attacked stands for it; for attacks that read a ground truth and posteriors")
    patches = flags.add_argument_group("patches")
    patches.add_argument("--select", choices=SCHEMES,
                         help="how patches are selected (default: random; full for a pixelwise attacker)")
    flag(patches, "num-patch", type=thousands, default=6, metavar="N", help="patches per image (default: 6)")
    flag(patches, "tau", type=number(0, 1), help="--select rejection: reject patches whose mean posterior of the "
         "labelled class is above this (default: that of the attacker, chosen on held-out shadow data; without an "
         "attacker 0.95)")
    patches.add_argument("--patch-size", type=thousands, help="side of a patch in positions (default: that of the "
                         "attacker, which is 90 in the release; without an attacker 24)")
