"""Bootstrap intervals: coverage, groups, and paired differences."""

import numpy as np
import pytest

from evaluation.intervals import bootstrap, group_weights, intervals, paired_difference
from evaluation.metrics import METRICS, Curves, compute_metrics


def sample(seed, groups, size, shift, spread=0.0):
    """Draw scores from N(0, 1), plus `shift` for members and N(0, spread) for each group of `size` images."""
    rng = np.random.default_rng(seed)
    member = np.repeat(rng.permutation(np.arange(groups) % 2 == 0), size)
    score = rng.normal(0, 1, groups * size) + np.repeat(rng.normal(0, spread, groups), size) + shift * member
    return score, member, [f"b{i // size}" for i in range(groups * size)]


def test_interval_has_its_nominal_coverage():
    """The AUC of N(1, 1) against N(0, 1) is 0.7602; about 95 of 100 intervals contain it."""
    hits = 0
    for seed in range(100):
        score, member, group = sample(seed, 120, 1, 1.0)
        low, high = intervals(score, member, group, resamples=300)["auc"]
        hits += low <= 0.7602 <= high
    assert 88 <= hits <= 100


def test_correlated_groups_widen_the_interval():
    score, member, group = sample(0, 16, 20, 1.0, spread=1.0)
    by_image = intervals(score, member, [str(i) for i in range(len(score))])["auc"]
    by_group = intervals(score, member, group)["auc"]
    assert by_group[1] - by_group[0] > 2 * (by_image[1] - by_image[0])


def test_bootstrap_depends_on_the_seed():
    score, member, group = sample(1, 50, 2, 0.5)
    first, second, other = (bootstrap([score], member, group, seed=seed, resamples=200)["auc"] for seed in (3, 3, 4))
    assert len(first) == 200 and np.array_equal(first, second) and not np.array_equal(first, other)


def test_weighted_metrics_equal_those_of_repeated_images():
    score, member, _ = sample(2, 30, 1, 0.7)
    score = score.round(1)
    weights = np.random.default_rng(0).integers(0, 4, (5, 30))
    counts = Curves(score, member).counts(weights)
    for row, times in enumerate(weights):
        expected = compute_metrics(np.repeat(score, times), np.repeat(member, times))
        assert {name: metric(*counts)[row] for name, metric in METRICS.items()} == pytest.approx(expected)


def test_paired_difference_has_a_narrower_interval():
    score, member, group = sample(5, 100, 1, 1.0)
    better = score + 0.3 * member
    both = paired_difference([better], [score], member, group)
    low, high = both["interval"]
    assert both["difference"] > 0 and low > 0
    single = intervals(score, member, group)["auc"]
    assert high - low < 0.5 * (single[1] - single[0])


def test_paired_difference_averages_seeds():
    score, member, group = sample(5, 100, 1, 1.0)
    seeds = [score + step * member for step in (0.1, 0.4)]
    single = [paired_difference([seed], [score], member, group)["difference"] for seed in seeds]
    both = paired_difference(seeds, [score], member, group)
    assert both["difference"] == pytest.approx(np.mean(single)) and both["interval"][0] > 0
    assert paired_difference(seeds, seeds, member, group)["interval"] == pytest.approx([0, 0])


def test_group_of_members_and_non_members_is_drawn_together():
    member = np.arange(40) % 3 == 0
    group = np.array([f"g{i % 4}" for i in range(40)])
    weights = group_weights(group, member, 50, seed=0)()
    assert weights.shape == (50, 40) and (weights.sum(axis=1) == 40).all() and len(np.unique(weights)) > 2
    for name in np.unique(group):
        of_group = weights[:, group == name]
        assert (of_group == of_group[:, :1]).all(), "all images of a group have the same weight"


@pytest.mark.parametrize("score", [[0.1, np.nan], [0.1, np.inf]])
def test_metrics_refuse_nan_and_infinity(score):
    with pytest.raises(ValueError, match="finite"):
        compute_metrics(np.array(score), np.array([True, False]))
