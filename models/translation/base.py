"""The base class of translators, and the layers that several of them share."""

from collections.abc import Sequence

import torch
from torch import nn


class Translator(nn.Module):
    """A generator, its discriminator, and the losses of both. A subclass sets the two, and defines the two losses.

    Images are float32 (N, C, H, W) in -1..1. `rates`: learning rates of generator and discriminator; `betas`: those of
    Adam. `multiple`: what the sides of an image must be a multiple of.
    """

    generator: nn.Module
    discriminator: nn.Module
    rates: tuple[float, float] = (2e-4, 2e-4)
    betas: tuple[float, float] = (0.5, 0.999)
    multiple: int = 1

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The outputs (N, 3, H, W) in -1..1 for inputs of the same size."""
        return self.generator(inputs)

    def discriminator_loss(self, inputs: torch.Tensor, truth: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """The loss of the discriminator. `outputs`: those of the generator, from which no gradient flows back."""
        raise NotImplementedError

    def generator_loss(self, inputs: torch.Tensor, truth: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """The loss of the generator. Only its gradients with respect to the generator are used."""
        raise NotImplementedError


def initialise(model: nn.Module, norms: Sequence[type] = (nn.BatchNorm2d,)) -> None:
    """Draw the weights of convolutions from N(0, 0.02²), and the scales of `norms` from N(1, 0.02²); biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, tuple(norms)) and module.weight is not None:
            nn.init.normal_(module.weight, 1, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
