"""Intervals over groups of images: coverage, few groups, perfect separation, and paired differences."""

import runpy
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, must, script
from sklearn.metrics import roc_auc_score

from attacks.sample import Scored
from evaluation.intervals import (
    MIN_GROUPS,
    count_groups,
    cross_fitted,
    exact_interval,
    influences,
    intervals,
    jackknife,
    mean_interval,
    paired_difference,
    split_groups,
)
from evaluation.metrics import Curves, chance, compute_metrics
from evaluation.report import balanced, describe_groups, summarise, table


def sample(seed, groups, size, shift, spread=0.0):
    """Draw scores from N(0, 1), plus `shift` for members and N(0, spread) for each group of `size` images."""
    rng = np.random.default_rng(seed)
    member = np.repeat(rng.permutation(np.arange(groups) % 2 == 0), size)
    score = rng.normal(0, 1, groups * size) + np.repeat(rng.normal(0, spread, groups), size) + shift * member
    return score, member, [f"b{i // size}" for i in range(groups * size)]


def names(count):
    """Each item is a group."""
    return [str(i) for i in range(count)]


@pytest.mark.parametrize("groups, size, spread", [(20, 12, 0.73), (120, 1, 0.0)])  # 10 groups a side; 60 images a side
def test_interval_has_its_nominal_coverage(groups, size, spread):
    """An AUC of 0.9. Of 200 intervals, 186 to 199 contain it (95 % minus 1.3 standard errors; few groups: more)."""
    shift, hits = 1.2816 * np.sqrt(2) * np.sqrt(1 + spread**2), 0
    for seed in range(200):
        score, member, group = sample(seed, groups, size, shift, spread)
        low, high = intervals(score, member, group)["auc"]
        hits += low <= 0.9 <= high
    assert 185 <= hits <= 199


def test_max_f_of_noise_is_covered_although_its_threshold_is_chosen():
    """The F of calling all images members is the largest F of the distribution; the largest of a sample is higher."""
    hits = 0
    for seed in range(60):
        score, member, group = sample(seed, 60, 1, 0.0)
        low, high = intervals(score, member, group)["max_f"]
        assert low <= compute_metrics(score, member)["max_f"] <= high
        hits += low <= 2 / 3 <= high
    assert hits >= 57


def test_accuracy_of_thresholds_that_other_groups_chose():
    """It is near that of the best threshold of the distribution; in noise it is one half."""
    for shift, expected in ((2.0, 0.841), (0.0, 0.5)):
        rng = np.random.default_rng(0)
        member = np.arange(4000) % 2 == 0
        score = rng.normal(0, 1, 4000) + shift * (member - 0.5)
        hit, alarm = cross_fitted(score, member, split_groups(names(4000), member), Curves.accuracies)
        assert (hit.sum() + (~alarm).sum()) / 4000 == pytest.approx(expected, abs=0.025)
        best = Curves(score, member).accuracies().max()
        tried = np.quantile(score, np.linspace(0, 1, 400))
        assert best == pytest.approx(max(np.mean((score >= t) == member) for t in tried), abs=0.005)


def test_as_many_patches_of_both_sides_as_in_the_paper():
    """1488 members and 912 non-members with 33 patches each: 20 of each member, and the F of a coin is 49.85 %."""
    member = np.arange(2400) < 1488
    kept = balanced(np.full(2400, 33), member)
    assert set(kept[member]) == {20} and set(kept[~member]) == {33}
    inside, outside = int(kept[member].sum()), int(kept[~member].sum())
    assert (inside, outside) == (29_760, 30_096)
    assert 100 * chance(inside, outside)["random_f"] == pytest.approx(49.85, abs=0.01)
    scored = [Scored(f"i{i}", bool(side), f"i{i}", 0.5, [[0, 0]] * 4, list(np.arange(4.0) + i)) for i, side in
              enumerate([True] * 20 + [False] * 10)]
    found = summarise(scored)
    score = np.concatenate([one.patch_scores[: 2 if one.member else 4] for one in scored])
    truth = np.concatenate([[one.member] * (2 if one.member else 4) for one in scored])
    assert found["balanced"]["auc"] == pytest.approx(roc_auc_score(truth, score)) != found["patch"]["auc"]
    assert "balanced" not in summarise([replace(one, member=i % 2 == 0) for i, one in enumerate(scored)])


