"""Malformed and hostile checkpoints: damaged files, wrong values, and files that are made to do harm."""

import argparse
import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from models import build_segmenter
from models.attacker import build_attacker
from tools.fault_campaign.mutators import mutate, mutate_zip, pack
from utils.checkpoints import FORMAT

MARK = "made-by-a-pickle"  # name of the file or folder that a hostile pickle creates if its function is called
NESTED = ["ha"] * 10
for _ in range(12):
    NESTED = [NESTED] * 10  # the pickle is small, but printing the value would give 20 TB of text

# Calls that no checkpoint may make: (function, arguments).
CALLS = ((os.mkdir, MARK), (os.system, f"touch {MARK}"), (builtins.open, MARK, "w"), (eval, f"open('{MARK}', 'w')"),
         (exec, f"open('{MARK}', 'w')"), (argparse.Namespace,), (getattr, dict, "keys"), (torch.save, 1, MARK),
         (np._core.multiarray._reconstruct, np.ndarray, (0,), b"b"), (io.FileIO, MARK, "w"), (bytearray, 2**40),
         (torch.Size, (2**62, 2**62)), (OrderedDict, NESTED), (torch._utils._rebuild_parameter, 1, True, {}))
# Tensors that do not fit their storage of 4 floats: (claimed number of floats, offset, shape, strides).
CLAIMS = ((1, 0, (2**20, 2**20), (2**20, 1)), (2**40, 0, (4,), (1,)), (2**62, 0, (2**62,), (1,)), (-1, 0, (4,), (1,)),
          (4, 2**40, (4,), (1,)), (4, 0, (64, 10**6, 3, 3), (0, 0, 0, 0)), (4, 0, (2**40,), (0,)), (4, -1, (4,), (1,)),
          (4, 0, (-4,), (1,)), (2**33, 0, (2**33,), (1,)), (4, 0, (4,), (-1,)), (4, 0, "ab", (1,)),
          (4, 0, (1,) * 70, (1,) * 70))
# Pickles that are deeply nested, claim a large size, or are invalid.
PICKLES = (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", b"\x80\x04\x8d" + struct.pack("<Q", 2**61) + b"x.",
           b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
           b"\x80\xff.", b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".", b"\x80\x02(" * 1000 + b"t.", b".", b"")


class Call:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function: Callable, *args: object):
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class Storage:
    """An object whose pickle is a storage of torch that claims `count` floats."""

    def __init__(self, key: str, count: int):
        self.id = "storage", torch.FloatStorage, key, "cpu", count


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> tuple | None:
        return value.id if isinstance(value, Storage) else None


