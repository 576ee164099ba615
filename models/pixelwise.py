"""The learned attack of Salem et al. (ML-Leaks, NDSS 2019), adapted as in section 2.4: every position by itself."""

import torch
from torch import nn

HIDDEN = 256  # times the width: 64 units at the default, as in ML-Leaks


class Pixelwise(nn.Module):
    """A classifier of the 2C values of one position, whose member probabilities are averaged over the labelled ones.

    forward: posterior and one-hot label (N, 2C or more, h, w) -> (logits (N, 2), position logits (N, 2, h, w)).
    The softmax of the logits is the mean of the positions' softmaxes, so an attack with whole images scores as
    the paper's baseline does. In training it returns instead the logits of all labelled positions, (K, 2), patch after
    patch, and how many each patch has, int64 (N,).
    """

    def __init__(self, channels: int, width: float = 0.25, dropout: float = 0.0):
        super().__init__()
        self.classes = channels // 2
        hidden = max(8, round(HIDDEN * width))
        self.classify = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Dropout(dropout),
                                      nn.Conv2d(hidden, 2, 1))

    def fold_norms(self) -> "Pixelwise":
        """Nothing to fold; this attacker, in eval mode."""
        return self.eval()

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = maps[:, self.classes : 2 * self.classes].sum(dim=1, keepdim=True) > 0
        positions = self.classify(maps).float()
        if self.training:
            return positions.movedim(1, -1)[known[:, 0]], known.sum(dim=(1, 2, 3))
        count = known.sum(dim=(2, 3)).clamp_min(1)
        summed = positions.log_softmax(dim=1).masked_fill(~known, -torch.inf).logsumexp(dim=(2, 3))
        return torch.where(known.any(dim=3).any(dim=2), summed - count.log(), 0), positions
