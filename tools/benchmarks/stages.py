"""The measured stages. Each has the same work in simple code (`simple` and `peers`) and in the project's code."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from attacks.learned import LearnedAttack
from attacks.patches import Selection
from attacks.representation import concatenation, loss_map, represent
from attacks.sample import AttackSettings, Sample
from datasets import streets
from datasets.pairs import Pair
from datasets.transforms import Augmented
from models import LoadedAttacker, build_segmenter
from models.attacker import Attacker, InputSpec
from models.depthwise import Depthwise
from models.layers import OwnLoss
from predictors.base import PredictorOptions, Query, Record
from predictors.checkpoint import ModelPredictor
from tools.benchmarks import peers, simple
from tools.benchmarks.limits import peak_mib
from training import attacker, segmentation
from training.options import SegmenterTraining
from training.patches import Patches
from training.plan import PlanOptions, segmenter_step
from utils.device import CPU, Compute, resolve_precision

CROP, FILL, SCALE = (200, 264), (124, 116, 104), (0.85, 1.4)  # augmentation of the training images
CLASSES = 19
SEGMENTER = {"name": "pspnet", "backbone": "resnet18", "classes": CLASSES, "output_stride": 8, "stages": 3,
             "width": 128, "dropout": 0.1, "auxiliary": True}
PSPNET50 = SegmenterTraining(dataset="cityscapes", backbone="resnet50s", stages=4, width=512, crop=(217, 217), batch=4)


@dataclass
class Stage:
    """Two versions of the same work on `count` units; both return a result that `difference` can compare.

    `flops`: FLOPs of the work, 0 if its speed is limited by memory; `bytes_read`: size of the inputs; `difference`:
    computes the largest absolute difference of the two results; `own`: both versions are code of this project.
    """

    unit: str
    count: int
    simple: Callable[[], object]
    fast: Callable[[], object]
    flops: float = 0
    bytes_read: float = 0
    difference: Callable[[object, object], float] | None = None
    own: bool = False


def random_samples(count: int, classes: int = 19, shape: tuple[int, int] = (128, 256)) -> list[Sample]:
    """Random posteriors and labels; the default shape is that of the authors' examples."""
    rng = torch.Generator().manual_seed(0)
    samples = []
    for index in range(count):
        label = torch.randint(0, classes, shape, generator=rng, dtype=torch.uint8)
        posterior = torch.randn(classes, *shape, generator=rng).softmax(0)
        samples.append(Sample(f"{index}", f"{index}", f"{index}", index % 2 == 0, posterior, label))
    return samples


def count_flops(work: Callable, *args: object) -> int:
    """FLOPs of `work(*args)`."""
    with FlopCounterMode(display=False) as counter:
        work(*args)
    return counter.get_total_flops()


def on_cpu(precision: str) -> Compute:
    """The CPU with the precision that `--precision` gives."""
    return Compute(CPU, resolve_precision(precision, CPU))


def largest_difference(first: object, second: object) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def representation(kind: str) -> Stage:
    samples = random_samples(8)
    slow = {"loss": simple.loss_map, "concate": simple.concatenation}[kind]
    fast = {"loss": loss_map, "concate": concatenation}[kind]
    size = sum(s.output.numel() * 4 + s.truth.numel() for s in samples)
    return Stage("positions", sum(s.truth.numel() for s in samples),
                 lambda: [slow(s.output, s.truth) for s in samples],
                 lambda: [fast(s.output, s.truth) for s in samples], bytes_read=size,
                 difference=largest_difference)


