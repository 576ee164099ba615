"""The training loop of victims and shadows, and their utility."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, default_collate

from datasets import find_dataset
from datasets.pairs import Pair, load_pair
from datasets.transforms import Augmented
from evaluation.metrics import confusion, mean_iou
from models import build_segmenter
from models.query import query
from training.progress import Progress, pausing
from training.step import agree_on_buffers, descend, descend_privately, freeze_norms, parallel
from utils import VOID
from utils.checkpoints import load_checkpoint, load_optimizer, rebuild, save_checkpoint
from utils.cli import UserError
from utils.device import autocast
from utils.distributed import is_main, own_share, print_once, process_rank, sum_over_processes, world_size
from utils.files import write_json
from utils.log import RunLog, progress
from utils.pause import Pause, leave_signals_to_parent
from utils.randomness import stream

POLY = 0.9  # power of the learning-rate schedule, per iteration


def spec_of(args: argparse.Namespace, classes: int) -> dict:
    """The dict that rebuilds the model which the flags ask for."""
    return {"name": args.model, "backbone": args.backbone, "classes": classes, "output_stride": args.output_stride,
            "stages": args.stages, "width": args.width, "dropout": args.dropout, "auxiliary": args.aux_weight > 0,
            "group_norms": _fresh_parts(args) if args.freeze_norms else []}


def _fresh_parts(args: argparse.Namespace) -> list[str]:
    """Parts whose BatchNorm would be frozen at mean 0 and variance 1, which is no norm at all."""
    return ["head"] + ["auxiliary"] * (args.aux_weight > 0) + ["backbone"] * (not args.pretrained)


def train_segmenter(args: argparse.Namespace, pairs: Sequence[Pair], folder: Path,
                    device: torch.device) -> tuple[torch.nn.Module, float, dict]:
    """Train the model of `args` on `pairs` (SGD, momentum 0.9, poly schedule) and leave it in folder/last.pth.tar.

    Returns the model, the minutes its training took in all, and what `defenses.dpsgd.account` says of it with -dpsgd.
    A checkpoint is written after every epoch, every ten minutes, and when a signal asks to end; where one lies in
    `folder`, training goes on from it and ends with the weights that an unbroken run would have. Raises `UserError` for
    fewer than two images, and when the loss is no number any more.
    """
    if min(args.batch, len(pairs)) < 2 * world_size():
        raise UserError("a step needs two images or more a process: batch norm learns from their differences")
    dataset = find_dataset(args.dataset)
    spec = spec_of(args, len(dataset.CLASSES))
    torch.manual_seed(args.seed)
    model, optimizer, reached, bounds = _begin(args, spec, folder / "last.pth.tar", device)
    begun = time.monotonic() - 60 * reached.minutes
    data = Augmented(pairs, args.dataset, args.seed, tuple(args.crop), [255 * m for m in model.backbone.mean],
                     tuple(args.scale), args.rotate, args.blur)
    steps = max(1, len(pairs) // args.batch)
    private = {}
    if args.dpsgd:
        from defenses import dpsgd

        bounds = bounds or dpsgd.gradient_bounds(model, _first_losses(model, data, args, device))
        net, optimizer = dpsgd.privatise(model, optimizer, bounds, args.noise_variance, args.batch)
        private = dpsgd.account(bounds, args.noise_variance, args.batch, len(pairs), steps * args.epochs)
        print_once(dpsgd.describe(private))
    else:
        net = parallel(model, device)
    # One loader for all epochs: workers are started once, before the first step, and read ahead.
    loader = iter(DataLoader(data, batch_sampler=_batches(len(data), args, reached),
                             num_workers=1 if args.workers is None else args.workers, worker_init_fn=_begin_worker,
                             pin_memory=device.type == "cuda", collate_fn=_collate))

    def save(reached: Progress) -> None:
        reached.minutes = (time.monotonic() - begun) / 60
        save_checkpoint(folder / "last.pth.tar", spec, model.state_dict(), **asdict(reached),
                        optimizer=optimizer.state_dict(), classes=list(dataset.CLASSES), dataset=args.dataset,
                        args=vars(args), bounds=bounds)

    log = RunLog(folder, reached.epoch)
    with pausing(folder) as pause:
        while reached.epoch < args.epochs:
            _one_epoch(net, optimizer, loader, args, reached, steps, device, pause, save)
            log.add(reached.epoch + 1, loss=reached.loss / steps, lr=optimizer.param_groups[0]["lr"])
            reached.next_epoch()
            pause.due()
            save(reached)
            pause.saved()
    return model.eval(), reached.minutes, private


def _begin(args: argparse.Namespace, spec: dict, last: Path,
           device: torch.device) -> tuple[torch.nn.Module, torch.optim.Optimizer, Progress, dict]:
    """Model, optimizer, how far they are, and the clipping bounds of DPSGD: new, or as the checkpoint has them."""
    checkpoint = load_checkpoint(last) if last.exists() else None
    if checkpoint:
        model = rebuild(lambda: build_segmenter(spec), checkpoint["state_dict"], last)
    else:
        model = build_segmenter(spec, pretrained=args.pretrained)
    model = model.to(device, memory_format=torch.channels_last)
    if args.freeze_norms:
        freeze_norms(model)
    optimizer = optimizer_of(model, args)
    if not checkpoint:
        return model, optimizer, Progress(), {}
    load_optimizer(optimizer, checkpoint.get("optimizer"), last)
    return model, optimizer, Progress.from_checkpoint(checkpoint, last), checkpoint.get("bounds", {})


def optimizer_of(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD with momentum, the heads at `--head-factor` times the learning rate of the backbone."""
    heads = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": list(model.backbone.parameters()), "factor": 1.0},
              {"params": heads, "factor": args.head_factor}]
    return torch.optim.SGD(groups, lr=args.lr, momentum=0.9, weight_decay=args.weight_decay)


