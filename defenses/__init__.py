"""Defenses of a target model against membership inference (section 3.1).

A new defense is one file with a subclass of `defenses.base.Defense`, and one line in `DEFENSES`.
"""

import argparse
from dataclasses import dataclass

from utils.cli import UserError, flag
from utils.tables import Entry, Table


@dataclass(frozen=True)
class DefenseEntry(Entry):
    """A defense in `DEFENSES`.

    `strength`: name in --help of the number that the flag takes; None if it takes no number. `stage`: what the defense
    changes, "output", "query" (how the model computes the output) or "training".
    """

    strength: str | None = None
    stage: str = "output"


DEFENSES = Table("defense", {
    "argmax": DefenseEntry("defenses.argmax:Argmax", "the target model returns only the predicted label"),
    "gauss": DefenseEntry("defenses.gauss:Gauss", "add Gaussian noise of this standard deviation to the output "
                          "(the paper gives the variance, STD squared)", "STD"),
    "rounding": DefenseEntry("defenses.rounding:Rounding", "round the output to multiples of this step", "STEP"),
    "top-k": DefenseEntry("defenses.top_k:TopK", "keep the K largest posteriors of each position", "K"),
    "temperature": DefenseEntry("defenses.temperature:Temperature", "divide the logits of the output by T", "T"),
    "jpeg": DefenseEntry("defenses.jpeg:Jpeg", "compress translated images by JPEG of this quality, 1 to 95",
                         "QUALITY"),
    "test-dropout": DefenseEntry("defenses.dropout:Dropout", "at test time, each dropout layer of the target model "
                                 "drops this share of its inputs (the paper: 0.1, 0.5, 0.9)", "RATIO", "query"),
    "dpsgd": DefenseEntry("defenses.dpsgd", "the target model was trained by DPSGD", stage="training"),
})


@dataclass(frozen=True)
class DefenseSpec:
    """Name and strength of a defense of `DEFENSES`; the name None means no defense.

    `floor`: lower bound of the noisy posteriors of Gauss; `seed`: seed of Gauss and of dropout.
    """

    name: str | None = None
    strength: float | None = None
    floor: float = 1e-6
    seed: int = 0

    def build(self) -> object:
        """Build the `defenses.base.Defense`. Raises `UserError` for a strength that the defense does not allow."""
        from defenses.base import Defense

        if self.name is None or DEFENSES[self.name].stage == "training":
            return Defense(self)
        return DEFENSES.load(self.name)(self)

    @property
    def stage(self) -> str | None:
        """Which stage the defense changes ("output", "query" or "training"); None without a defense."""
        return self.name and DEFENSES[self.name].stage

    def describe(self) -> str | None:
        """Name and strength as written to results.json, e.g. `gauss 0.1`; None without a defense."""
        if self.name is None:
            return None
        name = self.name.replace("-", "_")
        return name if self.strength is None else f"{name} {self.strength:g}"


def add_flags(parser: argparse.ArgumentParser, training: bool = False) -> None:
    """Add a flag for each defense; at most one may be given. `training`: also add the flags of training defenses,
    which select the stored posteriors of a victim that was trained with them, and --defend-references.
    """
    group = parser.add_argument_group("defense").add_mutually_exclusive_group()
    for name, entry in DEFENSES.items():
        if entry.stage == "training" and training:
            flag(group, name, action="store_true", help=f"{entry.about}: attack the stored posteriors pred_{name}")
        elif entry.stage != "training" and entry.strength is None:
            flag(group, name, action="store_true", help=entry.about)
        elif entry.stage != "training":
            flag(group, name, metavar=entry.strength, type=float, help=entry.about)
    parser.add_argument("--gauss-floor", type=float, default=1e-6, metavar="P", help="lower bound of the posteriors "
                        "after -gauss: 1e-6 as in the release (default), 0 as in the paper")
    if training:
        parser.add_argument("--defend-references", action="store_true", help="the attacker knows the defense: the "
                            "models of --references answer under the same one")


def chosen(args: argparse.Namespace) -> DefenseSpec:
    """The defense that the flags of `add_flags` choose. Raises `UserError` for a wrong --gauss-floor."""
    if not 0 <= args.gauss_floor < 1:
        raise UserError(f"--gauss-floor {args.gauss_floor}: must be 0 or more, and less than 1")
    for name in DEFENSES:
        value = getattr(args, name.replace("-", "_"), None)
        if value is not None and value is not False:  # 0 == False, and 0 is a strength
            return DefenseSpec(name, None if value is True else value, args.gauss_floor, args.seed)
    return DefenseSpec(None, None, args.gauss_floor, args.seed)
