"""A learned attacker that is trained on the lists of an audit: a small network on crops of the maps of other groups.

An attacker does not have these lists. With many images, the score is an upper bound of what such a network finds.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attacks.patches import cut, sliding_corners
from attacks.representation import add_context, represent
from attacks.sample import Attack, AttackSettings, Sample, Scored
from attacks.statistics import CROSS_FITTED, split
from utils.log import progress
from utils.randomness import stream

STEPS, BATCH, RATE, DECAY = 200, 32, 3e-3, 1e-2  # of AdamW, with a cosine schedule
SIDE = 32  # largest side of a crop, in positions
CROPS = 9  # of a map that is scored, at least
WIDTH = 16  # channels of the first convolution


class CrossFittedNetwork(Attack):
    """Mean log-odds of a member over crops, by a network that was trained on crops of the other groups of images.

    The network reads the loss map or, with references, the calibrated map. The groups are dealt to folds as in
    `statistics-crossfit`. Steps, rate and size of the crops are fixed, so nothing is chosen on the attacked images.
    Raises `UserError` if a side has fewer than two groups.
    """

    needs = frozenset({"truth", "own"})
    optional = frozenset({"references"})
    reads = frozenset({"floor"})
    patches = False
    widened = CROSS_FITTED

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        self.networks: dict[str, nn.Module] = {}
        self.side = SIDE

    def fit(self, population: Iterable[Sample]) -> None:
        rows = sorted(((one.name, one.group, bool(one.member), self.map_of(one).half()) for one in population),
                      key=lambda row: row[0])
        names, groups, member, maps = zip(*rows, strict=True)
        member, seed = np.array(member), self.settings.selection.seed
        self.side = min(SIDE, max(1, min(min(one.shape[1:]) for one in maps) * 2 // 3))
        parts = split(member, np.array(groups), seed, "the attacked images have")
        for number, (train, test) in enumerate(progress(parts, "training on the other groups")):
            rng = stream(seed, "learned-crossfit", number)
            network = self.train([maps[index] for index in train], member[train], rng)
            self.networks |= {names[index]: network for index in test}

    def train(self, maps: Sequence[torch.Tensor], member: np.ndarray, rng: np.random.Generator) -> nn.Module:
        """A network that was trained on random crops of `maps`, float16 (K, h, w), as many of members as of others."""
        device = self.settings.compute.device
        sides = np.flatnonzero(member), np.flatnonzero(~member)
        target = torch.tensor([1.0, 0.0], device=device).repeat(BATCH // 2)
        with torch.random.fork_rng():
            torch.manual_seed(int(rng.integers(2**62)))
            network = build(len(maps[0])).to(device)
            optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            for _ in range(STEPS):
                drawn = [maps[rng.choice(side)] for _ in range(BATCH // 2) for side in sides]
                crops = torch.stack([self.crop(one, rng) for one in drawn]).float().to(device)
                loss = F.binary_cross_entropy_with_logits(network(crops).squeeze(1), target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        return network.eval()

    def crop(self, one: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """A random crop of a map (K, h, w), mirrored with a probability of 0.5."""
        top, left = (int(rng.integers(size - self.side + 1)) for size in one.shape[1:])
        crop = one[:, top : top + self.side, left : left + self.side]
        return crop.flip(2) if rng.random() < 0.5 else crop

    @torch.inference_mode()
    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            one = self.map_of(sample).half().float()
            crops = cut(one, sliding_corners(tuple(one.shape[1:]), self.side, CROPS), self.side)
            odds = self.networks[sample.name](crops.to(self.settings.compute.device)).double().mean()
            yield Scored(sample.name, sample.member, sample.group, float(odds))

    def map_of(self, sample: Sample) -> torch.Tensor:
        """The map (K, h, w) that the network reads."""
        kind = "calibrated" if sample.references else "loss"
        context = add_context(sample, kind, self.settings.floor).context
        return represent(kind, sample.output, sample.truth, self.settings.floor, context=context)


def build(inputs: int) -> nn.Module:
    """An untrained network: (N, K, h, w) -> log-odds (N, 1)."""
    layers, widths = [nn.BatchNorm2d(inputs)], [inputs, WIDTH, 2 * WIDTH, 2 * WIDTH]
    for number, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, 2 if number else 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(widths[-1], 1))
