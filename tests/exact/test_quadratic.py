"""Quadratic potentials: closed forms against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectrolib.exact import quadratic
from spectrolib.posterior import Settings

SETTINGS = Settings(nbeta=3.0, gamma=2.0, step_size=0.1, preconditioner="none")


def random_potential(seed: int, d: int = 3) -> quadratic.Quadratic:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    return quadratic.Quadratic(root @ root.T, rng.normal(size=d), rng.normal(size=d))


def test_quadratic_is_its_formula():
    f, w = random_potential(0), np.random.default_rng(1).normal(size=(5, 3))
    delta = w - f.origin
    expected = [f.slope @ x + 0.5 * x @ f.curvature @ x for x in delta]
    np.testing.assert_allclose(f(torch.as_tensor(w)).numpy(), expected, rtol=1e-12)
    point = torch.tensor(w[0], requires_grad=True)
    f(point).backward()
    np.testing.assert_allclose(f.slope_at(w[0]), point.grad.numpy(), rtol=1e-12)


def test_gibbs_posterior_is_the_normal_with_that_exponent():
    """The exponent -nβ L - (γ/2)|w - w*|² and the normal's log density differ by a constant."""
    f, centre = random_potential(2), np.array([0.3, -0.2, 0.5])
    law = quadratic.gibbs(f, centre, SETTINGS)
    w = np.random.default_rng(3).normal(size=(6, 3))
    exponent = -SETTINGS.nbeta * f(torch.as_tensor(w)).numpy() - SETTINGS.gamma / 2 * ((w - centre) ** 2).sum(1)
    delta = w - law.mean
    log_density = -0.5 * np.einsum("ni,ij,nj->n", delta, np.linalg.inv(law.covariance), delta)
    assert np.ptp(exponent - log_density) < 1e-10 * np.ptp(exponent)


def test_moments_of_quadratic_observables_by_quadrature():
    """Gauss-Hermite integrates polynomials of this degree exactly."""
    law = quadratic.gibbs(random_potential(4), np.zeros(3), SETTINGS)
    f, g = random_potential(5), random_potential(6)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3)
    weight = np.einsum("i,j,k->ijk", weights, weights, weights).ravel() / (2 * math.pi) ** 1.5
    w = torch.as_tensor(law.mean + grid @ np.linalg.cholesky(law.covariance).T)
    f_values, g_values = f(w).numpy(), g(w).numpy()
    assert law.expectation(f) == pytest.approx(weight @ f_values, rel=1e-10)
    covariance = weight @ (f_values * g_values) - (weight @ f_values) * (weight @ g_values)
    assert law.covariance_of(f, g) == pytest.approx(covariance, rel=1e-10)


def test_covariance_is_half_the_trace_where_the_mean_is_the_origin():
    """Cov(½δᵀAδ, bᵀδ + ½δᵀBδ) = ½ tr(AΣBΣ), whatever b is."""
    rng = np.random.default_rng(7)
    a, b = (root @ root.T for root in rng.normal(size=(2, 3, 3)))
    law = quadratic.Normal(np.zeros(3), np.diag([0.5, 1.0, 2.0]))
    f, g = quadratic.Quadratic.bowl(a), quadratic.Quadratic(b, np.zeros(3), rng.normal(size=3))
    expected = 0.5 * np.trace(a @ law.covariance @ b @ law.covariance)
    assert law.covariance_of(f, g) == pytest.approx(expected, rel=1e-12)


def recursion(f, centre, settings, steps, noise, scale):
    """Mean and covariance of the chain by iterating its defining linear map."""
    d = len(centre)
    hessian = quadratic.precision(f, settings)
    mean_fixed = quadratic.gibbs(f, centre, settings).mean
    step = np.eye(d) - settings.step_size / 2 * scale[:, None] * hessian
    kick = settings.step_size * np.diag(scale)
    kick = kick + (settings.step_size * settings.nbeta / 2) ** 2 * scale[:, None] * noise * scale
    mean, covariance = centre.copy(), np.zeros((d, d))
    for _ in range(steps):
        mean = mean_fixed + step @ (mean - mean_fixed)
        covariance = step @ covariance @ step.T + kick
    return mean, covariance


@pytest.mark.parametrize("steps", [1, 7, None])
def test_sgld_law_is_the_fixed_point_of_the_update(steps):
    f, centre = random_potential(8), np.array([1.0, -1.0, 0.5])
    scale = np.array([1.0, 0.5, 0.2])
    noise = random_potential(9).curvature
    law = quadratic.sgld_law(f, centre, SETTINGS, steps=steps, gradient_noise=noise, scale=scale)
    mean, covariance = recursion(f, centre, SETTINGS, steps or 2000, noise, scale)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(law.covariance, covariance, rtol=1e-9, atol=1e-12)


