"""The training loop of victims and shadows, and the mIoU of the trained models."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, default_collate

from datasets import find_dataset
from datasets.pairs import Pair
from datasets.transforms import Augmented, start_worker
from evaluation.metrics import confusion, mean_iou
from models import build_segmenter, stored_spec
from models.layers import OwnLoss
from predictors.base import PredictorOptions, Record, predict_records
from predictors.checkpoint import ModelPredictor
from training.options import SegmenterTraining
from training.run import Progress, TrainingRun, draw_batches
from training.step import agree_on_buffers, check_weights, descend, descend_privately, freeze_norms, parallel
from utils import VOID
from utils.checkpoints import load_optimizer, rebuild
from utils.cli import UserError
from utils.device import Compute
from utils.distributed import is_main, own_share, print_once, process_rank, sum_over_processes, world_size
from utils.files import write_json
from utils.log import progress
from utils.precision import Step
from utils.randomness import stream

warnings.filterwarnings("ignore", "This DataLoader will create")  # results do not depend on --workers
Outputs = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | OwnLoss  # of a model in training
POLY = 0.9  # power of the "poly" schedule of the learning rate


def train_segmenter(options: SegmenterTraining, pairs: Sequence[Pair], folder: Path, compute: Compute,
                    arguments: dict) -> tuple[torch.nn.Module, float, dict]:
    """Train a model on `pairs` (SGD, momentum 0.9, poly schedule), and write it to folder/last.pth.tar.

    Returns the model in eval mode, the minutes of the training, and the result of `defenses.dpsgd.account` (empty
    without DPSGD). A checkpoint is written after every epoch, every ten minutes, and when a signal asks to stop. If
    `folder` has a checkpoint, the training resumes from it and ends with the weights of an uninterrupted run. Raises
    `UserError` for fewer than two images per process, and if the loss is not finite.
    """
    check_batch(options, len(pairs))
    dataset = find_dataset(options.dataset)
    spec, run = options.spec(len(dataset.CLASSES)), TrainingRun(folder, arguments)
    torch.manual_seed(options.seed)
    model, optimizer = _prepare(options, spec, run, compute)
    data = Augmented(pairs, options.dataset, options.seed, tuple(options.crop), [255 * m for m in model.backbone.mean],
                     tuple(options.scale), options.rotate, options.blur)
    steps = max(1, len(pairs) // options.batch)
    net, optimizer, bounds, private = _for_training(options, model, optimizer, data, run, steps, compute)
    # One loader serves all epochs: its workers start once, before the first step, and load ahead.
    loader = iter(DataLoader(data, batch_sampler=draw_batches(len(data), options, run.progress, poisson=options.dpsgd),
                             num_workers=1 if options.workers is None else options.workers,
                             worker_init_fn=start_worker, pin_memory=compute.device.type == "cuda",
                             collate_fn=_collate))

    def save() -> None:
        run.save(run.last, stored_spec(spec), model.state_dict(), optimizer=optimizer.state_dict(),
                 classes=list(dataset.CLASSES), dataset=options.dataset, bounds=bounds)

    with run:
        while run.progress.epoch < options.epochs:
            _set_training_mode(net, options)
            for images, labels in run.steps(loader, steps, save, f"epoch {run.progress.epoch + 1}/{options.epochs}"):
                _step(net, optimizer, images, labels, options, run.progress, steps, compute)
            agree_on_buffers(net)
            check_weights(net, run.progress.epoch)
            run.finish_epoch(loss=run.progress.loss / steps, lr=optimizer.param_groups[0]["lr"])
            run.save_epoch(save)
    return model.eval(), run.progress.minutes, private


def check_batch(options: SegmenterTraining, images: int) -> None:
    """Raise `UserError` if --batch does not suit a training split of `images` images."""
    if min(options.batch, images) < 2 * world_size():
        raise UserError("--batch and the training split must give each process at least two images (for BatchNorm)")
    if options.dpsgd and options.batch > images:
        raise UserError(f"--batch {options.batch}: with -dpsgd the expected batch of a Poisson sample cannot be larger "
                        f"than the training split, which has {images} images")


def check_model(options: SegmenterTraining) -> None:
    """Build the model, and discard it. Raises `UserError` for one that does not exist, before anything is written."""
    build_segmenter(options.spec(len(find_dataset(options.dataset).CLASSES)), options.pretrained)


def _prepare(options: SegmenterTraining, spec: dict, run: TrainingRun,
             compute: Compute) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Model and optimizer: new, or from the checkpoint of the run."""
    if run.checkpoint:
        model = rebuild(lambda: build_segmenter(spec), run.checkpoint["state_dict"], run.last)
    else:
        model = build_segmenter(spec, pretrained=options.pretrained)
    model = model.to(compute.device, memory_format=torch.channels_last)
    if options.norms_frozen:
        freeze_norms(model)
    optimizer = make_optimizer(model, options)
    if run.checkpoint:
        load_optimizer(optimizer, run.checkpoint.get("optimizer"), run.last)
    return model, optimizer


