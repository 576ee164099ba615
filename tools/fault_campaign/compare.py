"""Read the result files of runs, and find broken files and differences between two runs."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def result_files(folder: Path) -> list[Path]:
    """Relative paths of the files that must be complete: all but TensorBoard events, locks and `*.partial` files."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in paths
            if path.suffix != ".partial" and path.name != ".lock" and "events" not in path.parts]


def read_result(path: Path) -> object:
    """The content of a result file without minutes and arguments, which differ between runs.

    Raises an exception of any kind if the file is incomplete.
    """
    if path.name.endswith(".pth.tar"):
        checkpoint = torch.load(path, weights_only=True)
        return {key: _comparable(value) for key, value in checkpoint.items() if key not in ("args", "minutes")}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}
    data = path.read_bytes()
    if path.suffix == ".json":
        return None if path.name == "args.json" and json.loads(data) else {**json.loads(data), "minutes": 0}
    if path.suffix == ".npy":
        np.load(path)
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".jsonl":
        for line in data.splitlines():
            json.loads(line)
    elif path.suffix in (".csv", ".txt") and not data.endswith(b"\n"):
        raise ValueError("the last line has no end")
    return data


def _comparable(value: object) -> object:
    """The value with tensors replaced by dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _comparable(part) for key, part in value.items()}
    return [_comparable(part) for part in value] if isinstance(value, list | tuple) else value


def broken_files(folder: Path) -> list[str]:
    """One message for each incomplete file in `folder`."""
    return list(filter(None, (_problem(path, folder) for path in result_files(folder))))


def differences(first: Path, second: Path) -> list[str]:
    """One message for each result file that differs between two folders, or is incomplete or missing in one of them."""
    files = [{path for path in result_files(folder) if "unfinished" not in path.parts} for folder in (first, second)]
    problems = [f"{path} exists in one of the two folders only" for path in sorted(files[0] ^ files[1])]
    return problems + list(filter(None, (_problem(path, first, second) for path in sorted(files[0] & files[1]))))


def _problem(path: Path, *folders: Path) -> str:
    """A message if `path` is incomplete in one of the folders or differs between them, else an empty text."""
    try:
        contents = [read_result(folder / path) for folder in folders]
    except Exception as error:
        return f"{path} is incomplete: {type(error).__name__}: {error}"[:300]
    if contents[0] == contents[-1]:
        return ""
    first, second = contents
    keys = [key for key in first if first[key] != second.get(key)] if isinstance(first, dict) else ""
    return f"{path} differs {keys}"
