"""Bootstrap intervals: against theory, over blocks, and paired."""

import numpy as np
import pytest

from evaluation.intervals import block_weights, bootstrap, intervals, paired_difference
from evaluation.metrics import METRICS, Curves, compute_metrics


def sample(seed, blocks, each, shift, spread=0.0):
    rng = np.random.default_rng(seed)
    member = np.repeat(rng.permutation(np.arange(blocks) % 2 == 0), each)
    score = rng.normal(0, 1, blocks * each) + np.repeat(rng.normal(0, spread, blocks), each) + shift * member
    return score, member, [f"b{i // each}" for i in range(blocks * each)]


def test_interval_covers_as_often_as_it_says():
    """True AUC of N(1, 1) against N(0, 1) is 0.7602; about 95 of 100 intervals hold it."""
    hits = 0
    for seed in range(100):
        score, member, group = sample(seed, 120, 1, 1.0)
        low, high = intervals(score, member, group, resamples=300)["auc"]
        hits += low <= 0.7602 <= high
    assert 88 <= hits <= 100


def test_blocks_that_move_together_widen_the_interval():
    score, member, group = sample(0, 16, 20, 1.0, spread=1.0)
    apart = intervals(score, member, [str(i) for i in range(len(score))])["auc"]
    together = intervals(score, member, group)["auc"]
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_same_seed_same_interval():
    score, member, group = sample(1, 50, 2, 0.5)
    whole = bootstrap([score], member, group, seed=3, resamples=200)["auc"]
    assert len(whole) == 200 and np.array_equal(whole, bootstrap([score], member, group, seed=3, resamples=200)["auc"])
    assert not np.array_equal(whole, bootstrap([score], member, group, seed=4, resamples=200)["auc"])


def test_weighted_figures_are_those_of_the_repeated_items():
    score, member, _ = sample(2, 30, 1, 0.7)
    score = score.round(1)
    weights = np.random.default_rng(0).integers(0, 4, (5, 30))
    counts = Curves(score, member).counts(weights)
    for row, times in enumerate(weights):
        expected = compute_metrics(np.repeat(score, times), np.repeat(member, times))
        assert {name: figure(*counts)[row] for name, figure in METRICS.items()} == pytest.approx(expected)


def test_paired_difference_is_narrower_than_apart():
    score, member, group = sample(5, 100, 1, 1.0)
    better = score + 0.3 * member
    both = paired_difference([better], [score], member, group)
    low, high = both["interval"]
    assert both["difference"] > 0 and low > 0
    own = intervals(score, member, group)["auc"]
    assert high - low < 0.5 * (own[1] - own[0])


def test_paired_difference_averages_seeds():
    score, member, group = sample(5, 100, 1, 1.0)
    seeds = [score + step * member for step in (0.1, 0.4)]
    apart = [paired_difference([one], [score], member, group)["difference"] for one in seeds]
    both = paired_difference(seeds, [score], member, group)
    assert both["difference"] == pytest.approx(np.mean(apart)) and both["interval"][0] > 0
    assert paired_difference(seeds, seeds, member, group)["interval"] == pytest.approx([0, 0])


def test_mixed_blocks_keep_both_sides():
    member = np.arange(40) % 3 == 0
    group = np.array([f"g{i % 4}" for i in range(40)])
    weights = block_weights(group, member, 50, seed=0)()
    assert weights.shape == (50, 40) and (weights.sum(axis=1) == 40).all() and len(np.unique(weights)) > 2
    for name in np.unique(group):
        own = weights[:, group == name]
        assert (own == own[:, :1]).all(), "a block is drawn whole, members and non-members together"


@pytest.mark.parametrize("score", [[0.1, np.nan], [0.1, np.inf]])
def test_figures_refuse_what_is_no_number(score):
    with pytest.raises(ValueError, match="finite"):
        compute_metrics(np.array(score), np.array([True, False]))