def test_coverage_tool_prints_a_table():
    main = runpy.run_path(str(ROOT / "tools/coverage.py"), run_name="x")
    assert (10, 12) in [design[1:] for design in main["DESIGNS"]]
    out = must(script("tools/coverage.py", "--runs", 2, "--metrics", "difference")).stdout
    assert out.count("\n|") == len(main["DESIGNS"]) + 2


def test_correlated_groups_widen_the_interval():
    score, member, group = sample(0, 24, 20, 1.0, spread=1.0)
    for metric in ("auc", "max_f", "tpr_at_10_fpr"):
        by_image, by_group = (intervals(score, member, of)[metric] for of in (names(len(score)), group))
        assert by_group[1] - by_group[0] > 1.5 * (by_image[1] - by_image[0])


def left_out(value, score, member, group):
    """`value`, an AUC, minus the AUC without each group."""
    others = (np.array(group) != name for name in set(group))
    return [value - roc_auc_score(member[keep], score[keep]) for keep in others]


def test_jackknife_of_an_auc_equals_leaving_out_each_group():
    """Exact if a group holds one side; if it holds both, up to the product of its two changes."""
    score, member, group = sample(3, 30, 4, 0.8, spread=0.5)
    sides = split_groups(group, member)
    value = roc_auc_score(member, score)
    expected = sum(change**2 for change in left_out(value, score, member, group))
    variance, freedom = jackknife(value, influences("auc", score, member), sides)
    assert variance == pytest.approx(expected) and freedom == pytest.approx(14)
    mixed = np.arange(120) % 2 == 0
    value, both = roc_auc_score(mixed, score), split_groups(group, mixed)
    left = left_out(value, score, mixed, group)
    variance, _ = jackknife(value, influences("auc", score, mixed), both)
    assert variance == pytest.approx(np.square(left).sum(), rel=0.1)


@pytest.mark.parametrize("members, non_members", [(1, 1), (9, 200), (200, 9)])
def test_few_groups_have_no_interval(members, non_members):
    """1 + 1 images had AUC 1.000 [1.000, 1.000], and one group a side [0.688, 0.688]."""
    member = np.arange(members + non_members) < members
    score, group = np.arange(len(member), 0, -1.0), names(len(member))
    assert set(intervals(score, member, group).values()) == {None}
    assert paired_difference([score], [-score], member, group) == {"difference": 1.0, "interval": None}
    counts = count_groups(group, member)
    assert counts == {"members": members, "non_members": non_members, "both": 0}
    assert describe_groups(counts) == (f"no intervals: {members} groups of members and {non_members} of non-members, "
                                       f"fewer than {MIN_GROUPS} a side")
    images = sample(0, 20, 30, 1.0)
    assert set(intervals(*images[:2], ["a" if inside else "b" for inside in images[1]]).values()) == {None}


@pytest.mark.parametrize("count", [10, 60])
def test_perfect_separation_has_a_one_sided_bound(count):
    member = np.arange(2 * count) < count
    score, group = member * 1.0, names(2 * count)
    bound = 0.05 ** (1 / count)  # `count` independent comparisons, all won
    for sign, expected in ((1, [bound, 1]), (-1, [0, 1 - bound])):
        assert intervals(sign * score, member, group)["auc"] == pytest.approx(expected)
    assert intervals(score, member, group)["max_f"] == pytest.approx([bound, 1])
    assert intervals(score, member, group)["tpr_at_10_fpr"] == pytest.approx([0.025 ** (1 / count), 1])
    crossed = [f"g{i % count}" for i in range(2 * count)]  # a comparison needs two groups
    assert intervals(score, member, crossed)["auc"] == pytest.approx([0.05 ** (2 / count), 1])


def test_equal_scores_have_no_interval():
    member = np.arange(60) < 30
    bounds = intervals(np.ones(60), member, names(60))
    assert bounds["auc"] is None and bounds["max_f"] is None


