"""Cause faults on purpose, and check that no result is lost or wrong, and that no malformed file does harm.

    python -m tools.fault_campaign kills --trials 300    # kill runs at random moments, resume them, compare results
    python -m tools.fault_campaign writes --trials 150   # full disks, failed writes, missing files
    python -m tools.fault_campaign fuzz --inputs 20000   # malformed and hostile files
    python -m tools.fault_campaign --jobs 2              # all three parts

Each part writes PART.json to the folder --out: counts, seed, commit, versions, and each failure. The files of a failed
trial are kept there. The exit code is 2 if there is a failure. Linux only.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported: forks need one thread, and results stay comparable

import argparse
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from utils.cli import UserError, natural, new_parser, positive, refuse_unused, run
from utils.files import commit, write_json

PARTS = {"kills": 300, "writes": 150, "fuzz": 20000}  # default counts


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.fault_campaign")
    flags.add_argument("part", choices=(*PARTS, "all"), nargs="?", default="all", help="part to run (default: all)")
    flags.add_argument("--out", metavar="DIR", default="runs/fault-campaign",
                       help="folder for the results (default: runs/fault-campaign)")
    flags.add_argument("--trials", type=positive, metavar="N",
                       help="number of trials of kills and of writes (default: 300 and 150)")
    flags.add_argument("--inputs", type=positive, metavar="N", help="number of inputs of fuzz (default: 20000)")
    flags.add_argument("--command", nargs="+", metavar="NAME", help="commands for kills and writes (default: all)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of all random choices (default: 0)")
    flags.add_argument("--jobs", type=positive, default=1, help="number of runs at a time (default: 1)")
    return flags


def main(args: argparse.Namespace) -> None:
    from tools.fault_campaign.fuzz import run_fuzz
    from tools.fault_campaign.kills import run_kills
    from tools.fault_campaign.runs import preload
    from tools.fault_campaign.workspace import COMMANDS, make_workspace, run_baseline
    from tools.fault_campaign.writes import run_writes

    refuse_unused(args, parser(), [
        (args.part == "fuzz", "on fuzz, which takes --inputs; leave it out", ["--trials", "--command"]),
        (args.part in ("kills", "writes"), f"on {args.part}; leave it out, or give --trials", ["--inputs"])])
    out = Path(args.out).resolve()
    if (out / "workspace").exists():
        raise UserError(f"{out} has failed trials of an earlier campaign; delete it, or give another --out")
    if unknown := set(args.command or ()) - set(COMMANDS):
        raise UserError(f"there is no command {min(unknown)!r}; choose from: {'; '.join(COMMANDS)}")
    preload()
    parts, failures = list(PARTS) if args.part == "all" else [args.part], 0
    workspace = make_workspace(out / "workspace")
    names = [] if parts == ["fuzz"] else args.command or COMMANDS
    baselines = {name: run_baseline(name, workspace) for name in names}
    for part in parts:
        started, count = time.monotonic(), (args.inputs if part == "fuzz" else args.trials) or PARTS[part]
        run_part = {"kills": run_kills, "writes": run_writes, "fuzz": run_fuzz}[part]
        counts = run_part(workspace, baselines, count, args.seed, args.jobs)
        minutes = (time.monotonic() - started) / 60
        write_json(out / f"{part}.json", {**describe_version(args.seed), "minutes": round(minutes, 1), **counts})
        print(f"{table(part, counts)}\n{minutes:.1f} minutes; {out / part}.json", flush=True)
        failures += len(counts["failures"])
    if failures:
        raise UserError(f"{failures} failures; the files of the failed trials are in {out}")
    for folder in (workspace, out / "inputs"):
        shutil.rmtree(folder, ignore_errors=True)


def describe_version(seed: int) -> dict:
    """Commit, seed, and versions of the packages that read files or train."""
    versions = {name: version(name) for name in ("torch", "numpy", "pillow", "opencv-python-headless", "opacus")}
    return {"commit": commit(), "seed": seed, "versions": {"python": platform.python_version(), **versions}}


def table(part: str, counts: dict) -> str:
    """Markdown: one line with the total counts, then a table with one row per command or kind."""
    totals = [f"{key} {value}" for key, value in counts.items() if isinstance(value, int | float)]
    rows = counts["rows"]
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [f"{part}: {', '.join(totals)}, {len(counts['failures'])} failures", *counts.get("skipped", ()), "",
             f"| {'command' if part == 'kills' else 'kind'} | {' | '.join(columns)} |",
             "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(str(row.get(key, 0)) for key in columns)} |"
                              for name, row in rows.items() if any(row.values())])


if __name__ == "__main__":
    run(main, parser())
