"""Differences pooled over trainings and over sets of images: the estimate, its two variances, and its coverage."""

import numpy as np
import pytest
from conftest import must, script
from scipy import stats
from sklearn.metrics import roc_auc_score
from test_intervals import sample

from evaluation.intervals import paired_difference
from evaluation.pooled import Contrast, Stratum, contrast, mean_contrast, pooled_difference


def two_attacks(seed, trainings, apart=0.3, spread=0.0):
    """A stratum of 24 groups of 8 images: trainings whose first attack is better by about `apart`."""
    score, member, group = sample(seed, 24, 8, 0.5, spread=0.5)
    rng = np.random.default_rng(seed + 1000)
    arm = []
    for _ in range(trainings):
        better, noise = apart + rng.normal(0, spread), rng.normal(0, 0.5, (2, len(score)))
        arm.append(contrast([score + noise[0] + better * member], [score + noise[1]]))
    return Stratum(f"set {seed}", [arm], member, group)


def value_of(one, stratum):
    return one.value("auc", stratum.member)


def value(one, member):
    first, second = (roc_auc_score(member, column) for column in one.columns)
    return first - second


def test_one_training_has_the_interval_of_the_paired_difference():
    stratum = two_attacks(0, 1)
    first, second = stratum.arms[0][0].columns
    found, alone = pooled_difference([stratum]), paired_difference([first], [second], stratum.member, stratum.group)
    assert found["difference"] == pytest.approx(alone["difference"]) and found["trainings"] == 0
    assert found["interval"] == pytest.approx(alone["interval"])
    assert found["detectable"] > found["interval"][1] - found["difference"]


def test_error_and_freedom_give_the_interval():
    found = pooled_difference([two_attacks(0, 1), two_attacks(1, 3, spread=0.3)])
    step = stats.t.ppf(0.975, found["freedom"]) * found["error"]
    assert found["interval"] == pytest.approx([found["difference"] - step, found["difference"] + step])


def test_trainings_of_another_kind_add_their_variance():
    """Two independent parts with three attackers each: the variance of the mean of their means."""
    strata = [two_attacks(0, 2, spread=0.1), two_attacks(1, 2, spread=0.1)]
    values = [np.array([0.1, 0.2, 0.4]), np.array([0.0, 0.3, 0.3])]
    plain, found = pooled_difference(strata), pooled_difference(strata, others=[[one] for one in values])
    pooled = np.mean([one.var(ddof=1) for one in values])
    assert found["difference"] == plain["difference"]
    assert found["error"] ** 2 == pytest.approx(plain["error"] ** 2 + pooled / 3 / 2)
    assert pooled_difference(strata, others=[[values[0][:1]]])["interval"] == plain["interval"]


def test_mean_of_contrasts():
    stratum = two_attacks(0, 3)
    arm = stratum.arms[0]
    one = mean_contrast(arm)
    assert value_of(one, stratum) == pytest.approx(np.mean([value_of(each, stratum) for each in arm]))
    parts = [np.mean([each.influences("auc", stratum.member)[side] for each in arm], axis=0) for side in (0, 1)]
    for part, found in zip(parts, one.influences("auc", stratum.member), strict=True):
        assert found == pytest.approx(part)


def test_a_rate_that_the_non_members_do_not_allow_is_an_error():
    with pytest.raises(ValueError, match=r"tpr_at_0\.1_fpr needs more than"):
        pooled_difference([two_attacks(0, 1)], "tpr_at_0.1_fpr")


def test_estimate_is_the_mean_over_strata_of_means_over_trainings():
    strata = [two_attacks(0, 1), two_attacks(1, 3)]
    means = [np.mean([value(one, stratum.member) for one in stratum.arms[0]]) for stratum in strata]
    found = pooled_difference(strata)
    assert found["difference"] == pytest.approx(np.mean(means)) and found["trainings"] == 2


def test_trainings_that_differ_widen_the_interval():
    calm, wild = (pooled_difference([two_attacks(0, 8, spread=spread), two_attacks(1, 1)]) for spread in (0, 0.8))
    width = [found["interval"][1] - found["interval"][0] for found in (calm, wild)]
    assert width[1] > 1.5 * width[0]


def test_strata_on_the_same_images_count_them_once():
    """The same stratum twice tells no more than once; two strata on images of their own tell more."""
    stratum = two_attacks(0, 1)
    other = Stratum("other", stratum.arms, stratum.member, stratum.group)
    once, twice, apart = (pooled_difference(strata)["interval"] for strata in
                          ([stratum], [stratum, stratum], [stratum, other]))
    assert twice == pytest.approx(once)
    assert apart[1] - apart[0] == pytest.approx((once[1] - once[0]) / np.sqrt(2), rel=0.08)


def test_rotation_leaves_a_group_out_of_both_roles():
    """If a group makes members of one stratum and non-members of another look alike, its two influences cancel."""
    first = two_attacks(0, 1)
    swapped = Stratum(first.images, [[contrast(*([column] for column in one.columns)) for one in first.arms[0]]],
                      ~first.member, first.group)
    found = pooled_difference([first, swapped])
    assert found["difference"] == pytest.approx(0, abs=1e-12)
    assert np.ptp(found["interval"]) < 1e-6


def test_two_arms_are_the_difference_of_two_tasks():
    one, other = two_attacks(0, 2), two_attacks(0, 3)
    arms = [[Contrast([each.columns[0]], [1.0]) for each in one.arms[0]],
            [Contrast([each.columns[1]], [-1.0]) for each in other.arms[0]]]
    found = pooled_difference([Stratum("set", arms, one.member, one.group)])
    aucs = [[roc_auc_score(one.member, each.columns[side]) for each in stratum.arms[0]]
            for side, stratum in enumerate((one, other))]
    assert found["difference"] == pytest.approx(np.mean(aucs[0]) - np.mean(aucs[1])) and found["trainings"] == 3


def test_few_groups_have_no_interval():
    stratum = two_attacks(0, 2)
    few = Stratum("set", stratum.arms, stratum.member, [name[:2] for name in stratum.group])
    assert pooled_difference([few])["interval"] is None and pooled_difference([few])["detectable"] is None


def test_pooled_interval_has_its_nominal_coverage():
    """Two sets of images with three trainings each, which differ. Of 150 intervals, 137 or more contain 0."""
    hits = 0
    for seed in range(150):
        low, high = pooled_difference([two_attacks(2 * seed + number, 3, apart=0, spread=0.2)
                                       for number in (0, 1)])["interval"]
        hits += low <= 0 <= high
    assert 137 <= hits <= 149


def test_coverage_tool_prints_the_pooled_table():
    out = must(script("tools/coverage.py", "--runs", 1, "--metrics", "pooled")).stdout
    assert "| rotation: 4, 4, 30 |" in out