def test_tpr_of_single_images_has_the_exact_interval():
    """0 of 130: at most 2.8 % (two-sided); 36 of 120 by the tables of the binomial distribution."""
    assert exact_interval(0, 130) == pytest.approx([0, 0.02798], abs=1e-5)
    assert exact_interval(36, 120) == pytest.approx([0.2198, 0.3904], abs=1e-4)
    member = np.arange(220) < 120
    score = np.where(member, np.arange(220) < 36, 0).astype(float)
    assert intervals(score, member, names(220))["tpr_at_10_fpr"] == pytest.approx(exact_interval(36, 120))


def test_rate_finer_than_the_non_members_allow_is_undecidable():
    member = np.arange(240) < 140
    score = np.random.default_rng(0).normal(size=240) + member
    metrics = compute_metrics(score, member)
    assert metrics["tpr_at_1_fpr"] is not None and metrics["tpr_at_0.1_fpr"] is None
    assert intervals(score, member, names(240))["tpr_at_0.1_fpr"] is None
    keep = np.r_[:239]
    assert compute_metrics(score[keep], member[keep])["tpr_at_1_fpr"] is None
    with pytest.raises(ValueError, match="non-members"):
        paired_difference([score], [score], member, names(240), "tpr_at_0.1_fpr")
    results = {"image": metrics | {f"{key}_interval": None for key in metrics}, "non_members": 100,
               "chance": {"image": {"random_f": 0.5, "all_member_f": 0.6}}, "groups": count_groups(names(240), member)}
    assert "0.1 %    undecidable with 100 non-members: needs 1000" in table(results)


def test_thresholds_are_chosen_on_other_groups():
    """Each group has its own level, so a threshold that was chosen with a group knows it."""
    score, member, group = sample(0, 40, 5, 0.0, spread=3.0)
    hit, alarm = cross_fitted(score, member, split_groups(group, member))
    curves = Curves(score, member)
    own = score >= curves.thresholds[curves.f_scores().argmax()]
    fs = [2 * h.sum() / (h.sum() + a.sum() + len(h)) for h, a in ((hit, alarm), (own[member], own[~member]))]
    assert fs[0] < fs[1] == pytest.approx(compute_metrics(score, member)["max_f"])


def test_paired_difference_has_a_narrower_interval():
    score, member, group = sample(5, 100, 1, 1.0)
    better = score + 0.3 * member
    both = paired_difference([better], [score], member, group)
    low, high = both["interval"]
    assert both["difference"] > 0 and low > 0
    single = intervals(score, member, group)["auc"]
    assert high - low < 0.5 * (single[1] - single[0])


def test_difference_that_does_not_vary_has_no_interval():
    """Two attacks that both separate perfectly had the difference 0 [0, 0]."""
    member = np.arange(60) < 30
    first, second = member + np.linspace(0, 0.5, 60), member + np.linspace(0.5, 0, 60)
    assert paired_difference([first], [second], member, names(60)) == {"difference": 0.0, "interval": None}
    assert paired_difference([first], [first], member, names(60))["interval"] == [0, 0]
    assert mean_interval(np.ones(20), names(20)) is None


def test_paired_difference_averages_seeds():
    score, member, group = sample(5, 100, 1, 1.0)
    seeds = [score + step * member for step in (0.1, 0.4)]
    single = [paired_difference([seed], [score], member, group)["difference"] for seed in seeds]
    both = paired_difference(seeds, [score], member, group)
    assert both["difference"] == pytest.approx(np.mean(single)) and both["interval"][0] > 0
    for metric in ("auc", "max_f", "tpr_at_10_fpr"):
        assert paired_difference(seeds, seeds, member, group, metric)["interval"] == pytest.approx([0, 0])


def test_interval_of_a_mean_over_groups():
    values = np.random.default_rng(0).normal(2, 1, 400)
    low, high = mean_interval(values, names(400))
    assert (low + high) / 2 == pytest.approx(values.mean()) and high - low == pytest.approx(3.93 / 20, rel=0.1)
    repeated = mean_interval(np.repeat(values[:20], 20), np.repeat(names(20), 20))
    assert repeated == pytest.approx(mean_interval(values[:20], names(20)))
    assert mean_interval(values[:9], names(9)) is None


@pytest.mark.parametrize("score", [[0.1, np.nan], [0.1, np.inf]])
def test_metrics_refuse_nan_and_infinity(score):
    with pytest.raises(ValueError, match="finite"):
        compute_metrics(np.array(score), np.array([True, False]))
