"""The per-patch attacker A_P: a ResNet that classifies a patch of a representation as member or non-member."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.pixelwise import Pixelwise
from utils.cli import UserError

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
RELEASE_FLOOR = 1e-30  # lower bound of posteriors before the logarithm, in the release


@dataclass(frozen=True)
class InputSpec:
    """The settings of an attacker's input; stored in its checkpoint under "view".

    `input`: representation; `size`: side of a patch in positions; `floor`: lower bound of posteriors before the
    logarithm; `void`: "zero" or "mask"; `stride`: pixels per position of the posteriors of its training (0 = not
    known); `argmax`: the posteriors are one-hot; `tau`: rejection threshold, chosen on the held-out part of D^S;
    `references`: number of reference models that each image was compared with in training (0: none).
    """

    input: str
    size: int
    floor: float
    void: str = "zero"
    stride: int = 0
    argmax: bool = False
    tau: float = 0.95
    references: int = 0

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, path: object) -> "InputSpec":
        """Read the input settings from a checkpoint. Raises `UserError` if they are missing or invalid."""
        try:
            spec = cls(**checkpoint["view"])
            valid = (isinstance(spec.input, str) and spec.void in ("zero", "mask") and isinstance(spec.argmax, bool)
                     and isinstance(spec.size, int) and 1 <= spec.size < 2**16 and isinstance(spec.stride, int)
                     and 0 <= spec.stride < 2**16 and 0 < spec.floor < 1 and 0 <= spec.tau < 2
                     and isinstance(spec.references, int) and 0 <= spec.references < 2**16)
        except Exception:  # a file may hold values of any type, and comparing them may raise any exception
            valid = False
        if not valid:
            raise UserError(f"{path} has missing or invalid input settings (`view`); train the attacker again")
        return spec


def build_attacker(arch: str = "resnet50", **arguments) -> "Attacker | Pixelwise":
    """Build the attacker that the `arguments` of a checkpoint describe: a per-patch ResNet, or the 1x1 baseline."""
    return Pixelwise(**arguments) if arch == "pixelwise" else Attacker(arch, **arguments)


def halvings_for(size: int) -> int:
    """Return how often (0 to 3) a map of size x size can be halved and still have at least 3 x 3 positions.

    The paper also uses fewer poolings for its smallest patches, of 15 x 15 (section 2.4).
    """
    return max((n for n in (1, 2, 3) if size > 2 * 2**n), default=0)


class _Block(nn.Module):
    """Residual block: two 3x3 convolutions (expansion 1), or 1x1, 3x3, 1x1 (expansion 4)."""

    def __init__(self, inputs: int, width: int, expansion: int, stride: int, dilation: int):
        super().__init__()
        outputs = width * expansion
        shapes = ([(inputs, width, 3), (width, outputs, 3)] if expansion == 1
                  else [(inputs, width, 1), (width, width, 3), (width, outputs, 1)])
        moved = False
        for index, (i, o, kernel) in enumerate(shapes, 1):
            step = stride if kernel == 3 and not moved else 1
            moved = moved or kernel == 3
            pad = dilation if kernel == 3 else 0
            self.add_module(f"conv{index}", nn.Conv2d(i, o, kernel, step, pad, dilation if pad else 1, bias=False))
            self.add_module(f"bn{index}", nn.BatchNorm2d(o))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.depth = len(shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for index in range(1, self.depth + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            if index < self.depth:
                out = self.relu(out)
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Attacker(nn.Module):
    """The attacker of the release: deep stem, stride 2 in layer2, 1 in layer3 and layer4, average pooling, 2 logits.

    forward: patches (N, channels, h, w) -> (logits (N, 2), layer4 features (N, K, h', w') for activation maps).
    Logit 1 is that of a member. The stem, the pooling and layer2 each halve the map. With `halvings` = n below 3, which
    small patches need, only the first n of them do. The fully connected layer always computes in float32, because bf16
    would round different scores to the same value.
    """

    def __init__(self, arch: str = "resnet50", channels: int = 1, width: float = 1.0, dilated: bool = False,
                 dropout: float = 0.0, halvings: int = 3):
        super().__init__()
        self.stride = 2**halvings  # positions of the patch per position of the features, in each direction
        stem, pool, second = (2 if halvings > step else 1 for step in range(3))
        expansion = 4 if arch == "resnet50" else 1
        base = max(8, round(64 * width))
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, base, 3, stem, 1, bias=False), nn.BatchNorm2d(base), nn.ReLU(inplace=True),
            nn.Conv2d(base, base, 3, 1, 1, bias=False), nn.BatchNorm2d(base), nn.ReLU(inplace=True),
            nn.Conv2d(base, 2 * base, 3, 1, 1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(2 * base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, pool, 1)
        inputs = 2 * base
        plan = zip(DEPTHS[arch], (1, second, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4)) if dilated else ((1, 1),) * 4,
                   strict=True)
        for stage, (blocks, stride, dilations) in enumerate(plan):
            width_here = base * 2**stage
            self.add_module(f"layer{stage + 1}", self._stage(inputs, width_here, expansion, blocks, stride, dilations))
            inputs = width_here * expansion
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, 2)
        self._initialise()

    @staticmethod
    def _stage(inputs: int, width: int, expansion: int, blocks: int, stride: int,
               dilations: Sequence[int]) -> nn.Sequential:
        first = _Block(inputs, width, expansion, stride, dilations[0])
        rest = (_Block(width * expansion, width, expansion, 1, dilations[1]) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def _initialise(self) -> None:
        for module in self.modules():
            # without values there is nothing to draw, and PyTorch would import its compiler, which takes a second
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def fold_norms(self) -> "Attacker":
        """Merge each BatchNorm into the convolution before it, for inference. Returns this attacker in eval mode.

        The logits change only by rounding. The names of the tensors change, so do not save a checkpoint afterwards.
        """
        self.eval()
        for module in list(self.modules()):
            for (name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(module, name, fuse_conv_bn_eval(conv, norm))
                    setattr(module, norm_name, nn.Identity())
        self.conv1[-1], self.bn1 = fuse_conv_bn_eval(self.conv1[-1], self.bn1), nn.Identity()
        return self

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(patches))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        with torch.autocast(features.device.type, enabled=False):
            logits = self.fc(self.dropout(features.float().mean(dim=(2, 3))))
        return logits, features
