"""What the owner of the target model does to its answers, so that they give away less (section 3.1).

A new defense of answers is one file with a subclass of `defenses.base.Defense`, and one line in `DEFENSES`.
"""

import argparse
from dataclasses import dataclass

from utils.cli import UserError, flag
from utils.tables import Entry, Table


@dataclass(frozen=True)
class DefenseEntry(Entry):
    """`strength`: how --help calls the number that the flag takes, None for a flag without one.

    `stage`: what the defense changes: the "output", the "query" (how the model computes it) or the "training".
    """

    strength: str | None = None
    stage: str = "output"


DEFENSES = Table("defense", {
    "argmax": DefenseEntry("defenses.argmax:Argmax", "the target model returns only the predicted label"),
    "gauss": DefenseEntry("defenses.gauss:Gauss", "Gaussian noise of this standard deviation on the posteriors (the "
                          "paper quotes the variance, STD squared)", "STD"),
    "test-dropout": DefenseEntry("defenses.dropout:Dropout", "at test time, each dropout layer of the target model "
                                 "drops this share of its inputs (the paper: 0.1, 0.5, 0.9)", "RATIO", "query"),
    "dpsgd": DefenseEntry("defenses.dpsgd", "the target model was trained by DPSGD", stage="training"),
})


@dataclass(frozen=True)
class DefenseSpec:
    """A defense of `DEFENSES` by name, or None, with its strength.

    `floor` is the clamp of Gauss, `seed` that of its noise.
    """

    name: str | None = None
    strength: float | None = None
    floor: float = 1e-6
    seed: int = 0

    def build(self) -> object:
        """The `defenses.base.Defense`; `UserError` for a strength that it cannot have."""
        from defenses.base import Defense

        if self.name is None or DEFENSES[self.name].stage == "training":
            return Defense(self)
        return DEFENSES.load(self.name)(self)

    @property
    def stage(self) -> str | None:
        """What the defense changes; None without a defense."""
        return self.name and DEFENSES[self.name].stage

    def describe(self) -> str | None:
        """Name and strength as results.json has them, e.g. `gauss 0.1`; None without a defense."""
        if self.name is None:
            return None
        name = self.name.replace("-", "_")
        return name if self.strength is None else f"{name} {self.strength:g}"


def add_flags(parser: argparse.ArgumentParser, training: bool = False) -> None:
    """A flag for each defense; they exclude one another. `training`: also those of training, as a choice of answers."""
    group = parser.add_argument_group("defense").add_mutually_exclusive_group()
    for name, entry in DEFENSES.items():
        if entry.stage == "training" and training:
            flag(group, name, action="store_true", help=f"{entry.about}: attack the stored posteriors pred_{name}")
        elif entry.stage != "training" and entry.strength is None:
            flag(group, name, action="store_true", help=entry.about)
        elif entry.stage != "training":
            flag(group, name, metavar=entry.strength, type=float, help=entry.about)
    parser.add_argument("--gauss-floor", type=float, default=1e-6, metavar="P", help="clamp noisy posteriors at this "
                        "from below: 1e-6 as in the release (default), 0 as in the paper")


def chosen(args: argparse.Namespace) -> DefenseSpec:
    """The defense that the flags of `add_flags` name."""
    if not 0 <= args.gauss_floor < 1:
        raise UserError(f"--gauss-floor {args.gauss_floor}: a posterior is between 0 and 1")
    for name in DEFENSES:
        value = getattr(args, name.replace("-", "_"), None)
        if value not in (None, False):
            return DefenseSpec(name, None if value is True else value, args.gauss_floor, args.seed)
    return DefenseSpec(None, None, args.gauss_floor, args.seed)
