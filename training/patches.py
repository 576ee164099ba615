"""The patches of the training of an attacker: their sizes, their batches, and their augmentation."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from attacks.patches import random_corners
from attacks.sample import Sample
from defenses.gauss import draw_noise, normalise
from training.options import AttackerTraining
from utils import VOID
from utils.distributed import world_size
from utils.randomness import stream

ZOOM = 1.25  # strong augmentation: largest factor between a window and the patch that is made from it
NOISE = 0.1  # strong augmentation: standard deviation of the noise on the logarithm of a posterior
CUT_OUT = 0.5  # strong augmentation: probability of a cut-out, and its largest side as a share of that of the patch

Item = tuple[int, int, int]  # number of a patch, and its height and width in positions


class Patches(Dataset):
    """The patches of an epoch: `repeat` random patches of each image.

    Item: posterior float32 (C, h, w), label uint8 (h, w), member 0 or 1, and the patch (E, h, w) of the context of the
    sample, if it has one. The index is the number of a patch, of
    `size` x `size` positions, or an `Item`. A patch depends only on the seed, the epoch, the image, its number (0 to
    `repeat` - 1) and its size. About half of the patches are mirrored, together with their labels. `strong`: see
    `zoom` and `perturb`.
    """

    def __init__(self, samples: Sequence[Sample], size: int, seed: int, repeat: int, strong: bool = False):
        self.size, self.seed, self.repeat, self.strong, self.epoch = size, seed, repeat, strong, 0
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples) * self.repeat

    def sample(self, number: int) -> Sample:
        """The sample of a patch."""
        return self.samples[number % len(self.samples)]

    def __getitem__(self, index: int | Item) -> tuple[torch.Tensor | int, ...]:
        number, *size = (index, self.size, self.size) if isinstance(index, int) else index
        sample = self.sample(number)
        shape, rng = tuple(sample.truth.shape), stream(self.seed, "attacker", self.epoch, number // len(self.samples),
                                                       sample.name)
        window = draw_window(shape, size, rng) if self.strong else size
        (y, x), (height, width) = random_corners(shape, window, 1, rng)[0], window
        arrays = [sample.output, sample.truth, *([] if sample.context is None else [sample.context])]
        arrays = [array[..., y : y + height, x : x + width] for array in arrays]
        if self.strong:
            arrays = [zoom(array, size) for array in arrays]
        if rng.random() < 0.5:
            arrays = [array.flip(-1) for array in arrays]
        posterior, label, *context = arrays
        posterior = posterior.float()
        if self.strong:
            posterior, label = perturb(posterior, label, rng)
        return posterior, label, int(sample.member), *context


def draw_batches(patches: Patches, options: AttackerTraining, epoch: int) -> list[list[Item]]:
    """The batches of an epoch, each of patches of one size. They depend only on the seed, the epoch and D^S."""
    order = stream(options.seed, "order", epoch).permutation(len(patches))
    chunks = np.array_split(order, options.schedule(len(patches))[0])
    return [_form_batch(patches, chunk.tolist(), options.mixed_sizes, stream(options.seed, "sizes", epoch, step))
            for step, chunk in enumerate(chunks)]


def _form_batch(patches: Patches, numbers: Sequence[int], larger: float, rng: np.random.Generator) -> list[Item]:
    """A batch of the patches `numbers`; with probability `larger`, a batch of larger crops of some of their images.

    Half of these batches have the size of the full map of their first image. The others have a size between that of a
    patch and that of the full map, uniformly. Images whose map is smaller than this size are left out. The batch has as
    many positions as the patches, or fewer; but it has at least one crop for each process, and where too few images are
    large enough for that, it stays one of patches.
    """
    side = patches.size
    if rng.random() < larger:
        part = min(1.0, 2 * rng.random())
        shapes = [tuple(patches.sample(number).truth.shape) for number in numbers]
        size = tuple(side + round(part * (length - side)) for length in shapes[0])
        fitting = [number for number, shape in zip(numbers, shapes, strict=True)
                   if shape[0] >= size[0] and shape[1] >= size[1]]
        if len(fitting) >= world_size():
            count = max(world_size(), len(numbers) * side**2 // math.prod(size))
            return [(number, *size) for number in fitting[:count]]
    return [(number, side, side) for number in numbers]


def draw_window(shape: tuple[int, int], size: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Size of the window from which a patch of `size` is made: 1 / `ZOOM` to `ZOOM` times as large, within the map."""
    factor = min(ZOOM ** rng.uniform(-1, 1), *(whole / side for whole, side in zip(shape, size, strict=True)))
    return tuple(max(1, round(factor * side)) for side in size)


def zoom(array: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize (..., h', w') to (..., h, w) by the nearest position.

    A position keeps its own posterior beside its own label. An interpolation would give losses that no model has, and
    posteriors under Argmax that are not one-hot.
    """
    rows, columns = (torch.arange(side).mul(2).add(1).mul(source) // (2 * side)
                     for side, source in zip(size, array.shape[-2:], strict=True))
    return array[..., rows[:, None], columns]


def perturb(posterior: torch.Tensor, label: torch.Tensor,
            rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise on the logarithm of a posterior float32 (C, h, w), and perhaps a cut-out of its label uint8 (h, w).

    The noise is N(0, `NOISE`²) for each class and position, and the result is normalised; a posterior of 0 stays 0. The
    label becomes void in a rectangle, so that no representation shows a label there; the posterior stays, as at other
    void positions.
    """
    posterior = normalise(posterior * (NOISE * draw_noise(posterior, rng)).exp())
    if rng.random() < CUT_OUT:
        label = label.clone()
        sides = [1 + int(rng.random() * CUT_OUT * length) for length in label.shape]
        (y, x), (height, width) = random_corners(tuple(label.shape), sides, 1, rng)[0], sides
        label[y : y + height, x : x + width] = VOID
    return posterior, label
