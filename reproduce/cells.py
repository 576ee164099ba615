"""A cell: the small JSON file of one run of attack.py, from which tables and figures are made.

A cell has the metrics of the run, the hashes of its victim and attacker, and the score of each image, sorted by the
name of the image. So paired differences of any two attacks on the same victim can be computed without the runs.
"""

import base64
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.metrics import compute_metrics
from evaluation.stored_scores import read_paired, read_patches, read_scores
from utils.arrays import read_npz
from utils.cli import UserError
from utils.files import read_json, write_json

PACKED = {"float32": "<f4", "float16": "<f2"}  # how the text of `pack` begins, and the type of its numbers
KEPT = ("image", "patch", "balanced", "chance", "members", "non_members", "blocks", "patches", "tau", "miou", "defense",
        "cam", "controls")


def write_cell(folder: Path, into: Path, images: Path, curve: Sequence[int] = (), patches: bool = False,
               maps: bool = False, kept: Sequence[str] = KEPT) -> None:
    """Write the cell of a run to `into`.

    `images`: file with the images of the setting, which all its cells share; `curve`: for each of these numbers N, add
    the metrics of the first N patches of each image; `patches`: add the scores of single patches; `maps`: add the maps
    of the first member that the run has drawn; `kept`: the results that the cell has.
    """
    results, arguments = read_json(folder / "results.json"), read_json(folder / "args.json")
    if not arguments["args"].get("victim"):
        raise UserError(f"{folder} is no run of a cell: its attack had no victim; give attack.py --victim")
    (scores,), member, group = read_paired([folder])
    write_or_check_images(images, folder, member, group)
    cell = {key: results[key] for key in kept if key in results}
    if results.get("patches") == len(scores) and not patches:
        cell.pop("patch", None)  # the metrics of one patch an image are those of the image
    cell |= {"commit": arguments["commit"], "scores": pack(scores)}
    cell |= {name: identity(Path(arguments["args"][flag]))
             for name, flag in (("victim", "victim"), ("attacker", "resume")) if arguments["args"].get(flag)}
    if curve or patches:
        names, patch_scores = read_patches(folder, "image", "score")
        by_image = [patch_scores[names == name] for name in np.unique(names)]
        if patches:
            cell |= {"patch_scores": pack(np.concatenate(by_image), "float16"),
                     "patch_counts": pack(np.array(list(map(len, by_image))))}
        means = {count: np.array([of_image[:count].mean() for of_image in by_image]) for count in curve}
        cell["curve"] = {str(count): compute_metrics(mean, member) | {"scores": pack(mean)}
                         for count, mean in means.items()}
    if maps:
        cell["maps"] = maps_of(folder, member)
    write_json(into, cell)


def maps_of(folder: Path, member: np.ndarray) -> dict:
    """Loss map and class activation map (h, w) of the first member that a run has drawn, as text; NaN where void.

    member: bool (n,), in the order of the names. Raises `UserError` if the run has drawn no member.
    """
    members = [name for name, inside in zip(sorted(read_scores(folder)), member, strict=True) if inside]
    for name in members:
        maps = read_npz(folder / "cam" / "maps.npz", (f"{name}:loss", f"{name}:cam"))
        if [array.dtype.kind for array in maps.values()] == ["f", "f"]:
            break
    else:
        raise UserError(f"{folder} has drawn no member: give attack.py -cam {folder}/cam and --cam-images 1")
    loss, cam = maps[f"{name}:loss"], maps[f"{name}:cam"]
    return {"image": name, "shape": cam.shape} | {
        kind: " ".join(f"{value:.4g}" for value in array.ravel()) for kind, array in (("loss", loss), ("cam", cam))}


def identity(checkpoint: Path) -> dict:
    """The first 16 hex digits of the SHA-256 of a model's weights, and the commit of its training."""
    from utils.checkpoints import load_checkpoint  # imports torch, which tables and pages do not need

    digest = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(checkpoint)["state_dict"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {"sha256": digest.hexdigest()[:16], "commit": read_json(checkpoint.parent / "args.json")["commit"]}


def write_or_check_images(path: Path, folder: Path, member: np.ndarray, group: Sequence[str]) -> None:
    """Write the images of a setting to `path`. If the file exists, check that the run has the same images.

    Raises `UserError` if it has other images.
    """
    images = {"images": sorted(read_scores(folder)), "member": "".join("01"[bool(m)] for m in member),
                "group": list(group)}
    if not path.exists():
        write_json(path, images)
    elif read_json(path) != images:
        raise UserError(f"{folder} scored other images than those in {path}; remove {path} and the cells beside it")


def pack(scores: np.ndarray, kind: str = "float32") -> str:
    """Scores (n,) as one line of text: `kind` of `PACKED`, a colon, and the base85 code of the compressed numbers.

    All lowest bytes of the numbers come first, then all second bytes, and so on, which compresses better.
    """
    numbers = np.asarray(scores, PACKED[kind])
    planes = numbers.view(np.uint8).reshape(-1, numbers.itemsize).T
    return f"{kind}-deflate:{base64.b85encode(zlib.compress(planes.tobytes(), 9)).decode()}"


def unpack(text: str) -> np.ndarray:
    """Scores float64 (n,) from the text of `pack`.

    Earlier cells have the base64 code of the numbers after a colon, or decimal numbers between spaces.
    """
    name, packed, code = text.partition(":")
    if not packed:
        return np.array(text.split(), float)
    kind, compressed, _ = name.partition("-deflate")
    if not compressed:
        return np.frombuffer(base64.b64decode(code), PACKED[kind]).astype(float)
    planes = np.frombuffer(zlib.decompress(base64.b85decode(code)), np.uint8)
    by_number = planes.reshape(np.dtype(PACKED[kind]).itemsize, -1).T
    return np.frombuffer(by_number.tobytes(), PACKED[kind]).astype(float)


def unpack_patches(cell: dict) -> list[np.ndarray]:
    """The scores of the patches of each image of a cell, each float64 (patches,)."""
    ends = np.cumsum(unpack(cell["patch_counts"])).astype(int)
    return np.split(unpack(cell["patch_scores"]), ends[:-1])
