"""Stein's identity: exact on quadratics, on a grid, along coupled chains; the number that plain draws give."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from spectrobook import stein
from spectrolib.estimator import CovarianceSums
from spectrolib.exact import enumerable, quadratic
from spectrolib.model.loading import engine_of
from spectrolib.posterior import Settings, sample

SETTINGS = Settings(nbeta=8.0, gamma=5.0, step_size=0.02, preconditioner="none", draws=40, steps_between_draws=4)
BOWL = quadratic.Quadratic(np.array([[3.0, 0.6], [0.6, 0.5]]), np.zeros(2), np.array([0.4, -0.2]))
OTHER = quadratic.Quadratic(np.array([[1.0, -0.8], [-0.8, 2.0]]), np.array([0.3, 0.1]), np.array([1.0, 0.5]))
TOY = enumerable.Toy.random(seed=3)


def sums_over(points, f, potential):
    """`SteinSums` over draws given by their positions, w* = 0."""
    sums = stein.SteinSums()
    for w in points:
        sums.update(
            float(f(torch.as_tensor(w))), *(torch.as_tensor(x) for x in (f.slope_at(w), w, potential.slope_at(w)))
        )
    return sums


def sigma_points(law):
    """Points whose first three moments are those of a normal law: on them its covariances with δ are exact."""
    root = np.linalg.cholesky(law.covariance) * math.sqrt(len(law.mean))
    return np.concatenate([law.mean + root.T, law.mean - root.T])


@pytest.mark.parametrize("f", [BOWL, OTHER])
@pytest.mark.parametrize("nbeta", [0.0, 8.0])
def test_both_sides_are_the_covariance_of_a_quadratic_posterior(f, nbeta):
    settings = replace(SETTINGS, nbeta=nbeta)
    law = quadratic.gibbs(BOWL, np.zeros(2), settings)
    sums = sums_over(sigma_points(law), f, BOWL)
    truth = law.covariance @ f.slope_at(law.mean)
    np.testing.assert_allclose(sums.sampled(), truth, rtol=1e-10)
    np.testing.assert_allclose(sums.stein(nbeta, settings.gamma), truth, rtol=1e-10)


@pytest.mark.parametrize("nbeta", [0.0, 8.0])
def test_finite_steps_push_the_two_sides_apart(nbeta):
    """The factors of the docstring, exactly: 1/(1 - x) and (1 - xλ/γ)/(1 - x), x = ελ/4."""
    settings, curvature = replace(SETTINGS, nbeta=nbeta), 3.0
    line = quadratic.Quadratic(np.array([[curvature]]), np.zeros(1), np.array([0.7]))
    stiffness = nbeta * curvature + settings.gamma
    law = quadratic.sgld_law(line, np.zeros(1), settings)
    sums = sums_over(sigma_points(law), line, line)
    truth = line.slope_at(law.mean)[0] / stiffness
    x = settings.step_size * stiffness / 4
    assert sums.sampled().item() == pytest.approx(truth / (1 - x), rel=1e-9)
    found = sums.stein(nbeta, settings.gamma).item()
    assert found == pytest.approx(truth * (1 - x * stiffness / settings.gamma) / (1 - x), rel=1e-9)
    assert (found == pytest.approx(truth, rel=1e-9)) == (nbeta == 0)


@pytest.mark.parametrize("nbeta", [0.0, 8.0])
def test_unbiased_on_independent_draws(nbeta):
    settings = replace(SETTINGS, nbeta=nbeta)
    law = quadratic.gibbs(BOWL, np.zeros(2), settings)
    rng = np.random.default_rng(1)
    replicates = rng.multivariate_normal(law.mean, law.covariance, size=(100, 60))
    sums = [sums_over(points, OTHER, BOWL) for points in replicates]
    found = np.array([own.stein(nbeta, settings.gamma).numpy() for own in sums])
    plain = np.array([own.sampled().numpy() for own in sums]) * 60 / 59
    truth = law.covariance @ OTHER.slope_at(law.mean)
    if nbeta:  # the sample covariance inside divides by the draws
        mean_slope = OTHER.slope_at(law.mean) / settings.gamma
        found = mean_slope + (found - mean_slope) * 60 / 59
    error = found.std(axis=0, ddof=1) / 10
    assert np.linalg.norm(error) < 0.06 * np.linalg.norm(truth)
    assert (np.abs(found.mean(axis=0) - truth) < 4 * error).all()
    if nbeta == 0:
        assert (found.std(axis=0) < 0.7 * plain.std(axis=0)).all()


# A language model on a grid ------------------------------------------------------------------------------------------


def gradients_at(points):
    """∇L of the toy at points of its block ``out``."""
    leaf = torch.as_tensor(points).requires_grad_()
    return torch.autograd.grad(TOY.potential("out")(leaf).sum(), leaf)[0].numpy()


def slopes_at_best():
    """∇d_xy at w*, (weights, contexts x tokens)."""
    losses = lambda c: TOY.losses(TOY.place("out", c))  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(losses, torch.zeros(2, dtype=torch.float64)).numpy()
    mean = np.tensordot(TOY.joint, jacobian, axes=2)
    return (jacobian - mean).reshape(-1, 2).T


@pytest.mark.parametrize("nbeta", [0.0, 15.0])
def test_the_identity_holds_on_a_grid(nbeta):
    settings = Settings(nbeta=nbeta, gamma=4.0)
    grid = enumerable.integrate(TOY, "out", settings)
    rise, _ = enumerable.rise_and_excess(TOY, grid.losses)
    slope = gradients_at(grid.points)
    centred = (rise - grid.mean(rise))[:, None]
    truth = grid.mean(centred * grid.points)
    np.testing.assert_allclose(
        (grid.mean(slope) - nbeta * grid.mean(centred * slope)) / settings.gamma, truth, rtol=1e-6
    )


def test_the_estimate_on_the_toy_is_its_covariance_with_less_noise():
    settings, draws, replicates = Settings(nbeta=0.0, gamma=30.0), 60, 120
    grid = enumerable.integrate(TOY, "out", settings)
    rise, excess = enumerable.rise_and_excess(TOY, grid.losses)
    slope, excess = gradients_at(grid.points), excess.reshape(len(rise), -1)
    truth = -enumerable.susceptibilities(TOY, "out", settings).one_chain.ravel()
    tokens = slopes_at_best()
    rng = np.random.default_rng(0)
    plain, corrected = [], []
    for _ in range(replicates):
        sums, mine = CovarianceSums(), stein.SteinSums()
        for i in rng.choice(len(rise), size=draws, p=grid.weights):
            sums.update(rise[i], excess[i])
            mine.update(rise[i], torch.as_tensor(slope[i]), torch.as_tensor(grid.points[i]))
        gap = (mine.stein(0.0, settings.gamma) - mine.sampled() * draws / (draws - 1)).numpy()
        plain.append(sums.sample_covariance() * draws / (draws - 1))
        corrected.append(plain[-1] + gap @ tokens)
    for values in map(np.array, (plain, corrected)):
        error = values.std(axis=0, ddof=1) / math.sqrt(replicates)
        assert (np.abs(values.mean(axis=0) - truth) < 4 * error).all()
        assert np.linalg.norm(error) < 0.15 * np.linalg.norm(truth)
    assert np.linalg.norm(np.std(corrected, axis=0)) < 0.75 * np.linalg.norm(np.std(plain, axis=0))


# What coupled chains and preconditioners make of it ------------------------------------------------------------------


@pytest.mark.parametrize("nbeta", [0.0, 10.0])
def test_the_response_of_the_weights_is_made_of_averaged_gradients(nbeta):
    """The telescoped update, to rounding: on a loss that is not quadratic, with coarse steps, after few of them."""
    settings = replace(SETTINGS, nbeta=nbeta, tilt=6.0, draws=25, steps_between_draws=1, step_size=0.05)
    start = torch.zeros(2, dtype=torch.float64)
    path = [(start, start)] + [
        tuple(p.clone() for p in draw.positions) for draw in sample(TOY.potential("out"), settings, start=start)
    ]
    above, below = (np.stack([w[i].numpy() for w in path]) for i in (0, 1))
    steps, eta, gamma = settings.steps, settings.tilt, settings.gamma
    response = -(above[:-1] - below[:-1]).mean(0) / (2 * eta)
    forces = [gradients_at(positions[:-1]).mean(0) for positions in (above, below)]
    averaged = ((nbeta + eta) * forces[0] - (nbeta - eta) * forces[1]) / (2 * eta * gamma)
    last = (above[-1] - below[-1]) / (eta * gamma * settings.step_size * steps)
    np.testing.assert_allclose(response, averaged + last, rtol=1e-8)
    assert np.linalg.norm(last) > 1e-3 * np.linalg.norm(response)  # the end counts, or the test would not see it


def test_under_a_fast_preconditioner_the_identity_needs_the_weight_g():
    """Density ∝ e^{-U}/G of one weight on ½cw², G = 1/(c|w| + e): the law is too wide, Stein without G too narrow."""
    settings, curvature = Settings(nbeta=20.0, gamma=10.0, rms_epsilon=0.1), 1.5
    stiffness = settings.nbeta * curvature + settings.gamma
    scale = lambda w: 1 / (curvature * abs(w) + settings.rms_epsilon)  # noqa: E731
    density = lambda w: math.exp(-stiffness * w * w / 2) / scale(w)  # noqa: E731
    integral = lambda f: 2 * quad(lambda w: f(w) * density(w), 0, 4)[0]  # noqa: E731
    mean = lambda f: integral(f) / integral(lambda w: 1.0)  # noqa: E731
    variance = mean(lambda w: w * w)
    assert variance == pytest.approx(quadratic.memoryless_rmsprop_variance(curvature, settings))
    assert mean(lambda w: scale(w) * (w * stiffness * w - 1)) == pytest.approx(0, abs=1e-8)  # f = w
    unweighted = (1 - settings.nbeta * curvature * variance) / settings.gamma
    assert unweighted < 1 / stiffness < variance


# The engine ----------------------------------------------------------------------------------------------------------

SMALL = Settings(
    nbeta=5.0,
    gamma=2000.0,
    step_size=2e-4,
    batch_size=7,  # all windows: no noise of minibatches
    draws=12,
    steps_between_draws=5,
    burn_in=20,
    preconditioner="none",
    share_batches=False,
    antithetic=True,
)


@pytest.mark.parametrize("nbeta", [0.0, 5.0])
def test_three_estimates_of_one_number_on_a_model(tiny_model, tiny_windows, nbeta):
    settings, name = replace(SMALL, nbeta=nbeta), "l1 mlp"
    text = dict(sampling=tiny_windows, loss=tiny_windows, probe=tiny_windows[:3])
    chains = [stein.covariances(tiny_model, name, settings, **text, chain=k) for k in range(6)]
    teams = np.array([response(tiny_model, name, replace(settings, tilt=5.0, draws=3), k, **text) for k in range(6)])
    plain, corrected = (np.array([getattr(own, kind) for own in chains]) for kind in ("sampled", "stein"))
    truth, noise = teams.mean(axis=0), teams.std(axis=0, ddof=1)
    for values in (plain, corrected):
        error = np.sqrt((values.var(axis=0, ddof=1) + noise**2) / 6)
        z = (values.mean(axis=0) - truth) / error
        assert np.sqrt(np.mean(z**2)) < 1.6  # about 1.18 for t with some 7 degrees of freedom
    total = lambda x: np.sqrt((x.var(axis=0, ddof=1)).sum())  # noqa: E731
    assert total(teams) < 0.5 * total(plain)
    if nbeta == 0:
        assert total(corrected) < 0.5 * total(plain)
    linear = np.mean([own.linear for own in chains], axis=0)
    assert np.corrcoef(linear, truth)[0, 1] > 0.95  # the posterior is narrow: little else is left


def response(model, name, settings, chain, *, sampling, loss, probe):
    """Cov(g, d_xy) as coupled chains give it."""
    group, sums = engine_of(model).group([name] * len(settings.members)), CovarianceSums()
    text, probes = group.cache(loss), group.cache(probe)
    for draw in sample(model, settings, component=name, windows=sampling, chain=chain):
        values = group.losses(draw.positions, text).double().mean((1, 2)).numpy()
        excess = group.losses(draw.positions, probes).double().flatten(1).numpy() - values[:, None]
        for value, own in zip(values, excess, strict=True):
            sums.update(value, own)
        for above, below in zip(excess[::2], excess[1::2], strict=True):
            sums.respond(above, below, settings.tilt)
    return sums.covariance()


def test_what_cannot_be_estimated_is_refused(tiny_model, tiny_windows):
    with pytest.raises(ValueError, match="set tilt = 0 for Stein's identity, got 3"):
        stein.covariances(
            tiny_model, "l0h0", replace(SMALL, tilt=3.0), sampling=tiny_windows, loss=tiny_windows, probe=tiny_windows
        )
    with pytest.raises(ValueError, match="no draws yet"):
        stein.SteinSums().sampled()
