"""The predictability error written down literally, as in the released code of Shafran et al., and with ridge."""

import numpy as np
from scipy.ndimage import map_coordinates
from sklearn.linear_model import LinearRegression, Ridge


def upsample(channel, side):
    """Resize one channel (h, w) to (side, side) like scikit-image's `resize(order=1)`, without its smoothing."""
    rows, columns = ((np.arange(side) + 0.5) * size / side - 0.5 for size in channel.shape)
    return map_coordinates(channel, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="mirror")


def columns(maps, side):
    """Features of all positions (side * side, D) from maps (C, h, w)."""
    return np.concatenate([[upsample(channel, side).ravel() for channel in one.astype(float)] for one in maps]).T


def fit(inputs, targets, fitted, scored, alpha=None):
    """Predictions and targets at the positions `scored`. `alpha`: penalty of ridge regression; None: least squares."""
    model = LinearRegression() if alpha is None else Ridge(alpha)
    model.fit(inputs[fitted], targets[fitted])
    return model.predict(inputs[scored]), targets[scored]


def released_error(maps, small, order):
    """The mean absolute error on 30 % of the positions, fitted on the others; `small`: image (3, side, side)."""
    count = round(0.7 * len(order))
    predicted, wanted = fit(columns(maps, small.shape[1]), small.reshape(3, -1).T, order[:count], order[count:])
    return np.abs(predicted - wanted).mean()


def cross_fit(maps, targets, order, ridge, folds):
    """Predictions and targets at all positions of `order`, each fold by a fit on the others; `targets`: (N, K).

    Each map is scaled, and the penalty is relative to the mean square of the features that are fitted.
    """
    scaled = [columns([one], round(len(targets) ** 0.5)) for one in maps]
    inputs = np.concatenate([one / np.sqrt((one**2).sum(1).mean()) for one in scaled], axis=1)
    found = []
    for held in np.array_split(order, folds):
        fitted = np.setdiff1d(order, held)
        square = ((inputs[fitted] - inputs[fitted].mean(0)) ** 2).sum()
        found.append(fit(inputs, targets, fitted, held, alpha=ridge * square))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def sound_error_of_image(maps, small, order, ridge, folds):
    """The mean absolute error over all positions."""
    predicted, wanted = cross_fit(maps, small.reshape(3, -1).T, order, ridge, folds)
    return np.abs(predicted - wanted).mean()


def sound_error_of_label(maps, label, order, ridge, folds, floor):
    """The cross-entropy over all labelled positions; `label`: (side, side)."""
    classes = np.unique(label[label != 255])
    targets = (label.ravel()[:, None] == classes).astype(float)
    predicted, wanted = cross_fit(maps, targets, order, ridge, folds)
    predicted = predicted.clip(floor, 1)
    predicted /= predicted.sum(1, keepdims=True)
    return -np.log((predicted * wanted).sum(1)).mean()
