"""Tests of whole collections: p-values without a leak, power, weights, the share that was used, and the command."""

import json
from itertools import combinations

import numpy as np
import pytest
from conftest import must, script
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_seams import assert_refused

from attacks.sample import Scored
from evaluation.intervals import split_groups
from evaluation.report import write_scores
from evaluation.set_level import correlation, detectable, needed, null_check, p_value, share_used, was_used, weigh
from utils.cli import UserError
from utils.files import write_json

RHO = 0.35  # correlation of the scores of a group


def noise(rng, sizes):
    """Scores of variance 1 and groups of the images of groups of these sizes."""
    index = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(0, RHO**0.5, len(sizes))[index] + rng.normal(0, (1 - RHO) ** 0.5, len(index)), index


def sizes_of(rng, groups, images, unequal):
    return np.maximum(1, np.round(images * rng.lognormal(-0.32, 0.8, groups))).astype(int) if unequal else [
        images] * groups


def collection(rng, claim=(10, 6), null=(10, 6), unequal=False, shift=0.0, mixed=False):
    """Scores, claim and groups; `claim`, `null`: number of groups, and of the images of each."""
    sizes = [sizes_of(rng, *side, unequal) for side in (claim, null)]
    score, group = noise(rng, np.concatenate(sizes).astype(int))
    side = np.repeat([True, False], [sum(sizes[0]), sum(sizes[1])])
    if mixed:
        side = rng.permutation(side)
    return score + shift * side, side, group


def apart(auc):
    """The shift of normal scores of variance 1 that has this AUC."""
    return 2**0.5 * stats.norm.ppf(auc)


# Was it used?

@pytest.mark.parametrize("design, method, exact", [
    ({}, "permutation", True),
    ({"claim": (8, 12), "null": (20, 5), "unequal": True}, "permutation", True),
    ({"claim": (40, 1), "null": (25, 1)}, "permutation", True),
    ({"claim": (5, 30), "null": (40, 3)}, "permutation", False),
    ({"claim": (3, 12), "null": (4, 12), "unequal": True}, "few", False),
    ({"claim": (2, 10), "null": (2, 10)}, "few", False),
    ({"mixed": True}, "mixed", False),
    ({"mixed": True, "claim": (3, 9), "null": (3, 9), "unequal": True}, "mixed", False)])
def test_p_values_are_uniform_or_larger_without_a_leak(design, method, exact):
    """Of 300 p-values, those up to 0.05 number 15 on average; more than 27 have a probability of 0.001."""
    p = []
    for seed in range(300):
        found = p_value(*collection(np.random.default_rng(seed), **design), seed, deals=99)
        p.append(found["p"])
    assert found["method"] == method
    for level, most in ((0.01, 9), (0.05, 27), (0.1, 47)):
        assert np.sum(np.array(p) <= level) <= most
    if exact:
        assert stats.kstest(p, "uniform").pvalue > 0.001


def slow_statistic(rank, claim, group):
    """Difference of the mean ranks, divided by its standard error over groups, image by image."""
    value, variance = 0.0, 0.0
    for sign, side in ((1, claim), (-1, ~claim)):
        own, names = rank[side], sorted(set(group[side].tolist()))
        value += sign * own.mean()
        sums = [sum(rank[i] - own.mean() for i in range(len(rank)) if side[i] and group[i] == name) for name in names]
        variance += len(names) / (len(names) - 1) * sum(one**2 for one in sums) / len(own) ** 2
    return value / max(variance, 1e-12) ** 0.5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=9, max_size=9), st.booleans())
def test_permutation_equals_a_slow_one(seed, sizes, ties):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(9), sizes)
    score = rng.integers(0, 3, len(group)).astype(float) if ties else rng.normal(size=len(group))
    rank = stats.rankdata(score) / len(score)
    observed, *others = [slow_statistic(rank, np.isin(group, chosen), group) for chosen in combinations(range(9), 4)]
    assert len(others) == 125  # the first deal is that of groups 0 to 3
    expected = (1 + sum(one >= observed - 1e-6 * (1 + abs(observed)) for one in others)) / 126
    found = p_value(score, group < 4, group)
    assert found == {"p": pytest.approx(expected), "method": "permutation", "deals": 126}


