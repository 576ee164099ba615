"""The slow, obvious version of each formula, against which the fast one is held."""

import math

import numpy as np

VOID = 255


def loss_map(posterior, label, floor):
    """SLM(i, j) = -sum_c Y(i, j, c) log P(i, j, c), pixel by pixel (section 2.1)."""
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
    classes, height, width = posterior.shape
    out = np.zeros((2 * classes, height, width))
    for i in range(height):
        for j in range(width):
            for c in range(classes):
                out[c, i, j] = posterior[c, i, j]
                out[classes + c, i, j] = label[i, j] == c
    return out


def argmax(posterior):
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
    """Algorithm 2, lines 2 to 8, one candidate after the other."""
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
    """Try every score as the threshold."""
    best = 0.0
    for threshold in score:
        true = sum(m and s >= threshold for s, m in zip(score, member, strict=True))
        called = sum(s >= threshold for s in score)
        precision, recall = true / called, true / sum(member)
        if precision + recall:
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def auc(score, member):
    """Share of (member, non-member) pairs in the right order, ties one half."""
    inside = [s for s, m in zip(score, member, strict=True) if m]
    outside = [s for s, m in zip(score, member, strict=True) if not m]
    return sum((a > b) + (a == b) / 2 for a in inside for b in outside) / (len(inside) * len(outside))


def tpr_at(score, member, rate):
    """Best true positive rate of any threshold whose false positive rate is `rate` or less."""
    best = 0.0
    for threshold in [*score, max(score) + 1]:
        false = sum(not m and s >= threshold for s, m in zip(score, member, strict=True))
        true = sum(m and s >= threshold for s, m in zip(score, member, strict=True))
        if false <= rate * (len(score) - sum(member)):
            best = max(best, true / sum(member))
    return best
