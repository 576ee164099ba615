"""Select the patches of a map: random locations, sliding windows, or random locations with rejection (section 2.1).

Corners are int arrays (N, 2) of (top, left) on the positions of the map. Each image has its own random stream of
corners, and a random selection takes the first corners of this stream. Rejection draws from the same stream.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.cli import UserError
from utils.randomness import stream

TRIES = 50  # after so many candidates for one patch, rejection takes the least confident of them
CPU_BATCH = 16  # patches in one forward pass on a CPU


@dataclass(frozen=True)
class Selection:
    """Which patches of an image are scored.

    `scheme`: one of `attacks.SCHEMES`; `count`: number of patches; `size`: side of a patch in positions; `tau`:
    rejection threshold; `seed`: seed of the random locations. Raises `UserError` if `count` or `size` is less than 1.
    """

    scheme: str = "random"
    count: int = 6
    size: int = 24
    tau: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise UserError("the number of patches (-num-patch) and --patch-size must be 1 or more")

    def images_per_batch(self, batch: int) -> int:
        """Number of images that have about `batch` patches together. On a CPU their patches fill complete batches."""
        if self.scheme == "full":
            return max(1, batch)
        wanted, step = batch // self.count, CPU_BATCH // math.gcd(CPU_BATCH, self.count)
        return max(1, wanted // step * step or wanted)

    def corners(self, shape: tuple[int, int], key: str, confidence: Callable[[], torch.Tensor],
                known: torch.Tensor) -> np.ndarray:
        """Corners (N, 2) on the map (H, W) of the image `key`.

        `confidence` returns the posterior of the labelled class (H, W); it is called only for rejection. `known` (H, W)
        is false where void. Raises `UserError` if the map is smaller than a patch.
        """
        if min(shape) < self.size:
            raise UserError(f"{key}: its {shape[0]} x {shape[1]} posterior is smaller than the attacker's "
                            f"{self.size} x {self.size} patch; use --select full, or an attacker of smaller patches")
        rng = stream(self.seed, "patches", key)
        if self.scheme == "sliding":
            return sliding_corners(shape, self.size, self.count)
        if self.scheme == "random":
            return random_corners(shape, self.size, self.count, rng)
        return rejection_corners(confidence(), known, self.size, self.count, self.tau, rng)


RANDOM = Selection()


def random_corners(shape: tuple[int, int], size: int | Sequence[int], count: int,
                   rng: np.random.Generator) -> np.ndarray:
    """The first `count` corners of the stream `rng`, uniform over the map (H, W). A larger `count` adds corners.

    `size`: side of a patch, or its height and width.
    """
    room = np.array(shape) - size + 1
    return np.floor(rng.random((count, 2)) * room).astype(np.int64)


def sliding_corners(shape: tuple[int, int], size: int, count: int = 1) -> np.ndarray:
    """Corners of a regular grid of at least `count` patches that covers the map (H, W).

    The function starts with the smallest grid that covers the map. As long as the grid has fewer than `count` patches,
    it adds a row or a column, in the direction in which the patches are farther apart.
    """
    room = np.array([shape[0] - size, shape[1] - size])
    grid = np.array([-(-shape[0] // size), -(-shape[1] // size)])
    while grid.prod() < count:
        steps = room / np.maximum(grid - 1, 0.5)
        grid[1 if steps[1] >= steps[0] else 0] += 1
    rows, columns = (np.round(np.linspace(0, r, n) if n > 1 else [r / 2]) for r, n in zip(room, grid, strict=True))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)


def patch_means(values: torch.Tensor, known: torch.Tensor, corners: np.ndarray, size: int) -> np.ndarray:
    """Mean of `values` (H, W) over the known positions of each patch, float64 (N,); infinity if all of it is void."""
    def sums(array: torch.Tensor) -> np.ndarray:
        table = np.zeros((array.shape[0] + 1, array.shape[1] + 1))
        table[1:, 1:] = array.double().cumsum(0).cumsum(1).cpu().numpy()
        (top, left), (bottom, right) = corners.T, corners.T + size
        return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]

    counts = np.round(sums(known))
    return np.where(counts > 0, sums(values.masked_fill(~known, 0)) / np.maximum(counts, 1), np.inf)


def rejection_corners(confidence: torch.Tensor, known: torch.Tensor, size: int, count: int, tau: float,
                      rng: np.random.Generator, tries: int = TRIES) -> np.ndarray:
    """Reject candidates that are all void, or whose mean `confidence` is above `tau` (algorithm 2, lines 2 to 8).

    confidence (H, W): posterior of the labelled class; known (H, W): not void. If `tries` candidates for one patch are
    all rejected, the patch with the lowest mean is taken.
    """
    corners = random_corners(tuple(confidence.shape), size, count * tries, rng)
    means = patch_means(confidence, known, corners, size)
    chosen, position = [], 0
    for _ in range(count):
        window = means[position : position + tries]
        accepted = np.flatnonzero(window <= tau)
        offset = accepted[0] if accepted.size else np.argmin(window)
        chosen.append(position + offset)
        position += offset + 1 if accepted.size else tries
    return corners[chosen]


def cut(array: torch.Tensor, corners: np.ndarray, size: int) -> torch.Tensor:
    """Patches (N, K, size, size) of a map (K, H, W)."""
    return torch.stack([array[:, y : y + size, x : x + size] for y, x in corners.tolist()])
