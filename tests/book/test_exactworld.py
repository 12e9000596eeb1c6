"""The exact world of the chapter Modes: against loops, and against the models that it is made of."""

import itertools

import numpy as np
import pytest

from spectrobook import exactworld, purity
from spectrobook.exactworld import ExactWorld
from spectrolib import modes
from spectrolib.estimator import standardise
from spectrolib.exact import enumerable, toys

RNG = np.random.default_rng
SETTINGS = exactworld.posterior_at()


@pytest.fixture(scope="module")
def world() -> ExactWorld:
    return ExactWorld.of(2)


@pytest.fixture(scope="module")
def chi(world):
    return world.susceptibilities(SETTINGS)


def test_the_probe_is_each_context_with_the_tokens_of_its_reason(world):
    context, token = world.probe
    planted = world.table
    wanted = {
        (x, y)
        for x, reason in enumerate(planted.reason)
        for y, word in enumerate(planted.tokens)
        if word in toys.REASONS[planted.names[reason]]
    }
    assert set(zip(context.tolist(), token.tolist(), strict=True)) == wanted
    assert (world.reason == planted.reason[context]).all()
    assert (world.apart == (context[:, None] != context)).all()
    assert not any((may & ~world.apart).any() for may in world.allowed)
    assert len(ExactWorld.of().reason) == 168  # an exercise counts on it


def test_susceptibilities_are_those_of_the_components(world, chi):
    alone = enumerable.susceptibilities(world.model, "digits", SETTINGS)
    for kind in exactworld.ESTIMATORS:
        np.testing.assert_allclose(chi[kind][..., 1], getattr(alone, kind), atol=1e-12)
    rows = world.rows(chi["one_chain"])
    flat = standardise(chi["one_chain"].reshape(-1, 5)).reshape(*world.table.joint.shape, 5)
    np.testing.assert_array_equal(rows, flat[world.probe])


def test_covariance_over_points_is_the_posterior_s_and_that_of_draws(world, chi):
    grid = enumerable.posterior(world.model, "brackets", SETTINGS)
    g, d = enumerable.rise_and_excess(world.model, grid.losses)
    np.testing.assert_allclose(-exactworld.covariance(grid.weights, g, d), chi["one_chain"][..., 0], atol=1e-12)
    g, d = RNG(0).normal(size=7), RNG(1).normal(size=(7, 2, 3))
    wanted = [[np.cov(g, d[:, i, j], bias=True)[0, 1] for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(exactworld.covariance(np.full(7, 1 / 7), g, d), wanted)


def test_draws_tend_to_the_exact_rows(world, chi):
    drawn = world.draw(SETTINGS, 20_000, seed=0)
    rows = purity.susceptibilities(drawn, "one_chain")
    g, d = drawn.rise[:, 0], drawn.excess[:, 0]
    products = (g - g.mean(axis=1, keepdims=True))[..., None] * (d - d.mean(axis=1, keepdims=True))
    error = products.std(axis=1).T / np.sqrt(20_000)
    assert np.abs((rows - chi["one_chain"][world.probe]) / error).max() < 5
    assert np.abs(chi["one_chain"][world.probe] / error).max() > 30  # so the line above could fail


def test_rows_of_reasons_are_pure_and_chance_is_that_of_noise(world):
    reasons = np.eye(2)[world.reason] + 1e-3 * RNG(0).normal(size=(len(world.reason), 2))
    assert world.purities(reasons) == pytest.approx([1, 1, 1])
    noise = np.mean([world.purities(RNG(i).normal(size=(len(world.reason), 3))) for i in range(20)], axis=0)
    np.testing.assert_allclose(noise, world.chance(), atol=0.05)


def test_blocks_are_parts_of_the_energy(world, chi):
    pair = modes.pair_susceptibilities(chi["one_chain"], world.modes)
    found = exactworld.blocks(world, chi["one_chain"], largest=4)
    assert found.sizes.tolist() == [1, 2, 3, 4]
    assert found.measured[1] == pytest.approx((pair[:2, :2] ** 2).sum() / (pair**2).sum())
    assert found.measured[1] > found.permuted[1]
    assert (np.diff(found.measured) >= 0).all() and (np.diff(found.permuted) >= 0).all()


def test_the_bound_holds_and_with_all_pairs_rows_are_rows(world, chi):
    everything, leading = (exactworld.bounded(world, chi["two_chain"], count, 300) for count in (None, 2))
    for found in (everything, leading):
        assert (found.rows <= found.norm * found.coefficients * (1 + 1e-9)).all()
    context, _ = world.probe
    one, other = RNG(0).integers(0, len(context), size=(2, 300))
    one, other = (side[context[one] != context[other]] for side in (one, other))
    rows = world.rows(chi["two_chain"])
    np.testing.assert_allclose(everything.rows, np.linalg.norm(rows[one] - rows[other], axis=1), atol=1e-9)
    near = [found.coefficients[found.alike].mean() / found.coefficients.mean() for found in (everything, leading)]
    assert near[0] > 0.9 > 0.6 > near[1], "all pairs know no reasons, leading pairs do"


def test_pairs_and_groups_against_loops(world):
    rows, (context, token) = RNG(2).normal(size=(len(world.reason), 3)), world.probe
    classes = exactworld.by_pair(rows, token, world.reason, world.apart)
    everywhere = {name: [] for name in exactworld.PAIRS}
    by_group = {}
    for i, j in itertools.permutations(range(len(rows)), 2):
        if context[i] != context[j]:
            same, alike = token[i] == token[j], world.reason[i] == world.reason[j]
            distance = np.linalg.norm(rows[i] - rows[j])
            by_group.setdefault((world.reason[i], token[i], world.reason[j], token[j]), []).append(distance)
            if i < j:
                name = f"{'same' if same else 'other'} token, {'same' if alike else 'other'} reason"
                everywhere[name].append(distance)
    median = np.median(np.concatenate([*everywhere.values()]))
    for name, values in zip(exactworld.PAIRS, classes, strict=True):
        np.testing.assert_allclose(np.sort(values), np.sort(everywhere[name]) / median)
    groups = exactworld.grouped(world, rows)
    for a, b in itertools.product(range(len(groups.token)), repeat=2):
        key = (groups.reason[a], groups.token[a], groups.reason[b], groups.token[b])
        assert groups.distance[a, b] == pytest.approx(np.mean(by_group[key]) / median)


def test_told_apart_counts_pairs_and_halves_ties():
    near, far = np.array([1.0, 2.0]), np.array([2.0, 3.0, 0.5])
    wins = np.mean([(n < f) + (n == f) / 2 for n in near for f in far])
    assert exactworld.told_apart(near, far) == pytest.approx(wins)
    assert exactworld.told_apart(near, near) == 0.5
