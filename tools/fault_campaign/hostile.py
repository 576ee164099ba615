"""Checkpoints that lie: damaged, with values that have no business there, or made by hand to do harm."""

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
from reliability.mutators import mutate, mutate_zip, pack
from utils.checkpoints import FORMAT

MARK = "made-by-a-pickle"  # what a hostile pickle would create, in the folder of the process that opens it
LAUGHS = ["ha"] * 10
for _ in range(12):
    LAUGHS = [LAUGHS] * 10  # a small file, but 20 TB of text to whoever prints it

# Functions that no checkpoint may call, or not like this.
CALLS = ((os.mkdir, MARK), (os.system, f"touch {MARK}"), (builtins.open, MARK, "w"), (eval, f"open('{MARK}', 'w')"),
         (exec, f"open('{MARK}', 'w')"), (argparse.Namespace,), (getattr, dict, "keys"), (torch.save, 1, MARK),
         (np._core.multiarray._reconstruct, np.ndarray, (0,), b"b"), (io.FileIO, MARK, "w"), (bytearray, 2**40),
         (torch.Size, (2**62, 2**62)), (OrderedDict, LAUGHS), (torch._utils._rebuild_parameter, 1, True, {}))
# Tensors that claim what is not there: floats in their storage, of which there are 4; offset, shape, strides.
CLAIMS = ((1, 0, (2**20, 2**20), (2**20, 1)), (2**40, 0, (4,), (1,)), (2**62, 0, (2**62,), (1,)), (-1, 0, (4,), (1,)),
          (4, 2**40, (4,), (1,)), (4, 0, (64, 10**6, 3, 3), (0, 0, 0, 0)), (4, 0, (2**40,), (0,)), (4, -1, (4,), (1,)),
          (4, 0, (-4,), (1,)), (2**33, 0, (2**33,), (1,)), (4, 0, (4,), (-1,)), (4, 0, "ab", (1,)),
          (4, 0, (1,) * 70, (1,) * 70))
# Pickles that are deep, claim to be long, or are none.
PICKLES = (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", b"\x80\x04\x8d" + struct.pack("<Q", 2**61) + b"x.",
           b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
           b"\x80\xff.", b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".", b"\x80\x02(" * 1000 + b"t.", b".", b"")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *args: object):
        self.how = function, args

    def __reduce__(self) -> tuple:
        return self.how


class Storage:
    """Pickles as a storage of torch that claims `count` floats."""

    def __init__(self, key: str, count: int):
        self.id = "storage", torch.FloatStorage, key, "cpu", count


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> tuple | None:
        return value.id if isinstance(value, Storage) else None


