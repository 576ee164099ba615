"""Is the loss of an image lower than the other attacked images and the references lead to expect?

Quantile regression (Bertran et al., NeurIPS 2023, arXiv 2307.03694; see `attacks.quantile`) predicts the loss of
non-members, so it needs images that the target model was certainly not trained on. Difficulty calibration (Watson et
al., ICLR 2022, arXiv 2111.08440) subtracts the loss of references with a weight that is chosen elsewhere, so it needs
references of the same data. The regression here is fitted on the attacked images themselves, members and non-members
alike: it needs neither. It learns how much each reference says about the difficulty of these images, which is little
for a reference of another data set. That the weights come from the attacked images, without their membership, is ours.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.calibrated import check_unseen, unseen_outputs
from attacks.quantile import STRENGTHS, features, log_loss
from attacks.queries import mean_answers
from attacks.representation import loss_map
from attacks.sample import Attack, Sample, Scored
from utils.cli import UserError

FEWEST = 10  # images of a regression


class Residual(Attack):
    """Expected minus observed logarithm of the mean loss, by a ridge regression on the attacked images.

    It reads `features` of image and label and, with references, the logarithm of the mean loss of each of them and, for
    each class, the sum of the losses of their mean posterior at its positions over the number of known positions.
    References that were trained on an image say nothing about it (`loss_columns`). The regularisation has the lowest
    squared error when each image is left out; then all images are fitted. The same image gets another score among other
    images. Membership is not read, so the interval needs no correction.

    Raises `UserError` if there are fewer than `FEWEST` images, or every reference was trained on one of them.
    """

    needs = frozenset({"truth", "image"})
    optional = frozenset({"references"})
    reads = frozenset({"floor"})
    patches = False

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        check_unseen(names, seen)

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            yield Scored(sample.name, sample.member, sample.group, 0.0, statistics=self.columns(sample))

    def columns(self, sample: Sample) -> dict[str, list[float]]:
        """What the regression reads of a sample, and "observed", the log of its mean loss."""
        floor, found = self.settings.floor, features(sample)
        if sample.references:
            found += class_losses(unseen_outputs(sample).mean(dim=0), sample, floor)
        return {"observed": [log_loss(sample.output, sample, floor)], "features": found,
                "references": [log_loss(output, sample, floor) for output in sample.references],
                "seen": [float(one) for one in sample.in_reference]}

    def finish(self, scored: Sequence[Scored]) -> Sequence[Scored]:
        if len(scored) < FEWEST:
            raise UserError(f"--attack residual: {len(scored)} attacked images are too few for a regression; give "
                            f"{FEWEST} or more")
        values = {key: np.array([one.statistics[key] for one in scored])
                  for key in ("observed", "features", "references", "seen")}
        table = np.hstack([values["features"], loss_columns(values["references"], values["seen"] > 0)])
        observed = values["observed"][:, 0]
        expected = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)).fit(table, observed).predict(table)
        return [replace(one, score=float(score), statistics={})
                for one, score in zip(scored, expected - observed, strict=True)]


class RepeatedResidual(Residual):
    """The residual of the mean posterior of `queries` equal queries, under a defense that draws noise for each.

    References are queried once.
    """

    needs = Residual.needs | {"queries", "noise"}
    reads = Residual.reads | {"queries"}

    def columns(self, sample: Sample) -> dict[str, list[float]]:
        *_, output = mean_answers(sample, self.settings.queries)
        return super().columns(replace(sample, output=output))


def class_losses(output: torch.Tensor, sample: Sample, floor: float) -> list[float]:
    """The sum of the losses of a posterior at the positions of each class, over the number of known positions: (C,)."""
    losses = loss_map(output, sample.truth, floor).squeeze(-3)[sample.known].double()
    labels = sample.truth[sample.known].long()
    return (torch.bincount(labels, losses, minlength=len(output)) / len(labels)).tolist()


def loss_columns(losses: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Losses (n, K) of K references, each standardised over the images that it was not trained on.

    seen: bool (n, K), whether a reference was trained on an image. There the mean of the others stands for its loss; a
    reference that was trained on all images has no column.
    """
    useful = ~seen.all(axis=0)
    if not useful.any():
        return losses[:, useful]
    losses, seen = losses[:, useful], seen[:, useful]
    scaled = StandardScaler().fit_transform(np.where(seen, np.nan, losses))
    return np.where(seen, np.nanmean(scaled, axis=1, keepdims=True), scaled)
