"""The commands of the campaign, the small data set and models for them, and one trial of a command."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from datasets import streets
from datasets.pairs import Pair, write_split
from tools.fault_campaign.compare import broken_files, differences
from tools.fault_campaign.runs import Counters, RunResult, ScriptProcess, in_child
from utils.cli import UserError

# Command lines: {workspace} is the folder that `make_workspace` fills, {folder} that of the trial.
SMALL = ("--root {workspace}/data --width 16 --stages 2 --epochs 3 --batch 4 --workers 0 --crop 64 128 "
         "--precision fp32 --out {folder}/run ")
VICTIM = "train_victim.py --train {workspace}/victim_in.txt --test {workspace}/victim_out.txt " + SMALL
LIVE = ("--victim {workspace}/victim/last.pth.tar --root {workspace}/data --members {workspace}/victim_in.txt "
        "--non-members {workspace}/victim_out.txt ")
ATTACK = ("attack.py -resume {workspace}/attacker/best.pth.tar --precision fp32 -num-patch 3 --batch 6 --save-every 0 "
          "--out {folder}/run ")
IMAGES_PER_BATCH = 2  # images that ATTACK scores between two saves
COMMANDS = {
    "victim": VICTIM,
    "victim, 1 worker": VICTIM + "--workers 1",
    "victim, DPSGD": VICTIM + "--epochs 2 --lr 0.001 -dpsgd",
    "shadow": "train_shadow.py --split {workspace}/shadow.txt --victim {workspace}/victim/last.pth.tar " + SMALL,
    "attacker": "train_attacker.py --shadow {folder}/shadow --patch-size 12 --width 0.125 --epochs 3 "
                "--precision fp32 --out {folder}/run",
    "attack": ATTACK + "--allow overlap --examples {workspace}/shadow/posteriors-s4",
    "attack, live victim": ATTACK + LIVE,
    "attack, --keep": ATTACK + LIVE + "--keep {folder}/kept",
}
SPLITS = {"victim_in": range(8), "victim_out": range(100, 108), "shadow": range(200, 224)}  # scenes of streets


def is_attack(name: str) -> bool:
    """Whether a command of `COMMANDS` is an attack. All others are trainings."""
    return COMMANDS[name].startswith("attack.py")


def make_workspace(workspace: Path) -> Path:
    """Fill a folder with data/, split files, runs of victim and shadow, and an attacker of 12 x 12 patches."""
    in_child(_draw_data, workspace)
    for name in ("victim", "shadow", "attacker"):
        command = Trial(name, workspace, workspace).command()
        command[command.index("--out") + 1] = str(workspace / name)
        result = ScriptProcess(command, workspace).result()
        if result.code:
            raise UserError(f"preparing the campaign: {name} failed: {result.stderr}")
    return workspace


def _draw_data(workspace: Path) -> None:
    for split, scenes in SPLITS.items():
        pairs = [Pair(f"img/{i}.png", f"label/{i}.png", f"img/{i}.png") for i in scenes]
        write_split(workspace / f"{split}.txt", pairs)
        for pair, scene in zip(pairs, scenes, strict=True):
            for path, array in zip((pair.image, pair.label), streets.draw(scene), strict=True):
                (workspace / "data" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[::2, ::2]).save(workspace / "data" / path)


@dataclass(frozen=True)
class Baseline:
    """A run without a fault: its folder, duration in seconds, file accesses, and size of its files in bytes."""

    folder: Path
    seconds: float
    counters: Counters
    size: int


def run_baseline(name: str, workspace: Path) -> Baseline:
    """Run a command twice without a fault. Both runs must give the same results; the first one is kept."""
    trials = [Trial(name, workspace, workspace / "baselines" / f"{name}{suffix}") for suffix in ("", ", again")]
    for trial in trials:
        trial.prepare()
        result = trial.start().result()
        if problems := result.problems(0):
            raise UserError(f"{name} fails without a fault: {problems[0]}")
    folder, again = (trial.folder for trial in trials)
    if problems := in_child(differences, folder, again):
        raise UserError(f"{name}: two runs without a fault differ: {problems}")
    shutil.rmtree(again)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Baseline(folder, result.seconds, result.counters, size)


@dataclass
class Trial:
    """One run of the command `name` in `folder`. A fault stops it; it is resumed and compared with its baseline."""

    name: str
    workspace: Path
    folder: Path
    baseline: Baseline | None = None
    problems: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def prepare(self) -> None:
        """Make the folder. A run that trains an attacker gets a copy of the shadow, since it writes there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.name == "attacker":
            shutil.copytree(self.workspace / "shadow", self.folder / "shadow",
                            ignore=shutil.ignore_patterns("posteriors*", "events"))

    def command(self) -> list[str]:
        """The command line that starts the run, or resumes it. An attack is resumed by the same command."""
        command = [word.format(workspace=self.workspace, folder=self.folder) for word in COMMANDS[self.name].split()]
        if not is_attack(self.name) and (self.folder / "run" / "last.pth.tar").exists():
            return [command[0], "--continue", str(self.folder / "run")]
        return command

    def start(self, *more: str, **options: object) -> ScriptProcess:
        """Start or resume the run, with `more` arguments and the `options` of a `ScriptProcess`."""
        return ScriptProcess([*self.command(), *more], self.workspace, **options)

    def check(self, result: RunResult, *codes: int) -> None:
        """Check the exit code and stderr of a run with a fault, and that all its result files are complete."""
        self.problems += result.problems(*codes) + in_child(broken_files, self.folder)

    def finish(self) -> RunResult:
        """Run the command to its end. The results must equal those of the baseline."""
        result = self.start().result()
        self.problems += result.problems(0) or self.differences()
        return result

    def differences(self) -> list[str]:
        """Differences between the results of the baseline and those of this run."""
        return in_child(differences, self.baseline.folder, self.folder)

    def report(self, **details: object) -> dict:
        """The row of this trial. Its folder is deleted if there is no problem."""
        if not self.problems:
            shutil.rmtree(self.folder)
        return {"command": self.name, **details, "problems": self.problems,
                "seconds": time.monotonic() - self.started}
