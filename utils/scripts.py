"""Scripts that run in this process, which saves the time of the imports of a new one."""

import runpy
import sys
from collections.abc import Sequence

from utils.distributed import WARNED
from utils.files import ROOT


def run_script(words: Sequence[str]) -> None:
    """Run a script of the project with its arguments, `words`. Raises `SystemExit` if it fails."""
    before = sys.argv
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    WARNED.clear()  # as in a new process
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = before
