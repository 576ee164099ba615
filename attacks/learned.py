"""Algorithm 2: score the patches of an image with the trained attacker A_P, and combine these scores for the image."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import numpy as np
import torch
from scipy.special import expit

from attacks import REPRESENTATIONS
from attacks.calibrated import check_enough, draw_references
from attacks.patches import CPU_BATCH, cut
from attacks.representation import add_context, represent
from attacks.sample import Attack, AttackSettings, Sample, Scored
from attacks.thresholds import true_posterior
from utils.cli import UserError
from utils.device import Compute


class LearnedAttack(Attack):
    """The per-patch attacker of `settings.attacker` (section 2.2).

    `settings.score` gives the score of an image: "paper" (equation 1, mean member probability) or "release" (sum of
    member logits). On a CPU scores do not depend on `settings.batch`. An attacker that was trained with K references
    gets K of those that were not trained on an image. Raises `UserError` if a score is not finite.
    """

    reads = frozenset({"floor", "score"})

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if settings.attacker is None:
            raise UserError("this attack needs a trained attacker: give -resume CHECKPOINT")
        self.model, self.spec = settings.attacker.model, settings.attacker.spec
        self.needs = Attack.needs | REPRESENTATIONS.load(self.spec.input).needs
        if ("references" in self.needs) != (self.spec.references > 0):
            raise UserError(f"{settings.attacker.path} reads -input {self.spec.input}, and its settings name "
                            f"{self.spec.references} reference models; train the attacker again")
        self.selection = replace(settings.selection, size=self.spec.size)
        compute, full = settings.compute, self.selection.scheme == "full"
        self.model.to(compute.device, memory_format=torch.channels_last)
        self.patches_per_batch = settings.batch if compute.device.type != "cpu" else 1 if full else CPU_BATCH

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        check_enough(names, seen, self.spec.references)

    def add_context(self, sample: Sample) -> Sample:
        """The sample with what its representation makes of the complete image, and of as many references as always."""
        if sample.context is None and self.spec.references:
            sample = draw_references(sample, self.spec.references, self.selection.seed)
        return add_context(sample, self.spec.input, self.spec.floor)

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        samples = iter(samples)
        while group := list(islice(samples, self.images_per_batch)):
            cuts = [self.patches_of(sample) for sample in group]
            for _, run in groupby(zip(group, cuts, strict=True), key=lambda item: item[1][1].shape[1:]):
                yield from self._score_equal_sizes(list(run))

    def patches_of(self, sample: Sample) -> tuple[np.ndarray, torch.Tensor]:
        """Corners (N, 2) and patches (N, K, h, w) of one image."""
        spec, context = self.spec, self.add_context(sample).context
        image = represent(spec.input, sample.output, sample.truth, spec.floor, spec.void, spec.argmax, context)
        if self.selection.scheme == "full":
            return np.zeros((1, 2), np.int64), image[None]
        corners = self.selection.corners(tuple(image.shape[1:]), sample.id, lambda: true_posterior(sample),
                                         sample.known)
        return corners, cut(image, corners, spec.size)

    def _score_equal_sizes(self, items: list[tuple[Sample, tuple[np.ndarray, torch.Tensor]]]) -> Iterator[Scored]:
        """Score samples whose patches all have the same size. A batch may contain patches of several samples."""
        patches, paper = torch.cat([patches for _, (_, patches) in items]), self.settings.score == "paper"
        logits = member_logits(self.model, patches, self.settings.compute, self.patches_per_batch)
        values = member_probability(logits) if paper else logits[:, 1]
        for sample, (corners, _) in items:
            scores, values = values[: len(corners)], values[len(corners) :]
            total = float(scores.mean() if paper else scores.sum())
            if not math.isfinite(total):
                raise UserError(f"{sample.name}: the attacker's score is {total}; the weights of the attacker are "
                                "broken; train it again")
            yield Scored(sample.name, sample.member, sample.group, total, corners.tolist(), scores.tolist())


@torch.inference_mode()
def member_logits(model: torch.nn.Module, patches: torch.Tensor, compute: Compute, batch: int) -> np.ndarray:
    """Logits float64 (N, 2) of patches (N, K, h, w), with `batch` patches in a forward pass. Column 1 means member.

    On a CPU the last batch is filled with copies of the last patch. A smaller batch would use other kernels, which
    round differently, and then the score of an image would depend on the number of images.
    """
    count, logits = len(patches), []
    if compute.device.type == "cpu":
        patches = torch.cat([patches, patches[-1:].expand(-count % batch, *patches.shape[1:])])
    for part in patches.split(batch):
        with compute.autocast():
            logits.append(model(part.to(compute.device, memory_format=torch.channels_last))[0].double().cpu())
    return torch.cat(logits)[:count].numpy()


def member_probability(logits: np.ndarray) -> np.ndarray:
    """Member probability (N,): the softmax of logits float64 (N, 2) at column 1.

    The softmax of PyTorch is not used, because its rounding depends on the position in the array.
    """
    return expit(logits[:, 1] - logits[:, 0])
