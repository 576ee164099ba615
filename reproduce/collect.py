"""Write a cell: the small JSON file of one run of attack.py, from which tables and figures are made.

    python -m reproduce.collect RUN --into JSON --images JSON [--curve N ...] [--patches] [--maps]

A cell has the metrics of the run, the hashes of its victim and attacker, and one score for each image, sorted by the
name of the image. So any two attacks on the same victim can be compared, paired, without the runs. The file of
`--images` lists the images, members and groups once for all cells of a setting.
"""

import argparse
from pathlib import Path

from utils.cli import UserError, positive, run

KEPT = ("image", "patch", "chance", "members", "non_members", "blocks", "tau", "miou", "defense", "cam")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.collect", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("run", metavar="RUN", help="folder that attack.py wrote")
    flags.add_argument("--into", metavar="JSON", required=True, help="file of the cell")
    flags.add_argument("--images", metavar="JSON", required=True, help="images, members and groups of the setting")
    flags.add_argument("--curve", metavar="N", nargs="+", type=positive, default=[],
                       help="add the metrics of the first N patches of each image")
    flags.add_argument("--patches", action="store_true", help="add the scores of single patches")
    flags.add_argument("--maps", action="store_true", help="add the maps of the first member that the run has drawn; "
                       "they show the outlines of its image")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from evaluation.compare import read_paired, read_patches
    from evaluation.metrics import compute_metrics
    from utils.files import read_json, write_json

    folder = Path(args.run)
    results = read_json(folder / "results.json")
    (scores,), member, group = read_paired([folder])
    write_or_check_images(Path(args.images), folder, member, group)
    cell = {key: results[key] for key in KEPT if key in results}
    run = read_json(folder / "args.json")
    cell |= {"commit": run["commit"], "scores": pack(scores)}
    cell |= {name: identity(Path(run["args"][flag])) for name, flag in (("victim", "victim"), ("attacker", "resume"))}
    if args.curve or args.patches:
        names, patch_scores = read_patches(folder, "image", "score")
        by_image = [patch_scores[names == name] for name in np.unique(names)]
        if args.patches:
            cell["patch_scores"] = [pack(patches) for patches in by_image]
        means = {count: np.array([patches[:count].mean() for patches in by_image]) for count in args.curve}
        cell["curve"] = {str(count): compute_metrics(mean, member) | {"scores": pack(mean)}
                         for count, mean in means.items()}
    if args.maps:
        cell["maps"] = maps_of(folder, member)
    write_json(args.into, cell)


def maps_of(folder: Path, member) -> dict:
    """Loss map and class activation map (h, w) of the first member that a run has drawn, as text; NaN where void.

    member: bool (n,), in the order of the names. Raises `UserError` when the run has drawn no member.
    """
    from evaluation.compare import read_scores
    from utils.arrays import read_npz

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
    import hashlib

    from utils.checkpoints import load_checkpoint
    from utils.files import read_json

    digest = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(checkpoint)["state_dict"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {"sha256": digest.hexdigest()[:16], "commit": read_json(checkpoint.parent / "args.json")["commit"]}


def write_or_check_images(path: Path, folder: Path, member, group) -> None:
    """Write the images of a setting, or check that a run has the same images as the earlier cells.

    Raises `UserError` when it has others.
    """
    from evaluation.compare import read_scores
    from utils.files import read_json, write_json

    images = {"images": sorted(read_scores(folder)), "member": "".join("01"[bool(m)] for m in member),
                "group": list(group)}
    if not path.exists():
        write_json(path, images)
    elif read_json(path) != images:
        raise UserError(f"{folder} scored other images than those of {path}; remove {path} and the cells beside it")


def pack(scores) -> str:
    """Scores (n,) as one line of text."""
    return " ".join(f"{score:.7g}" for score in scores)


def unpack(text: str):
    """Scores float64 (n,) from the text of `pack`."""
    import numpy as np

    return np.array(text.split(), float)


if __name__ == "__main__":
    run(main, parser())
