"""Train the per-patch attacker A_P on a shadow's posteriors (algorithm 1, lines 4 to 14)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from attacks.learned import LearnedAttack
from attacks.patches import Selection, patch_means, random_corners
from attacks.representation import represent, true_class
from attacks.sample import AttackSettings, Sample
from datasets.pairs import deal
from defenses.base import Defense
from evaluation.intervals import count_groups, intervals
from evaluation.metrics import compute_metrics
from models import LoadedAttacker
from models.attacker import InputSpec, build_attacker
from predictors.base import Record
from predictors.samples import Source
from training.options import AttackerTraining
from training.run import Progress, TrainingRun
from training.step import agree_on_buffers, check_weights, descend, parallel
from utils.checkpoints import load_optimizer, load_weights, rebuild, require
from utils.cli import UserError
from utils.device import Compute
from utils.distributed import barrier, gather, own_share, print_once, process_rank, world_size
from utils.log import progress
from utils.randomness import stream

HELD_OUT = 0.2  # share of D^S that is held out: tau is chosen on it, and the attacker's AUC is measured on it
DECAY = 0.99  # of the average of the weights, per step
VALIDATION_PATCHES = 10  # patches per image of the held-out part
VALIDATION_BATCH = 64  # patches in memory
TAU_QUANTILES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of patch confidence on the held-out part


def hold_out(records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Split D^S into a training part and a held-out part, with the same share of members in both.

    All images of a group go to the same part. Raises `UserError` if a part lacks members or non-members.
    """
    sides: dict[str, str] = {}
    for record in records:
        side = str(record.member)
        sides[record.group] = side if sides.get(record.group, side) == side else "mixed"
    rest, held = [], []
    for side in sorted(set(sides.values())):
        of_side = [record for record in records if sides[record.group] == side]
        parts = deal([record.group for record in of_side], (1 - HELD_OUT, HELD_OUT), seed)
        for record, part in zip(of_side, parts, strict=True):
            (held if part else rest).append(record)
    for name, chosen in (("training", rest), ("held-out", held)):
        if len({record.member for record in chosen}) < 2:
            raise UserError(f"the {name} part of D^S lacks members or non-members: {len(records)} images are too few")
    return rest, held


class Patches(Dataset):
    """The patches of an epoch: `repeat` random patches of each image.

    Item: posterior float32 (C, s, s), label uint8 (s, s), member 0 or 1. A patch depends only on the seed, the epoch,
    the image and its number (0 to `repeat` - 1). About half of the patches are mirrored, together with their labels.
    """

    def __init__(self, samples: Sequence[Sample], size: int, seed: int, repeat: int):
        self.size, self.seed, self.repeat, self.epoch = size, seed, repeat, 0
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples) * self.repeat

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        turn, which = divmod(index, len(self.samples))
        sample = self.samples[which]
        rng = stream(self.seed, "attacker", self.epoch, turn, sample.name)
        (y, x), size = random_corners(tuple(sample.truth.shape), self.size, 1, rng)[0], self.size
        posterior, label = (array[..., y : y + size, x : x + size] for array in (sample.output, sample.truth))
        if rng.random() < 0.5:
            posterior, label = posterior.flip(-1), label.flip(-1)
        return posterior.float(), label, int(sample.member)


@dataclass(frozen=True)
class AttackerData:
    """D^S for the training of an attacker: training samples, held-out samples, classes and stride of the posteriors."""

    training: list[Sample]
    held_out: list[Sample]
    classes: int
    stride: int


def prepare(source: Source, options: AttackerTraining, defense: Defense) -> AttackerData:
    """Load D^S under `defense`, and split it by `hold_out`. The posteriors of the training part become float16.

    Raises `UserError` if a map of the training part is smaller than a patch.
    """
    rest, held = hold_out(source.records, options.seed)
    classes, stride = source.form()
    source = replace(source, defense=defense, classes=classes, stride=stride)
    training = []
    for sample in progress(replace(source, records=rest).samples(frozenset()), "reading posteriors", len(rest)):
        height, width = sample.output.shape[1:]
        if min(height, width) < options.patch_size:
            raise UserError(f"{sample.name} has {height} x {width} positions, fewer than --patch-size "
                            f"{options.patch_size}")
        if sample.truth is not None:
            training.append(replace(sample, output=sample.output.half()))
    if void := len(rest) - len(training):
        print_once(f"{void} images of D^S have no label, or a label that is all void; they are left out")
    return AttackerData(training, list(replace(source, records=held).samples()), classes, stride)


