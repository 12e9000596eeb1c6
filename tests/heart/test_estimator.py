"""Running sums, the two estimators and their identities, error bars, standardisation."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spectrolib import estimator
from spectrolib.estimator import (
    CovarianceSums,
    ResolvedSums,
    channel,
    joined,
    merge_all,
    one_chain,
    resolve,
    standard_error,
    standardise,
    susceptibility,
    terms,
    two_chain,
    untilted,
    with_estimator,
)
from spectrolib.posterior import Settings

VALUES = st.floats(-100, 100, width=32)
DRAWS = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(4)), elements=VALUES)  # column 0: φ; 1-3: losses


def sums_of(draws) -> CovarianceSums:
    sums = CovarianceSums(draws.shape[1] - 1)
    for row in draws:
        sums.update(row[0], row[1:])
    return sums


def assert_same(a: CovarianceSums, b: CovarianceSums, scale: float = 100.0) -> None:
    """Equal up to rounding at the size of the data."""
    assert a.count == b.count
    for name in CovarianceSums.ARRAYS[1:]:
        bound = 1e-12 * (scale if "mean" in name else scale**2 * max(a.count, 1))
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=bound, err_msg=name)


# Running sums


@given(DRAWS)
def test_sums_are_numpys_means_and_covariances(draws):
    sums = sums_of(draws)
    covariance = np.cov(draws.T, ddof=0)
    np.testing.assert_allclose(sums.mean_phi, draws[:, 0].mean(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(sums.mean_losses, draws[:, 1:].mean(0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(sums.var_phi, covariance[0, 0], rtol=0, atol=1e-8)
    np.testing.assert_allclose(sums.covariance(), covariance[0, 1:], rtol=0, atol=1e-8)
    np.testing.assert_allclose(sums.variance(), np.diag(covariance)[1:], rtol=0, atol=1e-8)


@given(DRAWS, st.data())
def test_sums_of_parts_merge_into_the_sums_of_the_whole(draws, data):
    cut = data.draw(st.integers(0, len(draws)))
    assert_same(sums_of(draws[:cut]).merge(sums_of(draws[cut:])), sums_of(draws))


@given(DRAWS, DRAWS, DRAWS)
def test_merging_is_associative_and_commutative_up_to_rounding(a, b, c):
    a, b, c = map(sums_of, (a, b, c))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))
    assert_same(merge_all([c, a, b]), merge_all([a, b, c]))


@given(DRAWS)
def test_empty_sums_are_neutral(draws):
    sums = sums_of(draws)
    for empty in (CovarianceSums(3), CovarianceSums()):
        for merged in (sums.merge(empty), empty.merge(sums)):
            for name in CovarianceSums.ARRAYS:
                np.testing.assert_array_equal(getattr(merged, name), getattr(sums, name))
        assert empty.merge(CovarianceSums(3)).count == 0


def test_the_number_of_losses_may_come_from_the_first_update():
    draws = np.random.default_rng(0).normal(size=(6, 4))
    late = CovarianceSums()
    for row in draws:
        late.update(row[0], row[1:])
    np.testing.assert_array_equal(late.covariance(), sums_of(draws).covariance())


def test_sums_stay_exact_where_the_mean_dwarfs_the_spread():
    """A spread of 1e-3 on a mean of 1e6: naive sums of squares would lose every digit."""
    rng = np.random.default_rng(0)
    draws = 1e-3 * rng.normal(size=(2000, 3)) @ rng.normal(size=(3, 3))
    exact = np.cov(draws.T, ddof=0)
    sums = merge_all([sums_of(part) for part in np.array_split(draws + 1e6, 7)])
    np.testing.assert_allclose(sums.covariance(), exact[0, 1:], rtol=1e-5, atol=1e-6 * exact.max())
    naive = ((draws + 1e6)[:, :1] * (draws + 1e6)[:, 1:]).mean(0) - (draws + 1e6)[:, 0].mean() * (draws + 1e6)[
        :, 1:
    ].mean(0)
    assert np.abs(naive - exact[0, 1:]).max() > 10 * np.abs(exact).max()


def test_merging_leaves_the_parts_alone():
    part = sums_of(np.ones((2, 4)))
    part.merge(CovarianceSums(3)).update(5.0, np.zeros(3))
    assert part.count == 2 and part.mean_phi == 1 and (part.mean_losses == 1).all()


def test_the_same_order_gives_the_same_bits():
    parts = [sums_of(np.random.default_rng(i).normal(size=(9, 6))) for i in range(5)]
    once, twice = merge_all(parts), merge_all(parts)
    for name in CovarianceSums.ARRAYS:
        assert np.array_equal(getattr(once, name), getattr(twice, name))


def test_state_is_saved_and_restored_exactly():
    sums = sums_of(np.random.default_rng(0).normal(size=(5, 4)))
    saved = sums.to_arrays()
    kept = {name: array.copy() for name, array in saved.items()}
    restored = CovarianceSums.from_arrays(saved)
    restored.update(1.0, np.ones(3))
    sums.update(2.0, np.zeros(3))
    for name, array in kept.items():  # the saved state belongs to nobody
        assert np.array_equal(saved[name], array), name
    again = CovarianceSums.from_arrays(kept).update(2.0, np.zeros(3))
    for name in CovarianceSums.ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(sums, name)), name


def test_sums_take_float32_and_keep_float64():
    sums = CovarianceSums(2).update(np.float32(0.1), np.array([1, 2], dtype=np.float32))
    assert sums.mean_losses.dtype == np.float64
    assert isinstance(sums.mean_phi, float)


def test_sums_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"expected losses of shape \(3,\), got \(2,\)"):
        CovarianceSums(3).update(0.0, np.zeros(2))
    with pytest.raises(ValueError, match="cannot merge sums over 3 and 2 losses"):
        CovarianceSums(3).merge(CovarianceSums(2))
    for ask in (CovarianceSums.covariance, CovarianceSums.variance, CovarianceSums.var_phi.fget):
        with pytest.raises(ValueError, match="no draws yet"):
            ask(CovarianceSums(3))
    with pytest.raises(ValueError, match="no draws yet"):
        two_chain(sums_of(np.zeros((2, 4))), CovarianceSums(3))


# The two estimators

CHAINS = st.tuples(DRAWS, DRAWS)


@given(CHAINS)
def test_estimators_are_their_formulas(chains):
    """-( mean_C[g d] - mean_C[g] mean_F[d] ) and -( mean_C[g d] - mean_C[g] mean_C[d] )."""
    c, f = chains
    g, d = c[:, :1], c[:, 1:]
    two = -((g * d).mean(0) - g.mean() * f[:, 1:].mean(0))
    one = -((g * d).mean(0) - g.mean() * d.mean(0))
    np.testing.assert_allclose(two_chain(sums_of(c), sums_of(f)), two, rtol=0, atol=1e-7)
    np.testing.assert_allclose(one_chain(sums_of(c)), one, rtol=0, atol=1e-7)


@given(CHAINS)
def test_two_chain_is_one_chain_minus_rise_times_first_moments(chains):
    restricted, full = map(sums_of, chains)
    t = terms(restricted, full)
    np.testing.assert_allclose(
        two_chain(restricted, full),
        one_chain(restricted) - t.rise * (t.restricted - t.full),
        rtol=0,
        atol=1e-8,
    )
    np.testing.assert_array_equal(t.covariance, -one_chain(restricted))


@given(CHAINS, st.floats(-50, 50))
def test_a_shift_of_the_losses_changes_neither(chains, shift):
    """A constant added to every excess loss, in both chains: the reference l(w*) may be subtracted or not."""
    by = np.array([0.0, shift, -shift, 2 * shift])
    restricted, full = map(sums_of, chains)
    moved, moved_full = (sums_of(draws + by) for draws in chains)
    np.testing.assert_allclose(one_chain(moved), one_chain(restricted), rtol=0, atol=1e-7)
    np.testing.assert_allclose(two_chain(moved, moved_full), two_chain(restricted, full), rtol=0, atol=1e-7)


@given(CHAINS, st.floats(-50, 50))
def test_a_shift_of_g_changes_the_two_chain_value_alone(chains, shift):
    """It moves by -c (mean_C[d] - mean_F[d]): L(w) and L(w*) must be taken on the same tokens."""
    c, f = chains
    restricted, full = sums_of(c), sums_of(f)
    moved = sums_of(c + np.array([shift, 0, 0, 0]))
    np.testing.assert_allclose(one_chain(moved), one_chain(restricted), rtol=0, atol=1e-7)
    expected = two_chain(restricted, full) - shift * (restricted.mean_losses - full.mean_losses)
    np.testing.assert_allclose(two_chain(moved, full), expected, rtol=0, atol=1e-7)


def test_pooled_estimates_pool_the_draws():
    rng = np.random.default_rng(3)
    c, f = rng.normal(size=(2, 3, 10, 4))
    c_sums, f_sums = [list(map(sums_of, chains)) for chains in (c, f)]
    pooled_c, pooled_f = sums_of(c.reshape(-1, 4)), sums_of(f.reshape(-1, 4))
    np.testing.assert_allclose(susceptibility("one_chain", c_sums, f_sums), one_chain(pooled_c), rtol=1e-10)
    np.testing.assert_allclose(susceptibility("two_chain", c_sums, f_sums), two_chain(pooled_c, pooled_f), rtol=1e-10)
    with pytest.raises(ValueError, match=r"unknown estimator 'three_chain': it must be one of \('two_chain', 'one"):
        susceptibility("three_chain", c_sums, f_sums)


def test_a_result_turns_from_one_estimator_to_the_other():
    """Made of its terms, whatever the order in which chains are listed."""
    rng = np.random.default_rng(4)
    own = {name: sums_of(rng.normal(size=(10, 4)) + shift) for name, shift in (("a", 1.0), ("b", 2.0))}
    full = sums_of(rng.normal(size=(10, 4)))
    column = lambda values: (("token", "component"), np.stack(values, axis=1))  # noqa: E731
    result = xr.Dataset(
        {
            "susceptibility": column([one_chain(sums) for sums in own.values()]),
            "covariance": column([sums.covariance() for sums in own.values()]),
            "restricted_moment": column([sums.mean_losses for sums in own.values()]),
            "standard_error": column([np.ones(3)] * 2),
            "full_moment": ("token", full.mean_losses),
            "rise": ("sampled", [full.mean_phi, own["b"].mean_phi, own["a"].mean_phi]),
        },
        coords={"component": list(own), "sampled": ["full", "b", "a"]},
        attrs={"estimator": "one_chain"},
    )
    found = with_estimator(result, "two_chain")
    expected = np.stack([two_chain(sums, full) for sums in own.values()], axis=1)
    np.testing.assert_allclose(found["susceptibility"], expected, rtol=1e-12)
    assert found.attrs["estimator"] == "two_chain" and "standard_error" not in found
    again = with_estimator(found, "one_chain")["susceptibility"]
    np.testing.assert_allclose(again, result["susceptibility"], rtol=1e-12)


def test_estimates_on_the_draws_that_the_authors_library_stored(tiny_gpt_neox, tmp_path):
    """devinterp 2.0.1 samples two components of the tiny model; from its stored losses we get its susceptibilities.

    Its baseline L(w*) is taken on other sequences than L(w): here it is read from its output, and its stored float32
    losses are widened, so that only the estimators are compared. Another baseline must disagree.
    """
    sampling = pytest.importorskip("devinterp.slt.sampling")
    datasets = pytest.importorskip("datasets")
    from devinterp.slt.susceptibilities import compute_susceptibilities
    from devinterp.slt.weight_restrictions import create_param_masks

    rng = np.random.default_rng(0)
    pile, probe = (
        datasets.Dataset.from_dict({"input_ids": rng.integers(0, 53, size=(8, 10)).tolist()}).with_format("torch")
        for _ in range(2)
    )
    trees = {
        name: sampling.sample(
            model=tiny_gpt_neox,
            dataset=pile,
            observables={"pile": (pile, 2), "probe": (probe, 2)},
            param_masks=create_param_masks(tiny_gpt_neox, name),
            lr=1e-4,
            n_beta=10.0,
            localization=300.0,
            sampling_method="rmsprop_sgld",
            num_chains=2,
            num_draws=6,
            num_steps_bw_draws=2,
            num_init_loss_batches=1,
            batch_size=4,
            device="cpu",
            output_path=tmp_path / f"{name}.zarr",
        )
        for name in ("full", "l0h1", "l1 mlp")
    }
    for tree in trees.values():
        tree.dataset = tree.dataset.astype(np.float64)
    theirs = compute_susceptibilities(trees, sampling_task="pile")["susceptibilities"]["sus"]

    def sums(name, baseline):
        """The running sums over the stored draws of both chains, with d = l - L(w)."""
        stored = trees[name].dataset
        losses = stored["loss_probe"].values.reshape(12, -1)
        mean = stored["loss_pile"].values.reshape(12, -1).mean(1)
        total = CovarianceSums(losses.shape[1])
        for rise, excess in zip(mean - baseline, losses - mean[:, None], strict=True):
            total.update(rise, excess)
        return total

    baseline = float(trees["full"].dataset["init_loss"].values.mean())
    for name in ("l0h1", "l1 mlp"):
        expected = theirs.sel(wr=name).values
        scale = np.abs(expected).max()
        ours = two_chain(sums(name, baseline), sums("full", baseline))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * scale)
        shifted = two_chain(sums(name, baseline + 0.1), sums("full", baseline))
        assert np.abs(shifted - expected).max() > 1e-3 * scale


# Error bars


def test_jackknife_is_the_textbook_formula():
    """√( (n-1)/n Σ (θ_(i) - mean θ_(·))² ), recomputed from the draws of all chains but one."""
    rng = np.random.default_rng(0)
    c, f = rng.normal(size=(2, 5, 20, 4)) + np.array([2.0, 0.3, 0.0, 0.0])

    def estimate(keep):
        restricted, full = (draws[keep].reshape(-1, 4) for draws in (c, f))
        g, d = restricted[:, :1], restricted[:, 1:]
        return -((g * d).mean(0) - g.mean() * full[:, 1:].mean(0))

    left_out = np.stack([estimate([j for j in range(5) if j != i]) for i in range(5)])
    expected = np.sqrt(4 / 5 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    error = standard_error("two_chain", *[list(map(sums_of, chains)) for chains in (c, f)])
    np.testing.assert_allclose(error, expected, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["one_chain", "two_chain"])
def test_error_bars_cover_the_truth(estimator):
    """95 % intervals from 8 chains, Student's t with 7 degrees of freedom, over 200 synthetic measurements of 8 tokens.

    The draws are autocorrelated, which intervals that count each draw as independent would miss.
    """
    rng = np.random.default_rng(0)
    chains, draws, tokens = 8, 30, 8
    loading = rng.normal(size=tokens)
    truth = -0.3 * loading
    rise, shift = 1.5, np.linspace(-0.4, 0.4, tokens)
    if estimator == "two_chain":
        truth = truth - rise * shift
    inside = []
    for _ in range(200):
        noise = rng.normal(size=(draws, 2 * chains, tokens + 1))
        for t in range(1, draws):
            noise[t] = 0.6 * noise[t - 1] + 0.8 * noise[t]  # stationary, with unit variance
        walks = noise.transpose(1, 0, 2)
        g = rise + walks[:chains, :, :1]
        restricted = np.concatenate([g, shift + 0.3 * loading * (g - rise) + walks[:chains, :, 1:]], axis=2)
        full = walks[chains:]
        c_sums, f_sums = (list(map(sums_of, part)) for part in (restricted, full))
        estimate = susceptibility(estimator, c_sums, f_sums)
        inside.append(np.abs(estimate - truth) < 2.365 * standard_error(estimator, c_sums, f_sums))
    coverage = np.mean(inside)
    assert 0.91 < coverage < 0.98, coverage


def test_one_chain_has_no_error_bar():
    sums = [sums_of(np.random.default_rng(0).normal(size=(6, 4)))]
    assert np.isnan(standard_error("two_chain", sums, sums)).all()


def test_chains_must_pair_up():
    sums = [sums_of(np.random.default_rng(i).normal(size=(6, 4))) for i in range(3)]
    with pytest.raises(ValueError, match="as many unrestricted as restricted chains are needed, got 2 and 3"):
        standard_error("two_chain", sums, sums[:2])
    assert np.isfinite(standard_error("one_chain", sums, [])).all()


# Standardisation

CHI = np.random.default_rng(0).normal(size=(200, 6)) * np.array([1e-6, 1, 3, 10, 1e4, 0.1]) + 5


def test_columns_are_z_scored():
    z = standardise(CHI, rows=None)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-12)
    np.testing.assert_allclose(z, (CHI - CHI.mean(0)) / CHI.std(0), rtol=1e-9, atol=1e-9)


def test_rows_are_centred_by_default():
    centred = standardise(CHI)
    z = standardise(CHI, rows=None)
    np.testing.assert_allclose(centred.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(centred, z - z.mean(1, keepdims=True), rtol=1e-12)


def test_rows_can_be_z_scored():
    rows = standardise(CHI, rows="zscore")
    np.testing.assert_allclose(rows.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(rows.std(1), 1, rtol=1e-12)


@given(hnp.arrays(np.float64, 6, elements=st.floats(0.01, 100)), hnp.arrays(np.float64, 6, elements=VALUES))
def test_factors_and_shifts_of_columns_drop_out(factor, shift):
    """The unknown Z_C / Z of each component, and the direction in which all components respond alike."""
    base = np.random.default_rng(1).normal(size=(50, 6))
    np.testing.assert_allclose(standardise(base * factor + shift), standardise(base), rtol=0, atol=1e-7)


def test_a_response_common_to_all_components_is_removed():
    base = standardise(np.random.default_rng(2).normal(size=(5000, 6)), rows=None)
    common = 3 * np.random.default_rng(3).normal(size=(5000, 1))
    with_common = standardise(base + common)
    assert np.corrcoef(with_common[:, 0], common[:, 0])[0, 1] == pytest.approx(0, abs=0.05)
    assert np.corrcoef(standardise(base + common, rows=None)[:, 0], common[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("rows, axes", [("center", 5), ("zscore", 5), (None, 6)])
def test_whitened_axes_have_identity_covariance(rows, axes):
    white = standardise(CHI, rows=rows, whiten=True)
    assert white.shape == (200, axes)  # centring the rows removes one direction
    np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(axes), atol=1e-10)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda chi: chi.__setitem__((3, 1), np.nan), r"must be finite: columns \[1\] are not"),
        (lambda chi: chi.__setitem__((slice(None), [0, 4]), np.inf), r"must be finite: columns \[0, 4\] are not"),
        (lambda chi: chi.__setitem__((slice(None), 2), 0.1), r"columns \[2\] are constant over tokens"),
        (lambda chi: chi.__setitem__((slice(None), 5), 0.0), r"columns \[5\] are constant over tokens"),
    ],
)
def test_columns_that_cannot_be_standardised_are_named(damage, message):
    chi = CHI.copy()
    damage(chi)
    with pytest.raises(ValueError, match=message):
        standardise(chi)


def test_what_is_not_a_matrix_is_refused():
    for chi in (np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match=r"must be a \(tokens, components\) matrix, got shape"):
            standardise(chi)
    with pytest.raises(ValueError, match="rows must be 'center', 'zscore' or None, got 'centre'"):
        standardise(CHI, rows="centre")


def test_standardise_leaves_its_input_alone():
    before = CHI.copy()
    standardise(CHI, whiten=True)
    np.testing.assert_array_equal(CHI, before)


# Resolved rows


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
