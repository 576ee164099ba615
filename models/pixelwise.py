"""The learned attack of Salem et al. (ML-Leaks, NDSS 2019), applied to each position separately (section 2.4)."""

import torch
from torch import nn

HIDDEN = 256  # hidden units at width 1; the default width gives 64, as in ML-Leaks


class Pixelwise(nn.Module):
    """Classify the 2C values of each position, and average the member probabilities over the labelled positions.

    forward: posterior and one-hot label (N, 2C or more, h, w) -> (logits (N, 2), logits of positions (N, 2, h, w)).
    The softmax of the logits is the mean softmax of the labelled positions, so an attack on complete images gives the
    score of the baseline in the paper. In training, forward returns instead the logits of all labelled positions
    (K, 2), patch after patch, and their number in each patch, int64 (N,).
    """

    def __init__(self, channels: int, width: float = 0.25, dropout: float = 0.0):
        super().__init__()
        self.classes = channels // 2
        hidden = max(8, round(HIDDEN * width))
        self.classify = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Dropout(dropout),
                                      nn.Conv2d(hidden, 2, 1))

    def fold_norms(self) -> "Pixelwise":
        """Return this attacker in eval mode; it has no norms to merge."""
        return self.eval()

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labelled = maps[:, self.classes : 2 * self.classes].sum(dim=1, keepdim=True) > 0
        positions = self.classify(maps).float()
        if self.training:
            return positions.movedim(1, -1)[labelled[:, 0]], labelled.sum(dim=(1, 2, 3))
        count = labelled.sum(dim=(2, 3)).clamp_min(1)
        summed = positions.log_softmax(dim=1).masked_fill(~labelled, -torch.inf).logsumexp(dim=(2, 3))
        return torch.where(labelled.any(dim=3).any(dim=2), summed - count.log(), 0), positions
