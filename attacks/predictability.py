"""The predictability error of an image: how well a linear predictor that is fitted within it predicts its ground truth.

Shafran, Peleg and Hoshen, "Membership Inference Attacks are Easier on Difficult Problems", ICCV 2021, section 3.2. The
features of the input image at each of 56 x 56 positions predict the ground truth there. The predictor is fitted on a
part of the positions, and its error is that on others. No victim and no other image is used.

`RELEASED` is the released code: least squares without regularisation, features of the central crop, and the ground
truth of the whole image, so that the positions of the two do not agree; the error is that on 30 % of the positions,
after a fit on the others. `SOUND` has features and ground truth of the whole image, ridge regression, and the error on
all positions, each of which is predicted by a fit on other positions (cross-fitting).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from utils import VOID

SIDE = 56  # positions in each direction
INPUT = 224  # pixels of the input of the feature extractor, in each direction
SHORT = 256  # pixels of the shorter side before the central crop
FITTED = 0.7  # share of the positions on which the predictor of the released code is fitted
FLOOR = 0.01  # lower bound of a predicted probability before the logarithm
LEAST_SQUARES = 1e-13  # ridge that only makes the equations solvable; the predictions are those of least squares
BILINEAR = {"mode": "bilinear", "align_corners": False}


@dataclass(frozen=True)
class Method:
    """How the predictability error is computed.

    `crop`: the features are those of the central crop of the image, with a shorter side of `SHORT`; else of the whole
    image. `ridge`: relative to the mean square of the features. `scaled`: each layer counts as much as the others.
    `folds`: the positions are divided at random into so many parts, and each part is predicted by a fit on the other
    parts; 1: a single fit on the share `FITTED`, which predicts the rest.
    """

    crop: bool
    ridge: float
    scaled: bool
    folds: int


RELEASED = Method(crop=True, ridge=LEAST_SQUARES, scaled=False, folds=1)
SOUND = Method(crop=False, ridge=1e-2, scaled=True, folds=5)
METHODS = {"released": RELEASED, "sound": SOUND}


def prepare_image(image: torch.Tensor, method: Method) -> torch.Tensor:
    """The input of the feature extractor, float32 (3, 224, 224) in 0..1, from an image uint8 (3, H, W)."""
    size = (INPUT, INPUT)
    if method.crop:
        height, width = image.shape[-2:]
        size = tuple(max(SHORT, round(side * SHORT / min(height, width))) for side in (height, width))
    out = F.interpolate(image[None].float() / 255, size=size, antialias=True, **BILINEAR)[0].clamp_(0, 1)
    top, left = ((side - INPUT) // 2 for side in out.shape[-2:])
    return out[:, top : top + INPUT, left : left + INPUT]


@dataclass(frozen=True)
class Predictions:
    """What the linear predictor of an image predicts at the positions where its error is measured.

    `positions` int64 (S,): of the 56 * 56; `predicted`, `targets` float64 (S, K): channels of an image, or one-hot
    labels of the K classes that occur; `of_label`: whether they are classes.
    """

    positions: torch.Tensor
    predicted: torch.Tensor
    targets: torch.Tensor
    of_label: bool

    def errors(self) -> torch.Tensor:
        """The error at each position, float64 (S,).

        For an image it is the mean absolute error. For labels, where the paper and the released code define none, it is
        the cross-entropy of the predicted classes: predictions of the one-hot label are limited to `FLOOR`..1 and
        divided by their sum.
        """
        if not self.of_label:
            return (self.predicted - self.targets).abs().mean(1)
        predicted = self.predicted.clamp(FLOOR, 1)
        predicted = predicted / predicted.sum(1, keepdim=True)
        return -(predicted * self.targets).sum(1).log()


def predictability_error(features: Sequence[torch.Tensor], truth: torch.Tensor, method: Method,
                         rng: np.random.Generator) -> float:
    """The predictability error of one image, the mean of its `Predictions.errors`; arguments as `predict_positions`.

    NaN if less than two positions have a label.
    """
    return float(predict_positions(features, truth, method, rng).errors().mean())


def predict_positions(features: Sequence[torch.Tensor], truth: torch.Tensor, method: Method,
                      rng: np.random.Generator) -> Predictions:
    """Fit the linear predictor of one image, and predict its ground truth; nothing with less than two known positions.

    `features`: maps (C, h, w) of the image, which describe its positions. `truth`: label uint8 (H, W), train ids with
    255 = void, or image float (C, H, W) in 0..1. `rng` divides the positions.
    """
    targets, known = _targets(truth)
    order = torch.from_numpy(rng.permutation(np.flatnonzero(known.numpy())))
    if len(order) < 2:
        return Predictions(order[:0], targets[:0], targets[:0], truth.ndim == 2)
    inputs = describe_positions(features, method.scaled)
    if method.folds == 1:
        fitted, scored = order.split([round(FITTED * len(order)), len(order) - round(FITTED * len(order))])
        predicted = ridge_predictions(inputs, targets, fitted, scored, method.ridge)
    else:
        scored = order
        predicted = cross_predictions(inputs[order], targets[order], min(method.folds, len(order)), method.ridge)
    return Predictions(scored, predicted, targets[scored], truth.ndim == 2)


def _targets(truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ground truth at the positions, float64 (56 * 56, K), and which positions have one, bool (56 * 56,).

    Images are resized with antialiasing. Labels are read at the middle of each position; K: the classes that occur.
    """
    if truth.ndim == 3:
        small = F.interpolate(truth[None], size=(SIDE, SIDE), antialias=True, **BILINEAR)[0]
        return small.flatten(1).T.double(), torch.ones(SIDE * SIDE, dtype=torch.bool)
    rows, columns = ((torch.arange(SIDE) * side + side // 2) // SIDE for side in truth.shape)
    label = truth[rows[:, None], columns].flatten()
    known = label != VOID
    classes = label[known].unique()
    return (label[:, None] == classes).double(), known


def describe_positions(features: Sequence[torch.Tensor], scaled: bool) -> torch.Tensor:
    """Features of each position, float64 (56 * 56, D), with the same inner products as all channels of `features`.

    Each map (C, h, w) is resized to 56 x 56. If it has more channels than positions, its QR decomposition replaces them
    by h w values, which changes no inner product. `scaled`: divide each map by the root of its mean square.
    """
    columns = []
    for one in features:
        flat, shape = one.flatten(1).double(), one.shape[1:]
        if flat.shape[0] > flat.shape[1]:
            flat = torch.linalg.qr(flat, mode="r").R
        large = _resize(flat.view(-1, *shape)).flatten(1).T
        columns.append(large / large.square().sum(1).mean().clamp_min(1e-30).sqrt() if scaled else large)
    return torch.cat(columns, dim=1)


def _resize(maps: torch.Tensor) -> torch.Tensor:
    """Resize maps (N, h, w) to (N, 56, 56) like scikit-image, which mirrors them at their borders."""
    height, width = maps.shape[-2:]
    if height == width == SIDE:
        return maps
    pad = [min(1, width - 1)] * 2 + [min(1, height - 1)] * 2
    factors = [SIDE / height, SIDE / width]
    large = F.interpolate(F.pad(maps[None], pad, mode="reflect"), scale_factor=factors, **BILINEAR)[0]
    top, left = ((size - SIDE) // 2 for size in large.shape[-2:])
    return large[:, top : top + SIDE, left : left + SIDE]


def ridge_predictions(features: torch.Tensor, targets: torch.Tensor, fitted: torch.Tensor, scored: torch.Tensor,
                      ridge: float) -> torch.Tensor:
    """Predictions (S, K) of ridge regression with intercept at the positions `scored` (S,).

    `features` (N, D), `targets` (N, K): of all positions; `fitted` (M,): positions to fit on. `ridge`: penalty for each
    fitted position, relative to the mean square of the centred features.
    """
    inputs, outputs = features[fitted], targets[fitted]
    center, mean = inputs.mean(0), outputs.mean(0)
    inputs = inputs - center
    return mean + (features[scored] - center) @ _solve(inputs.T @ inputs, inputs.T @ (outputs - mean), ridge)


def cross_predictions(features: torch.Tensor, targets: torch.Tensor, folds: int, ridge: float) -> torch.Tensor:
    """Predictions (N, K) at all positions, each by ridge regression with intercept on the other folds.

    `features` (N, D), `targets` (N, K): in random order, so that a fold is a stretch of it. `ridge` as above. The
    products of the positions that are fitted are those of all positions minus those of the fold, so they are computed
    once for all folds.
    """
    size = features.shape[1]
    table = torch.cat([torch.ones(len(features), 1, dtype=features.dtype), features - features.mean(0), targets], dim=1)
    parts = table.tensor_split(folds)
    products = [part.T @ part for part in parts]
    total, predicted = sum(products), []
    for part, own in zip(parts, products, strict=True):
        fitted = total - own
        means = fitted[0] / fitted[0, 0]  # of 1, features and targets
        centred = (fitted - fitted[0].outer(means))[1:, 1:]
        weights = _solve(centred[:size, :size].clone(), centred[:size, size:], ridge)
        predicted.append(means[1 + size :] + (part[:, 1 : 1 + size] - means[1 : 1 + size]) @ weights)
    return torch.cat(predicted)


def _solve(products: torch.Tensor, outputs: torch.Tensor, ridge: float) -> torch.Tensor:
    """Weights (D, K) of ridge regression from the products of centred features, with themselves and with the targets.

    `products` (D, D) is changed in place.
    """
    products.diagonal().add_(ridge * products.trace().clamp_min(1e-30))
    return torch.cholesky_solve(outputs, torch.linalg.cholesky(products))