def test_only_the_order_of_the_scores_counts_and_the_test_is_one_sided():
    score, claim, group = collection(np.random.default_rng(0), shift=1.5)
    found = p_value(score, claim, group)
    assert found["p"] <= 0.001 and found == p_value(np.exp(score), claim, group)
    assert p_value(-score, claim, group)["p"] > 0.99
    few = collection(np.random.default_rng(0), claim=(4, 9), null=(3, 9), shift=2.0)
    assert p_value(*few)["p"] < 0.05 < 0.9 < p_value(-few[0], *few[1:])["p"]


def test_groups_are_dealt_whole():
    """Copies of the images of a group tell nothing new."""
    score, claim, group = collection(np.random.default_rng(1), claim=(12, 1), null=(12, 1), shift=0.6)
    copied = [np.repeat(array, 20) for array in (score, claim, group)]
    assert p_value(*copied)["p"] == pytest.approx(p_value(score, claim, group)["p"], abs=0.005)


def test_ties():
    claim, group = np.arange(40) < 20, np.arange(40) // 5
    assert p_value(np.ones(40), claim, group)["p"] == 1
    separated = p_value(claim * 1.0, claim, group)  # 4 and 4 groups without any variation: one of 70 deals
    assert separated["p"] == pytest.approx(1 / 70) and separated["method"] == "permutation"
    with pytest.raises(UserError, match="no group differs"):
        p_value(np.ones(40), claim, np.arange(40) % 8)


@pytest.mark.parametrize("few", [True, False])
def test_one_group_on_a_side_is_refused(few):
    claim = np.arange(30) < 15
    group = np.where(claim == few, 0, np.arange(30))
    with pytest.raises(UserError, match=f"the {'claim' if few else 'null'} has 1 group of images"):
        was_used([np.arange(30.0)], claim, group)


# How many images?

def test_smallest_sets_of_single_images():
    """The numbers of images a side for 80 % power at 5 %."""
    for auc, images in ((0.55, 392), (0.6, 97), (0.65, 42), (0.7, 23), (0.8, 9)):
        assert needed(auc) == {"images": images, "groups": images}
    assert needed(0.5) is None and needed(0.99) == {"images": 3, "groups": 3} == needed(1.0)
    assert needed(0.7, 10.0, 0.5) == {"images": 124, "groups": 13}  # 22.48 times 1 + 9 / 2


