"""Every formula against its slow and simple version in slow_reference.py."""

import numpy as np
import pytest
import slow_reference as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from attacks.learned import member_probability
from attacks.patches import patch_means, random_corners, rejection_corners, sliding_corners
from attacks.representation import concatenation, log_concatenation, loss_map, represent, true_class
from attacks.sample import AttackSettings, Sample
from attacks.thresholds import ConfidenceThreshold, LossThreshold, mean_known
from defenses.argmax import argmax
from defenses.gauss import gauss, normalise
from evaluation.metrics import RATES, chance, compute_metrics, confusion, mean_iou
from utils.randomness import stream

settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


@st.composite
def posterior_and_label(draw, smallest=1):
    """A posterior float32 (C, H, W) with zeros and ties, and a label uint8 (H, W) with void."""
    classes, height, width = draw(st.integers(2, 5)), draw(st.integers(smallest, 9)), draw(st.integers(smallest, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = rng.integers(0, 5, (classes, height, width)) * rng.random((classes, height, width)).round(1)
    raw[0][raw.sum(0) == 0] = 1
    label = rng.integers(0, classes, (height, width))
    label[rng.random((height, width)) < draw(st.sampled_from([0, 0.3, 0.9]))] = 255
    return (raw / raw.sum(0)).astype(np.float32), label.astype(np.uint8)


def tensors(pair):
    return tuple(torch.from_numpy(array) for array in pair)


@given(posterior_and_label(), st.sampled_from([1e-30, 2.0**-24]))
def test_loss_map(pair, floor):
    expected = slow.loss_map(*pair, floor)
    np.testing.assert_allclose(loss_map(*tensors(pair), floor).numpy(), expected, rtol=1e-5, atol=1e-6)


@given(posterior_and_label())
def test_concatenation(pair):
    np.testing.assert_array_equal(concatenation(*tensors(pair)).numpy(), slow.concatenation(*pair))


@given(posterior_and_label(), st.sampled_from([1e-30, 2.0**-24]))
def test_log_concatenation(pair, floor):
    """Void positions keep their log-posterior, and have no label."""
    found, given_posterior = log_concatenation(*tensors(pair), floor).numpy(), pair[0].copy()
    np.testing.assert_allclose(found, slow.log_concatenation(*pair, floor), rtol=1e-5, atol=1e-6)
    assert floor < 1e-8 or (found[: len(pair[0])].min() >= -1 and found.max() <= 1)
    assert not found[len(pair[0]) :, pair[1] == 255].any() and np.array_equal(pair[0], given_posterior)


@given(posterior_and_label())
def test_argmax(pair):
    np.testing.assert_array_equal(argmax(tensors(pair)[0]).numpy(), slow.argmax(pair[0]))


@given(posterior_and_label(), st.sampled_from([0.0, 1e-6]), st.sampled_from([0.1, 0.6, 3.0]))
def test_gauss(pair, floor, std):
    noise = stream(0, "n").standard_normal(pair[0].shape, dtype=np.float32)
    fast = gauss(tensors(pair)[0], std, stream(0, "n"), floor).numpy()
    np.testing.assert_allclose(fast, slow.gauss(pair[0], noise, std, floor), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.sum(0), 1, rtol=1e-5)


@given(posterior_and_label(smallest=4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.05, 0.3, 0.6, 0.95]))
def test_rejection_is_algorithm_2(pair, size, count, tau):
    posterior, label = tensors(pair)
    candidates = random_corners(label.shape, size, count * 5, stream(3, "p"))
    fast = rejection_corners(true_class(posterior, label), label != 255, size, count, tau, stream(3, "p"), tries=5)
    assert fast.tolist() == [list(c) for c in slow.rejection(*pair, candidates.tolist(), size, count, tau, 5)]


@given(posterior_and_label(smallest=3))
def test_patch_means_leave_out_void(pair):
    posterior, label = tensors(pair)
    corners = random_corners(label.shape, 2, 4, stream(0))
    means = patch_means(posterior[0], label != 255, corners, 2)
    for (y, x), mean in zip(corners, means, strict=True):
        labelled = pair[1][y : y + 2, x : x + 2] != 255
        expected = pair[0][0, y : y + 2, x : x + 2][labelled].mean() if labelled.any() else np.inf
        assert mean == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=150))
