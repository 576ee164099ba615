"""Turn a run of attack.py into the small JSON that tables and figures are made from.

    python -m reproduce.collect RUN --into JSON --images JSON [--curve N ...] [--patches] [--maps]

The JSON has the run's figures, which victim and attacker they are of, and its scores in the order of the images'
names, so that any two attacks on the same victim can be compared, paired, without the runs. `--images` says once for
all cells of a setting which they are.
"""

import argparse
from pathlib import Path

from utils.cli import UserError, positive, run

KEPT = ("image", "patch", "chance", "members", "non_members", "blocks", "tau", "miou", "defense", "cam")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reproduce.collect", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("run", metavar="RUN", help="folder of attack.py")
    flags.add_argument("--into", metavar="JSON", required=True, help="where the cell goes")
    flags.add_argument("--images", metavar="JSON", required=True, help="members and blocks of the setting")
    flags.add_argument("--curve", metavar="N", nargs="+", type=positive, default=[],
                       help="also the figures of the first N patches of each image")
    flags.add_argument("--patches", action="store_true", help="also the scores of single patches")
    flags.add_argument("--maps", action="store_true", help="also the maps of the first member drawn, which show the "
                       "outlines of its image")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from evaluation.compare import read_paired, read_patches
    from evaluation.metrics import compute_metrics
    from utils.files import read_json, write_json

    folder = Path(args.run)
    found = read_json(folder / "results.json")
    (scores,), member, group = read_paired([folder])
    remember(Path(args.images), folder, member, group)
    cell = {key: found[key] for key in KEPT if key in found}
    run = read_json(folder / "args.json")
    cell |= {"commit": run["commit"], "scores": pack(scores)}
    cell |= {name: origin(Path(run["args"][flag])) for name, flag in (("victim", "victim"), ("attacker", "resume"))}
    if args.curve or args.patches:
        names, each = read_patches(folder, "image", "score")
        patches = [each[names == name] for name in np.unique(names)]
        if args.patches:
            cell["patch_scores"] = [pack(own) for own in patches]
        means = {count: np.array([own[:count].mean() for own in patches]) for count in args.curve}
        cell["curve"] = {str(count): compute_metrics(mean, member) | {"scores": pack(mean)}
                         for count, mean in means.items()}
    if args.maps:
        cell["maps"] = maps_of(folder, member)
    write_json(args.into, cell)


def maps_of(folder: Path, member) -> dict:
    """Loss map and class activation map of the first member that a run has drawn, as text, NaN where void."""
    from evaluation.compare import read_scores
    from utils.arrays import read_npz

    members = [name for name, inside in zip(sorted(read_scores(folder)), member, strict=True) if inside]
    for name in members:
        found = read_npz(folder / "cam" / "maps.npz", (f"{name}:loss", f"{name}:cam"))
        if [array.dtype.kind for array in found.values()] == ["f", "f"]:
            break
    else:
        raise UserError(f"{folder} has drawn no member: give attack.py -cam {folder}/cam and --cam-images 1")
    loss, cam = found[f"{name}:loss"], found[f"{name}:cam"]
    return {"image": name, "shape": cam.shape} | {
        what: " ".join(f"{value:.4g}" for value in array.ravel()) for what, array in (("loss", loss), ("cam", cam))}


def origin(checkpoint: Path) -> dict:
    """Which model this is: the start of the SHA-256 of its weights, and the commit that it was trained at."""
    import hashlib

    from utils.checkpoints import load_checkpoint
    from utils.files import read_json

    digest = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(checkpoint)["state_dict"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {"sha256": digest.hexdigest()[:16], "commit": read_json(checkpoint.parent / "args.json")["commit"]}


def remember(path: Path, folder: Path, member, group) -> None:
    """Write which images a setting has, or check that they are those of the cells before."""
    from evaluation.compare import read_scores
    from utils.files import read_json, write_json

    images = {"images": sorted(read_scores(folder)), "member": "".join("01"[bool(m)] for m in member),
                "group": list(group)}
    if not path.exists():
        write_json(path, images)
    elif read_json(path) != images:
        raise UserError(f"{folder} scored other images than those of {path}")


def pack(scores) -> str:
    """Scores as text, on one line of a JSON."""
    return " ".join(f"{score:.7g}" for score in scores)


def unpack(text: str):
    """Scores float64 (n,) of `pack`."""
    import numpy as np

    return np.array(text.split(), float)


if __name__ == "__main__":
    run(main, parser())
