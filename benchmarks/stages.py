"""The stages: each does the same work the obvious way and the way of the scripts."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from attacks.representation import concatenation, loss_map, represent
from attacks.scoring import Example, Selection, View, attack_patches
from benchmarks import obvious
from datasets import streets
from datasets.pairs import Pair
from datasets.posteriors import list_tree, write_posterior
from datasets.transforms import Augmented
from defenses.apply import Defense
from models import build_segmenter
from models.attacker import Attacker
from models.query import query
from training import attacker, segmentation
from training.attacker import Patches

CPU = torch.device("cpu")
CROP = (200, 264)
SEGMENTER = {"name": "pspnet", "backbone": "resnet18", "classes": 19, "output_stride": 8, "stages": 3, "width": 128,
             "dropout": 0.1, "auxiliary": True}


@dataclass
class Stage:
    """`count` units of work done by `plain` and by `fast`; both return something to compare with `agree`.

    flops: of the work, 0 when it is none; moved: bytes of the inputs; agree: largest difference of the two results.
    """

    unit: str
    count: int
    plain: Callable[[], object]
    fast: Callable[[], object]
    flops: float = 0
    moved: float = 0
    agree: Callable[[object, object], float] | None = None


def posteriors(count: int, classes: int = 19, shape: tuple[int, int] = (128, 256)) -> list[Example]:
    """Random posteriors and labels of the size that the authors' examples have."""
    rng = torch.Generator().manual_seed(0)
    out = []
    for index in range(count):
        label = torch.randint(0, classes, shape, generator=rng, dtype=torch.uint8)
        posterior = torch.randn(classes, *shape, generator=rng).softmax(0)
        out.append(Example(f"{index}", f"{index}", index % 2 == 0, f"{index}", posterior, label))
    return out


def largest_difference(one: object, two: object) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))


def representation(kind: str) -> Stage:
    examples = posteriors(8)
    plain = {"loss": obvious.loss_map, "concate": obvious.concatenation}[kind]
    fast = {"loss": loss_map, "concate": concatenation}[kind]
    moved = sum(e.posterior.numel() * 4 + e.label.numel() for e in examples)
    return Stage("positions", sum(e.label.numel() for e in examples),
                 lambda: [plain(e.posterior, e.label) for e in examples],
                 lambda: [fast(e.posterior, e.label) for e in examples], moved=moved, agree=largest_difference)


def attack(kind: str, count: int, images: int) -> Stage:
    examples, size = posteriors(images), 90
    torch.manual_seed(0)
    channels = {"loss": 1, "concate": 38}[kind]
    model = Attacker("resnet50", channels).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        logits, _ = model(torch.rand(1, channels, size, size))
    model.fc.weight.data /= logits.abs().max()  # probabilities that are neither 0 nor 1
    folded = Attacker("resnet50", channels)
    folded.load_state_dict(model.state_dict())
    folded = folded.fold_norms().to(memory_format=torch.channels_last)
    view, selection = View(kind, size, 1e-30), Selection("random", count)
    corners = [selection.corners(e.posterior, e.label, size, e.key).tolist() for e in examples]
    return Stage("patches", count * images,
                 lambda: obvious.attack(list(zip(examples, corners, strict=True)), model, kind, size, count),
                 lambda: [s.score for s in attack_patches(examples, folded, view, selection, CPU)],
                 flops=counter.get_total_flops() * count * images,
                 agree=lambda a, b: float(np.abs(np.subtract(a, b)).max()))


def asking() -> Stage:
    model = build_segmenter(SEGMENTER).eval()
    fast = build_segmenter(SEGMENTER).eval().to(memory_format=torch.channels_last)
    fast.load_state_dict(model.state_dict())
    images = [np.random.default_rng(i).integers(0, 256, (180, 240, 3), np.uint8) for i in range(8)]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        obvious.query(model, images[0], 2)
    return Stage("images", len(images), lambda: [obvious.query(model, p, 2) for p in images],
                 lambda: [query(fast, p, CPU, 2) for p in images],
                 flops=counter.get_total_flops() * len(images), agree=largest_difference)


def drawn(folder: Path, count: int) -> list[Pair]:
    """Images of CamVid's size, on disk."""
    pairs = []
    for index in range(count):
        image, label = streets.draw(index)
        for kind, array in (("img", image), ("label", label)):
            (folder / kind).mkdir(exist_ok=True)
            shape, mode = (240, 180), Image.BILINEAR if kind == "img" else Image.NEAREST
            Image.fromarray(array).resize(shape, mode).save(folder / kind / f"{index}.png")
        pairs.append(Pair(f"img/{index}.png", f"label/{index}.png", f"{index}", folder))
    return pairs


def loading(folder: Path, count: int = 32) -> Stage:
    pairs = drawn(folder, count)
    data = Augmented(pairs, "streets", 0, CROP, (124, 116, 104), (0.85, 1.4), 0.0)
    return Stage("images", count,
                 lambda: [obvious.augmented(p.root / p.image, p.root / p.label, CROP, (124, 116, 104), (0.85, 1.4))
                          for p in pairs],
                 lambda: [data[0, i] for i in range(count)])


