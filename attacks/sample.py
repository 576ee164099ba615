"""The types that attacks share: a sample, the scores of a sample, and the base class of attacks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
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

    `id`: key of the random streams of this image. `group`: images that belong together, for the intervals.
    `member`: whether the target model was trained on the image; None if this is not known.
    `output`: float32 (C, h, w), the posterior of the target model under its defense; it sums to 1 over the classes.
    `truth`: uint8 (h, w), train ids with 255 = void, or float32 (C, h, w) of a translated image; None if there is none.
    With pseudo-labels it is the argmax of `output`.
    `image`: uint8 (3, H, W); None unless the attack needs it.
    `references`: outputs of reference models for this image, without a defense or, with `--defend-references`, under
    that of the target model.
    `in_reference`: whether each reference model was trained on this image.
    `undefended`: the output before the defense; None unless the caller asks for it.
    `predictability`: the predictability error of the image; None unless the attack needs it.
    `label`: uint8 (H, W), the label of which `truth` has every `stride`-th pixel; None unless "label" is needed.
    `stride`: pixels per position of `output`; None if it is not known.
    `ask`: queries the models about another image uint8 (H, W, 3) in the place of this one: `ask(image, number)` yields
    the output of the target model under its defense, and then those of `references`, each when it is asked for. For
    each `number`, 1 or more, a defense draws other noise. None unless the attack needs "queries", and the model can be
    queried.
    `gradients`: yields the norm of the gradient of the mean cross-entropy at the positions of `truth` in the weights of
    the target model, and then of each of `references`. None unless the attack needs "weights".
    `context`: float32 (E, h, w), what a representation made of the complete image; see `representation.add_context`.
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
    predictability: float | None = None
    label: torch.Tensor | None = None
    stride: int | None = None
    ask: Callable[[np.ndarray, int], Iterator[torch.Tensor]] | None = None
    gradients: Callable[[], Iterator[float]] | None = None
    context: torch.Tensor | None = None

    @property
    def known(self) -> torch.Tensor:
        """bool (h, w): whether each position has a label. Without `truth`, and for images, all positions are true."""
        if self.truth is None or self.truth.ndim == self.output.ndim:
            return torch.ones(self.output.shape[-2:], dtype=torch.bool)
        return self.truth != VOID


@dataclass
class Scored:
    """The result of an attack on one sample. A higher score means that the sample is more likely a member.

    `corners` (N, 2) and `patch_scores` (N,) are empty if the attack has no patches. `statistics`: what `Attack.finish`
    reads; and "queries": the scores by the first 1, 2, ..., N queries, whose AUC the report gives. All are lists,
    because small arrays fragment the heap: each image would cost 20 kB.
    """

    name: str
    member: bool | None
    group: str
    score: float
    corners: list[list[int]] = field(default_factory=list)
    patch_scores: list[float] = field(default_factory=list)
    statistics: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackSettings:
    """The settings of all attacks. Each attack reads only the fields that it needs.

    `selection`: which patches are scored; `floor`: lower bound of posteriors before the logarithm; `attacker`: a
    trained attacker; `score`: "paper" (mean member probability) or "release" (sum of member logits); `batch`: number of
    patches in memory; `c`: weight of the references in the calibrated score; `weight`: that of the predictability error
    in the membership error; `compute`: device and precision; `offline_a`: the a of RMIA; `queries`: number of queries
    about an image.
    """

    selection: Selection = RANDOM
    floor: float = FLOOR
    attacker: "LoadedAttacker | None" = None
    score: str = "paper"
    batch: int = 64
    c: float = 0.75
    weight: float = 1.0
    compute: Compute = CPU_FP32
    offline_a: float = 0.3
    queries: int = 6


class Attack:
    """The base class of attacks. A subclass defines `score`, and lists in `needs` which inputs it reads.

    `needs` may contain "truth" (each sample has a label with known positions), "label" (beside "truth": that label at
    full size), "image", "references", "population" (`fit` is called with samples of known membership, and outputs of
    another model), "non-members" (`fit` is called with samples that the target model was not trained on, and its
    outputs), "own" (`fit` is called with the attacked samples, whose membership it may read, so the attack knows more
    than an attacker does), "predictability" (computed by `method` of `attacks.predictability.METHODS`), "queries" (each
    sample has `ask`), "weights" (each sample has `gradients`, and `score` gets the predictor), and "noise" (the defense
    draws random numbers for each query). If "truth" is not in `needs`, `truth` may be None.

    `optional` lists inputs that it reads if they are given, of "references".

    `kinds` lists the kinds of outputs that it can score, of "posterior" and "image" (a translated image).

    `reads` lists which of the flags in `attacks.SETTINGS` it reads; attack.py refuses the others.

    `label_only`: whether it reads only the argmax of outputs.

    `patches`: whether it scores patches, too; if not, attack.py refuses the flags that select them.

    `widened`: by how much the interval of the AUC is widened. Scores that are fitted on the attacked images vary more
    than groups show, because models of several folds share training images.

    `chosen`: the settings that `fit` has chosen, and "auc", that of the population with them; for the report.
    """

    needs: frozenset[str] = frozenset({"truth"})
    optional: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset({"posterior"})
    method: str | None = None
    label_only: bool = False
    patches: bool = True
    widened: float = 1.0

    def __init__(self, settings: AttackSettings):
        self.settings = settings
        self.chosen: dict[str, float] = {}

    @property
    def images_per_batch(self) -> int:
        """Number of samples that one call of `score` should get. The results do not depend on it."""
        return self.settings.selection.images_per_batch(self.settings.batch)

    @classmethod
    def queries_of_target(cls, queries: int = AttackSettings.queries) -> int:
        """Number of queries of the target model about each image that is scored. `queries`: as in `AttackSettings`."""
        return queries if "queries" in cls.needs else 1

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        """Raise `UserError` if the references cannot serve for these images. Called before any output is computed.

        `seen`: bool (images, references), whether each reference was trained on each image.
        """

    def fit(self, population: Iterable[Sample]) -> None:
        """Learn from the samples that "population", "non-members" or "own" promises. The base class does nothing."""

    def score(self, samples: Iterable[Sample], predictor: "Predictor | None" = None) -> Iterator[Scored]:
        """Yield one `Scored` for each sample, in the order of the samples."""
        raise NotImplementedError

    def finish(self, scored: Sequence[Scored]) -> Sequence[Scored]:
        """Return the final scores, in the same order. The base class changes nothing.

        For an attack whose scores depend on all attacked images: `score` gets a few of them at a time, and a run that
        was stopped resumes with the saved results of `score`.
        """
        return scored