def test_stationary_variance_in_each_eigendirection():
    """(1/λ) / (1 - ελ/4), and with gradient noise of covariance S plus ¼ε²(nβ)² S / (1 - (1 - ½ελ)²)."""
    f = quadratic.Quadratic.bowl(np.diag([0.5, 1.0, 4.0]))
    eigenvalues = SETTINGS.nbeta * np.array([0.5, 1.0, 4.0]) + SETTINGS.gamma
    epsilon = SETTINGS.step_size
    plain = 1 / eigenvalues / (1 - epsilon * eigenvalues / 4)
    law = quadratic.sgld_law(f, np.zeros(3), SETTINGS)
    np.testing.assert_allclose(law.covariance, np.diag(plain), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(quadratic.sgld_variance(eigenvalues, epsilon), plain, rtol=1e-12)
    s = np.array([3.0, 2.0, 1.0])
    extra = epsilon**2 / 4 * SETTINGS.nbeta**2 * s / (1 - (1 - epsilon * eigenvalues / 2) ** 2)
    noisy = quadratic.sgld_law(f, np.zeros(3), SETTINGS, gradient_noise=np.diag(s))
    np.testing.assert_allclose(np.diag(noisy.covariance), plain + extra, rtol=1e-12)


def midpoint_variance(eigenvalue, step_size):
    """Stationary variance of (δ_t + δ_{t+1}) / 2, the mean of two consecutive SGLD positions: 1/λ, with no bias at all.

    With r = 1 - ελ/2 and V = ε / (1 - r²) it is ((1 + r)² V + ε) / 4 = ε / (2 (1 - r)) = 1/λ. On other potentials the
    bias of midpoints is of second order in ε (Leimkuhler and Matthews, 2013), that of positions of first order.
    """
    r = 1 - step_size * eigenvalue / 2
    return ((1 + r) ** 2 * quadratic.sgld_variance(eigenvalue, step_size) + step_size) / 4


@given(st.floats(0.01, 100), st.floats(0.01, 0.99))
def test_bias_inflates_and_vanishes_with_the_step(eigenvalue, fraction):
    step = fraction * 4 / eigenvalue
    assert quadratic.sgld_variance(eigenvalue, step) > 1 / eigenvalue
    ratio = quadratic.sgld_variance(eigenvalue, 1e-6 / eigenvalue) * eigenvalue
    assert ratio == pytest.approx(1, abs=1e-6)
    assert midpoint_variance(eigenvalue, step) * eigenvalue == pytest.approx(1, rel=1e-9)


def test_constant_preconditioner_leaves_the_law_of_small_steps():
    f, centre, scale = random_potential(10), np.zeros(3), np.array([1.0, 0.3, 0.1])
    small = Settings(nbeta=3.0, gamma=2.0, step_size=1e-7, preconditioner="none")
    law = quadratic.sgld_law(f, centre, small, scale=scale)
    np.testing.assert_allclose(law.covariance, quadratic.gibbs(f, centre, small).covariance, rtol=1e-5, atol=1e-9)


def test_no_stationary_law_beyond_the_stability_limit():
    f = quadratic.Quadratic.bowl(np.diag([1.0, 10.0]))
    limit = quadratic.largest_step(f, SETTINGS)
    assert limit == pytest.approx(4 / (3 * 10 + 2))
    below, beyond = (Settings(nbeta=3.0, gamma=2.0, step_size=limit * x, preconditioner="none") for x in (0.999, 1.001))
    assert quadratic.sgld_law(f, np.zeros(2), below).covariance[1, 1] > 100 / 32
    with pytest.raises(ValueError, match=r"step_size must be below 4/λ_max = 0\.125"):
        quadratic.sgld_law(f, np.zeros(2), beyond)


def test_variance_of_a_chain_without_the_loss():
    """nβ = 0: an AR(1) chain with variance (1/γ) / (1 - εγ/4) in every direction, whatever the loss."""
    control = Settings(nbeta=0.0, gamma=50.0, step_size=0.02, preconditioner="none")
    law = quadratic.sgld_law(random_potential(11), np.zeros(3), control)
    np.testing.assert_allclose(law.covariance, np.eye(3) * quadratic.sgld_variance(50.0, 0.02), rtol=1e-12, atol=1e-15)
    assert quadratic.sgld_variance(50.0, 0.02) == pytest.approx(1 / 50 / 0.75)


def test_effective_draws_is_the_sum_of_autocorrelations():
    rho = quadratic.autocorrelation(2.0, 0.1, 5)
    assert rho == pytest.approx(0.9**5)
    lags = np.arange(1, 2000)
    assert quadratic.ar1_effective_draws(1000, rho) == pytest.approx(1000 / (1 + 2 * (rho**lags).sum()), rel=1e-12)


def test_memoryless_rmsprop_variance_by_quadrature():
    settings = Settings(nbeta=4.0, gamma=2.0, rms_epsilon=0.3)
    c, w = 5.0, np.linspace(-4, 4, 100_001)
    density = (c * np.abs(w) + 0.3) * np.exp(-(4.0 * c + 2.0) * w**2 / 2)
    expected = (density * w**2).sum() / density.sum()
    assert quadratic.memoryless_rmsprop_variance(c, settings) == pytest.approx(expected, rel=1e-6)


def test_replicated_copies_do_not_feel_each_other():
    f = random_potential(12)
    w = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    quadratic.replicated(f, 4)(w).backward()
    np.testing.assert_allclose(w.grad.view(4, 3), [f.slope_at(row) for row in w.detach().view(4, 3).numpy()])


def test_noisy_gradients_have_the_stated_covariance():
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    potential = quadratic.noisy(quadratic.Quadratic.bowl(np.eye(2)), covariance, seed=0)
    w = torch.zeros(40_000, 2, dtype=torch.float64, requires_grad=True)
    potential(w).sum().backward()
    # The standard deviation of an entry is √((S_ii S_jj + S_ij²) / n) <= 0.0142: five of them.
    np.testing.assert_allclose(np.cov(w.grad.numpy().T), covariance, atol=0.071)