def test_detectable_auc_is_the_inverse():
    """130 images a side tell an AUC of 0.59 from 0.5."""
    claim = np.arange(260) < 130
    assert detectable(split_groups(np.arange(260), claim)) == pytest.approx(0.586, abs=0.001)
    grouped = split_groups(np.arange(260) // 10, claim)
    assert needed(detectable(grouped, RHO), 10.0, RHO)["images"] in (130, 131)


@pytest.mark.parametrize("auc, size", [(0.65, 1), (0.8, 1), (0.75, 6)])
def test_power_is_as_computed(auc, size):
    """80 % for a test of means that knows the variance; the ranks of few groups lose a little."""
    groups = needed(auc, size, RHO)["groups"]
    p = [p_value(*collection(np.random.default_rng(seed), (groups, size), (groups, size), shift=apart(auc)), seed,
                 deals=99)["p"] for seed in range(250)]
    assert 0.68 <= np.mean(np.array(p) <= 0.05) <= 0.86


def test_correlation_within_groups():
    score, claim, group = collection(np.random.default_rng(0), (300, 4), (300, 7), shift=2.0)
    sides = split_groups(group, claim)
    assert correlation(score, claim, sides) == pytest.approx(RHO, abs=0.06)
    assert correlation(np.random.default_rng(1).permutation(score), claim, sides) == pytest.approx(0, abs=0.06)
    assert correlation(score, claim, split_groups(np.arange(len(score)), claim)) == 0


# Several attacks

def two_attacks(seed, shift, groups=20):
    """A weak attack, and the difficulty of the images that hides what it finds."""
    rng = np.random.default_rng(seed)
    difficulty, claim, group = collection(rng, (groups, 3), (groups, 3))
    return [difficulty + 0.2 * rng.normal(size=len(claim)) + shift * claim, difficulty], claim, group


def test_weights_find_what_one_attack_does_not():
    columns, claim, group = two_attacks(0, 0.3)
    alone, both = was_used(columns[:1], claim, group), was_used(columns, claim, group)
    assert alone["p"] > 0.02 and alone["weights"] is None and alone["images"] == [60, 60]
    assert both["p"] < 0.01 and both["weights"][0] > 0 > both["weights"][1]
    assert both["images"] == [30, 30] and both["groups"] == [10, 10]


def test_weights_are_learned_on_other_groups():
    columns, claim, group = two_attacks(1, 0.0)
    _, tested, weights = weigh(columns, claim, group)
    assert not set(group[tested]) & set(group[~tested])
    changed = [np.where(tested, column[::-1], column) for column in columns]
    assert weigh(changed, claim, group)[2] == weights
    few, claim, group = two_attacks(0, 0.0, groups=3)
    with pytest.raises(UserError, match="the claim has 3 groups of images, too few to learn the weights of 2 attacks"):
        was_used(few, claim, group)


# Which share?

def population(rng, groups, size, auc, used):
    """A claim of which a share was used, and a population of as many members and non-members."""
    claim, claim_group = noise(rng, [size] * groups)
    score, group = noise(rng, [size] * (2 * groups))
    member = np.arange(len(score)) < len(claim)
    was = rng.permutation(np.arange(len(claim)) < round(used * len(claim)))
    return claim + apart(auc) * was, claim_group, score + apart(auc) * member, member, group


@pytest.mark.parametrize("groups, size, auc, used", [(30, 6, 0.85, 0.0), (30, 6, 0.75, 0.7), (20, 6, 0.95, 1.0),
                                                     (120, 1, 0.8, 0.3)])
def test_share_and_its_interval(groups, size, auc, used):
    found = [share_used(*population(np.random.default_rng(seed), groups, size, auc, used)) for seed in range(250)]
    covered = [one["interval"] is None or one["interval"][0] <= used <= one["interval"][1] for one in found]
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.median([one["share"] for one in found if one["share"] is not None]) == pytest.approx(used, abs=0.06)


def test_interval_of_the_share_contains_the_uncertainty_of_the_population():
    """A claim of very many images: the interval is as wide as TPR and FPR are uncertain."""
    rng = np.random.default_rng(0)
    _, _, *small = population(rng, 20, 3, 0.85, 0.5)
    claim, group = noise(rng, [1] * 20_000)
    claim += apart(0.85) * (np.arange(20_000) % 2)
    low, high = share_used(claim, group, *small)["interval"]
    assert 0.2 < high - low < 1 and low < 0.5 < high


def test_interval_equals_a_search():
    """It has the shares whose difference to the data is at most t standard errors."""
    claim, claim_group, score, member, group = population(np.random.default_rng(3), 20, 4, 0.85, 0.4)
    group = np.where(member, group, group - 10)  # half of the groups hold both sides
    found = share_used(claim, claim_group, score, member, group)

    def change(side, name):
        rest = high[side][groups[side] != name]
        return rest.mean() - high[side].mean()

    high = [claim >= found["threshold"], score[member] >= found["threshold"], score[~member] >= found["threshold"]]
    groups, inside = [claim_group, group[member], group[~member]], []
    own = sum(change(0, name) ** 2 for name in range(20))
    changes = np.array([[change(1, name), change(2, name)] for name in sorted(set(group))])
    for share in np.arange(-1, 2, 0.001):
        weights = np.array([1, -share, share - 1])
        value = weights @ [one.mean() for one in high]
        if abs(value) <= stats.t.ppf(0.975, 19) * (own + ((changes @ weights[1:]) ** 2).sum()) ** 0.5:
            inside.append(share)
    assert found["interval"] == pytest.approx([inside[0], inside[-1]], abs=0.002)
    assert found["interval"][0] <= found["share"] <= found["interval"][1]


def test_share_of_a_perfect_attack_has_an_interval():
    member = np.arange(60) < 30
    found = share_used(np.repeat([0.0, 1.0], 20), np.arange(40), member * 1.0, member, np.arange(60))
    assert found["share"] == 0.5 and (found["tpr"], found["fpr"]) == (1, 0)
    assert found["interval"][0] < 0.4 and found["interval"][1] > 0.6
    zero = share_used(np.zeros(40), np.arange(40), member * 1.0, member, np.arange(60))
    assert zero["share"] == 0 and 0.05 < zero["interval"][1] < 0.3


def test_share_without_an_interval():
    rng = np.random.default_rng(0)
    few = share_used(*population(rng, 9, 5, 0.9, 0.5))
    assert few["interval"] is None and few["share"] is not None
    claim, claim_group, score, member, group = population(rng, 30, 3, 0.9, 0.5)
    assert share_used(claim, claim_group, score, ~member, group)["share"] is None
    blind = share_used(claim, claim_group, np.where(np.arange(180) == 0, 9.0, np.tile([0.0, 1], 90)), member, group)
    assert blind["share"] is not None and blind["interval"] is None  # TPR - FPR is 1 image


# The null against itself

def test_check_of_the_null():
    score, _, group = collection(np.random.default_rng(0), (15, 5), (15, 5), unequal=True)
    found = null_check([score], group, 200, deals=99)
    assert found["0.05"] <= 0.1 and 0 < found["0.1"] <= 0.17
    columns, _, group = two_attacks(0, 0.0)
    assert null_check(columns, group, 200, deals=99)["0.05"] <= 0.1
    with pytest.raises(UserError, match="the null has 3 groups of images; to test its halves, it needs 4"):
        null_check([np.arange(9.0)], np.arange(9) // 3, 10)


# The command

def run_folder(folder, seed=0, members=range(20), others=range(20, 60), shift=1.0, attack=None, start=0.0):
    """A run of attack.py on images of groups of two; the scores of non-members have the mean `start`."""
    rng = np.random.default_rng(seed)
    scored = [Scored(f"img/{index:05}", index in members, f"g{index // 2}",
                     rng.normal(start) + shift * (index in members)) for index in (*members, *others)]
    folder.mkdir()
    write_scores(folder, scored)
    if attack:
        write_json(folder / "results.json", {"attack": attack})
    return folder


def lists(folder, claim, null, form="img/{:05}.png label/{:05}.png g1"):
    for name, indices in (("claim", claim), ("null", null)):
        (folder / f"{name}.txt").write_text("".join(form.format(index, index) + "\n" for index in indices))
    return ["--claim", folder / "claim.txt", "--null", folder / "null.txt"]


def sets(*args):
    return script("evaluation/sets.py", *args)


def test_command_with_the_members_as_claim(tmp_path):
    result = must(sets(run_folder(tmp_path / "run"), "--into", tmp_path / "found.json", "--check"))
    assert "so the answer is known" in result.stderr
    assert "tested: 20 images of the claim in 10 groups, 40 of the null in 20 groups; AUC" in result.stdout
    for text in ("\nevidence that the claim was used for training: p = 0.0", "\nmethod: 9999 deals of whole groups",
                 "\nsmallest set: with this AUC", "\nThis is evidence, no proof.", "\ncheck: of 500 random deals"):
        assert text in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == [20, 40] and found["p"] < 0.05 and found["check"]["0.05"] < 0.1
    assert found["runs"] == [str(tmp_path / "run")] and found["claim"] is None


@pytest.mark.parametrize("form", ["img/{:05}.png label/{:05}.png g1", "img/{:05} # comment", "img/{:05}.jpg"])
def test_command_with_lists(tmp_path, form):
    run = run_folder(tmp_path / "run", shift=0.0)
    result = must(sets(run, *lists(tmp_path, range(20, 40), range(40, 60), form)))
    assert "tested: 20 images of the claim in 10 groups, 20 of the null in 10 groups" in result.stdout
    assert "\nno evidence that the claim was used for training: p = 0." in result.stdout and not result.stderr


def test_command_with_few_or_mixed_groups(tmp_path):
    run = run_folder(tmp_path / "run")
    assert "fewer than 100 deals" in must(sets(run, *lists(tmp_path, range(8), range(20, 28)))).stdout
    assert "hold images of both sides" in must(sets(run, *lists(tmp_path, range(0, 41, 2), range(21, 60, 2)))).stdout


def test_command_with_two_attacks(tmp_path):
    runs = [run_folder(tmp_path / name, seed) for seed, name in enumerate("ab")]
    out = must(sets(*runs)).stdout
    assert out.startswith("weights of the attacks, learned on the other half of the groups: +")
    assert "tested: 10 images of the claim in 5 groups" in out and "as many more are needed for the weights" in out
    assert_refused(sets(*runs, "--shadow-run", runs[1]), "--shadow-run is for one attack")
    assert_refused(sets(runs[0], f"{tmp_path}/b/../a"), "is given twice")


def test_command_with_a_shadow(tmp_path):
    run = run_folder(tmp_path / "run", 0, range(200), range(200, 400), shift=2.0, attack="loss")
    shadow = run_folder(tmp_path / "shadow", 1, range(200), range(200, 400), shift=2.0, attack="loss")
    other = run_folder(tmp_path / "other", 1, range(200), range(200, 400), shift=2.0, attack="calibrated")
    flags = [run, *lists(tmp_path, range(100, 300), range(300, 400)), "--shadow-run"]
    out = must(sets(*flags, shadow, "--into", tmp_path / "found.json")).stdout
    assert "\nshare of the claim that was used: 0." in out and "of the null, where it should be 0: 0." in out
    found = json.loads((tmp_path / "found.json").read_text())
    low, high = found["share"]["interval"]
    assert low < 0.5 < high and found["share_of_null"]["interval"][0] < 0
    moved = run_folder(tmp_path / "moved", 1, range(200), range(200, 400), shift=2.0, attack="loss", start=1.0)
    assert "the share of the null is not 0" in must(sets(*flags, moved)).stdout
    assert_refused(sets(*flags, run), "have scored the same images")
    assert_refused(sets(*flags, other), "two scales: attack is calibrated and loss")
    none = run_folder(tmp_path / "none", 1, range(200), range(200, 400), shift=-2.0)
    assert "on --shadow-run the attack finds no members" in must(sets(*flags, none)).stdout


def test_wrong_lists_are_refused(tmp_path):
    run = run_folder(tmp_path / "run")
    right = lists(tmp_path, range(10), range(20, 40))
    assert_refused(sets(run, *right[:2]), "--claim and --null belong together")
    for claim, null, message in ((range(90, 92), range(20, 40), "claim.txt, line 1: "),
                                 ([0, 1, 0], range(20, 40), "is listed twice"),
                                 (range(22), range(20, 40), "but the claim lists it, too"),
                                 (range(5), range(9, 40), "it is a member in"),
                                 ([], range(20, 40), "lists no image"),
                                 (range(2), range(20, 40), "the claim has 1 group of images")):
        assert_refused(sets(run, *lists(tmp_path, claim, null)), message)
    (tmp_path / "claim.txt").write_text("img/00090.png\n")
    assert_refused(sets(run, *right), "has no score of img/00090.png; list names as in its scores.csv, such as img/0")
    assert_refused(sets(tmp_path), "no scores.csv")


def test_image_of_a_shadow_that_is_also_claimed_is_refused(tmp_path):
    run, shadow = (run_folder(tmp_path / name, shift=2.0) for name in ("run", "shadow"))
    for folder, hashes in ((run, "ab"), (shadow, "bc")):
        sides = {side: [{"name": f"img/{digit}", "group": None, "image": digit * 64, "label": None}]
                 for side, digit in zip(("in", "out"), hashes, strict=True)}
        write_json(folder / "provenance.json", sides)
    assert_refused(sets(run, "--shadow-run", shadow), "have scored the same images")
