"""Training the per-patch attacker A_P on a shadow's posteriors (algorithm 1, lines 4 to 14)."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from attacks.patches import patch_means, random_corners
from attacks.representation import represent, true_class
from attacks.scoring import Example, Selection, View, attack_patches, meet
from datasets.pairs import deal
from datasets.posteriors import Stored
from defenses.apply import Defense
from evaluation.metrics import compute_metrics
from models.attacker import build_attacker
from training.progress import Progress, pausing
from training.step import agree_on_buffers, descend, parallel
from utils import VOID
from utils.checkpoints import load_checkpoint, load_optimizer, load_weights, rebuild, require, save_checkpoint
from utils.cli import UserError
from utils.device import autocast
from utils.distributed import barrier, gather, own_share, process_rank, world_size
from utils.log import RunLog, progress
from utils.pause import Pause
from utils.randomness import stream

HELD_OUT = 0.2  # of D^S, for every choice: epoch, tau, patch size, capacity
VALIDATION_PATCHES = 10
TAU_QUANTILES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of patch confidence on the held-out part


def hold_out(items: Sequence[Stored], seed: int) -> tuple[list[Stored], list[Stored]]:
    """Part `HELD_OUT` of D^S from the rest, whole blocks, members and non-members alike."""
    sides: dict[str, str] = {}
    for item in items:
        side = str(item.member)
        sides[item.group] = side if sides.get(item.group, side) == side else "mixed"
    rest, held = [], []
    for side in sorted(set(sides.values())):
        own = [item for item in items if sides[item.group] == side]
        for item, part in zip(own, deal([item.group for item in own], (1 - HELD_OUT, HELD_OUT), seed), strict=True):
            (held if part else rest).append(item)
    for name, chosen in (("training", rest), ("held-out", held)):
        if len({item.member for item in chosen}) < 2:
            raise UserError(f"the {name} part of D^S lacks members or non-members: {len(items)} images are too few")
    return rest, held


class Patches(Dataset):
    """One random patch of each image an epoch, `repeat` times: posterior (C, s, s), label (s, s), member.

    The patch depends on (seed, epoch, turn, image) only. Half of the patches are mirrored, labels alike.
    """

    def __init__(self, items: Sequence[Stored], size: int, seed: int, repeat: int, defense: Defense):
        self.items, self.size, self.seed, self.repeat, self.defense = items, size, seed, repeat, defense
        self.epoch = 0
        self.loaded = [self._compact(item) for item in progress(items, "reading posteriors")]

    def _compact(self, item: Stored) -> tuple[torch.Tensor, torch.Tensor]:
        posterior, label = item.load()
        if min(label.shape) < self.size:
            raise UserError(f"{item.posterior} has {label.shape[0]} x {label.shape[1]} positions, fewer than "
                            f"--patch-size {self.size}")
        posterior = self.defense(torch.from_numpy(posterior), item.key)
        return posterior.half(), torch.from_numpy(np.ascontiguousarray(label))

    def __len__(self) -> int:
        return len(self.items) * self.repeat

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        turn, which = divmod(index, len(self.items))
        item, (posterior, label) = self.items[which], self.loaded[which]
        rng = stream(self.seed, "attacker", self.epoch, turn, item.name)
        (y, x), size = random_corners(tuple(label.shape), self.size, 1, rng)[0], self.size
        posterior, label = posterior[:, y : y + size, x : x + size].float(), label[y : y + size, x : x + size]
        if rng.random() < 0.5:
            posterior, label = posterior.flip(-1), label.flip(-1)
        return posterior, label, int(item.member)


def prepare(args: argparse.Namespace, items: Sequence[Stored], size: int,
            defense: Defense) -> tuple[Patches, list[Example]]:
    """Training patches of side `world_size` and the held-out images. Raises `UserError` before anything is written."""
    rest, held = hold_out(items, args.seed)
    return Patches(rest, size, args.seed, args.patches_per_epoch, defense), list(meet(held, defense))


def train_attacker(args: argparse.Namespace, data: Patches, validation: Sequence[Example], spec: dict, view: View,
                   folder: Path, device: torch.device) -> dict:
    """Train A_P; write best.pth.tar (validation AUC) and last.pth.tar; return the figures of the held-out part.

    Continues from last.pth.tar where there is one, which is written after every epoch, every ten minutes, and when a
    signal asks to end. tau is chosen on the held-out part at the end.
    """
    if min(args.batch, len(data)) < world_size():
        raise UserError(f"--batch {args.batch} is less than a patch for each of {world_size()} processes")
    torch.manual_seed(args.seed)
    last, best = folder / "last.pth.tar", folder / "best.pth.tar"
    checkpoint = load_checkpoint(last) if last.exists() else None

    def build() -> torch.nn.Module:
        return build_attacker(**spec["arguments"])

    model = rebuild(build, checkpoint["state_dict"], last) if checkpoint else build()
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    net = parallel(model, device)
    reached, best_auc = Progress(), -1.0
    if checkpoint:
        load_optimizer(optimizer, checkpoint.get("optimizer"), last)
        reached, best_auc = Progress.from_checkpoint(checkpoint, last), require(checkpoint, "best_auc", float, last)
    begun = time.monotonic() - 60 * reached.minutes

    def save(path: Path, **rest: object) -> None:
        reached.minutes = (time.monotonic() - begun) / 60
        save_checkpoint(path, spec, model.state_dict(), **asdict(reached), best_auc=best_auc, view=asdict(view),
                        args=vars(args), **rest)

    log = RunLog(folder, reached.epoch)
    with pausing(folder) as pause:
        for _ in progress(range(reached.epoch, args.epochs), f"training A_P ({view.input})", initial=reached.epoch,
                          total=args.epochs):
            steps = _one_epoch(net, optimizer, data, args, view, reached, device, pause,
                               lambda: save(last, optimizer=optimizer.state_dict()))
            selection = Selection("random", VALIDATION_PATCHES, seed=args.seed)
            auc = held_out_auc(validation, model, view, selection, device, args.precision)
            log.add(reached.epoch + 1, loss=reached.loss / steps, validation_auc=auc)
            reached.next_epoch()
            if auc > best_auc:
                best_auc = auc
                save(best, validation_auc=auc)
            pause.due()
            save(last, optimizer=optimizer.state_dict())
            pause.saved()
    barrier()
    return _choose_tau(best, model, validation, args, device)


def held_out_auc(examples: Sequence[Example], model: torch.nn.Module, view: View, selection: Selection,
                 device: torch.device, precision: str) -> float:
    """AUC of the attack on images whose membership is known, over all processes' shares of them."""
    batch = 64
    block = selection.images(batch)
    own = attack_patches(own_share(examples, block), model.eval(), view, selection, device, precision, batch=batch)
    scored = gather([(s.score, s.member) for s in own], block)
    return compute_metrics(*zip(*scored, strict=True))["auc"]


