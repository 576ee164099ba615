"""An attack without references: is the loss of an image lower than that of non-members that look like it?

Bertran et al., "Scalable Membership Inference Attacks via Quantile Regression", NeurIPS 2023 (arXiv 2307.03694); Tang
et al., "Membership Inference Attacks on Diffusion Models via Quantile Regression", ICML 2024. They regress quantiles of
the loss of many images that the target model was not trained on, by a network that sees the image. Here such images are
few, so the regression is linear, on features of image and label.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.representation import loss_map
from attacks.sample import Attack, AttackSettings, Sample, Scored
from attacks.statistics import FOLDS, boundary
from attacks.thresholds import mean_known
from utils import VOID
from utils.cli import UserError

STRENGTHS = (1e4, 1e3, 100.0, 10.0, 1.0)  # of the regularisation, the alpha of scikit-learn


class QuantileRegression(Attack):
    """Expected minus observed logarithm of the mean loss, by a ridge regression on `features` of known non-members.

    The mean cross-entropy is positive and skewed, and varies more between difficult images than between easy ones. Its
    logarithm is about normal with one variance. Then every quantile of the predicted distribution is the expectation
    plus a constant, so this score ranks the images as the quantile does under which the observed loss lies.

    The regularisation has the lowest squared error in cross-validation over whole groups; of several, it is the
    strongest, with which the expectation is nearly constant and the attack ranks as the loss threshold. Raises
    `UserError` if the non-members have fewer than two groups.
    """

    needs = frozenset({"truth", "image", "non-members"})
    reads = frozenset({"floor"})
    patches = False

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        self.model = None

    def fit(self, population: Iterable[Sample]) -> None:
        rows = sorted((sample.name, sample.group, log_loss(sample.output, sample, self.settings.floor),
                       features(sample)) for sample in population)
        _, groups, losses, table = (np.array(column) for column in zip(*rows, strict=True))
        folds = min(FOLDS, len(set(groups.tolist())))
        if folds < 2:
            raise UserError("--population has one group of images, so no model can be chosen by cross-validation; give "
                            "images of more groups")
        parts = list(GroupKFold(folds).split(table, groups=groups))
        explained = {strength: round(r2_score(losses, cross_val_predict(regression(strength), table, losses, cv=parts)),
                                     9) for strength in STRENGTHS}
        best = max(STRENGTHS, key=lambda strength: (explained[strength], strength))
        self.model = regression(best).fit(table, losses)
        self.chosen = {"alpha": best, "R2 of held-out groups": explained[best]}

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            expected = float(self.model.predict(np.array([features(sample)]))[0])
            observed = log_loss(sample.output, sample, self.settings.floor)
            yield Scored(sample.name, sample.member, sample.group, expected - observed)


def log_loss(output: torch.Tensor, sample: Sample, floor: float) -> float:
    """Logarithm of the mean cross-entropy of a posterior over the known positions; a mean below the floor is raised."""
    loss = mean_known(loss_map(output, sample.truth, floor).squeeze(-3), sample.known)
    return float(np.log(max(loss, floor)))


def regression(strength: float) -> Pipeline:
    """An unfitted ridge regression on standardised features."""
    return make_pipeline(StandardScaler(), Ridge(alpha=strength))


def features(sample: Sample) -> list[float]:
    """What label and image show, C + 11 numbers: nothing of it comes from the target model.

    Of the label (h, w): the share of each of the C classes and of class boundaries (`boundary`) in the known positions,
    the share of void, and the number of classes. Of the image, in 0..255: mean and standard deviation of the three
    channels, and of the gradient of their mean, the difference to the next pixel below and on the right.
    """
    known = sample.truth[sample.known]
    shares = torch.bincount(known.long(), minlength=len(sample.output)).double() / len(known)
    edge = boundary(sample.truth)[sample.known].double().mean()
    void = (sample.truth == VOID).double().mean()
    colour, grey = sample.image.double(), sample.image.double().mean(dim=0)
    steps = [torch.diff(grey, dim=axis, append=grey.narrow(axis, -1, 1)) for axis in (0, 1)]
    texture = torch.hypot(*steps)
    columns = [shares, torch.stack([edge, void, (shares > 0).sum()]), colour.mean(dim=(1, 2)),
               colour.std(dim=(1, 2), correction=0), torch.stack([texture.mean(), texture.std(correction=0)])]
    return torch.cat(columns).tolist()
