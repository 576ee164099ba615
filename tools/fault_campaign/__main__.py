"""Break things on purpose and count what is lost and what is let in.

    python -m reliability kills --trials 300      # processes killed at random moments, called again and compared
    python -m reliability writes --trials 150     # disks that are full, fail or vanish
    python -m reliability fuzz --inputs 20000     # files that lie
    python -m reliability --jobs 2                # all three

Each part leaves PART.json in the folder --out: counts, seed, commit, versions and every failure, with what it left
behind beside it. Exit code 2 when there are failures. Linux only.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process meets no thread of another, and is comparable

import argparse
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from utils.cli import UserError, positive, run
from utils.files import ROOT, write_json

PARTS = {"kills": 300, "writes": 150, "fuzz": 20000}


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="reliability", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("part", choices=(*PARTS, "all"), nargs="?", default="all", help="which (default: all)")
    flags.add_argument("--out", metavar="DIR", default="runs/reliability", help="(default: runs/reliability)")
    flags.add_argument("--trials", type=positive, metavar="N", help="of kills and of writes (default: 300 and 150)")
    flags.add_argument("--inputs", type=positive, metavar="N", help="of fuzz (default: 20000)")
    flags.add_argument("--command", nargs="+", metavar="NAME", help="of kills and of writes (default: all)")
    flags.add_argument("--seed", type=int, default=0, help="every random choice derives from it (default: 0)")
    flags.add_argument("--jobs", type=positive, default=1, help="runs side by side (default: 1)")
    return flags


def main(args: argparse.Namespace) -> None:
    from reliability import fuzz, kills, runs, writes

    out = Path(args.out).resolve()
    if (out / "world").exists():
        raise UserError(f"{out} holds what failed in an earlier call; remove it, or give another --out")
    if unknown := set(args.command or ()) - set(runs.COMMANDS):
        raise UserError(f"no command {min(unknown)!r}; there are: {'; '.join(runs.COMMANDS)}")
    runs.prepare()
    parts, failures = list(PARTS) if args.part == "all" else [args.part], 0
    world = runs.make_world(out / "world")
    known = {name: runs.undisturbed(name, world) for name in args.command or runs.COMMANDS if parts != ["fuzz"]}
    for part in parts:
        begun, count = time.monotonic(), (args.inputs if part == "fuzz" else args.trials) or PARTS[part]
        found = {"kills": kills.kills, "writes": writes.writes, "fuzz": fuzz.fuzz}[part](
            world, known, count, args.seed, args.jobs)
        minutes = (time.monotonic() - begun) / 60
        write_json(out / f"{part}.json", {**about(args.seed), "minutes": round(minutes, 1), **found})
        print(f"{table(part, found)}\n{minutes:.1f} minutes; {out / part}.json", flush=True)
        failures += len(found["failures"])
    if failures:
        raise UserError(f"{failures} failures; what they left is in {out}")
    for folder in (world, out / "inputs"):
        shutil.rmtree(folder, ignore_errors=True)


def about(seed: int) -> dict:
    """What a figure was found with."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    commit = subprocess.run(git, capture_output=True, text=True)
    versions = {name: version(name) for name in ("torch", "numpy", "pillow", "opencv-python-headless", "opacus")}
    return {"commit": commit.stdout.strip() or "unknown", "seed": seed,
            "versions": {"python": platform.python_version(), **versions}}


def table(part: str, found: dict) -> str:
    """Markdown: what was counted, then a row for each command or kind."""
    counts = [f"{key} {value}" for key, value in found.items() if isinstance(value, int | float)]
    rows = found["by"]
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [f"{part}: {', '.join(counts)}, {len(found['failures'])} failures", *found.get("skipped", ()), "",
             f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(str(row.get(key, 0)) for key in columns)} |"
                              for name, row in rows.items() if any(row.values())])


if __name__ == "__main__":
    run(main, parser())
