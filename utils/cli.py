"""What the scripts share as command lines: one-line errors, and flags with one dash or two."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A fault that the user can mend; its text names the file and says what to do."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end: its number, and how to go on."""

    def __init__(self, number: int, hint: str = "what was saved is whole"):
        super().__init__(number, hint)
        self.number, self.hint = number, hint


def flag(parser: argparse._ActionsContainer, name: str, **options) -> None:
    """Add an option under `-name` and `--name`: the release spells its flags with one dash."""
    parser.add_argument(f"-{name}", f"--{name}", **options)


def new_parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser whose --help shows `doc`, the docstring of the script, as it is written."""
    return argparse.ArgumentParser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def pick(args: argparse.Namespace, cls: type[T], **rest: object) -> T:
    """The dataclass `cls` with the arguments that have the names of its fields; `rest` are other fields."""
    given = {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
    return cls(**given | rest)


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


# Faults of the machine that PyTorch tells of in a RuntimeError, by what their text begins with or holds.
MACHINE = {
    "DataLoader worker": "a process that prepares images was killed, perhaps for want of memory; free some, or give "
                         "fewer --workers, and go on with --continue where a checkpoint was saved",
    "can't allocate memory": "there is not enough memory; give a smaller --batch, or free some",
    "CUDA out of memory": "the GPU has not enough memory; give a smaller --batch",
}


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and run `main`; what a user or the machine did wrong becomes one line on stderr.

    Exit code 2 then, and 128 + N when signal N ended the work.
    """
    _speak_utf8()
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
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
    except (MemoryError, RuntimeError) as error:
        text = str(error) or "can't allocate memory"
        meant = next((line for sign, line in MACHINE.items() if sign in text), None)
        if meant is None:
            raise
        sys.exit(_fail(parser.prog, meant, 2))
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        sys.exit(_fail(parser.prog, f"stopped; {stop.hint}", 128 + stop.number))


def _speak_utf8() -> None:
    """Let names of files be UTF-8 whatever the locale, since random streams and results depend on them."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)  # Python decides on this once, when it starts
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def _fail(program: str, message: str, code: int) -> int:
    """Say it in one line; a name from elsewhere cannot steer the terminal."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    print(f"{os.path.basename(program)}: error: {shown}", file=sys.stderr)
    return code
