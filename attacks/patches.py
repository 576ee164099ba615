"""Where an attack looks: sliding windows, random locations, random locations with rejection (section 2.1).

Corners are int arrays (N, 2) of (top, left) on the posterior's grid. Random corners are the first of a stream that
belongs to the image; rejection walks the same stream, so it keeps the random locations that it does not reject.
"""

import numpy as np
import torch

TRIES = 50  # candidates per patch after which rejection takes the least confident it saw


def random_corners(shape: tuple[int, int], size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The first `count` corners of the stream `rng`, uniform over the map (H, W); prefixes agree for any count."""
    room = np.array([shape[0] - size + 1, shape[1] - size + 1])
    return np.floor(rng.random((count, 2)) * room).astype(np.int64)


def sliding_corners(shape: tuple[int, int], size: int, count: int = 1) -> np.ndarray:
    """A regular grid that covers the map (H, W), of `count` patches or more.

    Starts from the smallest grid that covers; while it has fewer than `count` patches, the side with the larger step
    gets one more.
    """
    room = np.array([shape[0] - size, shape[1] - size])
    grid = np.array([-(-shape[0] // size), -(-shape[1] // size)])
    while grid.prod() < count:
        steps = room / np.maximum(grid - 1, 0.5)
        grid[1 if steps[1] >= steps[0] else 0] += 1
    rows, columns = (np.round(np.linspace(0, r, n) if n > 1 else [r / 2]) for r, n in zip(room, grid, strict=True))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)


def patch_means(values: torch.Tensor, known: torch.Tensor, corners: np.ndarray, size: int) -> np.ndarray:
    """Mean of `values` (H, W) over the known positions of each patch, float64 (N,); infinite where none is known."""
    def sums(array: torch.Tensor) -> np.ndarray:
        table = np.zeros((array.shape[0] + 1, array.shape[1] + 1))
        table[1:, 1:] = array.double().cumsum(0).cumsum(1).cpu().numpy()
        (top, left), (bottom, right) = corners.T, corners.T + size
        return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]

    counts = np.round(sums(known))
    return np.where(counts > 0, sums(values * known) / np.maximum(counts, 1), np.inf)


def rejection_corners(confidence: torch.Tensor, known: torch.Tensor, size: int, count: int, tau: float,
                      rng: np.random.Generator, tries: int = TRIES) -> np.ndarray:
    """Algorithm 2, lines 2 to 8: candidates whose mean true-class posterior exceeds `tau`, or that are all void, go.

    confidence (H, W): posterior of the labelled class; known (H, W): not void. After `tries` candidates for one patch
    the least confident of them is taken.
    """
    corners = random_corners(tuple(confidence.shape), size, count * tries, rng)
    means = patch_means(confidence, known, corners, size)
    chosen, position = [], 0
    for _ in range(count):
        window = means[position : position + tries]
        kept = np.flatnonzero(window <= tau)
        offset = kept[0] if kept.size else np.argmin(window)
        chosen.append(position + offset)
        position += offset + 1 if kept.size else tries
    return corners[chosen]


def cut(array: torch.Tensor, corners: np.ndarray, size: int) -> torch.Tensor:
    """Patches (N, K, size, size) of a map (K, H, W)."""
    return torch.stack([array[:, y : y + size, x : x + size] for y, x in corners.tolist()])
