"""The parts that PraNet and Inf-Net share: receptive field blocks, partial decoder, reverse attention, and their loss.

Sources: the two papers (named in models/pranet.py and models/infnet.py), and the code that their authors released.
These models segment one kind of region. Here they have two classes, and class 1 is the region: the logits are (0, z),
so that their softmax is the sigmoid of the z of the papers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from models.backbones import Backbone
from models.layers import OwnLoss, conv_norm, resize
from utils import VOID
from utils.cli import UserError

EDGE = 64  # channels of the edge features
WINDOW = 31  # side of the window of the position weights
NEAR = 5.0  # position weight at a boundary, beside that of other positions, which is 1


class ReceptiveField(nn.Module):
    """Four branches with growing receptive fields (Liu et al., RFBNet): (N, inputs, h, w) -> (N, width, h, w)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(inputs, width, relu=False)])
        for size in (3, 5, 7):
            self.branches.append(nn.Sequential(
                conv_norm(inputs, width, relu=False), conv_norm(width, width, (1, size), relu=False),
                conv_norm(width, width, (size, 1), relu=False), conv_norm(width, width, 3, size, relu=False)))
        self.join = conv_norm(4 * width, width, 3, relu=False)
        self.shortcut = conv_norm(inputs, width, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.join(torch.cat([branch(x) for branch in self.branches], dim=1)) + self.shortcut(x))