def _batches(images: int, args: argparse.Namespace, reached: Progress) -> Iterator[list[tuple[int, int]]]:
    """This process's share of every batch to come, as (epoch, image), in the order of (seed, epoch).

    With -dpsgd each batch is a Poisson sample, which is what its accountant assumes.
    """
    begun, behind = reached.epoch, reached.step
    for epoch in range(begun, args.epochs):
        rng = stream(args.seed, "order", epoch)
        order = [] if args.dpsgd else rng.permutation(images).tolist()
        for step in range(max(1, images // args.batch)):
            drawn = (np.flatnonzero(rng.random(images) < args.batch / images).tolist() if args.dpsgd else
                     order[step * args.batch : (step + 1) * args.batch])
            if epoch > begun or step >= behind:
                yield own_share([(epoch, index) for index in drawn])


def _collate(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a batch, which Poisson sampling may leave empty."""
    return default_collate(items) if items else (torch.empty(0, 3, 1, 1), torch.empty(0, 1, 1, dtype=torch.long))


def _first_losses(model: torch.nn.Module, data: Augmented, args: argparse.Namespace,
                  device: torch.device) -> Iterator[torch.Tensor]:
    """The loss of each image of this process's share, before the first step."""
    _training_mode(model, args)
    torch.manual_seed(int(stream(args.seed, "dropout", "bounds").integers(2**62)) + process_rank())
    for index in progress(own_share(range(len(data))), "gradient norms"):
        images, labels = _collate([data[0, index]])
        yield image_losses(*_forward(model, images, labels, device, args.precision), args.aux_weight).sum()


def _one_epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Iterator, args: argparse.Namespace,
               reached: Progress, steps: int, device: torch.device, pause: Pause,
               save: Callable[[Progress], None]) -> None:
    """The steps of an epoch that `reached` has not behind it; it moves along, and holds the sum of their losses."""
    epoch = reached.epoch
    _training_mode(model, args)
    bar = progress(islice(loader, max(0, steps - reached.step)), f"epoch {epoch + 1}/{args.epochs}", total=steps,
                   initial=reached.step)
    for images, labels in bar:
        rate = args.lr * (1 - (epoch * steps + reached.step) / (args.epochs * steps)) ** POLY
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        _seed(args, epoch, reached.step, optimizer)
        step_down = learn_privately if args.dpsgd else learn
        reached.loss += step_down(model, optimizer, images, labels, args.aux_weight, device, args.precision, epoch)
        reached.step += 1
        if reached.step < steps and pause.due():
            save(reached)
            pause.saved()
    agree_on_buffers(model)


def _training_mode(model: torch.nn.Module, args: argparse.Namespace) -> None:
    model.train()
    if args.freeze_norms:
        freeze_norms(model)


def _seed(args: argparse.Namespace, epoch: int, step: int, optimizer: torch.optim.Optimizer) -> None:
    """Let dropout of a step depend on the seed, the step and this process only, and the noise of DPSGD likewise."""
    torch.manual_seed(int(stream(args.seed, "dropout", epoch, step).integers(2**62)) + process_rank())
    if args.dpsgd:
        from defenses import dpsgd

        dpsgd.reseed(optimizer, args.seed, epoch, step)


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor,
          aux_weight: float, device: torch.device, precision: str, epoch: int = 0) -> float:
    """One step on a batch: images float32 (N, 3, H, W), labels int64 (N, H, W); the loss before it."""
    outputs, labels = _forward(model, images, labels, device, precision)
    return descend(optimizer, segmentation_loss(outputs, labels, aux_weight), epoch)


def learn_privately(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor,
                    labels: torch.Tensor, aux_weight: float, device: torch.device, precision: str,
                    epoch: int = 0) -> float:
    """`learn` with the model and the optimizer that `defenses.dpsgd.privatise` gave; N may be 0."""
    losses = torch.zeros(0, device=device)
    if len(images):
        losses = image_losses(*_forward(model, images, labels, device, precision), aux_weight)
    return descend_privately(optimizer, losses, epoch)


def _forward(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, device: torch.device,
             precision: str) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
    with autocast(device, precision):
        outputs = model(images)
    return outputs, labels.to(device, non_blocking=True)


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(0)
    leave_signals_to_parent()


def segmentation_loss(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor,
                      aux_weight: float) -> torch.Tensor:
    """Cross-entropy over the labelled positions of the batch, plus that of the auxiliary head.

    These are all the processes' positions; what this process's images add to it is returned.
    """
    known = sum_over_processes((labels != VOID).sum()).clamp_min(1)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum") / known

    if isinstance(outputs, tuple):
        return cross_entropy(outputs[0]) + aux_weight * cross_entropy(outputs[1])
    return cross_entropy(outputs)


def image_losses(outputs: torch.Tensor | tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor,
                   aux_weight: float) -> torch.Tensor:
    """Cross-entropy of each image (N,): the mean over its own labelled positions, plus that of the auxiliary head.

    The mean over those of the batch would let an image's gradient depend on the void of the others.
    """
    known = (labels != VOID).sum(dim=(1, 2)).clamp_min(1)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none").sum(dim=(1, 2)) / known

    if isinstance(outputs, tuple):
        return cross_entropy(outputs[0]) + aux_weight * cross_entropy(outputs[1])
    return cross_entropy(outputs)


def utility(model: torch.nn.Module, pairs: Sequence[Pair], dataset: ModuleType, device: torch.device,
            precision: str, what: str) -> float:
    """mIoU in 0..1 of a model on images, at full size, over the classes that occur."""
    classes = len(dataset.CLASSES)
    matrix = np.zeros((classes, classes), np.int64)
    for pair in progress(own_share(pairs), f"mIoU {what}"):
        image, label = load_pair(pair, dataset)
        predicted = query(model, image, device, precision=precision).argmax(dim=0).numpy()
        matrix += confusion(predicted, label, classes)
    return mean_iou(sum_over_processes(torch.from_numpy(matrix)).numpy())


def train_and_report(args: argparse.Namespace, inside: Sequence[Pair], outside: Sequence[Pair], folder: Path,
                     device: torch.device) -> None:
    """Train on `inside`, measure mIoU on both sides, write results.json and say where everything is."""
    dataset = find_dataset(args.dataset)
    print_once(f"training {args.model} ({args.backbone}) on {len(inside)} images -> {folder}")
    model, minutes, private = train_segmenter(args, inside, folder, device)
    scores = {f"miou_{side}": utility(model, pairs, dataset, device, args.precision, side)
              for side, pairs in (("in", inside), ("out", outside))}
    if is_main():
        write_json(folder / "results.json", {**scores, "in": len(inside), "out": len(outside), "epochs": args.epochs,
                                             "minutes": round(minutes, 1), **({"dpsgd": private} if private else {})})
    print_once(f"mIoU {100 * scores['miou_in']:.1f} in, {100 * scores['miou_out']:.1f} out; {minutes:.1f} minutes; "
          f"{folder / 'last.pth.tar'}")
