"""The victim as it lets itself be asked: live, or once with its answers kept, with dropout if that is its defense."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from datasets import find_dataset
from datasets.pairs import Pair, load_pair, read_split, split_files
from datasets.posteriors import list_tree
from defenses.dropout import Dropout
from models import load_segmenter, read_segmenter
from models.query import query, query_tree
from utils.cli import UserError


@dataclass(frozen=True)
class Asked:
    """An image that the victim is asked about when its turn comes."""

    pair: Pair
    member: bool
    ask: Callable

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def key(self) -> str:
        return self.pair.key

    @property
    def group(self) -> str:
        return self.pair.group

    @property
    def files(self) -> tuple[Path, Path]:
        return self.pair.root / self.pair.image, self.pair.root / self.pair.label

    def load(self) -> tuple:
        return self.ask(self.pair)


def ask_victim(args: argparse.Namespace, stride: int, classes: int | None, device: torch.device) -> list:
    """Members and non-members, sorted by name, with the victim or its kept posteriors behind them.

    The victim must know `classes` classes (None: any number).
    """
    known = read_segmenter(args.victim)["model"]["classes"]
    if classes not in (None, known):
        raise UserError(f"{args.victim} knows {known} classes; {args.resume} was trained for {classes}")
    dataset, step = find_dataset(args.dataset), args.stride or stride
    if len(dataset.CLASSES) != known:
        raise UserError(f"{args.victim} knows {known} classes; {args.dataset} has {len(dataset.CLASSES)}: --dataset?")
    members, non_members = (read_split(path, args.root, args.strip_prefix) for path in (args.members, args.non_members))
    both = {pair.name for pair in members} & {pair.name for pair in non_members}
    if both:
        raise UserError(f"{min(both)} is in both {args.members} and {args.non_members}")

    dropout = None if args.test_dropout is None else Dropout(args.test_dropout, args.seed)

    @cache
    def victim():
        model = load_segmenter(args.victim)[0].to(device)
        return dropout.switch_on(model) if dropout else model

    if args.keep:
        made_from = [Path(args.victim), *split_files(args.members), *split_files(args.non_members)]
        tree = query_tree(Path(args.keep), victim, {"train": members, "val": non_members}, dataset, device, step,
                          args.precision, made_from, dropout)
        kept = (replace(item, name=item.name.partition("/")[2]) for item in list_tree(tree, classes=known, stride=step))
        return sorted(kept, key=lambda item: item.name)

    def ask(pair):
        image, label = load_pair(pair, dataset)
        seed = dropout and dropout.draw(pair.key)
        return query(victim(), image, device, step, args.precision, seed).numpy(), label[::step, ::step]

    items = [Asked(pair, side is members, ask) for side in (members, non_members) for pair in side]
    return sorted(items, key=lambda item: item.name)
