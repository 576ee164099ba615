"""Likelihood ratio attacks: compare the confidence of the target model with its distribution over reference models.

LiRA: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022 (arXiv 2112.03570).
BaVarIA: "Exponential-Family Membership Inference: From LiRA and RMIA to BaVarIA" (arXiv 2603.11799).

The confidence of a model in an image is phi, the mean of log p - log(1 - p) over the known positions. `score` computes
it for the target and each reference. The variance needs all images, so `finish` computes the likelihoods.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from attacks.calibrated import check_unseen, references_of
from attacks.representation import logit_map
from attacks.sample import Attack, Sample, Scored
from attacks.thresholds import mean_known
from utils.cli import UserError

Law = Any  # a frozen continuous distribution of scipy.stats
SIDES = {"out": False, "in": True}  # references that were not trained on an image, and those that were
SMALLEST = 1e-6  # variance of phi between models; a smaller one, as of constant outputs, is raised to it
SHAPE = 2.0  # of the inverse gamma distribution of the variance, the smallest whole number with a finite mean
STRONGEST = 1e6  # weight of the prior mean, in references
UNDERFLOW = -1e3  # in the place of the logarithm of a probability that is 0 in float64


class LiRA(Attack):
    """LiRA with references that were not trained on the image (offline), one variance for all images.

    The score is log F(phi) - log(1 - F(phi)), where F is the normal distribution with the mean of the references and
    the pooled variance. The paper has F(phi), which ranks equally, but is 1 for all far images. Raises `UserError` if
    no image has two references.
    """

    needs = frozenset({"truth", "references"})
    reads = frozenset({"floor"})
    patches = False
    sides: tuple[str, ...] = ("out",)

    def law(self, values: Sequence[Sequence[float]]) -> Law:
        """The distribution of phi for each of n images, given phi of its references: n sequences, none empty."""
        count, mean, squares = summarise(values)
        return stats.norm(mean, np.sqrt(pooled_variance(count, squares)))

    def rank(self, target: np.ndarray, laws: dict[str, Law]) -> np.ndarray:
        """The scores (n,) of images, given phi of the target model (n,)."""
        return log_odds(laws["out"], target)

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        self.check_sides(names, seen)
        for side in self.sides:
            check_counts(side, (seen == SIDES[side]).sum(axis=1))

    def check_sides(self, names: Sequence[str], seen: np.ndarray) -> None:
        """Raise `UserError` if an image lacks references of a side."""
        check_unseen(names, seen)
        if "in" in self.sides:
            for index in np.flatnonzero(~seen.any(axis=1))[:1]:
                raise UserError(f"{names[index]}: no reference model was trained on this image; an online attack needs "
                                "one that was: train references on random halves of the attacked images, or give the "
                                "attack without -online")

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            self.check_sides([sample.name], np.array([sample.in_reference], bool))
            target = self.confidence(sample, sample.output)
            values = {side: [self.confidence(sample, output) for output in references_of(sample, SIDES[side])]
                      for side in self.sides}
            yield Scored(sample.name, sample.member, sample.group, target - float(np.mean(values["out"])),
                         statistics={"target": [target]} | values)

    def confidence(self, sample: Sample, output: torch.Tensor) -> float:
        """phi of a model, given its output for the image."""
        return mean_known(logit_map(output, sample.truth, self.settings.floor), sample.known)

    def finish(self, scored: Sequence[Scored]) -> Sequence[Scored]:
        values = {side: [one.statistics[side] for one in scored] for side in self.sides}
        for side, own in values.items():
            check_counts(side, np.array([len(one) for one in own]))
        laws = {side: self.law(own) for side, own in values.items()}
        scores = self.rank(np.array([one.statistics["target"][0] for one in scored]), laws)
        return [replace(one, score=float(score)) for one, score in zip(scored, scores, strict=True)]


class OnlineLiRA(LiRA):
    """LiRA with references that were, and that were not, trained on each image (online).

    The score is log f_in(phi) - log f_out(phi), normal densities, of which each has one variance for all images. Raises
    `UserError` if an image lacks references of a side.
    """

    sides = ("out", "in")

    def rank(self, target: np.ndarray, laws: dict[str, Law]) -> np.ndarray:
        return laws["in"].logpdf(target) - laws["out"].logpdf(target)


class BayesianLiRA(LiRA):
    """LiRA with a normal-inverse-gamma prior for the mean and the variance of each image (BaVarIA).

    The prior is that of all images: its mean is their mean phi, its weight kappa the ratio of the variance between
    models to that between images, and the mean of the variance is the pooled one, with the shape alpha = 2. These
    choices are ours. The distribution of phi is then a Student t with 2 alpha_n degrees of freedom, the location mu_n
    and the squared scale beta_n (kappa_n + 1) / (alpha_n kappa_n).
    """

    def law(self, values: Sequence[Sequence[float]]) -> Law:
        count, mean, squares = summarise(values)
        variance, middle = pooled_variance(count, squares), mean.mean()
        between = mean.var() - variance * (1 / count).mean()
        kappa = variance / max(between, variance / STRONGEST)
        alpha_n, kappa_n = SHAPE + count / 2, kappa + count
        beta_n = (SHAPE - 1) * variance + squares / 2 + kappa * count * (mean - middle) ** 2 / (2 * kappa_n)
        return stats.t(2 * alpha_n, (kappa * middle + count * mean) / kappa_n,
                       np.sqrt(beta_n * (kappa_n + 1) / (alpha_n * kappa_n)))


class OnlineBayesianLiRA(BayesianLiRA, OnlineLiRA):
    """The online form of `BayesianLiRA`: the difference of the logarithms of two Student t densities."""


def summarise(values: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean, and sum of squared deviations from the mean, each (n,), of n sequences of numbers."""
    found = [(len(one), np.mean(one), np.sum((np.array(one) - np.mean(one)) ** 2)) for one in values]
    count, mean, squares = map(np.array, zip(*found, strict=True))
    return count, mean, squares


def pooled_variance(count: np.ndarray, squares: np.ndarray) -> float:
    """The variance within images, unbiased, from all images; at least `SMALLEST`."""
    return max(float(squares.sum() / (count - 1).sum()), SMALLEST)


def check_counts(side: str, counts: np.ndarray) -> None:
    """Raise `UserError` unless some image has two references of a side. `counts`: references of each image."""
    if counts.max() < 2:
        trained = "were trained" if SIDES[side] else "were not trained"
        raise UserError("this attack reads the variance between reference models: give --references two or more that "
                        f"{trained} on the same image")


def log_odds(law: Law, values: np.ndarray) -> np.ndarray:
    """log F - log(1 - F) of the distribution function of `law`, which is finite far from its centre."""
    with np.errstate(divide="ignore"):
        return (np.nan_to_num(law.logcdf(values), neginf=UNDERFLOW)
                - np.nan_to_num(law.logsf(values), neginf=UNDERFLOW))