def checkpoint_of(value: object, storages: dict[str, bytes], old: bool) -> bytes:
    """A checkpoint with this pickle and these storages, of the zip form or the old one, whether they fit or not."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    if not old:
        records = [("archive/data.pkl", file.getvalue()), ("archive/byteorder", b"little"), ("archive/version", b"3\n")]
        return pack(records + [(f"archive/data/{key}", data) for key, data in storages.items()])
    heads = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    ends = [struct.pack("<q", len(data) // 4) + data for data in storages.values()]
    pickles = [pickle.dumps(head, 2) for head in heads] + [file.getvalue(), pickle.dumps(list(storages), 2)]
    return b"".join(pickles + ends)


def tensor(key: str, count: int, offset: int, shape: tuple, strides: tuple) -> Call:
    """A tensor that claims a storage of `count` floats."""
    storage = Storage(key, count)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


def calling(way: tuple) -> dict:
    """A checkpoint whose only weight is a call."""
    return {"state_dict": {"conv1.0.weight": Call(*way)}}


def hostile(rng: np.random.Generator, old: bool) -> bytes:
    """A checkpoint by hand: calls of functions, tensors and storages larger than they are, thousands of them, nests."""
    way, storages = rng.integers(6), {"0": b"\0" * 16}
    if way == 0:
        lie = PICKLES[rng.integers(len(PICKLES))]
        return lie if old else pack([("archive/data.pkl", lie), ("archive/version", b"3\n")])
    if way == 1:
        storages = {str(number): b"\0" * 4 for number in range(int(rng.choice([10, 2000])))}
        weights = {f"w{key}": tensor(key, 1, 0, (1,), (1,)) for key in storages}
        return checkpoint_of({"state_dict": weights}, storages, old)
    if way < 4:
        return checkpoint_of(calling(CALLS[rng.integers(len(CALLS))]), storages, old)
    lie = tensor("0", *CLAIMS[rng.integers(len(CLAIMS))])
    name = str(rng.choice(["conv1.0.weight", "fc.bias", "module.classify.0.weight"]))
    content = {"state_dict": {name: lie}} if rng.random() < 0.7 else {"state_dict": {}, "format": lie}
    return checkpoint_of(content, storages, old)


def bomb() -> bytes:
    """A checkpoint of 13 MB whose only storage unpacks to 3 GB."""
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


def poison(rng: np.random.Generator) -> object:
    """A value that has no business where it will be put."""
    values = [None, -1, 0, 1, 7, 2**16, 2**31, 2**62, 10**30, float("nan"), float("inf"), 1e308, True, "", "x",
              "../../x", "\0", "x" * 10**5, [], {}, [1, 2, 3], {"a": 1}, {1: 2}, LAUGHS, [[]] * 5, "dpc", "pixelwise",
              "resnet50", "resnet152", "vit_giant_patch14_224", "hf-hub:a/b", torch.zeros(()), torch.zeros(3, 0),
              torch.zeros(1).expand(2**20, 2**20), torch.zeros(64, 1000, 3, 3), torch.ones(4).to(torch.complex64),
              torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.bool), torch.full((2,), float("nan"))]
    return values[rng.integers(len(values))]


def twist(checkpoint: dict, rng: np.random.Generator) -> dict:
    """A checkpoint with one or two values, anywhere in it, exchanged for others or taken out."""
    twisted = _copied(checkpoint)
    for _ in range(rng.integers(1, 3)):
        place = twisted
        while True:
            keys = [key for key in place if key != "state_dict" or rng.random() < 0.5] or [0]
            key = keys[rng.integers(len(keys))]
            if not isinstance(place.get(key), dict) or rng.random() < 0.15:
                break
            place = place[key]
        if rng.random() < 0.15:
            place.pop(key, None)
        else:
            place[key if rng.random() < 0.9 else 7] = poison(rng)
    return twisted


def _copied(value: object) -> object:
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, dict) else value


def saved(checkpoint: object, old: bool) -> bytes:
    """A checkpoint as torch writes it, in the zip form or the old one."""
    file = io.BytesIO()
    torch.save(checkpoint, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@cache
def checkpoints() -> list[dict]:
    """Pixelwise attackers, a segmentation model, what of a release checkpoint tells its kind, and a ResNet attacker."""
    torch.manual_seed(0)
    view = {"input": "concate", "size": 12, "floor": 6e-8, "void": "zero", "stride": 4, "argmax": False, "tau": 0.9}
    pixel = {"name": "attacker", "classes": 5, "arguments": {"arch": "pixelwise", "channels": 10, "width": 0.1}}
    patch = {"name": "attacker", "classes": 5, "arguments": {"arch": "resnet18", "channels": 1, "width": 0.125}}
    spec = {"name": "pspnet", "backbone": "resnet10t", "classes": 19, "output_stride": 8, "stages": 2, "width": 8,
            "dropout": 0.0, "auxiliary": False}
    own = [{"format": FORMAT, "model": model, "state_dict": build_attacker(**model["arguments"]).state_dict(),
            "view": {**view, "input": kind}} for model, kind in ((pixel, "concate"), (patch, "loss"))]
    victim = {"format": FORMAT, "model": spec, "state_dict": build_segmenter(spec).state_dict(), "epoch": 1,
              "dataset": "streets", "args": {"root": "data"}, "minutes": 0.0}
    return [own[0], own[0], own[0], victim, {"state_dict": {"module.conv1.0.weight": torch.zeros(64, 1, 3, 3)}}, own[1]]


@cache
def stored(old: bool) -> list[bytes]:
    """`checkpoints`, as files."""
    return [saved(one, old) for one in checkpoints()]


def checkpoint(rng: np.random.Generator, old: bool = False, own: dict | None = None) -> bytes:
    """A checkpoint that is damaged, twisted or hostile, of the zip form or the old one; made of `own`, if given."""
    one, two = rng.integers(len(checkpoints()), size=2)
    seed, way = own or checkpoints()[one], rng.random()
    if way < 0.2:
        return hostile(rng, old)
    if way < 0.5:
        return saved(twist(seed, rng), old)
    if way < 0.52:
        return saved({**seed, "state_dict": checkpoints()[two]["state_dict"]}, old)
    change = mutate_zip if way < 0.75 and not old else mutate
    return change(saved(own, old) if own else stored(old)[one], rng, stored(old)[two])
