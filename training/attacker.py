"""Train the per-patch attacker A_P on a shadow's posteriors (algorithm 1, lines 4 to 14)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from attacks import REPRESENTATIONS
from attacks.calibrated import draw_references
from attacks.patches import Selection
from attacks.representation import add_context, represent
from attacks.sample import Sample
from defenses.base import Defense
from models.attacker import InputSpec, build_attacker
from predictors.base import Record
from predictors.samples import Source
from predictors.stored import TINY
from training.held_out import (
    TAU_QUANTILES,
    VALIDATION_PATCHES,
    auc_of,
    candidate_taus,
    describe_held_out,
    hold_out,
    score_held_out,
)
from training.options import AttackerTraining
from training.patches import Patches, draw_batches
from training.references import reference_score
from training.run import Progress, TrainingRun
from training.step import agree_on_buffers, check_weights, descend, parallel
from utils.checkpoints import load_optimizer, load_weights, rebuild, require
from utils.cli import UserError
from utils.device import Compute
from utils.distributed import barrier, own_share, print_once, process_rank, world_size
from utils.log import progress
from utils.precision import Step
from utils.randomness import stream

DECAY = 0.99  # of the average of the weights, per step


@dataclass(frozen=True)
class AttackerData:
    """D^S for the training of an attacker: training samples, held-out samples, classes and stride of the posteriors.

    `class_names`: None if they are not known. `references`: number of references of each image. `alone`: (score,
    member, group) of each image, by the loss of its references alone.
    """

    training: list[Sample]
    held_out: list[Sample]
    classes: int
    stride: int
    class_names: Sequence[str] | None = None
    references: int = 0
    alone: Sequence[tuple] = ()


def prepare(source: Source, options: AttackerTraining, defense: Defense, references: int = 0) -> AttackerData:
    """Load D^S under `defense`, and split it by `hold_out`. The posteriors of the training part become float16.

    `references`: number of references that each image gets, of those of `source` that were not trained on it. Raises
    `UserError` if a map of the training part is smaller than a patch, or if a side has no labels.
    """
    rest, held = hold_out(source.records, options.seed)
    classes, stride = source.form()
    source = replace(source, defense=defense, classes=classes, stride=stride)
    needs, training, alone = REPRESENTATIONS.load(options.input).needs, [], []

    def read(records: Sequence[Record], needs: frozenset[str]) -> Iterator[Sample]:
        for sample in replace(source, records=records).samples(needs):
            if references and sample.truth is not None:
                sample = draw_references(sample, references, options.seed)
                alone.append((reference_score(sample), sample.member, sample.group))
            yield sample if sample.truth is None else add_context(sample, options.input, TINY)

    for sample in progress(read(rest, needs), "reading posteriors", len(rest)):
        height, width = sample.output.shape[1:]
        if min(height, width) < options.patch_size:
            raise UserError(f"{sample.name} has {height} x {width} positions, fewer than --patch-size "
                            f"{options.patch_size}")
        if sample.truth is not None:
            training.append(replace(sample, output=sample.output.half()))
    if void := len(rest) - len(training):
        print_once(f"{void} images of D^S have no label, or a label that is all void; they are left out")
    if len({sample.member for sample in training}) < 2:
        raise UserError("the training part of D^S has labels of members only, or of non-members only; add labels")
    held_out = list(read(held, needs | {"truth"}))
    return AttackerData(training, held_out, classes, stride, source.names, references, alone)


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
        optimizer = make_optimizer(model, options)
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


def make_optimizer(model: torch.nn.Module, options: AttackerTraining) -> torch.optim.Optimizer:
    """AdamW with the learning rate and the weight decay of a training."""
    return torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)


def _average(averages: list[torch.Tensor], weights: list[torch.Tensor], steps: torch.Tensor) -> None:
    """Update the averages after a step: exponential decay by `DECAY`, and by less in the first 900 steps."""
    done = int(steps)
    get_ema_multi_avg_fn(min(DECAY, (1 + done) / (10 + done)))(averages, weights, done)


def train_attacker(options: AttackerTraining, data: AttackerData, spec: InputSpec, folder: Path, compute: Compute,
                   arguments: dict) -> dict:
    """Train A_P, write best.pth.tar (the averaged weights at the end) and last.pth.tar, and return the results.

    No epoch is chosen, so the AUC on the held-out part is that of images which the attacker never used. Tau is chosen
    afterwards, by the AUC under rejection; the AUC of random patches does not depend on it. If the folder has a
    last.pth.tar, the training resumes from it. This file is written after every epoch, every ten minutes, and when a
    signal asks to stop. Raises `UserError` if a batch has fewer patches than there are processes, and if the loss or a
    weight is not finite.
    """
    patches = Patches(data.training, options.patch_size, options.seed, options.patches_per_epoch,
                      options.augment == "strong")
    if min(options.batch, len(patches)) < world_size():
        raise UserError(f"--batch {options.batch} and the training part must give each of the {world_size()} processes "
                        "at least one patch")
    taus = candidate_taus(data.held_out, spec.size, options.seed)
    torch.manual_seed(options.seed)
    run, model_spec = TrainingRun(folder, arguments), options.spec(data.classes)
    learner = Learner.prepare(options, model_spec, run, compute)
    net, average = parallel(learner.model, compute.device), learner.average.module

    def save() -> None:
        run.save(run.last, model_spec, learner.model.state_dict(), view=asdict(spec), classes=data.class_names,
                 **learner.state())

    def held_out(selection: Selection) -> list[tuple]:
        return score_held_out(data.held_out, average, spec, selection, compute)

    random = Selection("random", VALIDATION_PATCHES, seed=options.seed)
    per_epoch, total = options.schedule(len(patches))
    epochs = math.ceil(total / per_epoch)
    with run:
        for _ in progress(range(run.progress.epoch, epochs), f"training A_P ({spec.input})",
                          initial=run.progress.epoch, total=epochs):
            steps = train_epoch(net, learner, patches, options, spec, run, save, compute)
            run.finish_epoch(loss=run.progress.loss / steps, validation_auc=auc_of(held_out(random)))
            run.save_epoch(save)
    barrier()
    aucs = [auc_of(held_out(replace(random, scheme="rejection", tau=tau))) for tau in taus]
    results = describe_held_out(held_out(random)) | {
        "tau": taus[int(np.argmax(aucs))],
        "tau_quantiles": {str(quantile): {"tau": tau, "validation_auc": auc}
                          for quantile, tau, auc in zip(TAU_QUANTILES, taus, aucs, strict=True)}}
    run.save(folder / "best.pth.tar", model_spec, average.state_dict(), view=asdict(replace(spec, tau=results["tau"])),
             classes=data.class_names, validation_auc=results["validation_auc"])
    return {"epoch": run.progress.epoch, "steps": int(learner.average.n_averaged)} | results


def train_epoch(net: torch.nn.Module, learner: Learner, patches: Patches, options: AttackerTraining, spec: InputSpec,
                run: TrainingRun, save: Callable[[], None], compute: Compute) -> int:
    """Run the remaining steps of the epoch. Returns its number of steps, which in the last epoch may be smaller."""
    done: Progress = run.progress
    patches.epoch = done.epoch
    per_epoch, total = options.schedule(len(patches))
    steps = min(per_epoch, total - done.epoch * per_epoch)
    batches = draw_batches(patches, options, done.epoch)[done.step : steps]
    net.train()
    loader = DataLoader(patches, batch_sampler=list(map(own_share, batches)))
    for batch, tensors in run.steps(zip(batches, loader, strict=True), steps, save):
        for group in learner.optimizer.param_groups:
            passed = (done.epoch * per_epoch + done.step) / total
            group["lr"] = options.lr * (1 + math.cos(math.pi * passed)) / 2
        torch.manual_seed(int(stream(options.seed, "dropout", done.epoch, done.step).integers(2**62)) + process_rank())
        posterior, label, member, *context = (tensor.to(compute.device) for tensor in tensors)
        maps = represent(spec.input, posterior, label, spec.floor, spec.void, spec.argmax, *context)
        done.loss += learn(net, learner.optimizer, maps, member, len(batch), compute, done.epoch)
        learner.average.update_parameters(learner.model)
    for model in (net, learner.average):
        agree_on_buffers(model)
    check_weights(learner.average, done.epoch)
    return steps


def trial_step(options: AttackerTraining, classes: int, patches: int, device: torch.device) -> Step:
    """A step on `patches` random patches of posteriors of `classes` classes, as `training.segmentation.trial_step`."""
    arguments, side = options.spec(classes)["arguments"], options.patch_size
    model = build_attacker(**arguments).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, replace(options, lr=0.0))
    maps = torch.rand(patches, arguments["channels"], side, side, device=device)
    member = torch.randint(0, 2, (patches,), device=device)
    return lambda compute: learn(model, optimizer, maps, member, patches, compute)


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, maps: torch.Tensor, member: torch.Tensor,
          batch: int, compute: Compute, epoch: int = 0) -> float:
    """One step on maps (N, K, h, w) and member int64 (N,), this process's share of `batch` patches.

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
