"""Dropout at test time (section 3.2): the dropout layers of the target model are active when it is queried."""

from typing import TYPE_CHECKING

from torch import nn

from defenses.base import Defense
from utils.cli import UserError
from utils.randomness import stream

if TYPE_CHECKING:
    from defenses import DefenseSpec


class Dropout(Defense):
    """Each dropout layer drops the share `spec.strength` of its inputs. The draw depends only on (seed, query)."""

    def __init__(self, spec: "DefenseSpec"):
        super().__init__(spec)
        if not 0 <= spec.strength < 1:
            raise UserError(f"-test-dropout {spec.strength}: must be 0 or more, and less than 1")
        self.draws_noise = spec.strength > 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """`model` in eval mode, with active dropout layers. Raises `UserError` if it has no dropout layer.

        Norms keep their statistics. The auxiliary head is not used in a query, so its dropout layers do not count.
        """
        layers = [module for name, module in model.eval().named_modules()
                  if isinstance(module, nn.modules.dropout._DropoutNd) and not name.startswith("auxiliary.")]
        if not layers:
            raise UserError("-test-dropout: this model has no dropout layer; train one that has, such as --model "
                            "pspnet with --dropout")
        for layer in layers:
            layer.train()
            layer.p, layer.inplace = self.spec.strength, False
        return model

    def query_seed(self, key: str) -> int:
        return int(stream(self.spec.seed, "dropout", key).integers(2**62))
