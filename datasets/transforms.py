"""Joint random transforms of image and label for training a segmentation model."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets import find_dataset
from datasets.pairs import Pair, load_pair
from utils import VOID
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
    """Scale, rotate (p 0.5), blur 5 x 5 (p `blur`), flip (p 0.5) and crop, as PSPNet is trained.

    image uint8 (H, W, 3), label uint8 (H, W) -> the same at size `crop` (h, w), written into new arrays. What lies
    outside the image is `fill` (0..255 per channel) and void. `scale` is drawn log-uniformly, `rotate` is the
    largest angle in degrees.
    """
    factor = float(np.exp(rng.uniform(*np.log(scale))))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST_EXACT)
    angle, turned, blurred, flipped = rng.uniform(-rotate, rotate), *(rng.random(3) < (0.5, blur, 0.5))
    if turned and rotate:
        height, width = label.shape
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        image = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=tuple(fill))
        label = cv2.warpAffine(label, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=VOID)
    if blurred:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if flipped:
        image, label = image[:, ::-1], label[:, ::-1]
    return _crop(image, label, rng, crop, fill)


def _crop(image, label, rng, crop, fill):
    """Random crop; an image smaller than the crop lies at a random place of it."""
    (height, width), (rows, columns) = label.shape, crop
    out_image = np.empty((rows, columns, 3), np.uint8)
    out_image[:] = np.round(fill)
    out_label = np.full((rows, columns), VOID, np.uint8)
    y, x = (int(rng.integers(min(0, room), max(0, room) + 1)) for room in (height - rows, width - columns))
    source = np.s_[max(0, y) : max(0, y) + min(rows, height), max(0, x) : max(0, x) + min(columns, width)]
    target = np.s_[max(0, -y) : max(0, -y) + min(rows, height), max(0, -x) : max(0, -x) + min(columns, width)]
    out_image[target], out_label[target] = image[source], label[source]
    return out_image, out_label


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Image uint8 (H, W, 3) -> float32 (3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


class Augmented(Dataset):
    """Training images; item (epoch, i) is image float32 (3, h, w) in 0..1 and label int64 (h, w).

    What an image looks like depends on (seed, epoch, image) only.
    """

    def __init__(self, pairs: Sequence[Pair], dataset: str, seed: int, crop, fill, scale, rotate, blur=0.5):
        self.pairs, self.seed = pairs, seed
        self.dataset = dataset  # by name, since a worker may have to unpickle it
        self.how = {"crop": crop, "fill": fill, "scale": scale, "rotate": rotate, "blur": blur}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = item
        pair = self.pairs[index]
        rng = stream(self.seed, "augment", epoch, pair.name)
        image, label = augment(*load_pair(pair, find_dataset(self.dataset)), rng, **self.how)
        return to_tensor(image), torch.from_numpy(label.astype(np.int64))
