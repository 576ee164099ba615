"""What the owner of the victim does to a posterior before giving it away. One file a defense."""

import argparse

from utils.cli import flag


def add_flags(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Flags of the defenses, which exclude one another; returns their group."""
    group = parser.add_argument_group("defense").add_mutually_exclusive_group()
    flag(group, "argmax", action="store_true", help="only the predicted label leaves the victim")
    flag(group, "gauss", metavar="STD", type=float, help="Gaussian noise of this standard deviation on the posteriors "
         "(the paper quotes the variance, STD squared)")
    parser.add_argument("--gauss-floor", type=float, default=1e-6, metavar="P", help="clamp noisy posteriors at this "
                        "from below: 1e-6 as in the release (default), 0 as in the paper")
    return group
