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


def fit(inputs, targets, order, share=0.7, alpha=None):
    """Predictions and targets at the scored positions. `alpha`: penalty of ridge regression; None: least squares."""
    count = round(share * len(order))
    fitted, scored = order[:count], order[count:]
    model = LinearRegression() if alpha is None else Ridge(alpha)
    model.fit(inputs[fitted], targets[fitted])
    return model.predict(inputs[scored]), targets[scored], fitted


def absolute_error(maps, small, order):
    """As released: mean absolute error; `small`: image (3, side, side)."""
    predicted, wanted, _ = fit(columns(maps, small.shape[1]), small.reshape(3, -1).T, order)
    return np.abs(predicted - wanted).mean()


def ridge_cross_entropy(maps, label, order, ridge, floor):
    """The sound version on labels (side, side): each map is scaled, and the penalty is relative to the mean square."""
    scaled = [columns([one], len(label)) for one in maps]
    inputs = np.concatenate([one / np.sqrt((one**2).sum(1).mean()) for one in scaled], axis=1)
    classes = np.unique(label[label != 255])
    targets = (label.ravel()[:, None] == classes).astype(float)
    fitted = order[: round(0.7 * len(order))]
    square = ((inputs[fitted] - inputs[fitted].mean(0)) ** 2).sum()
    predicted, wanted, _ = fit(inputs, targets, order, alpha=ridge * square)
    predicted = predicted.clip(floor, 1)
    predicted /= predicted.sum(1, keepdims=True)
    return -np.log((predicted * wanted).sum(1)).mean()
