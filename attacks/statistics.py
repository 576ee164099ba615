"""A logistic model of statistics of an image, trained on images whose membership is known.

Shokri et al. (S&P 2017) train the attacker on the outputs of shadow models. Here it does not see maps, but statistics
of the loss map (section 2.1) and, with references, of its difference from that of the references (Watson et al., ICLR
2022).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.calibrated import unseen_outputs, usable
from attacks.representation import boundary, logit_map, true_class
from attacks.sample import Attack, AttackSettings, Sample, Scored
from utils.cli import UserError
from utils.randomness import stream

QUANTILES = (0.05, 0.25, 0.75, 0.95)
TOP = 0.05  # share of the positions with the highest loss
FOLDS = 5  # of whole groups
CROSS_FITTED = 1.25  # widens the interval of the AUC; tools/null_audits.py measures its coverage
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse of the regularisation, the C of scikit-learn
SEEDS = 2**32  # scikit-learn takes only smaller seeds


class StatisticsAttack(Attack):
    """The log-odds of a member by a logistic regression on `statistics`, standardised over the population.

    The regularisation has the highest AUC in cross-validation over whole groups; of several, it is the strongest. With
    references, the features also have the statistics relative to theirs; images that every reference was trained on
    are left out of the population. Raises `UserError` if the population has too few groups of a side.
    """

    needs = frozenset({"truth", "population"})
    optional = frozenset({"references"})
    reads = frozenset({"floor"})
    patches = False

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        self.model = None

    def fit(self, population: Iterable[Sample]) -> None:
        rows = sorted((sample.name, sample.group, bool(sample.member), self.features(sample))
                      for sample in usable(population))
        _, groups, member, table = zip(*rows, strict=True)
        groups, member = np.array(groups), np.array(member)
        table, parts = np.array(table), split(member, groups, self.settings.selection.seed, "--population has")
        self.chosen = choose(table, member, parts)
        self.model = model(self.chosen["C"]).fit(table, member)

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            odds = self.model.decision_function(np.array([self.features(sample)]))
            yield Scored(sample.name, sample.member, sample.group, float(odds[0]))

    def features(self, sample: Sample) -> list[float]:
        """The statistics of the target model and, with references, relative to theirs."""
        own = means(sample.output, sample, self.settings.floor)
        loss = losses(sample.output, sample, self.settings.floor)
        found = [*own, *statistics(loss, sample)]
        if sample.references:
            outputs = unseen_outputs(sample)
            others = np.mean([means(output, sample, self.settings.floor) for output in outputs], axis=0)
            difference = loss - losses(outputs.double().mean(dim=0), sample, self.settings.floor)
            found += [*(own - others), *statistics(difference, sample)]
        return [float(value) for value in found]


class CrossFittedStatistics(StatisticsAttack):
    """The same model, trained on the attacked images: each score is that of a model of the other groups of images.

    It needs no population, but knows on which side the other images are, which an attacker does not. With many images
    it is an upper bound of what such a model finds. The regularisation is chosen on these other groups, too. Raises
    `UserError` if a side has fewer than three groups.
    """

    needs = frozenset({"truth"})
    widened = CROSS_FITTED

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            yield Scored(sample.name, sample.member, sample.group, 0.0, statistics={"features": self.features(sample)})

    def finish(self, scored: Sequence[Scored]) -> Sequence[Scored]:
        table = np.array([one.statistics["features"] for one in scored])
        groups, member = np.array([one.group for one in scored]), np.array([bool(one.member) for one in scored])
        seed, who, odds = self.settings.selection.seed, "the attacked images have", np.empty(len(scored))
        for train, test in split(member, groups, seed, who):
            known = table[train], member[train]
            chosen = choose(*known, split(member[train], groups[train], seed, who))
            odds[test] = model(chosen["C"]).fit(*known).decision_function(table[test])
        return [replace(one, score=float(value), statistics={}) for one, value in zip(scored, odds, strict=True)]


def choose(table: np.ndarray, member: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The regularisation "C" with the highest "auc" over the folds `parts`; of several, the strongest."""
    aucs = {strength: round(roc_auc_score(member, cross_val_predict(
        model(strength), table, member, cv=parts, method="decision_function")), 9) for strength in STRENGTHS}
    best = max(STRENGTHS, key=lambda strength: (aucs[strength], -strength))
    return {"C": best, "auc": aucs[best]}


def model(strength: float) -> Pipeline:
    """An unfitted logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def split(member: np.ndarray, groups: np.ndarray, seed: int, who: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of training and test in each of at most `FOLDS` folds of whole groups. `who`: the images, for an error.

    Raises `UserError` if a side has fewer than two groups, or a fold has all groups of a side.
    """
    folds = min(FOLDS, *(len(set(groups[member == side].tolist())) for side in (True, False)))
    random_state = int(stream(seed, "statistics").integers(SEEDS))
    parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=random_state).split(
        member, member, groups)) if folds > 1 else []
    if not parts or not all(0 < member[train].sum() < len(train) for train, _ in parts):
        raise UserError(f"{who} too few groups of members or of non-members, so no model can be chosen by "
                        "cross-validation; give images of more groups")
    return parts


def losses(output: torch.Tensor, sample: Sample, floor: float) -> torch.Tensor:
    """Cross-entropy (h, w) of a posterior, float64."""
    return -true_class(output.double(), sample.truth).clamp_min(floor).log()


def means(output: torch.Tensor, sample: Sample, floor: float) -> np.ndarray:
    """Means over the known positions of a posterior's logit (`logit_map`), entropy, and largest value: (3,)."""
    posterior = output.double()
    entropy = -torch.special.xlogy(posterior, posterior).sum(dim=0)
    maps = (logit_map(output, sample.truth, floor), entropy, posterior.amax(dim=0))
    return np.array([float(one[sample.known].mean()) for one in maps])


def statistics(values: torch.Tensor, sample: Sample) -> list[float]:
    """Mean, `QUANTILES`, mean of the `TOP` highest, and means at and off class boundaries, of the known positions.

    If no position, or each, is at a boundary, the mean stands for the one that is missing.
    """
    known, edge = sample.known, boundary(sample.truth)
    found = values[known]
    highest = found.topk(max(1, round(TOP * len(found)))).values.mean()
    parts = [values[known & side] for side in (edge, ~edge)]
    return [float(found.mean()), *np.quantile(found.numpy(), QUANTILES).tolist(), float(highest),
            *(float((part if len(part) else found).mean()) for part in parts)]
