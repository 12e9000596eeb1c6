"""Error bars against truth: intervals from a few chains must cover planted values as often as they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from spectrobook import shipped
from spectrolib.checks import uncertainty
from spectrolib.estimator import standardise, with_estimator
from spectrolib.exact import quadratic
from spectrolib.posterior import Settings

TOKENS, COMPONENTS = 250, 20


def result_of(chains):
    """A result whose estimate is the mean over chains, from (chains, tokens, components)."""
    halves = np.stack([chains[0::2].mean(axis=0), chains[1::2].mean(axis=0)])
    names = [f"l0h{i}" for i in range(chains.shape[2])]
    return xr.Dataset(
        {
            "susceptibility": (("token", "component"), chains.mean(axis=0)),
            "half_susceptibility": (("estimator", "half", "block", "token", "component"), halves[None, :, None]),
        },
        coords={"estimator": ["one_chain"], "block": [4], "component": names},
        attrs={"estimator": "one_chain", "manifest": json.dumps({"settings": {"chains": len(chains)}})},
    )


class World:
    """True susceptibilities, and measurements of them: the noise of a column moves in ``factors`` directions."""

    def __init__(self, seed, factors=30, noise=0.3, chains=4, draw=None):
        self.rng = np.random.default_rng(seed)
        self.draw = draw or self.rng.standard_normal
        self.truth = self.rng.normal(size=(TOKENS, COMPONENTS))
        self.loading = self.rng.normal(size=(TOKENS, factors)) / np.sqrt(factors)
        level = noise * np.exp(0.7 * self.rng.normal(size=COMPONENTS))
        self.scale = np.minimum(level, 1) * np.exp(0.7 * self.rng.normal(size=(TOKENS, 1)))
        self.chains = chains

    def measure(self):
        common = self.draw((self.chains, self.loading.shape[1], COMPONENTS))
        return self.truth + self.scale * np.einsum("tf,cfk->ctk", self.loading, common)


def heavy(shape):
    """Student's t with 5 degrees of freedom, of unit variance."""
    heavy.rng = getattr(heavy, "rng", np.random.default_rng(7))
    return heavy.rng.standard_t(5, size=shape) / np.sqrt(5 / 3)


def share(value, interval):
    return np.mean((interval.low <= value) & (value <= interval.high))


@pytest.mark.parametrize("chains", [2, 3, 4])
@pytest.mark.parametrize("draw", [None, heavy])
def test_intervals_cover_the_truth(chains, draw):
    worlds = [World(seed, chains=chains, draw=draw) for seed in range(25)]
    results = [(world.truth, result_of(world.measure())) for world in worlds]
    for level, low, high in [(0.9, 0.88, 0.92), (0.5, 0.46, 0.56)]:
        covered = [share(truth, uncertainty.intervals(result, level)) for truth, result in results]
        assert low < np.mean(covered) < high, (level, np.mean(covered))


def test_the_intervals_are_far_shorter_than_those_of_two_halves_alone():
    result = result_of(World(0).measure())
    first, second = result["half_susceptibility"].values[0, :, 0]
    alone = 6.314 * np.abs(first - second) / 2  # Student's t with one degree of freedom
    assert np.mean(uncertainty.susceptibility_error(result).width(0.9)) < 0.5 * alone.mean()


def test_few_independent_tokens_mean_wide_intervals():
    """Noise of one direction: the level of a column then rests on a single number, and the intervals must know."""
    worlds = [World(seed, factors=1) for seed in range(60)]
    pairs = [(world.truth, result_of(world.measure())) for world in worlds]
    assert max(uncertainty.susceptibility_error(result).freedom.max() for _, result in pairs) < 1.2
    assert np.mean([share(truth, uncertainty.intervals(result)) for truth, result in pairs]) > 0.86


def test_levels_and_powers_of_the_variances_are_found():
    rng = np.random.default_rng(0)
    row, column = np.exp(rng.normal(size=(3000, 1))), np.exp(2 * rng.normal(size=30)) * 1e-12
    power = np.r_[np.ones(27), 0.4, 0.6, 1.5]
    truth = column * row**power
    found = uncertainty.fitted_variances(truth * rng.chisquare(1, size=(3000, 30)))
    ratio = np.log(found / truth)
    assert abs(ratio.mean(axis=0)).max() < 0.15  # columns: 3 000 tokens
    assert ratio.std(axis=0).max() < 0.45  # rows: √(2/30), times the power
    np.testing.assert_allclose(uncertainty.fitted_variances(column * row), column * row, rtol=1e-6)