def _one_epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Patches, args: argparse.Namespace,
               view: View, reached: Progress, device: torch.device, pause: Pause, save: Callable[[], None]) -> int:
    """The steps of an epoch that `reached` has not behind it; it moves along. Returns how many steps an epoch has."""
    epoch = data.epoch = reached.epoch
    order = stream(args.seed, "order", epoch).permutation(len(data))
    steps = max(1, len(order) // args.batch)
    batches = [chunk.tolist() for chunk in np.array_split(order, steps)][reached.step :]
    model.train()
    loader = DataLoader(data, batch_sampler=list(map(own_share, batches)))
    for batch, (posterior, label, member) in zip(batches, loader, strict=True):
        for group in optimizer.param_groups:
            done = (epoch * steps + reached.step) / (args.epochs * steps)
            group["lr"] = args.lr * (1 + math.cos(math.pi * done)) / 2
        torch.manual_seed(int(stream(args.seed, "dropout", epoch, reached.step).integers(2**62)) + process_rank())
        posterior, label, member = posterior.to(device), label.to(device), member.to(device)
        maps = represent(view.input, posterior, label, view.floor, view.void, view.argmax)
        reached.loss += learn(model, optimizer, maps, member, len(batch), device, args.precision, epoch)
        reached.step += 1
        if reached.step < steps and pause.due():
            save()
            pause.saved()
    agree_on_buffers(model)
    return steps


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, maps: torch.Tensor, member: torch.Tensor,
          batch: int, device: torch.device, precision: str, epoch: int = 0) -> float:
    """One step on maps (N, K, s, s) and member int64 (N,), a share of `batch` patches; the loss of all before it.

    A model that judges every position by itself learns its patch's membership at each; then the loss is the mean over
    labelled positions.
    """
    with autocast(device, precision):
        logits, positions = model(maps.contiguous(memory_format=torch.channels_last))
    share = len(member) / batch
    if positions.ndim == 1:
        member = member.repeat_interleave(positions)
    loss = F.cross_entropy(logits, member, reduction="sum") / max(1, len(member))
    return descend(optimizer, loss * share, epoch)


def _choose_tau(best: Path, model: torch.nn.Module, validation: Sequence[Example], args: argparse.Namespace,
                device: torch.device) -> dict:
    """Choose tau among quantiles of the held-out patches' confidence, by held-out AUC; store it in best.pth.tar."""
    checkpoint = load_checkpoint(best)
    load_weights(model, checkpoint["state_dict"], best)
    view = View.from_checkpoint(checkpoint, best)
    seen = []
    for example in validation:
        corners = random_corners(tuple(example.label.shape), view.size, 50, stream(args.seed, "tau", example.key))
        means = patch_means(true_class(example.posterior, example.label), example.label != VOID, corners, view.size)
        seen.append(means[np.isfinite(means)])
    taus = np.quantile(np.concatenate(seen), TAU_QUANTILES)
    tried = []
    for tau in taus:
        selection = Selection("rejection", VALIDATION_PATCHES, float(tau), args.seed)
        tried.append(held_out_auc(validation, model, view, selection, device, args.precision))
    view = replace(view, tau=float(taus[int(np.argmax(tried))]))
    checkpoint["view"] = asdict(view)
    checkpoint.pop("format")
    save_checkpoint(best, checkpoint.pop("model"), checkpoint.pop("state_dict"), **checkpoint)
    return {"epoch": checkpoint["epoch"], "validation_auc": checkpoint["validation_auc"], "tau": view.tau,
            "tau_quantiles": {str(q): {"tau": float(t), "validation_auc": a}
                              for q, t, a in zip(TAU_QUANTILES, taus, tried, strict=True)},
            "held_out": len(validation), "held_out_members": sum(example.member for example in validation)}
