"""The results of a scale: cells, metrics of models, sizes. Each is a JSON file, alone or with others of its folder.

A new result is a file of its own, FOLDER/NAME.json. `python -m reproduce.pack` moves those of a folder to one file,
FOLDER/all.jsonl, with one result a line, because thousands of small files take twice their size on a disk. Where both
exist, the file of its own counts.
"""

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from utils.files import atomic_open, read_json, reading

TOGETHER = "all.jsonl"


def has_result(path: Path, exists: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether there is a result FOLDER/NAME.json, as a file of its own or not. `exists` checks a path."""
    return exists(path) or (exists(path.with_name(TOGETHER)) and path.stem in _together(path.parent))


def is_packed(path: Path) -> bool:
    """Whether there is a result FOLDER/NAME.json, but no file of its own."""
    return has_result(path) and not path.exists()


def read_result(path: Path) -> dict:
    """The result FOLDER/NAME.json. Raises `UserError` if there is none."""
    return _together(path.parent)[path.stem] if is_packed(path) else read_json(path)


def pack_results(paths: Iterable[Path]) -> int:
    """Move those of the results that are files of their own to the common files of their folders; return how many."""
    by_folder: dict[Path, list[Path]] = {}
    for path in filter(Path.exists, paths):
        by_folder.setdefault(path.parent, []).append(path)
    for folder, alone in by_folder.items():
        common = folder / TOGETHER
        results = (_together(folder) if common.exists() else {}) | {path.stem: read_json(path) for path in alone}
        lines = (json.dumps({name: results[name]}, separators=(",", ":"), allow_nan=False) for name in sorted(results))
        with atomic_open(common, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
        for path in alone:
            path.unlink()
    return sum(map(len, by_folder.values()))


def _together(folder: Path) -> dict[str, dict]:
    path = folder / TOGETHER
    return _read_version(path, path.stat().st_mtime_ns)


@lru_cache
def _read_version(path: Path, changed: int) -> dict[str, dict]:
    """A common file. `changed`: the time of its last change, so that a file that has changed is read again."""
    with reading(path, "JSON file"), path.open(encoding="utf-8") as file:
        return {name: result for line in file for name, result in json.loads(line).items()}