class PartialDecoder(nn.Module):
    """Join three features (N, width, h, w), the finest first, to a map (N, 1, h, w) of the size of the finest.

    The parallel partial decoder of PraNet, after Wu et al., "Cascaded Partial Decoder" (CVPR 2019).
    """

    def __init__(self, width: int):
        super().__init__()
        self.coarse_to_middle, self.coarse_to_fine, self.middle_to_fine, self.coarse_beside = (
            conv_norm(width, width, 3, relu=False) for _ in range(4))
        self.middle, self.middle_beside = (conv_norm(2 * width, 2 * width, 3, relu=False) for _ in range(2))
        self.fine = nn.Sequential(*(conv_norm(3 * width, 3 * width, 3, relu=False) for _ in range(2)))
        self.classify = nn.Conv2d(3 * width, 1, 1)

    def forward(self, fine: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        coarse = resize(coarse, middle, align_corners=True)
        coarse_fine, middle_fine = (resize(x, fine, align_corners=True) for x in (coarse, middle))
        middle = self.middle(torch.cat([self.coarse_to_middle(coarse) * middle, self.coarse_beside(coarse)], dim=1))
        fine = self.coarse_to_fine(coarse_fine) * self.middle_to_fine(middle_fine) * fine
        middle = self.middle_beside(resize(middle, fine, align_corners=True))
        return self.classify(self.fine(torch.cat([fine, middle], dim=1)))


class ReverseAttention(nn.Module):
    """Correct a coarse map where it is low: features (N, inputs, h, w), map (N, 1, ., .) -> map (N, 1, h, w).

    The features are multiplied by 1 - sigmoid(map). `extra`: number of channels of the edge features, or 0. `last`:
    kernel of the last convolution.
    """

    def __init__(self, inputs: int, width: int, kernel: int, layers: int, last: int, extra: int):
        super().__init__()
        self.reduce = conv_norm(inputs, width, relu=False)
        self.layers = nn.Sequential(conv_norm(width + extra, width, kernel),
                                    *(conv_norm(width, width, kernel) for _ in range(layers - 1)))
        self.last = conv_norm(width, 1, last, relu=False)

    def forward(self, features: torch.Tensor, coarse: torch.Tensor, edge: torch.Tensor | None) -> torch.Tensor:
        coarse = resize(coarse, features)
        x = self.reduce(features * (1 - coarse.sigmoid()))
        if edge is not None:
            x = torch.cat([x, resize(edge, x)], dim=1)
        return self.last(self.layers(x)) + coarse


class EdgeBranch(nn.Module):
    """Features of edges (N, EDGE, h, w), and the logit of an edge (N, 1, h, w), from the features at stride 4."""

    def __init__(self, inputs: int):
        super().__init__()
        self.features = nn.Sequential(conv_norm(inputs, EDGE, relu=False),
                                      *(conv_norm(EDGE, EDGE, 3, relu=False) for _ in range(2)))
        self.classify = conv_norm(EDGE, 1, 3, relu=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(x)
        return features, self.classify(features)


class ReverseAttentionHead(nn.Module):
    """All that follows the backbone: features at strides 4, 8, 16, 32 -> four maps (N, 1, ., .), edge map or None.

    The maps are those of the partial decoder, and of the branches at strides 32, 16 and 8.
    """

    def __init__(self, inputs: list[int], width: int, edges: bool):
        super().__init__()
        extra = EDGE if edges else 0
        self.edge = EdgeBranch(inputs[0]) if edges else None
        self.fields = nn.ModuleList(ReceptiveField(channels, width) for channels in inputs[1:])
        self.decoder = PartialDecoder(width)
        self.branches = nn.ModuleList([ReverseAttention(inputs[3], 256, 5, 3, 1, extra),
                                       ReverseAttention(inputs[2], 64, 3, 2, 3, extra),
                                       ReverseAttention(inputs[1], 64, 3, 2, 3, extra)])

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        edge_features, edge = self.edge(features[0]) if self.edge else (None, None)
        maps = [self.decoder(*(field(x) for field, x in zip(self.fields, features[1:], strict=True)))]
        for branch, x in zip(self.branches, features[:0:-1], strict=True):
            maps.append(branch(x, maps[-1], edge_features))
        return maps, edge


class ReverseAttentionNet(nn.Module):
    """Backbone and head. forward: images (N, 3, H, W) in 0..1 -> logits (0, z), float32 (N, 2, H, W).

    z is the last map. In training: `SideOutputs`, all maps at the size of the images.
    """

    def __init__(self, backbone: Backbone, head: ReverseAttentionHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> "torch.Tensor | SideOutputs":
        maps, edge = self.head(self.backbone(images))
        if self.training:
            maps = tuple(resize(one.float(), images).squeeze(1) for one in maps)
            return SideOutputs(maps, None if edge is None else resize(edge.float(), images).squeeze(1))
        last = resize(maps[-1].float(), images)
        return torch.cat([torch.zeros_like(last), last], dim=1)


@dataclass(frozen=True)
class SideOutputs(OwnLoss):
    """The maps z of a `ReverseAttentionNet` in training, and that of the edges (None without): float32 (N, H, W)."""

    maps: tuple[torch.Tensor, ...]
    edge: torch.Tensor | None

    def image_losses(self, labels: torch.Tensor) -> torch.Tensor:
        losses = sum(structure_loss(one, labels) for one in self.maps)
        if self.edge is not None:
            losses = losses + mean_entropy(self.edge, edges_of(labels), labels != VOID)
        return losses


def structure_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus weighted IoU loss of each image (N,): logits float32 (N, H, W), labels int64 (N, H, W).

    The papers weight the positions of both parts: more near a boundary. In the released code the cross-entropy is
    called with reduce='none', which PyTorch takes as the mean. So its weights cancel, and only the IoU loss is weighted
    (as here, because the published models were trained so). There the mean is over the batch; here it is over the
    labelled positions of each image, which is the same if no position is void. For the weights, void counts as class 0,
    as the padding beyond the image does.
    """
    known, region = labels != VOID, (labels == 1).to(logits.dtype)
    weight = (1 + NEAR * (mean_around(region) - region).abs()) * known
    member = logits.sigmoid()
    common = (member * region * weight).sum(dim=(1, 2))
    union = ((member + region) * weight).sum(dim=(1, 2)) - common
    return mean_entropy(logits, region, known) + 1 - (common + 1) / (union + 1)


def mean_around(maps: torch.Tensor) -> torch.Tensor:
    """The mean of maps (N, H, W) over the window of each position; beyond the map they are 0.

    First over columns, then over rows, which takes 62 additions a position in place of 961.
    """
    half = WINDOW // 2
    columns = F.avg_pool2d(maps.unsqueeze(1), (1, WINDOW), stride=1, padding=(0, half))
    return F.avg_pool2d(columns, (WINDOW, 1), stride=1, padding=(half, 0)).squeeze(1)


def mean_entropy(logits: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each image (N,): the mean over its positions that are `known`. All are (N, H, W)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (entropy * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp_min(1)


def edges_of(labels: torch.Tensor) -> torch.Tensor:
    """The edge map of labels, float32 (N, H, W): 1 where the 3x3 window holds both classes, else 0.

    This is the morphological gradient. A void position belongs to no class, so a boundary of void is no edge.
    """
    region, rest = (F.max_pool2d((labels == index).float().unsqueeze(1), 3, stride=1, padding=1) for index in (1, 0))
    return (region * rest).squeeze(1)


def build(backbone: str, classes: int, width: int, pretrained: bool, name: str, edges: bool) -> ReverseAttentionNet:
    """Build PraNet or, with `edges`, Inf-Net. Raises `UserError` if the number of classes is not 2."""
    if classes != 2:
        raise UserError(f"{name} separates one kind of region from the background, so the data set must have two "
                        f"classes, not {classes}; choose another --model")
    body = Backbone(backbone, 32, 4, pretrained)
    return ReverseAttentionNet(body, ReverseAttentionHead(body.channels, width, edges))
