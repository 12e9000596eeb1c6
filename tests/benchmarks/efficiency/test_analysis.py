"""The formulas of the efficiency benchmark, against planted tables whose signal and noise are known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from efficiency.analysis import (
    CHAINS,
    Split,
    along,
    column_reliability,
    crossed,
    estimates,
    interval,
    jackknife,
    likeness,
    per_rise,
    prices,
    replicates_for,
    response,
    row_reliability,
    sample_covariance,
    split,
)
from efficiency.grid import Cell

from spectrolib.estimator import standardise

SIGNAL = np.array([[2.0, 0.9, 0.4], [0.9, 1.0, -0.2], [0.4, -0.2, 0.5]])
NOISE = np.array([[3.0, -0.8, 0.1], [-0.8, 2.0, 0.3], [0.1, 0.3, 4.0]])


def planted(replicates: int, tokens: int, seed: int = 0, signal=None) -> np.ndarray:
    """Tables (replicates, tokens, 3): a common signal and independent noise, with these covariances."""
    rng = np.random.default_rng(seed)
    draw = lambda covariance, *shape: rng.normal(size=(*shape, 3)) @ np.linalg.cholesky(covariance).T  # noqa: E731
    signal = draw(SIGNAL, tokens) if signal is None else signal
    return signal + draw(NOISE, replicates, tokens) + rng.normal(size=(replicates, 1, 3))  # means do not count


def test_signal_and_noise_are_found():
    parts = split(planted(6, 40_000))
    np.testing.assert_allclose(parts.signal, SIGNAL, atol=0.06)
    np.testing.assert_allclose(parts.noise, NOISE, atol=0.06)


def test_the_split_is_unbiased_for_few_tokens():
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(30, 3)) @ np.linalg.cholesky(SIGNAL).T
    found = np.mean([split(planted(3, 30, seed, signal)).signal for seed in range(2000)], axis=0)
    np.testing.assert_allclose(found, np.cov(signal.T, bias=True), atol=0.08)


@pytest.mark.parametrize("m", [1, 5])
def test_reliabilities_are_what_two_measurements_show(m):
    first, second = (planted(m, 60_000, seed, planted_signal()).mean(axis=0) for seed in (2, 3))
    parts = Split(SIGNAL, NOISE)
    seen = [np.corrcoef(first[:, c], second[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(column_reliability(parts, m), seen, atol=0.02)
    a, b = standardise(first), standardise(second)
    seen = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    assert row_reliability(parts, m) == pytest.approx(seen, abs=0.02)


def planted_signal() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(60_000, 3)) @ np.linalg.cholesky(SIGNAL).T


def test_how_many_replicates_a_reliability_takes():
    parts = Split(SIGNAL, NOISE)
    for target in (0.3, 0.8):  # Spearman and Brown: m = r / (1 - r) · noise / signal
        found = replicates_for(lambda m: column_reliability(parts, m)[2], target)
        assert found == pytest.approx(target / (1 - target) * NOISE[2, 2] / SIGNAL[2, 2], rel=1e-6)
    found = replicates_for(lambda m: row_reliability(parts, m), 0.8)
    assert row_reliability(parts, found) == pytest.approx(0.8)
    nothing = Split(0 * SIGNAL, NOISE)
    assert np.isnan(replicates_for(lambda m: column_reliability(nothing, m)[0], 0.5))


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(4).normal(size=9)
    left_out = np.array([np.delete(x, i).mean() for i in range(9)])
    assert jackknife(left_out) == pytest.approx(x.std(ddof=1) / 3)
    low, high = interval(1.0, 2.0, 9)
    assert (low + high) / 2 == pytest.approx(1) and (high - low) / 4 == pytest.approx(1.8595, rel=1e-4)  # t, 8 degrees


def test_crossed_leaves_out_equal_numbers():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(4, 20)), rng.normal(size=(3, 20))
    pairs = [np.cov(a[r], b[s], bias=True)[0, 1] for r, s in itertools.product(range(4), range(3)) if r != s]
    assert crossed(a, b) == pytest.approx(np.mean(pairs))


def test_likeness_sees_through_noise_even_if_it_is_shared():
    rng = np.random.default_rng(6)
    column, other, noise = rng.normal(size=4000), rng.normal(size=4000), 2 * rng.normal(size=(8, 4000))
    same = likeness(column + noise, 3 * column + noise)  # r of one shares its noise with r of the other
    apart = likeness(column + noise, other + noise)
    assert same["value"] == pytest.approx(1, abs=0.05) and apart["value"] == pytest.approx(0, abs=0.08)
    assert same["low"] < 1 <= same["high"] and apart["low"] < 0 < apart["high"]
    assert along(column + noise, 5 * column + 1)["value"] == pytest.approx(1, abs=0.05)


def test_response_and_sample_covariance():
    rng = np.random.default_rng(7)
    slope, common = rng.normal(size=6), rng.normal(size=(5, 1, 6))
    tilts = np.array([10.0, -10.0, 10.0, -10.0])
    excess = common + tilts[:, None] * slope + np.array([1, 1, -1, -1])[:, None] * rng.normal(size=(5, 1, 6))
    np.testing.assert_allclose(response(excess, 10.0), slope)  # common noise cancels exactly
    rise = rng.normal(size=(5, 4))
    expected = [np.cov(rise.ravel(), excess[..., i].ravel())[0, 1] for i in range(6)]
    np.testing.assert_allclose(sample_covariance(rise, excess), expected)


def test_reliability_of_two_chain_rows_where_the_mean_rise_wavers():
    """Foretold from replicates, against what two planted measurements of four replicates show."""
    rng, tokens, names = np.random.default_rng(3), 3000, 8
    common, own = rng.standard_t(5, tokens), 0.1 * rng.normal(size=(tokens, names))
    rise = rng.uniform(0.01, 0.5, names)

    def replicates(count):
        """Mean rise, shift of the components and of the whole model."""
        wavering = rise * np.exp(0.1 * rng.normal(size=(count, names)))
        shift = own + 0.1 * rng.normal(size=(count, tokens, names))
        return wavering, shift, common[:, None] + 0.2 * rng.normal(size=(count, tokens, 1))

    def agreement():
        means = [[part.mean(axis=0) for part in replicates(4)] for _ in range(2)]
        a, b = (standardise(-g * (shift - full)) for g, shift, full in means)
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    g, shift, full = replicates(8)
    tables = np.stack([per_rise(0.0, g.mean(axis=0), *parts) for parts in zip(shift, full, strict=True)])
    shown = np.mean([agreement() for _ in range(4)])
    assert row_reliability(split(tables), 4) == pytest.approx(shown, abs=0.02)
    with_rise = -g[:, None] * (shift - full)
    assert row_reliability(split(with_rise), 4) < shown - 0.1  # the noise of ḡ is not that of a row


def test_two_chain_values_are_per_rise():
    rng = np.random.default_rng(3)
    arrays, full = ({"excess": rng.normal(size=(2, 5, 6, 40)), "rise": rng.uniform(0.1, 0.2, (2, 5, 6))} for _ in "ab")
    mine = slice(0, 4)
    for r, found in enumerate(estimates(arrays, full, 10.0)["two_chain_quads"]):
        excess = arrays["excess"][r][:, mine]
        moment, whole = (x["excess"][r][:, mine].mean(axis=(0, 1)) for x in (arrays, full))
        expected = response(excess, 10.0) - (g := arrays["rise"][:, :, mine].mean()) * (moment - whole)
        np.testing.assert_allclose(g * found, expected, rtol=1e-9)


def test_prices():
    cell = Cell("l3h1", 10.0, 300.0, "six", 6, 6)
    cost = {"gradient_seconds": 2.0, "update_seconds": 0.5, "evaluation_seconds": 0.01}
    cost |= {"gradient_operations": 7.0, "evaluation_operations": 3.0}
    # of two chains at nβ ± 10 one stands at 0 and needs no gradient; burn-in 8, six steps to a draw
    pair = prices(cell, cost, CHAINS["pairs"], 100)
    assert pair["seconds"].start == pytest.approx(8 * (2.0 + 2 * 0.5))
    assert pair["seconds"].draw == pytest.approx(6 * (2.0 + 2 * 0.5) + 2 * 100 * 0.01)
    assert pair["operations"].of(10) == pytest.approx(8 * 7 + 10 * (6 * 7 + 2 * 100 * 3))
    assert pair["seconds"].of(0.1) == pair["seconds"].of(1)
    quad = prices(replace(cell, nbeta=30.0), cost, CHAINS["quads"], 100)  # all four driven
    assert quad["seconds"].draw == pytest.approx(6 * 4 * 2.5 + 4 * 100 * 0.01)
