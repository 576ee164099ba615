"""What the scripts share as command lines: one-line errors, and flags with one dash or two."""

import argparse
import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """A fault that the user can mend; its text names the file and says what to do."""


def flag(parser: argparse._ActionsContainer, name: str, **options) -> None:
    """Add an option under `-name` and `--name`: the release spells its flags with one dash."""
    parser.add_argument(f"-{name}", f"--{name}", **options)


def positive(text: str) -> int:
    """Argument type: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def add_run_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """Flags of every script that computes something: device, precision, seed and where the run is written."""
    flag(parser, "gpu", metavar="ID", type=int, help="CUDA device (default: the first one, else the CPU)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="bf16 autocast where the processor has bf16 units (auto), always, or never (fp32)")
    parser.add_argument("--seed", type=int, default=0, help="every random choice derives from it (default: 0)")
    parser.add_argument("--out", metavar="DIR", help=f"folder of this run (default: the next free runs/{stage}-N)")


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and run `main`; a `UserError` becomes one line on stderr and exit code 2."""
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(args)
    except UserError as error:
        # An error in a worker of a DataLoader comes with its traceback; its last line is ours.
        lines = str(error).strip().splitlines()
        text = lines[-1].removeprefix("utils.cli.UserError: ") if "Traceback" in str(error) else " ".join(lines)
        sys.exit(_fail(parser.prog, text, 2))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(_fail(parser.prog, f"{error.strerror or error}{where}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail(parser.prog, "stopped; what was saved is whole", 130))


def _fail(program: str, message: str, code: int) -> int:
    print(f"{os.path.basename(program)}: error: {message}", file=sys.stderr)
    return code
