"""Attacks: compute a membership score from the output of a model and its ground truth.

No module here reads a file or imports a data set.

A new attack is one file with a subclass of `attacks.sample.Attack`, and one line in `ATTACKS`. A new representation is
one file with an `attacks.representation.Representation`, and one line in `REPRESENTATIONS`.
"""

from typing import TYPE_CHECKING

from utils.tables import Entry, Table

if TYPE_CHECKING:
    from attacks.sample import Attack, AttackSettings

ATTACKS = Table("attack", {
    "learned": Entry("attacks.learned:LearnedAttack", "the attacker of -resume, on patches"),
    "confidence": Entry("attacks.thresholds:ConfidenceThreshold", "mean of the largest posterior (Salem et al.)"),
    "loss": Entry("attacks.thresholds:LossThreshold", "mean of minus the loss (Sablayrolles et al.)"),
    "calibrated": Entry("attacks.calibrated:CalibratedScore", "log-posterior minus c times that of --references"),
    "reconstruction": Entry("attacks.membership_error:ReconstructionError", "minus the error of the output"),
    "membership-error": Entry("attacks.membership_error:MembershipError", "reconstruction error, corrected by how "
                              "predictable an image is (Shafran et al.)"),
    "membership-error-released": Entry("attacks.membership_error:ReleasedMembershipError", "the same as in their code"),
})

SETTINGS = ("floor", "score", "c", "weight", "features")  # flags that some attacks read

SCHEMES = ("random", "sliding", "rejection", "full")  # how the patches of an image are selected

REPRESENTATIONS = Table("representation", {
    "loss": Entry("attacks.representation:LOSS_MAP", "structured loss map"),
    "concate": Entry("attacks.representation:CONCATENATION", "posterior and one-hot label concatenated"),
})


def build_attack(name: str, settings: "AttackSettings") -> "Attack":
    """Return the attack `name`. Raises `UserError` if `ATTACKS` has no such name, or if `settings` do not suit it."""
    return ATTACKS.load(name)(settings)
