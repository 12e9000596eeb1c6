"""Resolved rows: the sketch of fluctuations against dense covariances, merging and joining, scaling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spectrolib import estimator
from spectrolib.estimator import ResolvedSums, channel, joined, merge_all, resolve, untilted
from spectrolib.posterior import Settings

LOSSES = hnp.arrays(np.float64, st.tuples(st.integers(1, 24), st.just(4)), elements=st.floats(-100, 100, width=32))
WIDTHS = st.integers(1, 9)


def sketch(losses, width: int, seed: int = 0, first: int = 0) -> ResolvedSums:
    sums = ResolvedSums(losses.shape[1], width, seed)
    for i, row in enumerate(losses):
        sums.update(first + i, row)
    return sums


def kernel(sums: ResolvedSums) -> np.ndarray:
    rows = sums.rows().astype(np.float64)
    return rows @ rows.T


def same(a: ResolvedSums, b: ResolvedSums) -> bool:
    """To the last bit."""
    ours, theirs = a.to_arrays(), b.to_arrays()
    return all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


# Channels


@given(WIDTHS, st.integers(0, 10**6), st.integers(0, 40))
def test_channels_fill_evenly(width, seed, draws):
    held = np.bincount([channel(t, width, seed)[0] for t in range(draws)], minlength=width)
    assert held.max(initial=0) - held.min(initial=draws) <= 1
    assert [channel(t, width, seed) for t in range(width)] == [(t, 1) for t in range(width)]
    assert {channel(t, width, seed)[1] for t in range(draws)} <= {1, -1}


def test_components_with_their_own_seed_fold_in_their_own_way():
    folds = {tuple(channel(t, 16, seed) for t in range(16, 48)) for seed in range(10)}
    assert len(folds) == 10


# Rows


@given(LOSSES, st.integers(0, 5), st.integers(0, 100))
def test_with_a_channel_for_every_draw_inner_products_are_the_covariances(losses, spare, seed):
    sums = sketch(losses, len(losses) + spare, seed)
    np.testing.assert_allclose(kernel(sums), np.cov(losses.T, ddof=0), rtol=0, atol=1e-6 * 100**2)
    centred = (losses - losses.mean(0)) / np.sqrt(len(losses))
    np.testing.assert_allclose(sums.rows(), centred.T, rtol=0, atol=3e-7 * 100)  # the draws themselves, in order


def folded(losses, width: int, seeds: int) -> np.ndarray:
    return np.array([kernel(sketch(losses, width, seed)) for seed in range(seeds)])


def test_with_fewer_channels_than_draws_they_are_unbiased():
    losses = np.random.default_rng(0).normal(size=(37, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0], [0, 0, 1.0]]) + 0.3
    found, truth = folded(losses, 8, 2000), np.cov(losses.T, ddof=0)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - truth) < 4 * error).all()
    assert error.max() < 0.03  # and a bias of a tenth of the variance would be seen


def test_the_same_without_random_signs_would_be_biased(monkeypatch):
    """The bound of the test above can fail."""
    losses = np.random.default_rng(1).normal(size=(7, 3)).repeat(5, axis=0)  # neighbouring draws that are alike
    truth = np.cov(losses.T, ddof=0)

    def off() -> float:
        found = folded(losses, 8, 400)
        return float((np.abs(found.mean(axis=0) - truth) / found.std(axis=0, ddof=1)).max() * 20)

    fair = off()
    monkeypatch.setattr(estimator, "channel", lambda draw, width, seed: (channel(draw, width, seed)[0], 1))
    assert fair < 4 < 10 < off()


def test_their_noise_is_that_of_draws_that_share_a_channel():
    """For whole turns, E(K̂ - K)² = Σ_{t < t'} p_tt' (f_t f'_t' + f_t' f'_t)² / n², p_tt' = 1/width, 0 within a turn."""
    width, turns = 6, 4
    f = np.random.default_rng(2).normal(size=(width * turns, 2))
    f -= f.mean(axis=0)
    n = len(f)
    found = folded(f, width, 6000)[:, 0, 1]
    both = np.outer(f[:, 0], f[:, 1])
    turn = np.arange(n) // width
    pairs = np.triu((both + both.T) ** 2 * (turn[:, None] != turn), 1)
    assert found.var() == pytest.approx(pairs.sum() / width / n**2, rel=0.08)


@given(LOSSES, WIDTHS, hnp.arrays(np.float64, 4, elements=st.floats(-100, 100)))
def test_a_constant_of_each_token_does_not_matter(losses, width, constant):
    np.testing.assert_allclose(
        sketch(losses + constant, width).rows(), sketch(losses, width).rows(), rtol=0, atol=1e-6 * 200 * len(losses)
    )


def test_centring_waits_for_all_draws():
    """The mean is that of all parts, not of each."""
    losses = np.concatenate([np.zeros((4, 3)), np.arange(3.0) * np.ones((4, 1))])
    merged = sketch(losses[:4], 8).merge(sketch(losses[4:], 8, first=4))
    np.testing.assert_allclose(kernel(merged), np.outer(np.arange(3), np.arange(3)) / 4, atol=1e-6)


# Teams


def test_a_tilted_pair_is_one_draw_and_mirrored_chains_are_two():
    settings = Settings(nbeta=10.0, tilt=4.0, antithetic=True)
    excess = np.array([[m.tilt + 10 * m.mirrored] for m in settings.members])
    np.testing.assert_array_equal(untilted(excess, settings.tilt), [[0], [10]])
    assert untilted(excess, 0.0) is excess


def test_mirrored_channels_keep_the_even_and_the_odd_part():
    even, odd = np.random.default_rng(5).normal(size=(2, 6, 3))
    sums = sketch(np.concatenate([even + odd, even - odd]), 12)
    centred = even - even.mean(axis=0)
    np.testing.assert_allclose(kernel(sums), (centred.T @ centred + odd.T @ odd) / 6, atol=1e-5)


# Parts


@given(LOSSES, WIDTHS, st.data())
def test_parts_merge_into_the_whole(losses, width, data):
    cut = data.draw(st.integers(0, len(losses)))
    parts = [sketch(losses[:cut], width), sketch(losses[cut:], width, first=cut)]
    whole = sketch(losses, width)
    for merged in (merge_all(parts), merge_all(parts[::-1])):
        assert merged.count == whole.count
        np.testing.assert_array_equal(merged.channels, whole.channels)
        np.testing.assert_array_equal(merged.signs, whole.signs)
        np.testing.assert_allclose(merged.sums, whole.sums, rtol=0, atol=2**-22 * 100 * len(losses))
        np.testing.assert_allclose(merged.total, whole.total, rtol=0, atol=1e-10)
        if len(losses) <= width:  # no channel adds two draws up
            np.testing.assert_array_equal(merged.sums, whole.sums)


@given(LOSSES, WIDTHS, st.integers(0, 4))
def test_stretches_of_tokens_join_to_the_same_bits(losses, width, cut):
    whole = sketch(losses, width)
    stretches = [sketch(losses[:, :cut], width), sketch(losses[:, cut:], width)]
    assert same(joined(stretches), whole)
    np.testing.assert_array_equal(np.concatenate([part.rows() for part in stretches]), whole.rows())


def test_shards_and_chains_may_be_put_together_in_either_order():
    losses = np.random.default_rng(3).normal(size=(2, 10, 6))
    parts = [[sketch(chain[:, s], 7, first=10 * k) for s in (slice(4), slice(4, 6))] for k, chain in enumerate(losses)]
    chains_first = joined([merge_all(shard) for shard in zip(*parts, strict=True)])
    assert same(chains_first, merge_all([joined(chain) for chain in parts]))


@given(LOSSES, WIDTHS)
def test_arrays_restore_the_state(losses, width):
    sums = sketch(losses, width, seed=2**62)
    again = ResolvedSums.from_arrays(sums.to_arrays())
    assert same(sums, again)
    again.update(len(losses), losses[0])
    assert not same(sums, again)  # copies, not views


def test_only_channels_with_a_draw_are_kept():
    sums = sketch(np.ones((3, 2)), 64, first=20)
    assert sums.sums.shape == (3, 2) and sums.sums.dtype == np.float32
    assert sums.rows().shape == (2, 3)
    assert sketch(np.ones((100, 2)), 64).rows().shape == (2, 64)


def test_empty_parts_are_neutral():
    sums, empty = sketch(np.random.default_rng(4).normal(size=(5, 3)), 4), ResolvedSums(3, 4)
    assert same(sums.merge(empty), sums) and same(empty.merge(sums), sums)
    with pytest.raises(ValueError, match="no draws yet"):
        empty.rows()


def test_what_does_not_fit_is_refused():
    sums = ResolvedSums(3, 4)
    with pytest.raises(ValueError, match=r"expected losses of shape \(3,\), got \(2,\)"):
        sums.update(0, np.ones(2))
    with pytest.raises(ValueError, match="numbered from 0 on, got -1"):
        sums.update(-1, np.ones(3))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ResolvedSums(3, 0)
    for other, name in ((ResolvedSums(3, 5), "width"), (ResolvedSums(3, 4, 1), "seed"), (ResolvedSums(2, 4), "losses")):
        with pytest.raises(ValueError, match=f"whose .*{name} differs"):
            sums.merge(other)
    with pytest.raises(ValueError, match="saw the same draws: their count differ"):
        joined([sums, ResolvedSums(3, 4).update(0, np.ones(3))])


# All components


def planted(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(50, width)) for name, width in (("a", 3), ("b", 8))}


