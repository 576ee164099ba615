"""Query a segmentation model about overlapping windows and their mirror images, as PSPNet was tested.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, and their code (hszhao/semseg), at a single scale.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

STEP = 2 / 3  # distance between windows, as a share of their side
SMALLEST = 1e-30  # mean posteriors are at least this before the logarithm


class Windowed(nn.Module):
    """A segmentation model (images in 0..1 -> logits) that answers with the mean posterior over windows and mirrors.

    `size`: height and width of a window, the crop of the training. The windows are `STEP` of it apart, and the last
    ones end at the border. Along a side that is shorter than a window, a window has the length of the image.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images float32 (N, 3, H, W) in 0..1 -> logarithm of the mean posterior float32 (N, C, H, W)."""
        whole = images.shape[-2:]
        height, width = (min(pair) for pair in zip(whole, self.size, strict=True))
        total, count = 0.0, images.new_zeros(whole)
        for y in starts(whole[0], height):
            for x in starts(whole[1], width):
                answer = self._mirrored(images[..., y : y + height, x : x + width])
                total = total + F.pad(answer, (x, whole[1] - x - width, y, whole[0] - y - height))
                count[y : y + height, x : x + width] += 1
        return (total / count).clamp_min(SMALLEST).log()

    def _mirrored(self, window: torch.Tensor) -> torch.Tensor:
        """Mean posterior (N, C, h, w) of a window and of its mirror image."""
        plain, mirror = (self.model(one.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1)
                         for one in (window, window.flip(-1)))
        return (plain + mirror.flip(-1)) / 2


def starts(whole: int, side: int) -> list[int]:
    """The first positions of windows of `side` that cover `whole`, at most `STEP` of `side` apart."""
    step = math.ceil(side * STEP)
    return [min(index * step, whole - side) for index in range(math.ceil((whole - side) / step) + 1)]