def _for_training(options: SegmenterTraining, model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Augmented,
                  run: TrainingRun, steps: int, compute: Compute) -> tuple:
    """Model and optimizer for the training loop, clipping bounds and privacy account (both empty without DPSGD)."""
    bounds = run.checkpoint.get("bounds", {}) if run.checkpoint else {}
    if not options.dpsgd:
        return parallel(model, compute.device), optimizer, bounds, {}
    from defenses import dpsgd  # Opacus takes a second to import

    bounds = bounds or dpsgd.gradient_bounds(model, _first_losses(model, data, options, compute))
    net, optimizer = dpsgd.privatise(model, optimizer, bounds, options.variance, options.batch)
    private = dpsgd.account(bounds, options.variance, options.batch, len(data), steps * options.epochs)
    print_once(dpsgd.describe(private))
    return net, optimizer, bounds, private


def make_optimizer(model: torch.nn.Module, options: SegmenterTraining) -> torch.optim.Optimizer:
    """SGD with momentum; the heads have `--head-factor` times the learning rate of the backbone."""
    heads = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": list(model.backbone.parameters()), "factor": 1.0},
              {"params": heads, "factor": options.head_factor}]
    return torch.optim.SGD(groups, lr=options.lr, momentum=0.9, weight_decay=options.weight_decay)


def _collate(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the images and labels of a batch, which may be empty under Poisson sampling."""
    return default_collate(items) if items else (torch.empty(0, 3, 1, 1), torch.empty(0, 1, 1, dtype=torch.long))


def _first_losses(model: torch.nn.Module, data: Augmented, options: SegmenterTraining,
                  compute: Compute) -> Iterator[torch.Tensor]:
    """Yield the loss of each image in this process's share, before the first step."""
    _set_training_mode(model, options)
    torch.manual_seed(int(stream(options.seed, "dropout", "bounds").integers(2**62)) + process_rank())
    for index in progress(own_share(range(len(data))), "gradient norms"):
        images, labels = _collate([data[0, index]])
        yield image_losses(*_forward(model, images, labels, compute), options.aux_weight, options.label_smoothing).sum()


def _step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor,
          options: SegmenterTraining, done: Progress, steps: int, compute: Compute) -> None:
    """Set the learning rate, run one step, and add its loss to `done`."""
    rate = options.lr * (1 - (done.epoch * steps + done.step) / (options.epochs * steps)) ** POLY
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    _seed_step(options, done, optimizer)
    learn_step = learn_privately if options.dpsgd else learn
    done.loss += learn_step(net, optimizer, images, labels, options.aux_weight, compute, done.epoch,
                            options.label_smoothing)


def _set_training_mode(model: torch.nn.Module, options: SegmenterTraining) -> None:
    model.train()
    if options.norms_frozen:
        freeze_norms(model)


def _seed_step(options: SegmenterTraining, done: Progress, optimizer: torch.optim.Optimizer) -> None:
    """Make dropout, and the noise of DPSGD, depend only on the seed, the step and this process."""
    torch.manual_seed(int(stream(options.seed, "dropout", done.epoch, done.step).integers(2**62)) + process_rank())
    if options.dpsgd:
        from defenses import dpsgd

        dpsgd.reseed(optimizer, options.seed, done.epoch, done.step)


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor,
          aux_weight: float, compute: Compute, epoch: int = 0, smoothing: float = 0.0) -> float:
    """One step on a batch: images float32 (N, 3, H, W), labels int64 (N, H, W). Returns the loss before the step."""
    outputs, labels = _forward(model, images, labels, compute)
    return descend(optimizer, segmentation_loss(outputs, labels, aux_weight, smoothing), epoch)


def learn_privately(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor,
                    labels: torch.Tensor, aux_weight: float, compute: Compute, epoch: int = 0,
                    smoothing: float = 0.0) -> float:
    """Like `learn`, with the model and the optimizer of `defenses.dpsgd.privatise`. N may be 0."""
    losses = torch.zeros(0, device=compute.device)
    if len(images):
        losses = image_losses(*_forward(model, images, labels, compute), aux_weight, smoothing)
    return descend_privately(optimizer, losses, epoch)


