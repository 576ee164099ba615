"""The base class of translators, and the layers that several of them share."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from utils.cli import UserError


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


def check_size(size: int, multiple: int) -> None:
    """Raise `UserError` unless `size`, the sides of training images, is a multiple of `multiple`, at least twice it.

    A map of one position has no variance, by which a normalisation could divide.
    """
    if size % multiple or size < 2 * multiple:
        raise UserError(f"training images of {size} x {size} do not fit this translator; give it sides that are a "
                        f"multiple of {multiple}, and {2 * multiple} at least")


def draw_normal(weight: torch.Tensor) -> torch.Tensor:
    """Fill `weight` from N(0, 0.02²)."""
    return nn.init.normal_(weight, 0, 0.02)


def initialise(model: nn.Module, norms: Sequence[type] = (nn.BatchNorm2d,),
               draw: Callable[[torch.Tensor], object] = draw_normal) -> None:
    """Fill the weights of convolutions by `draw`, and the scales of `norms` from N(1, 0.02²); biases become 0.

    Call it before spectral normalisation is added, which estimates the largest singular value of the weights.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            draw(module.weight)
        elif isinstance(module, tuple(norms)) and module.weight is not None:
            nn.init.normal_(module.weight, 1, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