def test_metrics(items):
    score, member = np.array([s for s, _ in items], float), np.array([m for _, m in items])
    if member.all() or not member.any():
        with pytest.raises(ValueError, match="members"):
            compute_metrics(score, member)
        return
    metrics = compute_metrics(score, member)
    assert metrics["auc"] == pytest.approx(slow.auc(score, member)) == pytest.approx(roc_auc_score(member, score))
    assert metrics["max_f"] == pytest.approx(slow.max_f(score, member))
    for name, rate in RATES.items():
        decidable = rate * (~member).sum() >= 1
        assert metrics[name] == (pytest.approx(slow.tpr_at(score, member, rate)) if decidable else None)


def test_metrics_of_chance_in_the_paper():
    assert chance(1488, 912)["random_f"] == pytest.approx(0.5536, abs=1e-4)
    assert chance(1488, 912)["all_member_f"] == pytest.approx(0.765, abs=1e-3)
    assert chance(2975, 500)["random_f"] == pytest.approx(0.6313, abs=1e-4)
    assert chance(29760, 30096)["random_f"] == pytest.approx(0.4985, abs=2e-4)


@given(posterior_and_label())
def test_threshold_attacks_leave_out_void(pair):
    posterior, label = tensors(pair)
    labelled = pair[1] != 255
    if not labelled.any():
        return
    sample = Sample("a", "a", "a", True, posterior, label)
    confidence, loss = (mean_known(attack(AttackSettings()).evidence(sample), sample.known)
                        for attack in (ConfidenceThreshold, LossThreshold))
    assert confidence == pytest.approx(pair[0].max(0)[labelled].mean(), rel=1e-5)
    assert loss == pytest.approx(-slow.loss_map(*pair, 1e-30)[0][labelled].mean(), rel=1e-5, abs=1e-6)


@given(posterior_and_label())
def test_mask_marks_void(pair):
    mapped = represent("loss", *tensors(pair), void="mask")
    assert mapped.shape[0] == 2
    np.testing.assert_array_equal(mapped[1].numpy(), pair[1] == 255)


def test_loss_map_of_argmax_is_divided_by_50():
    posterior = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    label = torch.zeros((1, 2), dtype=torch.uint8)
    for floor in (1e-30, 2.0**-24):
        mapped = represent("loss", posterior, label, floor, argmax=True)
        assert mapped[0, 0].tolist() == pytest.approx([0, 69.0776 / 50], rel=1e-4)


def test_normalise_divides_by_the_sum():
    np.testing.assert_allclose(normalise(torch.tensor([[[2.0]], [[6.0]]])).flatten(), [0.25, 0.75])


@given(st.tuples(st.integers(10, 40), st.integers(10, 60)), st.integers(3, 10), st.integers(1, 40))
def test_sliding_covers_the_map(shape, size, count):
    corners = sliding_corners(shape, size, count)
    covered = np.zeros(shape, bool)
    for y, x in corners:
        assert 0 <= y <= shape[0] - size and 0 <= x <= shape[1] - size
        covered[y : y + size, x : x + size] = True
    assert covered.all() and len(corners) >= min(count, np.prod(np.array(shape) // size))


def test_sliding_needs_six_patches_on_cityscapes():
    assert len(sliding_corners((128, 256), 90)) == 6  # section 2.4: "at least 6 patches"


def test_random_corners_are_uniform_and_fewer_are_a_prefix():
    few, many = (random_corners((20, 30), 8, n, stream(0, "x")) for n in (5, 50))
    np.testing.assert_array_equal(few, many[:5])
    spread = random_corners((20, 30), 8, 20000, stream(1))
    assert spread.min(0).tolist() == [0, 0] and spread.max(0).tolist() == [12, 22]
    assert np.bincount(spread[:, 0], minlength=13).std() / (20000 / 13) < 0.05


def test_member_probability_is_a_softmax():
    logits = np.array([[1.0, 3.0], [-2.0, -2.0], [600.0, -600.0]])
    np.testing.assert_allclose(member_probability(logits), [0.880797, 0.5, 0.0], rtol=1e-5, atol=1e-12)


def test_mean_iou_of_a_small_example():
    matrix = confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 255]), 3)
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 1 / 2) / 2)