def trial_step(options: SegmenterTraining, images: int, device: torch.device) -> Step:
    """A step on `images` random images, as the training of `options` repeats it, by a model that is built for it.

    Its learning rate is 0, so a loss that is finite at first stays so.
    """
    classes = len(find_dataset(options.dataset).CLASSES)
    model = build_segmenter(options.spec(classes)).to(device, memory_format=torch.channels_last)
    _set_training_mode(model, options)
    optimizer, learn_step = make_optimizer(model, replace(options, lr=0.0)), learn
    if options.dpsgd:
        from defenses import dpsgd

        bounds = {name: 1.0 for name, parameter in model.named_parameters() if parameter.requires_grad}
        model, optimizer = dpsgd.privatise(model, optimizer, bounds, options.variance, images)
        learn_step = learn_privately
    inputs = torch.rand(images, 3, *options.crop, device=device)
    labels = torch.randint(0, classes, (images, *options.crop), device=device)
    return lambda compute: learn_step(model, optimizer, inputs, labels, options.aux_weight, compute,
                                      smoothing=options.label_smoothing)


def _forward(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor,
             compute: Compute) -> tuple[Outputs, torch.Tensor]:
    images = images.to(compute.device, memory_format=torch.channels_last, non_blocking=True)
    with compute.autocast():
        outputs = model(images)
    return outputs, labels.to(compute.device, non_blocking=True)


def segmentation_loss(outputs: Outputs, labels: torch.Tensor, aux_weight: float,
                      smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy over the labelled positions of the batch, plus that of the auxiliary head.

    `smoothing`: share of each label that is spread evenly over all classes (Szegedy et al., CVPR 2016, section 7).
    The mean is over the positions of all processes; if the model has a loss of its own, over their images. The function
    returns the part of this process's images.
    """
    if isinstance(outputs, OwnLoss):
        images = sum_over_processes(torch.tensor(len(labels), device=labels.device))
        return outputs.image_losses(labels).sum() / images
    known = sum_over_processes((labels != VOID).sum()).clamp_min(1)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum", label_smoothing=smoothing) / known

    if isinstance(outputs, tuple):
        return cross_entropy(outputs[0]) + aux_weight * cross_entropy(outputs[1])
    return cross_entropy(outputs)


def image_losses(outputs: Outputs, labels: torch.Tensor, aux_weight: float, smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each image (N,): the mean over its own labelled positions, plus that of the auxiliary head.

    If the model has a loss of its own, that of each image.

    With a mean over the positions of the batch, the gradient of an image would depend on the number of void positions
    in the other images.
    """
    if isinstance(outputs, OwnLoss):
        return outputs.image_losses(labels)
    known = (labels != VOID).sum(dim=(1, 2)).clamp_min(1)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none", label_smoothing=smoothing)
        return losses.sum(dim=(1, 2)) / known

    if isinstance(outputs, tuple):
        return cross_entropy(outputs[0]) + aux_weight * cross_entropy(outputs[1])
    return cross_entropy(outputs)


def measure_miou(model: torch.nn.Module, pairs: Sequence[Pair], dataset: str, compute: Compute, what: str) -> float:
    """mIoU in 0..1 of a model on images at full size. The mean is over the classes that occur."""
    classes = len(find_dataset(dataset).CLASSES)
    predictor = ModelPredictor(model, classes, PredictorOptions(compute))
    matrix = np.zeros((classes, classes), np.int64)
    records = [Record.of_pair(pair, dataset) for pair in own_share(pairs)]
    for answer in predict_records(predictor, records, f"mIoU {what}"):
        matrix += confusion(answer.output.argmax(dim=0).numpy(), answer.load_label(), classes)
    return mean_iou(sum_over_processes(torch.from_numpy(matrix)).numpy())


def train_and_report(options: SegmenterTraining, inside: Sequence[Pair], outside: Sequence[Pair], folder: Path,
                     compute: Compute, arguments: dict) -> None:
    """Train on `inside`, measure mIoU on `inside` and `outside`, write results.json, and print the result.

    `arguments`: those of the call; they are stored in the checkpoint, where --continue reads them.
    """
    print_once(f"training {options.describe()} on {len(inside)} images -> {folder}")
    model, minutes, private = train_segmenter(options, inside, folder, compute, arguments)
    scores = {f"miou_{side}": measure_miou(model, pairs, options.dataset, compute, side)
              for side, pairs in (("in", inside), ("out", outside))}
    if is_main():
        write_json(folder / "results.json", {
            **scores, "in": len(inside), "out": len(outside), "epochs": options.epochs, "minutes": round(minutes, 1),
            **({"dpsgd": private} if private else {})})
    print_once(f"mIoU {100 * scores['miou_in']:.1f} in, {100 * scores['miou_out']:.1f} out; {minutes:.1f} minutes; "
               f"{folder / 'last.pth.tar'}")
