"""The forms of scale files, and how each is read. The rules of a form are in reproduce/FORM.smk.

A new form is one file with a class that has the attributes and methods that Snakefile and `reproduce.measure` read, one
with its report, one with its rules, and one line in `FORMS`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reproduce.packed import has_result
from reproduce.plan import load_keys
from utils.tables import Entry, Table

FORMS = Table("form", {
    "table-two": Entry("reproduce.plan:read_scale", "table 2 and the figures of the first paper"),
    "table-one": Entry("reproduce.table_one:read_table_one", "table 1 of the second paper"),
    "rotations": Entry("reproduce.rotations:read_rotations", "a bed of models in which every image is a member once "
                       "and a non-member once"),
})


def form_of(path: str | Path) -> str:
    """The form of a scale file, which its key `form` names; by default table 2 of the first paper."""
    return load_keys(path)[1].get("form", "table-two")


def read(path: str | Path, again: int = 0) -> object:
    """Read a scale file of any form. `again`: another training of table 2."""
    form = form_of(path)
    return FORMS.load(form)(path, again) if form == "table-two" else FORMS.load(form)(path)


def results_of(scale: Any) -> list[Path]:
    """The files of all results of a scale: its cells, the metrics of its models, and for table 1 their sizes."""
    names = [*scale.cells, *(f"{folder}/{model}" for folder in scale.OF_MODELS for model in scale.models)]
    return [scale.results / f"{name}.json" for name in names]


def missing_cells(scale: Any, cells: Iterable[Any]) -> list[Any]:
    """Those of the cells that have no result."""
    return [cell for cell in cells if not has_result(scale.results / f"{cell.name}.json")]


def batches(scale: Any) -> dict[str, Sequence[Any]]:
    """The cells of a scale by the name of the process that measures them."""
    found: dict[str, list] = {}
    for cell in scale.cells.values():
        found.setdefault(scale.batch_of(cell), []).append(cell)
    return found
