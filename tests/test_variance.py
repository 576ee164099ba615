"""Variances of factors: beside the analysis of variance, in simulations, and where factors cannot be told apart."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.variance import REST, components, variance_over_images
from reproduce.variance import Observation, variances

MEMBER = np.arange(40) < 20
TRUE = {"victim": 4.0, "shadow": 2.0, "attacker": 1.0, "patch locations": 0.5, REST: 0.25}


def drawn(seed, cells, variances=TRUE):
    """Values and levels of cells (stratum, victim, shadow, attacker of the shadow, location), whose effects add."""
    rng, effects = np.random.default_rng(seed), {}

    def effect(factor, *level):
        return effects.setdefault((factor, *level), rng.normal(0, variances[factor] ** 0.5))

    levels = {"victim": [cell[:2] for cell in cells], "shadow": [(cell[0], cell[2]) for cell in cells],
              "attacker": [(cell[0], *cell[2:4]) for cell in cells], "patch locations": [cell[4:] for cell in cells]}
    values = [10 * cell[0] + sum(effect(factor, *levels[factor][index]) for factor in levels)
              + rng.normal(0, variances[REST] ** 0.5) for index, cell in enumerate(cells)]
    return values, {name: list(map(str, each)) for name, each in levels.items()}, [str(cell[0]) for cell in cells]


def test_crossed_factors_beside_the_analysis_of_variance():
    table = np.random.default_rng(0).normal(size=(4, 5)) + np.arange(4)[:, None]
    rows, columns = (table.mean(axis) for axis in (1, 0))
    rest = ((table - rows[:, None] - columns + table.mean()) ** 2).sum() / (3 * 4)
    victims, shadows = zip(*np.ndindex(4, 5), strict=True)
    found = components(table.ravel(), {"victim": victims, "shadow": shadows}, ["one"] * 20)
    assert found == {("victim",): pytest.approx(rows.var(ddof=1) - rest / 5), (REST,): pytest.approx(rest),
                     ("shadow",): pytest.approx(columns.var(ddof=1) - rest / 4)}


def test_nested_factors_beside_the_analysis_of_variance():
    table = np.random.default_rng(1).normal(size=(6, 3))
    within = table.var(axis=1, ddof=1).mean()
    shadows, attackers = zip(*((i, f"{i}-{j}") for i, j in np.ndindex(6, 3)), strict=True)
    found = components(table.ravel(), {"shadow": shadows, "attacker": attackers}, ["one"] * 18)
    assert found == {("shadow",): pytest.approx(table.mean(axis=1).var(ddof=1) - within / 3),
                     ("attacker", REST): pytest.approx(within)}


def test_unbalanced_cells_have_unbiased_estimates():
    """The cells of `repeats`: victims by shadows by attacker seeds, and more draws on the own shadow alone."""
    cells = [(part, *cell) for part in range(4) for cell in
             [*itertools.product(range(4), range(4), range(2), [0]),
              *((victim, victim, 0, draw) for victim in range(4) for draw in (1, 2))]]
    found = [components(*drawn(seed, cells)) for seed in range(150)]
    assert all(set(one) == {(name,) for name in TRUE} for one in found)
    for name, variance in TRUE.items():
        values = [one[name,] for one in found]
        assert abs(np.mean(values) - variance) < 4 * np.std(values) / 150**0.5


def test_factors_that_change_together_or_not_at_all():
    cells = [(0, i, i, 0, 0) for i in range(5)] + [(1, 0, 0, 0, 1)]
    values, levels, stratum = drawn(0, cells)
    found = components(values, levels, stratum)
    assert found == {("victim", "shadow", "attacker", REST): pytest.approx(np.var(values[:5], ddof=1))}
    assert components([1.0, 2.0], {"victim": ["a", "b"]}, ["0", "1"]) == {}


def test_what_the_cells_do_not_determine_has_no_entry():
    """A Latin square of two levels: three factors and the rest, from three degrees of freedom."""
    square = {"victim": list("aabb"), "shadow": list("pqpq"), "attacker": list("xyyx")}
    assert components([0, 1, 5, 7], square, ["one"] * 4) == {}
    two = {name: square[name] for name in ("victim", "shadow")}
    assert set(components([0, 1, 5, 7], two, ["one"] * 4)) == {("victim",), ("shadow",), (REST,)}


def test_variance_over_images_beside_leaving_each_group_out():
    rng = np.random.default_rng(0)
    score, group = rng.normal(size=40) + MEMBER, np.arange(40) // 2
    auc = roc_auc_score(MEMBER, score)
    left_out = [roc_auc_score(MEMBER[group != one], score[group != one]) - auc for one in range(20)]
    assert variance_over_images(score, MEMBER, group) == pytest.approx(np.sum(np.square(left_out)))
    assert variance_over_images(score, MEMBER, np.arange(40) // 4) is None


def test_table_of_variances():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40)

    def observed(victim, shadow):
        """Shadow 1 is better than shadow 0; the victims are equal."""
        return Observation("part", {"victim": victim, "shadow": shadow, "attacker": f"on {shadow}"},
                           noise + MEMBER * int(shadow), MEMBER, list(map(str, range(40))))

    text = variances({"attack": [observed(*cell) for cell in itertools.product("01", "01")], "none": []})
    [row] = text.splitlines()[2:]
    name, count, victim, shadow, attacker, locations, rest, images = row.strip("| ").split(" | ")
    assert (name, count, attacker, locations) == ("attack", "4", "with shadow", "–")
    aucs = [100 * roc_auc_score(MEMBER, noise + MEMBER * gap) for gap in (0, 1)]
    assert victim == "0.0 (0 %)" and rest == "0.0 (0 %)"
    assert shadow.startswith(f"{np.std(aucs, ddof=1):.1f} (") and images.endswith(" %)")
    shares = [int(cell.split("(")[1].split()[0]) for cell in (shadow, images)]
    assert sum(shares) in (99, 100, 101)
