"""Worlds that can be summed over: formulas, quadrature against the definition."""

import numpy as np
import pytest
import torch

from spectrolib.exact import enumerable
from spectrolib.posterior import Settings

TOY = enumerable.Toy.random(seed=0)


TOY_SETTINGS = Settings(nbeta=30.0, gamma=4.0, step_size=0.01, preconditioner="none")


def test_toy_losses_are_log_probabilities_of_its_formula():
    w = np.array([0.3, -0.5, 0.8])
    (x, y) = TOY.contexts, TOY.tokens
    logits = np.outer(x[:, 0] + w[0] * x[:, 1], y[:, 0] + w[1] * y[:, 1] + w[2] * y[:, 2])
    expected = np.log(np.exp(logits).sum(1, keepdims=True)) - logits
    np.testing.assert_allclose(TOY.losses(torch.as_tensor(w)).numpy(), expected, rtol=1e-12)


def test_toy_is_its_own_data_distribution():
    assert TOY.joint.sum() == pytest.approx(1)
    np.testing.assert_allclose(TOY.joint.sum(1), TOY.frequencies, rtol=1e-12)
    best = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    TOY.potential()(best).backward()
    np.testing.assert_allclose(best.grad, 0, atol=1e-15)  # w* minimises the loss


def test_restricted_potential_clamps_the_other_block():
    c = torch.tensor([0.4, -0.3], dtype=torch.float64)
    whole = torch.tensor([0.0, 0.4, -0.3], dtype=torch.float64)
    assert TOY.potential("out")(c) == TOY.potential()(whole)
    assert TOY.potential("in")(c[:1]) == TOY.potential()(torch.tensor([0.4, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("block", ["in", "out", "full"])
def test_grid_is_converged(block):
    coarse, fine = (enumerable.integrate(TOY, block, TOY_SETTINGS, side=side) for side in (41, 61))
    assert coarse.normaliser == pytest.approx(fine.normaliser, rel=1e-8)
    np.testing.assert_allclose(coarse.mean(coarse.losses), fine.mean(fine.losses), rtol=1e-8)


@pytest.mark.parametrize("block", ["in", "out"])
def test_delta_observable_on_the_full_grid_is_two_chain_times_the_factor(block):
    """φ_C = δ(u - u*) g, with the delta a unit of mass at the node u*: -Cov[φ_C, l - L] = (Z_C / Z) times two-chain."""
    full = enumerable.integrate(TOY, "full", TOY_SETTINGS)
    clamped = [i for i in range(3) if i not in TOY.BLOCKS[block]]
    spacing = np.array([np.diff(np.unique(full.points[:, i]))[0] for i in clamped])
    at_best = (np.abs(full.points[:, clamped]) < spacing / 2).all(1) / spacing.prod()
    rise, excess = enumerable.rise_and_excess(TOY, full.losses)
    phi = at_best * rise
    covariance = full.mean(phi[:, None, None] * excess) - full.mean(phi) * full.mean(excess)
    values = enumerable.susceptibilities(TOY, block, TOY_SETTINGS)
    np.testing.assert_allclose(-covariance, values.factor * values.two_chain, rtol=1e-10, atol=1e-15)
    assert abs(values.factor - 1) > 0.01  # so that the test would see a missing factor


@pytest.mark.parametrize("block", ["in", "out"])
def test_susceptibility_is_the_response_to_a_tilt_of_the_data(block):
    """The definition, by finite differences of the tilted posterior, is minus the covariance: for both observables."""
    values = enumerable.susceptibilities(TOY, block, TOY_SETTINGS)
    scale = np.abs(values.two_chain).max()
    for context, token in [(0, 0), (1, 2), (3, 1)]:
        response = enumerable.tilted_response(TOY, block, TOY_SETTINGS, context, token, delta=True)
        assert response == pytest.approx(values.factor * values.two_chain[context, token], abs=1e-6 * scale)
        response = enumerable.tilted_response(TOY, block, TOY_SETTINGS, context, token, delta=False)
        assert response == pytest.approx(values.one_chain[context, token], abs=1e-6 * scale)


@pytest.mark.parametrize("block", ["in", "out"])
def test_susceptibilities_average_to_zero_over_the_data(block):
    """E_q χ_xy = 0, because E_q l_xy = L."""
    values = enumerable.susceptibilities(TOY, block, TOY_SETTINGS)
    for chi in (values.two_chain, values.one_chain):
        assert abs((TOY.joint * chi).sum()) < 1e-12 * np.abs(chi).max()
    assert np.abs(values.two_chain - values.one_chain).max() > 0.1 * np.abs(values.one_chain).max()


def test_unperturbed_chain_mean_of_the_toy_matches_the_laplace_limit():
    """For a stiff localisation g is quadratic in a Gaussian: <g> -> ½ tr(∇²L) / γ."""
    stiff = Settings(nbeta=1.0, gamma=1e6, step_size=1e-7, preconditioner="none")
    grid = enumerable.integrate(TOY, "out", stiff)
    hessian = torch.autograd.functional.hessian(TOY.potential("out"), torch.zeros(2, dtype=torch.float64)).numpy()
    rise, _ = enumerable.rise_and_excess(TOY, grid.losses)
    assert grid.mean(rise) == pytest.approx(np.trace(hessian) / 2e6, rel=1e-4)
