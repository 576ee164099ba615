"""The training loop of translators, their sample sheets, and the L1 errors of the trained models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets import IMAGES
from datasets.inspection import inspect
from datasets.pairs import Pair
from datasets.transforms import TranslationPairs, start_worker
from models import build_translator
from models.translation.base import Translator
from predictors.base import PredictorOptions, Record, predict_records
from predictors.translator import ModelTranslator
from predictors.triples import to_pixels
from training.options import TranslatorTraining
from training.run import TrainingRun, draw_batches
from training.step import agree_on_buffers, average_gradients, check_weights, descend
from utils.checkpoints import load_optimizer, rebuild
from utils.cli import UserError
from utils.device import Compute
from utils.distributed import is_main, own_share, print_once, process_rank, sum_over_processes, world_size
from utils.files import atomic_open, write_json
from utils.precision import Step
from utils.randomness import stream

SHEETS = 10  # sample sheets in a training
SHOWN = 4  # images of each side on a sheet


def train_translator(options: TranslatorTraining, inside: Sequence[Pair], outside: Sequence[Pair], folder: Path,
                     compute: Compute, arguments: dict) -> tuple[Translator, float]:
    """Train a translator on `inside` by Adam, and write it to folder/last.pth.tar.

    The learning rate is constant in the first half of the epochs, and falls linearly to 0 in the second. Returns the
    model in eval mode, and the minutes of the training. Checkpoints are written, and a training is resumed, as by
    `train_segmenter`. Sample sheets show the first images of `inside` and of `outside`, which is used for nothing else.
    """
    spec, run = options.spec(size_of(inside)), TrainingRun(folder, arguments)
    torch.manual_seed(options.seed)
    model = (rebuild(lambda: build_translator(spec), run.checkpoint["state_dict"], run.last) if run.checkpoint
             else build_translator(spec)).to(compute.device, memory_format=torch.channels_last)
    optimizers = make_optimizers(model, run)
    data = TranslationPairs(inside, options.seed)
    steps = len(inside) // options.batch
    loader = iter(DataLoader(data, batch_sampler=draw_batches(len(inside), options, run.progress),
                             num_workers=1 if options.workers is None else options.workers,
                             worker_init_fn=start_worker, pin_memory=compute.device.type == "cuda"))

    def save() -> None:
        run.save(run.last, spec, model.state_dict(), **{name: one.state_dict() for name, one in optimizers.items()})

    with run:
        while run.progress.epoch < options.epochs:
            model.train()
            set_rates(optimizers, model, run.progress.epoch, options.epochs)
            for batch in run.steps(loader, steps, save, f"epoch {run.progress.epoch + 1}/{options.epochs}"):
                torch.manual_seed(int(stream(options.seed, "dropout", run.progress.epoch, run.progress.step)
                                      .integers(2**62)) + process_rank())
                run.progress.loss += learn(model, optimizers, *batch, compute, run.progress.epoch)
            agree_on_buffers(model)
            check_weights(model, run.progress.epoch)
            run.finish_epoch(l1=run.progress.loss / steps, lr=optimizers["generator"].param_groups[0]["lr"])
            run.save_epoch(save)
            if run.progress.epoch == 1:
                minutes = run.progress.minutes
                print_once(f"the first epoch took {60 * minutes:.0f} seconds; {options.epochs} epochs need about "
                           f"{options.epochs * minutes:.0f} minutes")
            if run.progress.epoch % max(1, options.epochs // SHEETS) == 0 and is_main():
                write_sheet(folder / "samples" / f"epoch-{run.progress.epoch:04d}.png", model,
                            [*inside[:SHOWN], *outside[:SHOWN]], compute)
    return model.eval(), run.progress.minutes


def size_of(pairs: Sequence[Pair]) -> int:
    """The size of the images of `pairs`, which are square. Raises `UserError` if they have several sizes."""
    sizes = {inspect(pair.root / pair.image, pair.root / pair.label, IMAGES).size for pair in pairs}
    height, width = sizes.pop()
    if sizes or height != width:
        raise UserError(f"the images must be square and of one size, and {pairs[0].image} is {width} x {height}; write "
                        "a copy with `python -m datasets NAME --short-side N --copy DIR --translate DIRECTION`")
    return height


def check_translator(options: TranslatorTraining, inside: Sequence[Pair]) -> None:
    """Raise `UserError` for a --batch that does not suit the images, or a model that does not suit their size."""
    if min(options.batch, len(inside)) < world_size() or options.batch > len(inside):
        raise UserError(f"--batch {options.batch} does not suit {len(inside)} training images and {world_size()} "
                        "processes; each process needs an image in every step")
    build_translator(options.spec(size_of(inside)))


def make_optimizers(model: Translator, run: TrainingRun | None = None) -> dict[str, torch.optim.Optimizer]:
    """Adam for the generator and for the discriminator; with their states, if the run has a checkpoint."""
    optimizers = {}
    for name, rate in zip(("generator", "discriminator"), model.rates, strict=True):
        optimizers[name] = torch.optim.Adam(getattr(model, name).parameters(), rate, model.betas, fused=True)
        average_gradients(optimizers[name])
        if run and run.checkpoint:
            load_optimizer(optimizers[name], run.checkpoint.get(name), run.last)
    return optimizers


def set_rates(optimizers: dict[str, torch.optim.Optimizer], model: Translator, epoch: int, epochs: int) -> None:
    """Set the learning rates of an epoch, counted from 0."""
    constant = epochs - epochs // 2
    factor = 1 - max(0, epoch + 1 - constant) / (epochs - constant + 1)
    for optimizer, rate in zip(optimizers.values(), model.rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate * factor


def trial_step(options: TranslatorTraining, size: int, images: int, device: torch.device) -> Step:
    """A step on `images` random images of `size` x `size` pixels, as `training.segmentation.trial_step`."""
    model = build_translator(options.spec(size)).to(device, memory_format=torch.channels_last).train()
    optimizers = make_optimizers(model)
    set_rates(optimizers, model, options.epochs, options.epochs)  # to 0
    inputs, truth = torch.rand(2, images, 3, size, size, device=device) * 2 - 1
    return lambda compute: learn(model, optimizers, inputs, truth, compute)


def learn(model: Translator, optimizers: dict[str, torch.optim.Optimizer], inputs: torch.Tensor, truth: torch.Tensor,
          compute: Compute, epoch: int = 0) -> float:
    """One step of the discriminator, then one of the generator, on images float32 (N, 3, H, W) in -1..1.

    Returns the mean absolute difference of outputs and ground truth before the step, in 0..1.
    """
    inputs, truth = (images.to(compute.device, memory_format=torch.channels_last, non_blocking=True)
                     for images in (inputs, truth))
    with compute.autocast():
        outputs = model(inputs)
        loss = model.discriminator_loss(inputs, truth, outputs.detach())
    descend(optimizers["discriminator"], loss / world_size(), epoch)
    model.discriminator.requires_grad_(False)
    with compute.autocast():
        loss = model.generator_loss(inputs, truth, outputs)
    descend(optimizers["generator"], loss / world_size(), epoch)
    model.discriminator.requires_grad_(True)
    return sum_over_processes((outputs.detach() - truth).abs().mean() / 2 / world_size()).item()


def write_sheet(path: Path, model: Translator, pairs: Sequence[Pair], compute: Compute) -> None:
    """Write an image with one row for each pair: its input, the output of the model, and the ground truth."""
    records = [Record.of_pair(pair, IMAGES) for pair in pairs]
    answers = predict_records(ModelTranslator(model, PredictorOptions(compute)), records)
    rows = [np.concatenate([answer.query.image, to_pixels(answer.output.numpy()),
                            to_pixels(answer.record.load_truth())], axis=1) for answer in answers]
    with atomic_open(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")


def measure_l1(model: Translator, pairs: Sequence[Pair], compute: Compute, what: str) -> float:
    """Mean absolute difference in 0..1 of the outputs of a model and the ground truth. `what`: title of the bar."""
    records = [Record.of_pair(pair, IMAGES) for pair in own_share(pairs)]
    answers = predict_records(ModelTranslator(model, PredictorOptions(compute)), records, f"L1 {what}")
    total = sum(float(np.abs(answer.output.numpy() - answer.record.load_truth()).mean()) for answer in answers)
    return sum_over_processes(torch.tensor(total)).item() / len(pairs)


def train_and_report(options: TranslatorTraining, inside: Sequence[Pair], outside: Sequence[Pair], folder: Path,
                     compute: Compute, arguments: dict) -> None:
    """Train on `inside`, measure L1 on `inside` and `outside`, write results.json, and print the result."""
    print_once(f"training {options.model} (width {options.width}) on {len(inside)} pairs of images -> {folder}")
    model, minutes = train_translator(options, inside, outside, folder, compute, arguments)
    errors = {f"l1_{side}": measure_l1(model, pairs, compute, side)
              for side, pairs in (("in", inside), ("out", outside))}
    if is_main():
        write_json(folder / "results.json", {**errors, "in": len(inside), "out": len(outside),
                                             "epochs": options.epochs, "minutes": round(minutes, 1)})
    print_once(f"L1 {errors['l1_in']:.4f} in, {errors['l1_out']:.4f} out (0..1); {minutes:.1f} minutes; "
               f"{folder / 'last.pth.tar'}")
