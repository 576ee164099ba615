"""Command-line functions of all scripts: parsers, flags with one or two dashes, and one-line errors."""

import argparse
import io
import math
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import NoReturn, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """An error that the user can correct. Its message names the file or flag and says what to do."""


class Stopped(KeyboardInterrupt):
    """A signal stopped this process. `number`: the signal. `hint`: tells the user how to continue."""

    def __init__(self, number: int, hint: str = "files that were saved are complete"):
        super().__init__(number, hint)
        self.number, self.hint = number, hint


def new_parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """Create a parser whose help text starts with `doc`, the docstring of the script, and keeps its line breaks."""
    return _Parser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage. It refuses empty values, as of an unset shell variable."""

    def _get_values(self, action: argparse.Action, words: list[str]) -> object:
        if "" in words and action.default != "":
            raise argparse.ArgumentError(action, "the value is empty, perhaps because a variable of the shell is not "
                                         "set; give a value, or leave the flag out")
        return super()._get_values(action, words)

    def error(self, message: str) -> NoReturn:
        sys.exit(_print_error(self.prog, f"{message}; --help explains the flags", 2))


def flag(parser: argparse._ActionsContainer, name: str, **options) -> None:
    """Add an option as `-name` and `--name`: the authors' release writes its flags with one dash."""
    parser.add_argument(f"-{name}", f"--{name}", **options)


def pick(args: argparse.Namespace, cls: type[T], **rest: object) -> T:
    """Build the dataclass `cls` from the arguments that have the names of its fields. `rest`: other fields."""
    given = {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
    return cls(**given | rest)


def refuse_unused(args: argparse.Namespace, parser: argparse.ArgumentParser,
                  rules: Iterable[tuple[object, str, Iterable[str]]]) -> None:
    """Raise `UserError` if a flag was given that has no effect beside the others.

    `rules`: whether the rule holds; why its flags then have no effect, and what to do; its flags, such as
    `--cam-images`. A flag that is given with its default value passes.
    """
    for holds, why, flags in rules:
        for name in flags if holds else ():
            dest = parser._option_string_actions[name].dest
            if getattr(args, dest) != parser.get_default(dest):
                raise UserError(f"{name} has no effect {why}")


def number(low: float, high: float = math.inf, kind: type = float) -> Callable[[str], float]:
    """Argument type: a finite number of `kind` (float or int) from `low` to `high`."""
    def convert(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            raise argparse.ArgumentTypeError(
                f"{text} must be {low} or more" if high == math.inf else f"{text} must be between {low} and {high}")
        return value

    convert.__name__ = kind.__name__  # argparse names it where the text is no number
    return convert


positive, thousands = number(1, 10**6, int), number(1, 10_000, int)
natural = number(0, 2**63 - 1, int)  # as seeds are


def add_run_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """Add the flags of every script that computes something: device, precision, seed and output folder."""
    flag(parser, "gpu", metavar="ID", type=int, help="CUDA device (default: the first one; without CUDA the CPU)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="fp32: no autocast; bf16: bf16 autocast; auto: the faster one for the network on this "
                        "machine, measured once, and fp32 without bf16 units (default: auto)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of all random choices (default: 0)")
    parser.add_argument("--out", metavar="DIR", help=f"output folder (default: runs/{stage}-N with the next free N)")


# Part of the text of a RuntimeError -> message for the user. PyTorch raises RuntimeError for these machine errors.
MACHINE_ERRORS = {
    "DataLoader worker": "a process that loads images was killed, perhaps because memory ran out; free memory or lower "
                         "--workers, then resume with --continue if a checkpoint was saved",
    "can't allocate memory": "memory ran out; lower --batch or free memory",
    "CUDA out of memory": "GPU memory ran out; lower --batch",
}


AFTER_SUCCESS: list[Callable[[], None]] = []  # `run` calls these functions after `main` returned without an error


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and call `main`. Errors of the user or the machine become one line on stderr.

    Exit code: 2 after an error, 128 + N after signal N.
    """
    _use_utf8()
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _raise_stopped)
    try:
        main(args)
        for call in AFTER_SUCCESS:
            call()
        sys.stdout.flush()
    except UserError as error:
        # An error in a DataLoader worker arrives with its traceback; the last line is the message.
        lines = str(error).strip().splitlines()
        text = lines[-1].removeprefix("utils.cli.UserError: ") if "Traceback" in str(error) else " ".join(lines)
        sys.exit(_print_error(parser.prog, text, 2))
    except ConnectionError:
        if _reader_has_ended():
            sys.exit(_print_error(parser.prog, "stopped, because the program that read the output has ended", 2))
        # a killed worker may close its pipe before the DataLoader notices
        sys.exit(_print_error(parser.prog, MACHINE_ERRORS["DataLoader worker"], 2))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(_print_error(parser.prog, f"{error.strerror or error}{where}", 2))
    except (MemoryError, RuntimeError) as error:
        text = str(error) or "can't allocate memory"
        message = next((message for part, message in MACHINE_ERRORS.items() if part in text), None)
        if message is None:
            traceback.print_exc()
            sys.exit(2)
        sys.exit(_print_error(parser.prog, message, 2))
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        sys.exit(_print_error(parser.prog, f"stopped; {stop.hint}", 128 + stop.number))
    except Exception:  # our error, which is shown whole; Python's own exit code 1 is that of a condition of audit.py
        traceback.print_exc()
        sys.exit(2)


def _reader_has_ended() -> bool:
    """Whether stdout is a pipe that nobody reads, as after `| head`. If so, Python does not write to it at its end."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _use_utf8() -> None:
    """Read file names as UTF-8 in every locale, because random streams, and so results, depend on them."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)  # restart: Python chooses the encoding only at its start
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _raise_stopped(number: int, _: object) -> None:
    raise Stopped(number)


def _print_error(program: str, message: str, code: int) -> int:
    """Print an error in one line and return `code`. Control characters are escaped: file names may contain them."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    print(f"{os.path.basename(program)}: error: {shown}", file=sys.stderr)
    return code