def attack(kind: str, count: int, images: int, precision: str = "auto") -> Stage:
    """Score `count` patches of each of `images` images with a random ResNet-50 attacker."""
    samples, size = random_samples(images), 90
    torch.manual_seed(0)
    channels = {"loss": 1, "concate": 38}[kind]
    model = Attacker("resnet50", channels).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        logits, _ = model(torch.rand(1, channels, size, size))
    model.fc.weight.data /= logits.abs().max()  # so that the probabilities are not close to 0 or 1
    folded = Attacker("resnet50", channels)
    folded.load_state_dict(model.state_dict())
    attacker = LoadedAttacker(folded.fold_norms(), InputSpec(kind, size, 1e-30), None, "")
    fast = LearnedAttack(AttackSettings(Selection("random", count), attacker=attacker, compute=on_cpu(precision)))
    corners = [fast.patches_of(sample)[0].tolist() for sample in samples]
    return Stage("patches", count * images,
                 lambda: simple.attack(list(zip(samples, corners, strict=True)), model, kind, size, count),
                 lambda: [scored.score for scored in fast.score(samples)],
                 flops=counter.get_total_flops() * count * images,
                 difference=lambda a, b: float(np.abs(np.subtract(a, b)).max()))


def querying(precision: str = "auto") -> Stage:
    """Query a segmentation model for the posteriors of eight images."""
    model = build_segmenter(SEGMENTER).eval()
    fast = build_segmenter(SEGMENTER).eval().to(memory_format=torch.channels_last)
    fast.load_state_dict(model.state_dict())
    predictor = ModelPredictor(fast, SEGMENTER["classes"], PredictorOptions(on_cpu(precision), stride=2))
    record = Record("", "", None, Path(), Path())
    images = [np.random.default_rng(i).integers(0, 256, (180, 240, 3), np.uint8) for i in range(8)]
    return Stage("images", len(images), lambda: [simple.query(model, image, 2) for image in images],
                 lambda: predictor.predict([Query(record, image) for image in images]),
                 flops=count_flops(simple.query, model, images[0], 2) * len(images), difference=largest_difference)


def draw_pairs(folder: Path, count: int) -> list[Pair]:
    """Write drawn street scenes and their labels in the size of CamVid images (180 x 240)."""
    pairs = []
    for index in range(count):
        image, label = streets.draw(index)
        for kind, array in (("img", image), ("label", label)):
            (folder / kind).mkdir(exist_ok=True)
            resample = Image.BILINEAR if kind == "img" else Image.NEAREST
            Image.fromarray(array).resize((240, 180), resample).save(folder / kind / f"{index}.png")
        pairs.append(Pair(f"img/{index}.png", f"label/{index}.png", f"{index}", folder))
    return pairs