@dataclass
class Learner:
    """The attacker in training: the model, the running average of its weights, and the optimizer."""

    model: torch.nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer

    @classmethod
    def prepare(cls, options: AttackerTraining, spec: dict, run: TrainingRun, compute: Compute) -> "Learner":
        """A new learner, or that of the checkpoint of the run."""
        def build() -> torch.nn.Module:
            return build_attacker(**spec["arguments"])

        stored = run.checkpoint
        model = rebuild(build, stored["state_dict"], run.last) if stored else build()
        model = model.to(compute.device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        average = AveragedModel(model, multi_avg_fn=_average, use_buffers=True)
        if stored:
            load_optimizer(optimizer, stored.get("optimizer"), run.last)
            load_weights(average.module, require(stored, "average", dict, run.last), run.last)
            average.n_averaged.fill_(require(stored, "averaged", int, run.last))
        return cls(model, average, optimizer)

    def state(self) -> dict:
        """What a checkpoint stores beside the weights of the model, so that the training resumes."""
        return {"optimizer": self.optimizer.state_dict(), "average": self.average.module.state_dict(),
                "averaged": int(self.average.n_averaged)}


def _average(averages: list[torch.Tensor], weights: list[torch.Tensor], steps: torch.Tensor) -> None:
    """Update the averages after a step: exponential decay by `DECAY`, and by less in the first 900 steps."""
    done = int(steps)
    get_ema_multi_avg_fn(min(DECAY, (1 + done) / (10 + done)))(averages, weights, done)


def train_attacker(options: AttackerTraining, data: AttackerData, spec: InputSpec, folder: Path, compute: Compute,
                   arguments: dict) -> dict:
    """Train A_P, write best.pth.tar (the averaged weights at the end) and last.pth.tar, and return the results.

    No epoch is chosen, so the AUC on the held-out part is that of images which the attacker never used. Tau is chosen
    on them afterwards; this AUC does not depend on it. If the folder has a last.pth.tar, the training resumes from it.
    This file is written after every epoch, every ten minutes, and when a signal asks to stop. Raises `UserError` if a
    batch has fewer patches than there are processes, and if the loss is not finite.
    """
    patches = Patches(data.training, options.patch_size, options.seed, options.patches_per_epoch)
    if min(options.batch, len(patches)) < world_size():
        raise UserError(f"--batch {options.batch} and the training part must give each of the {world_size()} processes "
                        "at least one patch")
    torch.manual_seed(options.seed)
    run, model_spec = TrainingRun(folder, arguments), options.spec(data.classes)
    learner = Learner.prepare(options, model_spec, run, compute)
    net, average = parallel(learner.model, compute.device), learner.average.module

    def save() -> None:
        run.save(run.last, model_spec, learner.model.state_dict(), view=asdict(spec), **learner.state())

    def held_out(selection: Selection) -> list[tuple]:
        return score_held_out(data.held_out, average, spec, selection, compute)

    random = Selection("random", VALIDATION_PATCHES, seed=options.seed)
    with run:
        for _ in progress(range(run.progress.epoch, options.epochs), f"training A_P ({spec.input})",
                          initial=run.progress.epoch, total=options.epochs):
            steps = train_epoch(net, learner, patches, options, spec, run, save, compute)
            run.finish_epoch(loss=run.progress.loss / steps, validation_auc=auc_of(held_out(random)))
            run.save_epoch(save)
    barrier()
    results = describe_held_out(held_out(random)) | choose_tau(data.held_out, spec, options.seed, held_out)
    run.save(folder / "best.pth.tar", model_spec, average.state_dict(), view=asdict(replace(spec, tau=results["tau"])),
             validation_auc=results["validation_auc"])
    return {"epoch": run.progress.epoch} | results


def score_held_out(samples: Sequence[Sample], model: torch.nn.Module, spec: InputSpec, selection: Selection,
                   compute: Compute) -> list[tuple]:
    """(score, member, group) of each sample. Each process scores its share of the samples."""
    attack = LearnedAttack(AttackSettings(selection, attacker=LoadedAttacker(model.eval(), spec, None, ""),
                                          batch=VALIDATION_BATCH, compute=compute))
    block = attack.images_per_batch
    return gather([(item.score, item.member, item.group) for item in attack.score(own_share(samples, block))], block)


def auc_of(scored: list[tuple]) -> float:
    """AUC of scored samples, `score_held_out`."""
    score, member, _ = zip(*scored, strict=True)
    return compute_metrics(score, member)["auc"]


def describe_held_out(scored: list[tuple]) -> dict:
    """AUC on the held-out part with its 95 % interval (None below 10 groups a side), and the numbers of images."""
    score, member, group = map(np.array, zip(*scored, strict=True))
    return {"validation_auc": auc_of(scored), "validation_auc_interval": intervals(score, member, group)["auc"],
            "held_out": len(member), "held_out_members": int(member.sum()),
            "held_out_groups": count_groups(group, member)}


def train_epoch(net: torch.nn.Module, learner: Learner, patches: Patches, options: AttackerTraining, spec: InputSpec,
                 run: TrainingRun, save: Callable[[], None], compute: Compute) -> int:
    """Run the remaining steps of the epoch. Returns the number of steps of an epoch."""
    done: Progress = run.progress
    patches.epoch = done.epoch
    order = stream(options.seed, "order", done.epoch).permutation(len(patches))
    steps = max(1, len(order) // options.batch)
    batches = [chunk.tolist() for chunk in np.array_split(order, steps)][done.step :]
    net.train()
    loader = DataLoader(patches, batch_sampler=list(map(own_share, batches)))
    for batch, tensors in run.steps(zip(batches, loader, strict=True), steps, save):
        for group in learner.optimizer.param_groups:
            passed = (done.epoch * steps + done.step) / (options.epochs * steps)
            group["lr"] = options.lr * (1 + math.cos(math.pi * passed)) / 2
        torch.manual_seed(int(stream(options.seed, "dropout", done.epoch, done.step).integers(2**62)) + process_rank())
        posterior, label, member = (tensor.to(compute.device) for tensor in tensors)
        maps = represent(spec.input, posterior, label, spec.floor, spec.void, spec.argmax)
        done.loss += learn(net, learner.optimizer, maps, member, len(batch), compute, done.epoch)
        learner.average.update_parameters(learner.model)
    for model in (net, learner.average):
        agree_on_buffers(model)
    check_weights(learner.average, done.epoch)
    return steps


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, maps: torch.Tensor, member: torch.Tensor,
          batch: int, compute: Compute, epoch: int = 0) -> float:
    """One step on maps (N, K, s, s) and member int64 (N,), this process's share of `batch` patches.

    Returns the loss before the step. A pixelwise model learns the membership of the patch at every labelled position of
    the patch; its loss is the mean over these positions.
    """
    with compute.autocast():
        logits, positions = model(maps.contiguous(memory_format=torch.channels_last))
    share = len(member) / batch
    if positions.ndim == 1:
        member = member.repeat_interleave(positions)
    loss = F.cross_entropy(logits, member, reduction="sum") / max(1, len(member))
    return descend(optimizer, loss * share, epoch)


def choose_tau(samples: Sequence[Sample], spec: InputSpec, seed: int,
               score: Callable[[Selection], list[tuple]]) -> dict:
    """Choose tau by held-out AUC under rejection, among quantiles of the held-out patches' confidence.

    `score`: `score_held_out` of the samples for a selection of patches. Raises `UserError` if no patch has a label.
    """
    confidences = []
    for sample in samples:
        corners = random_corners(tuple(sample.truth.shape), spec.size, 50, stream(seed, "tau", sample.id))
        means = patch_means(true_class(sample.output, sample.truth), sample.known, corners, spec.size)
        confidences.append(means[np.isfinite(means)])
    found = np.concatenate(confidences)
    if not len(found):
        raise UserError("no patch of the held-out part of D^S has a label, so tau cannot be chosen; give images with "
                        "more labelled pixels, or a larger --patch-size")
    taus = np.quantile(found, TAU_QUANTILES)
    aucs = [auc_of(score(Selection("rejection", VALIDATION_PATCHES, tau=float(tau), seed=seed))) for tau in taus]
    return {"tau": float(taus[int(np.argmax(aucs))]),
            "tau_quantiles": {str(quantile): {"tau": float(tau), "validation_auc": auc}
                              for quantile, tau, auc in zip(TAU_QUANTILES, taus, aucs, strict=True)}}