def checkpoint_of(value: object, storages: dict[str, bytes], old: bool) -> bytes:
    """A checkpoint with this pickle and these storages, as a zip or in the old form. They need not fit each other."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    if not old:
        records = [("archive/data.pkl", file.getvalue()), ("archive/byteorder", b"little"), ("archive/version", b"3\n")]
        return pack(records + [(f"archive/data/{key}", data) for key, data in storages.items()])
    headers = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    contents = [struct.pack("<q", len(data) // 4) + data for data in storages.values()]
    pickles = [pickle.dumps(header, 2) for header in headers] + [file.getvalue(), pickle.dumps(list(storages), 2)]
    return b"".join(pickles + contents)


def tensor(key: str, count: int, offset: int, shape: tuple, strides: tuple) -> Call:
    """A tensor whose storage claims `count` floats."""
    storage = Storage(key, count)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


def handmade(rng: np.random.Generator, old: bool) -> bytes:
    """A checkpoint that calls functions, has wrong tensors, thousands of storages, or an invalid pickle."""
    way, storages = rng.integers(6), {"0": b"\0" * 16}
    if way == 0:
        data = PICKLES[rng.integers(len(PICKLES))]
        return data if old else pack([("archive/data.pkl", data), ("archive/version", b"3\n")])
    if way == 1:
        storages = {str(number): b"\0" * 4 for number in range(int(rng.choice([10, 2000])))}
        weights = {f"w{key}": tensor(key, 1, 0, (1,), (1,)) for key in storages}
        return checkpoint_of({"state_dict": weights}, storages, old)
    if way < 4:
        call = Call(*CALLS[rng.integers(len(CALLS))])
        return checkpoint_of({"state_dict": {"conv1.0.weight": call}}, storages, old)
    wrong = tensor("0", *CLAIMS[rng.integers(len(CLAIMS))])
    name = str(rng.choice(["conv1.0.weight", "fc.bias", "module.classify.0.weight"]))
    content = {"state_dict": {name: wrong}} if rng.random() < 0.7 else {"state_dict": {}, "format": wrong}
    return checkpoint_of(content, storages, old)


def zip_bomb() -> bytes:
    """A checkpoint of 13 MB with one storage that is 3 GB when it is unpacked."""
    file, zeros, total = io.BytesIO(), bytes(2**26), 3 * 2**30
    weight = tensor("0", total // 4, 0, (total // 4,), (1,))
    small = io.BytesIO(checkpoint_of({"state_dict": {"conv1.0.weight": weight}}, {}, False))
    with (zipfile.ZipFile(small) as source,
          zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as large):
        for entry in source.infolist():
            large.writestr(entry, source.read(entry))
        with large.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(total // len(zeros)):
                record.write(zeros)
    return file.getvalue()


def wrong_value(rng: np.random.Generator) -> object:
    """A value of a wrong type, size or meaning for most fields of a checkpoint."""
    values = [None, -1, 0, 1, 7, 2**16, 2**31, 2**62, 10**30, float("nan"), float("inf"), 1e308, True, "", "x",
              "../../x", "\0", "x" * 10**5, [], {}, [1, 2, 3], {"a": 1}, {1: 2}, NESTED, [[]] * 5, "dpc", "pixelwise",
              "resnet50", "resnet152", "vit_giant_patch14_224", "hf-hub:a/b", torch.zeros(()), torch.zeros(3, 0),
              torch.zeros(1).expand(2**20, 2**20), torch.zeros(64, 1000, 3, 3), torch.ones(4).to(torch.complex64),
              torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.bool), torch.full((2,), float("nan"))]
    return values[rng.integers(len(values))]


def replace_values(checkpoint: dict, rng: np.random.Generator) -> dict:
    """A copy of a checkpoint with one or two values replaced or deleted, at any depth."""
    changed = _copied(checkpoint)
    for _ in range(rng.integers(1, 3)):
        parent = changed
        while True:
            keys = [key for key in parent if key != "state_dict" or rng.random() < 0.5] or [0]
            key = keys[rng.integers(len(keys))]
            if not isinstance(parent.get(key), dict) or rng.random() < 0.15:
                break
            parent = parent[key]
        if rng.random() < 0.15:
            parent.pop(key, None)
        else:
            parent[key if rng.random() < 0.9 else 7] = wrong_value(rng)
    return changed


def _copied(value: object) -> object:
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, dict) else value


def to_bytes(checkpoint: object, old: bool) -> bytes:
    """A checkpoint file as `torch.save` writes it, as a zip or in the old form."""
    file = io.BytesIO()
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@cache
def checkpoints() -> list[dict]:
    """Pixelwise attackers (three times), a segmentation model, a part of a release checkpoint, a ResNet attacker."""
    torch.manual_seed(0)
    view = {"input": "concate", "size": 12, "floor": 6e-8, "void": "zero", "stride": 4, "argmax": False, "tau": 0.9}
    pixel = {"name": "attacker", "classes": 5, "arguments": {"arch": "pixelwise", "channels": 10, "width": 0.1}}
    patch = {"name": "attacker", "classes": 5, "arguments": {"arch": "resnet18", "channels": 1, "width": 0.125}}
    spec = {"name": "pspnet", "backbone": "resnet10t", "classes": 19, "output_stride": 8, "stages": 2, "width": 8,
            "dropout": 0.0, "auxiliary": False}
    attackers = [{"format": FORMAT, "model": model, "state_dict": build_attacker(**model["arguments"]).state_dict(),
                  "view": {**view, "input": kind}} for model, kind in ((pixel, "concate"), (patch, "loss"))]
    victim = {"format": FORMAT, "model": spec, "state_dict": build_segmenter(spec).state_dict(), "epoch": 1,
              "dataset": "streets", "args": {"root": "data"}, "minutes": 0.0}
    release = {"state_dict": {"module.conv1.0.weight": torch.zeros(64, 1, 3, 3)}}
    return [*attackers[:1] * 3, victim, release, attackers[1]]


@cache
def checkpoint_files(old: bool) -> list[bytes]:
    """The contents of the files of `checkpoints`."""
    return [to_bytes(checkpoint, old) for checkpoint in checkpoints()]


def checkpoint(rng: np.random.Generator, old: bool = False, original: dict | None = None) -> bytes:
    """A malformed checkpoint file, as a zip or in the old form: `original` or one of `checkpoints`, with changes."""
    first, second = rng.integers(len(checkpoints()), size=2)
    valid, way = original or checkpoints()[first], rng.random()
    if way < 0.2:
        return handmade(rng, old)
    if way < 0.5:
        return to_bytes(replace_values(valid, rng), old)
    if way < 0.52:
        return to_bytes({**valid, "state_dict": checkpoints()[second]["state_dict"]}, old)
    change = mutate_zip if way < 0.75 and not old else mutate
    data = to_bytes(original, old) if original else checkpoint_files(old)[first]
    return change(data, rng, checkpoint_files(old)[second])
