"""Tables of named choices: attacks, predictors, defenses, representations, data sets and models."""

import importlib
from dataclasses import dataclass

from utils.cli import UserError


@dataclass(frozen=True)
class Entry:
    """One line of a table. `where`: place of the definition, as `module:name`; `about`: its description in --help."""

    where: str
    about: str


class Table(dict[str, Entry]):
    """Name -> entry. `load` imports the module of an entry, so --help does not import any of these modules."""

    def __init__(self, kind: str, entries: dict[str, Entry]):
        super().__init__(entries)
        self.kind = kind

    def load(self, name: object) -> object:
        """Import the module of `name` and return the object. Raises `UserError` if the table has no such name."""
        if not isinstance(name, str) or name not in self:
            raise UserError(f"there is no {self.kind} {str(name)[:40]!r}; there are {', '.join(self)}")
        module, _, attribute = self[name].where.partition(":")
        module = importlib.import_module(module)
        return getattr(module, attribute) if attribute else module

    def help(self) -> str:
        """The names with their descriptions, for --help."""
        return "; ".join(f"{name}: {entry.about}" for name, entry in self.items())
