"""The types of the road: a sample as an attack receives it, an attack, and its scores."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from attacks.patches import RANDOM, Selection
from attacks.representation import FLOOR
from utils import VOID
from utils.device import CPU_FP32, Compute

if TYPE_CHECKING:
    from models import LoadedAttacker
    from predictors.base import Predictor


@dataclass(frozen=True)
class Sample:
    """One image as an attack receives it.

    `output`: float32 (C, h, w), the posterior of the target model under its defense, with sums of 1 over classes.
    `truth`: integer (h, w) train ids with 255 = void, or None where it is not known.
    `image`: uint8 (3, H, W), only where the attack needs it.
    `references`: outputs of reference models for this image, without a defense; `in_reference`: whether each of them
    was trained on it.
    `id` is what random streams are derived from; `undefended` is the output before the defense, where it is compared.
    """

    name: str
    id: str
    group: str
    member: bool | None
    output: torch.Tensor
    truth: torch.Tensor | None
    image: torch.Tensor | None = None
    references: tuple[torch.Tensor, ...] = ()
    in_reference: tuple[bool, ...] = ()
    undefended: torch.Tensor | None = None

    @property
    def known(self) -> torch.Tensor:
        """bool (h, w): the positions that have a label; all of them where the truth is not known."""
        if self.truth is None:
            return torch.ones(self.output.shape[-2:], dtype=torch.bool)
        return self.truth != VOID


@dataclass
class Scored:
    """The result of an attack on one sample; a higher score means a member.

    `corners` (N, 2) and `patch_scores` (N,) are empty where an attack has no patches. They are lists, because an array
    for each image would fragment the heap by 20 kB an image.
    """

    name: str
    member: bool | None
    group: str
    score: float
    corners: list[list[int]] = field(default_factory=list)
    patch_scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class AttackSettings:
    """What attacks may need. Each attack reads the fields that concern it.

    `selection`: which patches; `floor`: lower bound of posteriors before the logarithm; `attacker`: a trained attacker;
    `score`: "paper" (mean member probability) or "release" (sum of member logits); `batch`: patches in memory;
    `c`: weight of the references in the calibrated score.
    """

    selection: Selection = RANDOM
    floor: float = FLOOR
    attacker: "LoadedAttacker | None" = None
    score: str = "paper"
    batch: int = 64
    c: float = 0.75
    compute: Compute = CPU_FP32


class Attack:
    """An attack. A subclass defines `score`, and says in `needs` what it reads.

    `needs` holds some of "truth" (a label with known positions), "image", "references", "population" (`fit` is called
    with samples of known membership), "queries" and "weights" (`score` gets the predictor). Without "truth", samples
    may have none.
    """

    needs: frozenset[str] = frozenset({"truth"})

    def __init__(self, settings: AttackSettings):
        self.settings = settings

    @property
    def images_per_batch(self) -> int:
        """How many samples are best given to `score` at once; results do not depend on it."""
        return self.settings.selection.images_per_batch(self.settings.batch)

    def fit(self, population: Iterable[Sample]) -> None:
        """Learn from samples of known membership; most attacks do not."""

    def score(self, samples: Iterable[Sample], predictor: "Predictor | None" = None) -> Iterator[Scored]:
        """Score samples, in order. Memory holds `images_per_batch` of them."""
        raise NotImplementedError