def test_resolved_rows_have_the_kernel_of_the_scaled_covariances():
    rows = planted()
    truth = 0
    for own in rows.values():
        centred = own - own.mean(axis=0)
        cov = centred @ centred.T
        truth = truth + cov / (np.trace(cov) / len(cov))
    found = resolve(rows, centre=True)
    assert found.shape == (50, 11) and found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, truth, atol=1e-5)
    np.testing.assert_allclose((found[:, :3] ** 2).sum(axis=1).mean(), 1, rtol=1e-5)


@given(st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_neither_a_components_scale_nor_what_moves_all_tokens_matters(scale, shift):
    rows = planted()
    moved = {"a": scale * rows["a"], "b": rows["b"] + shift * np.arange(8)}
    np.testing.assert_allclose(resolve(moved, centre=True), resolve(rows, centre=True), atol=2e-5)


def test_rows_that_cannot_be_resolved_are_refused():
    rows = planted()
    with pytest.raises(ValueError, match="no components"):
        resolve({})
    with pytest.raises(ValueError, match=r"there are \[50, 51\]"):
        resolve(rows | {"c": np.zeros((51, 2))})
    with pytest.raises(ValueError, match="those of 'b' are not"):
        resolve(rows | {"b": np.full((50, 2), np.nan)})
    for constant in (0.0, 0.1):
        with pytest.raises(ValueError, match="no draw of 'b' moved"):
            resolve(rows | {"b": np.full((50, 2), constant, dtype=np.float32)}, centre=True)


def test_lengths_and_directions_stay_where_rows_are_not_centred():
    rows = planted()
    found = resolve(rows)
    for own, part in ((rows["a"], found[:, :3]), (rows["b"], found[:, 3:])):
        np.testing.assert_allclose(part * np.sqrt((own**2).sum(axis=1).mean()), own, rtol=1e-5)
    with pytest.raises(ValueError, match="no draw of 'b' moved a token's loss"):
        resolve(rows | {"b": np.zeros((50, 2))})
