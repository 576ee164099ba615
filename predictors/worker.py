"""The program that loads a file that can run code, and answers for it; `predictors.own_process` starts it.

    python -P worker.py {torchscript,exported,python} FILE DEVICE [FUNCTION]

It reads arrays from stdin and writes one array for each to stdout: 8 bytes, the length of a .npy file (little-endian),
and this file, without pickles. It imports nothing of this project, so that FILE may have modules named like ours.
"""

import importlib.util
import io
import os
import sys
from collections.abc import Callable

import numpy as np


def load(kind: str, file: str, device: str, function: str = "") -> Callable[[np.ndarray], object]:
    """The function of an array that FILE holds: a network in `device` with a batch of one, or FUNCTION of the file."""
    if kind == "python":
        sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
        spec = importlib.util.spec_from_file_location("audited", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return getattr(module, function)
    import torch

    if kind == "torchscript":
        network = torch.jit.load(file, map_location=device).eval()
    else:
        network = torch.export.load(file).module().to(device)
    return torch.inference_mode()(lambda image: network(torch.from_numpy(image)[None].to(device)))


def to_array(output: object) -> np.ndarray:
    """The first array of an output: of the key "out", if it is a mapping with this key, or the first of several."""
    while isinstance(output, (dict, list, tuple)):
        output = output.get("out", next(iter(output.values()))) if isinstance(output, dict) else output[0]
    if hasattr(output, "detach"):  # a tensor of PyTorch, whose bfloat16 NumPy does not have
        output = output.detach().cpu()
        output = (output.float() if output.is_floating_point() else output).numpy()
    return np.asarray(output)


def main() -> None:
    # What FILE prints must not get between the answers, so stdout becomes stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = load(*sys.argv[1:])
    while size := sys.stdin.buffer.read(8):
        image = np.load(io.BytesIO(sys.stdin.buffer.read(int.from_bytes(size, "little"))), allow_pickle=False)
        content = io.BytesIO()
        np.save(content, to_array(model(image)), allow_pickle=False)
        answers.write(content.tell().to_bytes(8, "little") + content.getvalue())
        answers.flush()


if __name__ == "__main__":
    main()