def test_a_column_with_noise_of_its_own_shape_is_covered_too():
    covered = []
    for seed in range(25):
        world = World(seed, factors=60)
        world.scale[:, :2] = np.sqrt(world.scale[:, 2:4]) * np.exp(0.5 * world.rng.normal(size=(TOKENS, 2)))
        interval = uncertainty.intervals(result_of(world.measure()))
        covered.append((interval.low < world.truth) & (world.truth < interval.high))
    assert 0.86 < np.mean(np.array(covered)[..., :2]) < 0.95
    assert 0.88 < np.mean(np.array(covered)[..., 2:]) < 0.93


@pytest.mark.parametrize("factors", [5, 40])
def test_freedom_counts_the_independent_tokens(factors):
    rng = np.random.default_rng(factors)
    loading = rng.normal(size=(2000, factors))
    loading /= np.linalg.norm(loading, axis=1, keepdims=True)  # every token has unit variance
    spectrum = np.linalg.eigvalsh(loading.T @ loading)
    independent = spectrum.sum() ** 2 / (spectrum**2).sum()
    found = np.mean([uncertainty.errors(loading @ rng.normal(size=(factors, 30))).freedom.mean() for _ in range(20)])
    assert found == pytest.approx(1 / (1 / 30 + 1 / independent), rel=0.15)


def test_freedom_counts_the_tails():
    """Independent noise of Student's t with 12 degrees of freedom: an error rests on hardly more than these."""
    noise = np.random.default_rng(0).standard_t(12, size=(2000, 400))
    found = 1 / (1 / uncertainty.errors(noise).freedom).mean()
    assert found == pytest.approx(1 / (1 / 400 + 1 / 2000 + 1 / 12), rel=0.2)  # kurtosis of a sample: a little low


# Standardised --------------------------------------------------------------------------------------------------------


def in_units(world, result, rows):
    """The true vectors in units of the measured columns."""
    scores = (world.truth - world.truth.mean(axis=0)) / result["susceptibility"].values.std(axis=0)
    if rows is not None:
        scores = scores - scores.mean(axis=1, keepdims=True)
    return scores / scores.std(axis=1, keepdims=True) if rows == "zscore" else scores


@pytest.mark.parametrize("rows", [None, "center", "zscore"])
def test_errors_of_vectors_cover_the_true_vectors(rows):
    covered = []
    for seed in range(25):
        world = World(seed, factors=60, noise=0.15)
        chains = world.measure() + 20 * world.rng.normal(size=(4, 1, COMPONENTS))  # shifts and a factor of columns
        result = result_of(chains)
        found = uncertainty.vector_error(result, rows)
        vectors = standardise(result["susceptibility"].values, rows=rows)
        covered.append(np.abs(vectors - in_units(world, result, rows)) < found.width(0.9))
    assert 0.87 < np.mean(covered) < 0.93, np.mean(covered)


def test_a_common_factor_of_a_column_is_no_noise():
    world = World(3, noise=0)
    factors = np.exp(0.5 * world.rng.normal(size=(4, 1, COMPONENTS)))
    result = result_of(world.truth * factors + world.rng.normal(size=(4, 1, COMPONENTS)))
    assert uncertainty.vector_error(result).error.max() < 1e-6
    assert uncertainty.susceptibility_error(result).error.mean() > 0.1


def test_distances_are_unbiased_and_their_intervals_cover():
    pairs = [(2 * n, 2 * n + 1) for n in range(40)]
    found, truth = [], []
    for seed in range(25):
        world = World(seed, factors=80, noise=0.25)
        for i, j in pairs[::2]:  # half of the pairs are near to each other
            world.truth[j] = world.truth[i] + 0.15 * world.rng.normal(size=COMPONENTS)
        result = result_of(world.measure())
        vectors = in_units(world, result, "center")
        found.append([uncertainty.distance(result, i, j) for i, j in pairs])
        truth.append([((vectors[i] - vectors[j]) ** 2).sum() for i, j in pairs])
    squared, _, low, high, plain = np.moveaxis(np.array(found), -1, 0)
    truth = np.array(truth)
    for near in (slice(0, None, 2), slice(1, None, 2)):
        off = (squared - truth)[:, near]
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size) + 0.01 * truth[:, near].mean()
        assert 0.85 < np.mean((low < truth) & (truth < high), axis=None, where=_only(truth, near)) < 0.95
    assert plain[:, ::2].mean() > 2 * truth[:, ::2].mean()  # what noise adds to the distance of near tokens


def _only(table, columns):
    mask = np.zeros(table.shape, dtype=bool)
    mask[:, columns] = True
    return mask


