"""What the owner of the victim does to a posterior before giving it away. One file a defense."""

import argparse

from utils.cli import flag


def add_flags(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Flags of the defenses, which exclude one another; returns their group."""
    group = parser.add_argument_group("defense").add_mutually_exclusive_group()
    flag(group, "argmax", action="store_true", help="only the predicted label leaves the victim")
    flag(group, "gauss", metavar="STD", type=float, help="Gaussian noise of this standard deviation on the posteriors "
         "(the paper quotes the variance, STD squared)")
    flag(group, "test-dropout", metavar="RATIO", type=float, help="the victim is asked with this share dropped in "
         "each of its dropout layers (the paper: 0.1, 0.5, 0.9)")
    parser.add_argument("--gauss-floor", type=float, default=1e-6, metavar="P", help="clamp noisy posteriors at this "
                        "from below: 1e-6 as in the release (default), 0 as in the paper")
    return group


def describe(args: argparse.Namespace) -> str | None:
    """The defense that the flags ask for, with its strength, or None."""
    for name in ("argmax", "gauss", "test_dropout", "dpsgd"):
        value = getattr(args, name, None)
        if value not in (None, False):
            return name if value is True else f"{name} {value:g}"
    return None
