"""Random augmentation of image and label, applied to both together, for training a segmentation model."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.images import load_image
from datasets.pairs import Pair, load_pair
from utils import VOID
from utils.pause import leave_signals_to_parent
from utils.randomness import stream


def augment(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    crop: tuple[int, int],
    fill: Sequence[float],
    scale: tuple[float, float] = (0.5, 2.0),
    rotate: float = 10.0,
    blur: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, rotate, blur, flip and crop, as in the training of PSPNet.

    image uint8 (H, W, 3), label uint8 (H, W) -> new arrays (h, w, 3) and (h, w) of the size `crop` = (h, w). Pixels
    outside the original image get the colour `fill` (0..255 per channel) and the label void. The scale is drawn
    log-uniformly from `scale`. Rotation by up to `rotate` degrees and horizontal flip have probability 0.5, the
    5 x 5 Gaussian blur has probability `blur`.
    """
    factor = float(np.exp(rng.uniform(*np.log(scale))))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST_EXACT)
    angle, rotated, blurred, flipped = rng.uniform(-rotate, rotate), *(rng.random(3) < (0.5, blur, 0.5))
    if rotated and rotate:
        height, width = label.shape
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=tuple(fill))
        label = cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=VOID)
    if blurred:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if flipped:
        image, label = image[:, ::-1], label[:, ::-1]
    return _crop(image, label, rng, crop, fill)


def _crop(image, label, rng, crop, fill):
    """Crop at a random position. An image that is smaller than the crop is placed at a random position in it."""
    (height, width), (rows, columns) = label.shape, crop
    out_image = np.empty((rows, columns, 3), np.uint8)
    out_image[:] = np.round(fill)
    out_label = np.full((rows, columns), VOID, np.uint8)
    y, x = (int(rng.integers(min(0, room), max(0, room) + 1)) for room in (height - rows, width - columns))
    source = np.s_[max(0, y) : max(0, y) + min(rows, height), max(0, x) : max(0, x) + min(columns, width)]
    target = np.s_[max(0, -y) : max(0, -y) + min(rows, height), max(0, -x) : max(0, -x) + min(columns, width)]
    out_image[target], out_label[target] = image[source], label[source]
    return out_image, out_label


def start_worker(_: int) -> None:
    """Start a process of a DataLoader, which gets its number: one thread, and signals are left to the parent."""
    cv2.setNumThreads(0)
    leave_signals_to_parent()


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert an image uint8 (H, W, 3) to float32 (3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


class Augmented(Dataset):
    """Augmented training images. Item (epoch, i) is an image float32 (3, h, w) in 0..1 and a label int64 (h, w).

    The augmentation depends only on the seed, the epoch and the name of the image.
    """

    def __init__(self, pairs: Sequence[Pair], dataset: str, seed: int, crop, fill, scale, rotate, blur=0.5):
        self.pairs, self.seed = pairs, seed
        self.dataset = dataset  # the name, because a module cannot be pickled for a worker
        self.settings = {"crop": crop, "fill": fill, "scale": scale, "rotate": rotate, "blur": blur}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = item
        pair = self.pairs[index]
        rng = stream(self.seed, "augment", epoch, pair.name)
        image, label = augment(*load_pair(pair, self.dataset), rng, **self.settings)
        return to_tensor(image), torch.from_numpy(label.astype(np.int64))


ENLARGED = 286 / 256  # size before the random crop, relative to the size of the images


class TranslationPairs(Dataset):
    """Augmented training pairs of a translator. Item (epoch, i) is (input, ground truth), float32 (3, S, S) in -1..1.

    Both are enlarged by `ENLARGED`, cropped to S x S at a random position, and mirrored with probability 0.5 (Isola et
    al., section 6.2). This depends only on the seed, the epoch and the name of the pair.
    """

    def __init__(self, pairs: Sequence[Pair], seed: int):
        self.pairs, self.seed = pairs, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = item
        pair = self.pairs[index]
        rng = stream(self.seed, "augment", epoch, pair.name)
        images = [load_image(pair.root / file) for file in (pair.image, pair.label)]
        size = images[0].shape[0]
        large = round(size * ENLARGED)
        top, left = rng.integers(large - size + 1, size=2)
        mirrored = rng.random() < 0.5
        out = []
        for image in images:
            enlarged = cv2.resize(image, (large, large), interpolation=cv2.INTER_CUBIC)
            crop = enlarged[top : top + size, left : left + size]
            out.append(to_tensor(crop[:, ::-1] if mirrored else crop) * 2 - 1)
        return tuple(out)