def test_neighbours_by_signal_and_by_noise():
    world = World(1, noise=0)
    clean = result_of(world.truth + np.zeros((4, 1, 1)))
    found = uncertainty.neighbourhoods(clean, k=10)
    assert (found.kept == 1).all() and (found.noise == 0).all()
    rng = np.random.default_rng(0)
    lost = uncertainty.neighbourhoods(result_of(rng.normal(size=(4, TOKENS, COMPONENTS))), k=10)
    assert lost.kept.mean() == pytest.approx(10 / (TOKENS - 1), abs=0.01)
    assert np.median(lost.noise) > 0.9


# Chains --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared, least", [(True, 0.88), (False, 0.84)])
def test_intervals_of_sgld_cover_the_closed_form(shared, least):
    """Tilted pairs on quadratic losses; 'tokens' are quadratic functions; truth from SGLD's own stationary law.

    Three weights, so that a column is worth few independent tokens. Where components have losses of their own, and with
    them noise of another shape, the noise of one says less about that of another: the limit that the module names.
    """
    rng, repeats, tilt = np.random.default_rng(5), 60, 2.0
    settings = Settings(
        nbeta=6.0, gamma=10.0, step_size=0.02, preconditioner="none", draws=5, steps_between_draws=8, burn_in=60
    )
    root = rng.normal(size=(60, 3, 3))
    observables = [
        quadratic.Quadratic(r @ r.T / 3, np.zeros(3), s) for r, s in zip(root, rng.normal(size=(60, 3)), strict=True)
    ]
    values = lambda w: np.stack([w @ o.slope + ((w @ o.curvature) * w).sum(-1) / 2 for o in observables], -1)  # noqa: E731
    teams, truth = [], []
    for name in range(20):
        if name == 0 or not shared:
            curvature = rng.normal(size=(3, 3))
            loss = quadratic.Quadratic(curvature @ curvature.T, np.zeros(3), rng.normal(size=3))
        means, exactly = [], []
        for nbeta in (settings.nbeta + tilt, settings.nbeta - tilt):
            there = replace(settings, nbeta=nbeta)
            draws = quadratic.walk(loss, there, np.zeros(3), 4 * repeats, name=f"component {name}")
            means.append(values(draws).mean(axis=0))
            exactly.append([quadratic.sgld_law(loss, np.zeros(3), there).expectation(o) for o in observables])
        teams.append((means[0] - means[1]) / (2 * tilt))
        truth.append((np.array(exactly[0]) - exactly[1]) / (2 * tilt))
    teams = np.stack(teams, axis=-1).reshape(repeats, 4, 60, 20)
    covered = [share(np.stack(truth, axis=-1), uncertainty.intervals(result_of(own))) for own in teams]
    assert least < np.mean(covered) < 0.94, np.mean(covered)


def test_the_shipped_measurement_has_error_bars():
    result = with_estimator(shipped.shipped_result(), "one_chain")
    interval, found = uncertainty.intervals(result), uncertainty.vector_error(result)
    chi = result["susceptibility"].values
    assert ((interval.low < chi) & (chi < interval.high)).all()
    assert ((found.freedom > 1) & (found.freedom < 33)).all()
    # the correlation of the halves' columns says how much noise a column holds, and so do the errors
    first, second = uncertainty.half_tables(result, None, None)
    half = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first.T, second.T, strict=True)])
    noise = (uncertainty.vector_error(result, rows=None).error ** 2).mean(axis=0)
    np.testing.assert_allclose(noise, 1 - 2 * half / (1 + half), rtol=0.25)


def test_what_makes_no_sense_is_refused():
    result = result_of(World(0).measure())
    with pytest.raises(ValueError, match="level of an interval must lie between 0 and 1, got 90"):
        uncertainty.intervals(result, 90)
    with pytest.raises(ValueError, match="numbered 0 to 249, got 250"):
        uncertainty.distance(result, 0, 250)
    with pytest.raises(ValueError, match="'center' and None only"):
        uncertainty.distance(result, 0, 1, rows="zscore")
    with pytest.raises(ValueError, match="need at least 2 chains"):
        uncertainty.intervals(result.drop_vars("half_susceptibility"))
    with pytest.raises(ValueError, match="rows must be"):
        uncertainty.vector_error(result, rows="centre")


def test_a_single_column_has_nothing_to_learn_from():
    found = uncertainty.errors(np.array([[0.3], [-0.2]]))
    assert found.freedom.tolist() == [1] and found.error.ravel().tolist() == [0.3, 0.2]