def victim_training(folder: Path, count: int = 16, batch: int = 8) -> Stage:
    """A step after the other from one loader, as in a training, whose workers start once."""
    pairs = drawn(folder, count)
    models = [build_segmenter(SEGMENTER).train() for _ in range(2)]
    models[1] = models[1].to(memory_format=torch.channels_last)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4) for m in models]
    data = Augmented(pairs, "streets", 0, CROP, (124, 116, 104), (0.85, 1.4), 0.0)
    batches = ([(epoch, i) for i in range(start, start + batch)] for epoch in itertools.count()
               for start in range(0, count, batch))
    loader = iter(DataLoader(data, batch_sampler=batches, num_workers=1))

    def plain() -> None:
        for start in range(0, count, batch):
            made = [obvious.augmented(p.root / p.image, p.root / p.label, CROP, (124, 116, 104), (0.85, 1.4))
                    for p in pairs[start : start + batch]]
            images, labels = map(torch.stack, zip(*made, strict=True))
            obvious.train_step(models[0], optimizers[0], images, labels)

    def fast() -> None:
        for images, labels in itertools.islice(loader, count // batch):
            segmentation.learn(models[1], optimizers[1], images, labels, 0.4, CPU, "auto")

    with FlopCounterMode(display=False) as counter:
        obvious.train_step(models[0], optimizers[0], torch.zeros(2, 3, *CROP), torch.zeros(2, *CROP).long())
    return Stage("images", count, plain, fast, flops=counter.get_total_flops() / 2 * count)


def dpsgd_training(beside: str, count: int = 8) -> Stage:
    """A step of DPSGD without noise beside the obvious way of it, or beside plain SGD of the same model."""
    from defenses.dpsgd import privatise

    spec = SEGMENTER | {"dropout": 0.0, "group_norms": ["backbone", "head", "auxiliary"]}
    torch.manual_seed(0)
    models = [build_segmenter(spec).train().to(memory_format=torch.channels_last) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in models]  # each round meets the same gradient
    bounds = dict.fromkeys(dict(models[1].named_parameters()), 1.0)
    net, private = privatise(models[1], optimizers[1], bounds, 0.0, count)
    images, labels = torch.rand(count, 3, *CROP), torch.randint(0, spec["classes"], (count, *CROP))

    def plain() -> list[torch.Tensor]:
        if beside == "SGD":
            segmentation.learn(models[0], optimizers[0], images, labels, 0.4, CPU, "auto")
        else:
            obvious.private_step(models[0], optimizers[0], images, labels, 1.0)
        return [p.grad for p in models[0].parameters()]

    def fast() -> list[torch.Tensor]:
        segmentation.learn_privately(net, private, images, labels, 0.4, CPU, "auto")
        return [p.grad for p in models[1].parameters()]

    with FlopCounterMode(display=False) as counter:
        obvious.train_step(models[0], optimizers[0], images[:2], labels[:2])
    return Stage("images", count, plain, fast, flops=counter.get_total_flops() / 2 * count,
                 agree=None if beside == "SGD" else largest_difference)


def attacker_training(folder: Path, images: int = 16, repeat: int = 8, batch: int = 32) -> Stage:
    for index, example in enumerate(posteriors(images, 11, (90, 120))):
        write_posterior(folder, "train" if example.member else "val", f"{index}", example.posterior.numpy(),
                        example.label.numpy())
    data = Patches(list_tree(folder), 45, 0, repeat, Defense())
    models = [Attacker("resnet18", 1, 0.25).train() for _ in range(2)]
    models[1] = models[1].to(memory_format=torch.channels_last)
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]

    def plain() -> None:
        for start in range(0, len(data), batch):
            obvious.attacker_step(models[0], optimizers[0], [data[i] for i in range(start, start + batch)])

    def fast() -> None:
        for posterior, label, member in DataLoader(data, batch):
            maps = represent("loss", posterior, label)
            attacker.learn(models[1], optimizers[1], maps, member, batch, CPU, "auto")

    with FlopCounterMode(display=False) as counter:
        plain_logits, _ = models[0](torch.zeros(2, 1, 45, 45))
        plain_logits.sum().backward()
    return Stage("patches", len(data), plain, fast, flops=counter.get_total_flops() / 2 * len(data))


STAGES = {
    "loss map": lambda folder: representation("loss"),
    "concatenation": lambda folder: representation("concate"),
    "attack, 1 channel, 6 patches": lambda folder: attack("loss", 6, 8),
    "attack, 1 channel, 30 patches": lambda folder: attack("loss", 30, 2),
    "attack, 38 channels, 6 patches": lambda folder: attack("concate", 6, 8),
    "attack, 38 channels, 30 patches": lambda folder: attack("concate", 30, 2),
    "asking the victim": lambda folder: asking(),
    "loading images": loading,
    "training the victim": victim_training,
    "training with DPSGD": lambda folder: dpsgd_training("one image at a time"),
    "DPSGD beside plain SGD": lambda folder: dpsgd_training("SGD"),
    "training the attacker": attacker_training,
}


@contextmanager
def built(name: str) -> Iterator[Stage]:
    """The stage, and the images it needs for as long."""
    with tempfile.TemporaryDirectory() as folder:
        yield STAGES[name](Path(folder))
