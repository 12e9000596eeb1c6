"""Statistics of the causal tests: against scipy, on planted effects, and where there is nothing to find."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from spectrolib.checks import causal
from spectrolib.model.loading import engine_of
from spectrolib.model.steering import Steered, Steering


def test_rank_correlation_is_spearmans_and_its_interval_covers():
    """Windows share a shift, so tokens are not independent: the interval holds the truth as often as it says."""
    rng, truth, inside = np.random.default_rng(0), 0.0, 0
    windows = np.repeat(np.arange(40), 10)
    for _ in range(100):
        x, y = (np.repeat(rng.normal(size=40), 10) + 0.5 * rng.normal(size=400) for _ in range(2))
        found = causal.rank_correlation(x, y, windows)
        assert found.value == pytest.approx(spearmanr(x, y)[0])
        inside += found.low <= truth <= found.high
    assert 86 <= inside <= 100
    naive = 1.96 / math.sqrt(400)
    assert found.high - found.low > 3 * naive  # tokens as independent would be much too sure
    assert math.isnan(causal.rank_correlation(np.ones(400), y, windows).value)


def test_means_and_their_intervals():
    values, groups = np.repeat([0.0, 1.0, 2.0, 3.0], 5), np.repeat(np.arange(4), 5)
    found = causal.mean_of(values, groups)
    assert found.value == 1.5 and found.low < 0.7 and found.high > 2.3
    assert causal.mean_of(values).high < found.high
    assert math.isnan(causal.mean_of(np.array([])).value)
    assert causal.mean_of(np.ones(3), np.zeros(3)) == (1.0, -math.inf, math.inf)


def test_a_token_elsewhere():
    values = np.array([[1.0], [2.0], [4.0], [8.0], [16.0]])
    token, window = np.array([7, 7, 7, 9, 7]), np.array([0, 0, 1, 1, 2])
    found = causal.same_token_elsewhere(values, token, window)
    np.testing.assert_allclose(found[:, 0], [10, 10, 19 / 3, 31 / 5, 7 / 3])


def test_excess_by_hand():
    values, labels = np.array([[1.0], [3.0], [0.0], [0.0]]), np.array([0, 0, -1, 1])
    np.testing.assert_allclose(causal.cluster_means(values, labels), [[2.0], [0.0]])
    np.testing.assert_allclose(causal.rest_means(values, labels), [[0.0], [4 / 3]])
    np.testing.assert_allclose(causal.excess(values, labels)[:, 0], np.array([2, -4 / 3]) / values.std())
    assert np.all(causal.excess(np.ones((4, 1)), labels) == 0)  # a component that hurts all alike


def test_profiles_of_planted_clusters():
    """Each cluster depends on one component, and its row names it; a common profile alone is chance."""
    rng = np.random.default_rng(1)
    needed, common = rng.integers(0, 8, 60), 3 * rng.normal(size=8)
    lost = common + 6 * np.eye(8)[needed] + 0.1 * rng.normal(size=(60, 8))
    row = 6 * np.eye(8)[needed] + rng.normal(size=(60, 8))
    found = causal.profiles(row, lost)
    assert found.agreement.low > found.agreement_chance + 0.1
    assert found.named.low > found.named_chance + 0.1
    shuffled = causal.profiles(row[rng.permutation(60)], lost)
    assert shuffled.agreement.low <= shuffled.agreement_chance <= shuffled.agreement.high
    general = causal.profiles(common + 0.01 * rng.normal(size=(60, 8)), lost)
    assert general.agreement.value > 0.5  # no sign of a cluster: others' rows do as well
    assert general.agreement.value - general.agreement_chance < 0.02
    with pytest.raises(ValueError, match="at least two clusters"):
        causal.profiles(row[:1], lost[:1])


def test_sets_to_compare_with():
    rng = np.random.default_rng(0)
    token, fit = rng.integers(0, 5, 400), np.arange(400) < 200
    labels = np.full(400, -1)
    labels[np.flatnonzero(token == 2)[:40]] = 0
    labels[np.flatnonzero(token == 3)[:4]] = 1
    assert causal.steerable(labels, fit).tolist() in ([0], [])
    member = labels == 0
    random, same = causal.random_like(member, fit, rng), causal.same_tokens_outside(member, fit, token, rng)
    for half in (fit, ~fit):
        assert (random & half).sum() == (member & half).sum()
        assert (same & half).sum() == min((member & half).sum(), (half & ~member & (token == 2)).sum())
    assert not (random & member).any() and not (same & member).any()
    assert (token[same] == 2).all() and same.any() and len(set(token[random])) > 1
    alone = causal.same_tokens_outside(token == 2, fit, token, rng)
    assert not alone.any()


def test_shared_tokens():
    labels, token = np.array([0, 0, 1, 1, 2, -1]), np.array([5, 6, 5, 5, 8, 5])
    np.testing.assert_allclose(causal.shared_tokens(labels, token), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])


def test_steering_towards_a_cluster(tiny_gpt_neox):
    """A cluster of one token after one context falls; a random set does not, and falls are those of `Steered`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 53, size=(12, 12))
    ids[:, 5:7] = 7, 9  # a habit of the text that the model does not know
    fit = np.repeat(np.arange(12) < 6, 11)
    steered = Steered(engine_of(tiny_gpt_neox), ids[:6], ids[:6], ids[6:], Steering(steps=2, fall=0.02))
    halves = causal.Halves(steered, fit, ids[:, 1:].ravel(), np.repeat(np.arange(12), 11))
    member = np.tile(np.arange(11) == 5, 12)
    found, fall = causal.steer(halves, member, seed=1)
    assert (found.fit, found.test) == (6, 6)
    assert found.own.low > max(found.rest, found.random)
    np.testing.assert_allclose(fall[~fit], steered.fall(np.flatnonzero(member[fit])))
    assert np.isnan(fall[fit]).all()
    assert found.own.value == pytest.approx(fall[~fit & member].mean())
    assert math.isnan(found.by_outside.value)  # no such token outside often enough


def test_the_same_tokens_outside_are_steered_towards_and_looked_at(tiny_gpt_neox):
    """The member of every window has its token again three places on."""
    ids = np.random.default_rng(0).integers(0, 53, size=(12, 12))
    ids[:, 5:7], ids[:, 9] = (7, 9), 9
    fit, token = np.repeat(np.arange(12) < 6, 11), ids[:, 1:].ravel()
    steered = Steered(engine_of(tiny_gpt_neox), ids[:6], ids[:6], ids[6:], Steering(steps=2, fall=0.02))
    halves, member = causal.Halves(steered, fit, token, np.repeat(np.arange(12), 11)), np.tile(np.arange(11) == 5, 12)
    found, fall = causal.steer(halves, member, seed=1)
    rng = np.random.default_rng(1)
    random, same = causal.random_like(member, fit, rng), causal.same_tokens_outside(member, fit, token, rng)
    assert (same & fit).sum() == (same & ~fit).sum() == 6
    assert found.outside.value == pytest.approx(fall[same & ~fit].mean())
    assert found.by_outside.value == pytest.approx(halves.fall(same)[member & ~fit].mean())
    assert found.random == pytest.approx(halves.fall(random)[random & ~fit].mean())
    assert found.by_outside.value < 0.9 * found.own.value  # steering towards the members themselves does more
