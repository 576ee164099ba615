"""Dropout at test time (section 3.2): the victim answers with a network that was thinned at random."""

from dataclasses import dataclass

from torch import nn

from utils.cli import UserError
from utils.randomness import stream


@dataclass(frozen=True)
class Dropout:
    """Which share of its inputs each dropout layer of the victim drops when it is asked; one draw per (seed, image).

    Raises `UserError` for a ratio outside 0..1.
    """

    ratio: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise UserError(f"-test-dropout {self.ratio}: a share is 0 or more and less than 1")

    def switch_on(self, model: nn.Module) -> nn.Module:
        """`model` in eval mode but for its dropout layers, which drop; `UserError` when it has none that it uses.

        Norms keep their statistics. An auxiliary head is silent when a model is asked, whatever it drops.
        """
        layers = [module for name, module in model.eval().named_modules()
                  if isinstance(module, nn.modules.dropout._DropoutNd) and not name.startswith("auxiliary.")]
        if not layers:
            raise UserError("-test-dropout: this model has no dropout layer; train one with --dropout")
        for layer in layers:
            layer.train()
            layer.p, layer.inplace = self.ratio, False
        return model

    def draw(self, key: str) -> int:
        """The seed of what is dropped for an image."""
        return int(stream(self.seed, "dropout", key).integers(2**62))