def augment_simply(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return simple.augmented(pair.root / pair.image, pair.root / pair.label, CROP, FILL, SCALE)


def loading(folder: Path, count: int = 32) -> Stage:
    """Load and augment training images."""
    pairs = draw_pairs(folder, count)
    data = Augmented(pairs, "streets", 0, CROP, FILL, SCALE, 0.0)
    return Stage("images", count, lambda: [augment_simply(pair) for pair in pairs],
                 lambda: [data[0, i] for i in range(count)])


def victim_training(folder: Path, count: int = 16, batch: int = 8, precision: str = "auto") -> Stage:
    """Train a segmentation model. As in a real training, one loader serves all steps and starts its worker once."""
    pairs = draw_pairs(folder, count)
    models = [build_segmenter(SEGMENTER).train() for _ in range(2)]
    models[1] = models[1].to(memory_format=torch.channels_last)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4) for m in models]
    data = Augmented(pairs, "streets", 0, CROP, FILL, SCALE, 0.0)
    batches = ([(epoch, i) for i in range(start, start + batch)] for epoch in itertools.count()
               for start in range(0, count, batch))
    loader = iter(DataLoader(data, batch_sampler=batches, num_workers=1))

    def slow() -> None:
        for start in range(0, count, batch):
            augmented = [augment_simply(pair) for pair in pairs[start : start + batch]]
            images, labels = map(torch.stack, zip(*augmented, strict=True))
            simple.train_step(models[0], optimizers[0], images, labels)

    def fast() -> None:
        for images, labels in itertools.islice(loader, count // batch):
            segmentation.learn(models[1], optimizers[1], images, labels, 0.4, on_cpu(precision))

    flops = count_flops(simple.train_step, models[0], optimizers[0], torch.zeros(2, 3, *CROP),
                        torch.zeros(2, *CROP).long())
    return Stage("images", count, slow, fast, flops=flops / 2 * count)


def depthwise_training(count: int = 8, precision: str = "auto") -> Stage:
    """Train PSPNet on EfficientNet-Lite0. The simple code has PyTorch's own depthwise convolutions."""
    spec = SEGMENTER | {"backbone": "efficientnet_lite0", "stages": 4, "output_stride": 16}
    compared = [build_segmenter(spec).to(memory_format=torch.channels_last).train() for _ in range(2)]
    for module in compared[0].modules():
        if isinstance(module, Depthwise):
            module.forward = partial(plain_depthwise, module)
    images, labels = torch.rand(count, 3, *CROP), torch.randint(0, 19, (count, *CROP))
    steps = [partial(segmentation.learn, model, torch.optim.SGD(model.parameters(), lr=0.01), images, labels, 0.4,
                     on_cpu(precision)) for model in compared]
    return compared_steps(count, *steps)


def compared_steps(count: int, theirs: Callable[[], float], ours: Callable[[], float], **measured: object) -> Stage:
    """A stage of two training steps on `count` images, which draw the same dropout. `measured`: further fields."""
    def step(work: Callable[[], float]) -> float:
        torch.manual_seed(0)
        return work()

    return Stage("images", count, partial(step, theirs), partial(step, ours), **measured)


def plain_depthwise(layer: Depthwise, inputs: torch.Tensor) -> torch.Tensor:
    return F.conv2d(layer.padded(inputs), layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def dpsgd_training(compared_with: str, count: int = 8, precision: str = "auto") -> Stage:
    """A DPSGD step without noise, compared with simple code for it or with a step of plain SGD ("SGD")."""
    from defenses.dpsgd import privatise

    spec = SEGMENTER | {"dropout": 0.0, "group_norms": ["backbone", "head", "auxiliary"]}
    torch.manual_seed(0)
    models = [build_segmenter(spec).train().to(memory_format=torch.channels_last) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in models]  # lr 0: all rounds have the same gradient
    bounds = dict.fromkeys(dict(models[1].named_parameters()), 1.0)
    net, private = privatise(models[1], optimizers[1], bounds, 0.0, count)
    images, labels = torch.rand(count, 3, *CROP), torch.randint(0, spec["classes"], (count, *CROP))

    def slow() -> list[torch.Tensor]:
        if compared_with == "SGD":
            segmentation.learn(models[0], optimizers[0], images, labels, 0.4, on_cpu(precision))
        else:
            simple.private_step(models[0], optimizers[0], images, labels, 1.0)
        return [p.grad for p in models[0].parameters()]

    def fast() -> list[torch.Tensor]:
        segmentation.learn_privately(net, private, images, labels, 0.4, on_cpu(precision))
        return [p.grad for p in models[1].parameters()]

    flops = count_flops(simple.train_step, models[0], optimizers[0], images[:2], labels[:2])
    return Stage("images", count, slow, fast, flops=flops / 2 * count,
                 difference=None if compared_with == "SGD" else largest_difference, own=compared_with == "SGD")


def attacker_training(images: int = 16, repeat: int = 8, batch: int = 32, precision: str = "auto") -> Stage:
    """Train an attacker on loss maps of patches."""
    samples = [replace(sample, output=sample.output.half()) for sample in random_samples(images, 11, (90, 120))]
    data = Patches(samples, 45, 0, repeat)
    models = [Attacker("resnet18", 1, 0.25).train() for _ in range(2)]
    models[1] = models[1].to(memory_format=torch.channels_last)
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]

    def slow() -> None:
        for start in range(0, len(data), batch):
            simple.attacker_step(models[0], optimizers[0], [data[i] for i in range(start, start + batch)])

    def fast() -> None:
        for posterior, label, member in DataLoader(data, batch):
            maps = represent("loss", posterior, label)
            attacker.learn(models[1], optimizers[1], maps, member, batch, on_cpu(precision))

    flops = count_flops(lambda: models[0](torch.zeros(2, 1, 45, 45))[0].sum().backward())
    return Stage("patches", len(data), slow, fast, flops=flops / 2 * len(data))


class DiceOutputs(OwnLoss):
    """Logits (N, C, H, W) with the Dice loss of their batch, which is the same for each of its images."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def image_losses(self, labels: torch.Tensor) -> torch.Tensor:
        return peers.dice_loss(self.logits, labels).expand(len(labels))


def semseg_training(options: SegmenterTraining = PSPNET50, precision: str = "auto") -> Stage:
    """The training step of semseg, and ours with the same model, batch, loss and optimizer."""
    (model, equal), images, labels = compared_training(options)
    theirs = partial(peers.semseg_step, model, peers.semseg_optimizer(model), images, labels,
                     np.zeros((3, CLASSES), np.int64))
    ours = partial(segmentation.learn, equal, peers.semseg_optimizer(equal), images, labels, options.aux_weight,
                   on_cpu(precision))
    return peer_stage(options, theirs, ours)


def seg_mia_training(options: SegmenterTraining = PSPNET50, precision: str = "auto") -> Stage:
    """The training step of seg-mia, and ours with the same model, batch, loss and optimizer; no auxiliary head."""
    options = replace(options, aux_weight=0.0)
    (model, equal), images, labels = compared_training(options)
    theirs = partial(peers.seg_mia_step, model, peers.seg_mia_optimizer(model), images, labels)
    ours = partial(segmentation.learn, lambda batch: DiceOutputs(equal(batch)), peers.seg_mia_optimizer(equal), images,
                   labels, options.aux_weight, on_cpu(precision))
    return peer_stage(options, theirs, ours)


def compared_training(options: SegmenterTraining) -> tuple[list[nn.Module], torch.Tensor, torch.Tensor]:
    """Two equal models of `CLASSES` classes, the second one in channels_last, and a batch of images and labels."""
    torch.manual_seed(0)
    models = [build_segmenter(options.spec(CLASSES)).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1] = models[1].to(memory_format=torch.channels_last)
    shape = options.batch, *options.crop
    return models, torch.rand(shape[0], 3, *shape[1:]), torch.randint(0, CLASSES, shape)


def peer_stage(options: SegmenterTraining, theirs: Callable[[], float], ours: Callable[[], float]) -> Stage:
    """A stage of two training steps that return the loss before the step."""
    flops = segmenter_step(options, PlanOptions(bf16=False)).flops
    return compared_steps(options.batch, theirs, ours, flops=flops, difference=lambda a, b: abs(a - b))


STAGES = {
    "loss map": lambda folder: representation("loss"),
    "concatenation": lambda folder: representation("concate"),
    "attack, 1 channel, 6 patches": lambda folder: attack("loss", 6, 8),
    "attack, 1 channel, 30 patches": lambda folder: attack("loss", 30, 2),
    "attack, 38 channels, 6 patches": lambda folder: attack("concate", 6, 8),
    "attack, 38 channels, 30 patches": lambda folder: attack("concate", 30, 2),
    "querying the victim": lambda folder: querying(),
    "loading images": loading,
    "training the victim": victim_training,
    "training EfficientNet": lambda folder: depthwise_training(),
    "training with DPSGD": lambda folder: dpsgd_training("one image at a time"),
    "DPSGD compared with SGD": lambda folder: dpsgd_training("SGD"),
    "training the attacker": lambda folder: attacker_training(),
    "training step of semseg (PSPNet-50)": lambda folder: semseg_training(),
    "training step of seg-mia (PSPNet-50)": lambda folder: seg_mia_training(),
}


@contextmanager
def prepare_stage(name: str) -> Iterator[Stage]:
    """Build a stage of `STAGES`. Its temporary files are deleted on exit."""
    with tempfile.TemporaryDirectory() as folder:
        yield STAGES[name](Path(folder))


def measure_memory(name: str) -> dict:
    """Peak resident memory in MiB before and after one run of the project's code of a stage."""
    with prepare_stage(name) as stage:
        before = peak_mib()
        stage.fast()
        return {"mib_before": before, "mib_peak": peak_mib()}
