"""A slow and simple version of each formula; the tests compare the fast versions with it."""

import math

import numpy as np

VOID = 255


def loss_map(posterior, label, floor):
    """Structured loss map: SLM(i, j) = -sum_c Y(i, j, c) log P(i, j, c), pixel by pixel (section 2.1)."""
    classes, height, width = posterior.shape
    out = np.zeros((1, height, width))
    for i in range(height):
        for j in range(width):
            if label[i, j] == VOID:
                continue
            for c in range(classes):
                if label[i, j] == c:
                    out[0, i, j] = -math.log(max(posterior[c, i, j], floor))
    return out


def concatenation(posterior, label):
    """C+GT: the posterior and the one-hot label (section 2.1)."""
    classes, height, width = posterior.shape
    out = np.zeros((2 * classes, height, width))
    for i in range(height):
        for j in range(width):
            for c in range(classes):
                out[c, i, j] = posterior[c, i, j]
                out[classes + c, i, j] = label[i, j] == c
    return out


def log_concatenation(posterior, label, floor):
    """C+GT with log-posteriors, which are divided by minus the logarithm of the smallest positive float16."""
    classes, height, width = posterior.shape
    out = np.zeros((2 * classes, height, width))
    for i in range(height):
        for j in range(width):
            for c in range(classes):
                out[c, i, j] = math.log(max(posterior[c, i, j], floor)) / -math.log(float(np.float16(2.0**-24)))
                out[classes + c, i, j] = label[i, j] == c
    return out


def argmax(posterior):
    """One-hot map of the predicted class; the first class wins a tie."""
    out = np.zeros_like(posterior)
    for i in range(posterior.shape[1]):
        for j in range(posterior.shape[2]):
            best = 0
            for c in range(posterior.shape[0]):
                if posterior[c, i, j] > posterior[best, i, j]:
                    best = c
            out[best, i, j] = 1
    return out


def gauss(posterior, noise, std, floor):
    """Add noise, clamp at `floor`, and divide by the sum over classes; a position where all are 0 becomes uniform."""
    out = np.zeros(posterior.shape)
    classes = posterior.shape[0]
    for i in range(posterior.shape[1]):
        for j in range(posterior.shape[2]):
            values = [max(posterior[c, i, j] + std * noise[c, i, j], floor) for c in range(classes)]
            total = sum(values)
            for c in range(classes):
                out[c, i, j] = values[c] / total if total else 1 / classes
    return out


def rejection(posterior, label, candidates, size, count, tau, tries):
    """Algorithm 2, lines 2 to 8, one candidate after another."""
    chosen, position = [], 0
    while len(chosen) < count:
        best, best_mean = None, math.inf
        for _ in range(tries):
            y, x = candidates[position]
            position += 1
            values = [float(posterior[label[i, j], i, j]) for i in range(y, y + size) for j in range(x, x + size)
                      if label[i, j] != VOID]
            mean = sum(values) / len(values) if values else math.inf
            if best is None or mean < best_mean:
                best, best_mean = (y, x), mean
            if mean <= tau:
                break
        chosen.append(best)
    return chosen


def max_f(score, member):
    """Largest F-score over all thresholds: every score is tried as the threshold."""
    best = 0.0
    for threshold in score:
        true_positives = sum(m and s >= threshold for s, m in zip(score, member, strict=True))
        predicted = sum(s >= threshold for s in score)
        precision, recall = true_positives / predicted, true_positives / sum(member)
        if precision + recall:
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def auc(score, member):
    """Share of (member, non-member) pairs whose scores are in the right order; a tie counts one half."""
    members = [s for s, m in zip(score, member, strict=True) if m]
    others = [s for s, m in zip(score, member, strict=True) if not m]
    return sum((a > b) + (a == b) / 2 for a in members for b in others) / (len(members) * len(others))


def tpr_at(score, member, rate):
    """Largest true positive rate of all thresholds whose false positive rate is at most `rate`."""
    best = 0.0
    for threshold in [*score, max(score) + 1]:
        false_positives = sum(not m and s >= threshold for s, m in zip(score, member, strict=True))
        true_positives = sum(m and s >= threshold for s, m in zip(score, member, strict=True))
        if false_positives <= rate * (len(score) - sum(member)):
            best = max(best, true_positives / sum(member))
    return best
