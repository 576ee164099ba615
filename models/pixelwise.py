"""The learned attack of Salem et al. (ML-Leaks, NDSS 2019), applied to each position separately (section 2.4)."""

from collections.abc import Sequence

import torch
from torch import nn

HIDDEN = 256  # hidden units at width 1; the default width gives 64, as in ML-Leaks


class Pixelwise(nn.Module):
    """Classify the values of each position, and average the member probabilities over the labelled positions.

    `labelled`: first and last + 1 of the channels whose sum is above 0 at the labelled positions; without it the
    channels are posterior and one-hot label, and perhaps one more.

    forward: map (N, channels, h, w) -> (logits (N, 2), logits of positions (N, 2, h, w)).
    The softmax of the logits is the mean softmax of the labelled positions, so an attack on complete images gives the
    score of the baseline in the paper. In training, forward returns instead the logits of all labelled positions
    (K, 2), patch after patch, and their number in each patch, int64 (N,).
    """

    def __init__(self, channels: int, width: float = 0.25, dropout: float = 0.0,
                 labelled: Sequence[int] | None = None):
        super().__init__()
        first, last = labelled or (channels // 2, channels // 2 * 2)
        self.labelled = slice(first, last)
        if not 0 <= first < last <= channels:
            raise ValueError(f"channels {first} to {last} of {channels} cannot say which positions have a label")
        hidden = max(8, round(HIDDEN * width))
        self.classify = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Dropout(dropout),
                                      nn.Conv2d(hidden, 2, 1))

    def fold_norms(self) -> "Pixelwise":
        """Return this attacker in eval mode; it has no norms to merge."""
        return self.eval()

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labelled = maps[:, self.labelled].sum(dim=1, keepdim=True) > 0
        positions = self.classify(maps).float()
        if self.training:
            return positions.movedim(1, -1)[labelled[:, 0]], labelled.sum(dim=(1, 2, 3))
        count = labelled.sum(dim=(2, 3)).clamp_min(1)
        summed = positions.log_softmax(dim=1).masked_fill(~labelled, -torch.inf).logsumexp(dim=(2, 3))
        return torch.where(labelled.any(dim=3).any(dim=2), summed - count.log(), 0), positions
