"""Halves of a measurement, and numbers of a table, against tables whose answer is known."""

import numpy as np
import pytest

from spectrobook import shipped
from spectrobook.halves import Halved, between, crossed, halved, network_order, principal, shared_dimension
from spectrobook.tables import dimension
from spectrolib.checks import diagnostics
from spectrolib.estimator import standardise

rng = np.random.default_rng(0)


def noisy(truth, noise):
    """The same table twice, each with noise of its own, and their mean."""
    first, second = (truth + noise * rng.normal(size=truth.shape) for _ in range(2))
    return Halved(tuple(f"l0h{i}" for i in range(truth.shape[1])), (first + second) / 2, first, second)


def test_columns_stand_in_the_order_of_the_network():
    names = ["unembed", "l1 mlp", "l1h1", "l0 mlp", "embed", "l1h0", "l0h0"]
    ordered = [names[i] for i in network_order(names)]
    assert ordered == ["embed", "l0h0", "l0 mlp", "l1h1", "l1h0", "l1 mlp", "unembed"]


@pytest.mark.parametrize("estimator", ["two_chain", "one_chain"])
def test_the_shipped_table_by_either_estimate(estimator):
    result = shipped.shipped_result()
    table = halved(result, estimator)
    wanted = diagnostics.column_reliability(result, estimator).sel(component=list(table.components)).values
    np.testing.assert_allclose(table.reliability, wanted, atol=1e-6)
    cosines = diagnostics.token_reliability(result, estimator=estimator).values
    np.testing.assert_allclose(table.standardised().cosines, cosines, atol=1e-6)
    if estimator == "one_chain":
        np.testing.assert_allclose(
            table.whole, -result.covariance.sel(component=list(table.components)).values, rtol=1e-6
        )


def test_reliability_is_that_of_the_mean_of_both_halves():
    """With signal 1 and noise s in each half the mean of both has reliability 1 / (1 + s²/2)."""
    table = noisy(rng.normal(size=(20_000, 3)), 1.5)
    np.testing.assert_allclose(table.reliability, 1 / (1 + 1.5**2 / 2), atol=0.02)


def test_values_whose_sign_does_not_repeat_are_left_out():
    table = Halved(
        ("embed",), np.array([[1.0], [0.1], [-2]]), np.array([[1.0], [1], [-3]]), np.array([[2.0], [-1], [-1]])
    )
    np.testing.assert_array_equal(table.agreed, [[1], [0], [-2]])
    np.testing.assert_allclose(table.standardised(None).whole, standardise(table.whole, rows=None))


def test_principal_directions_of_a_table_that_has_them():
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    vectors = rng.normal(size=(50_000, 4)) * np.sqrt([6, 3, 1, 0]) @ axes
    found = principal(vectors)
    np.testing.assert_allclose(found.shares, [0.6, 0.3, 0.1, 0], atol=0.01)
    assert abs(found.axes[0] @ axes[0]) > 0.999
    assert (found.axes[np.arange(4), np.abs(found.axes).argmax(axis=1)] < 0).all()


def test_variance_between_groups():
    labels = np.repeat([0, 1, 2], 40)
    means = rng.normal(size=(3, 5))[labels]
    assert between(means, labels) == pytest.approx(1)
    assert between(means, np.tile([0, 1], 60)) < 0.05
    spread = means + rng.normal(size=means.shape)
    within = sum(((spread[labels == c] - spread[labels == c].mean(0)) ** 2).sum() for c in range(3))
    assert between(spread, labels) == pytest.approx(1 - within / ((spread - spread.mean(0)) ** 2).sum())


def test_noise_that_columns_share_is_seen_within_a_half_and_not_across():
    first, second = (rng.normal(size=(4000, 1)) + 0.5 * rng.normal(size=(4000, 3)) for _ in range(2))
    assert np.corrcoef(first.T)[0, 1] > 0.7
    assert np.abs(crossed(first, second)).max() < 0.06
    signal = rng.normal(size=(4000, 3))
    np.testing.assert_allclose(crossed(signal, signal), np.corrcoef(signal.T), atol=1e-9)


def test_dimension_without_noise():
    truth = rng.normal(size=(5000, 2)) @ np.linalg.qr(rng.normal(size=(12, 2)))[0].T
    table = noisy(truth, 0.5)
    assert dimension(table.whole) > 3
    assert shared_dimension(table.first, table.second) == pytest.approx(2, abs=0.1)
