"""Kernels against quadrature and closed forms, what rows do not show, the bound on wrong neighbours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectrobook import purity
from spectrolib import modes
from spectrolib.estimator import ResolvedSums
from spectrolib.exact import enumerable, quadratic, resolution, toys
from spectrolib.posterior import Settings

SETTINGS = Settings(nbeta=0.0, gamma=100.0, step_size=1e-6, preconditioner="none")
BILINEAR = toys.Bilinear.of(toys.planted_reasons(contexts=3))
HEAD = toys.CopyingHead.random(seed=1)
each_model = pytest.mark.parametrize(
    "model, block", [(BILINEAR, "brackets"), (BILINEAR, "mixed 1"), (HEAD, "ov")], ids=["named", "mixed", "attention"]
)


def random_kernel(seed: int, tokens: int, rank: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(tokens, rank))
    return rows @ rows.T


def relative(found, truth) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


# Kernels


@each_model
def test_the_loss_kernel_is_linear_in_the_coefficients_of_tokens(model, block):
    """K = C K_modes Cᵀ, with the covariance of the mode-pair losses in the middle."""
    grid, found = enumerable.posterior(model, block, SETTINGS), modes.decompose(model.joint)
    pairs = modes.pair_losses(grid.losses, found).reshape(len(grid.weights), -1)
    centred = pairs - grid.weights @ pairs
    middle = (centred * grid.weights[:, None]).T @ centred
    c = modes.coefficients(found).reshape(model.joint.size, -1)
    np.testing.assert_allclose(resolution.loss_kernel(grid), c @ middle @ c.T, rtol=0, atol=1e-10)


@each_model
def test_slopes_are_the_gradients_of_finite_differences(model, block):
    d, h = len(model.BLOCKS[block]), 1e-5
    steps = h * np.eye(d)
    ends = [torch.as_tensor(sign * steps) for sign in (1, -1)]
    above, below = (model.losses(model.place(block, end)).numpy().reshape(d, -1) for end in ends)
    np.testing.assert_allclose(resolution.slopes(model, block), ((above - below) / (2 * h)).T, atol=1e-8)


@each_model
@pytest.mark.parametrize("ratio", [0.0, 5.0], ids=["flat", "driven"])
def test_the_first_order_kernel_is_right_to_first_order(model, block, ratio):
    """Ten times γ, at a fixed ratio to nβ: a tenth of the error."""
    errors = []
    for gamma in (300.0, 3000.0):
        settings = replace(SETTINGS, gamma=gamma, nbeta=ratio * gamma)
        truth = resolution.loss_kernel(enumerable.posterior(model, block, settings))
        errors.append(relative(resolution.first_order_kernel(model, block, settings), truth))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] < 0.01


def test_on_quadratic_losses_only_curvature_is_left_out():
    """Cov(l, l') = ∇l (nβ H + γ)⁻¹ ∇l' + ½ tr(A Σ A' Σ), with the gradients at the posterior's mean, here w*."""
    rng, d = np.random.default_rng(2), 4
    curvature = np.diag(rng.uniform(0.1, 5, d))
    settings = replace(SETTINGS, nbeta=40.0)
    law = quadratic.gibbs(quadratic.Quadratic.bowl(curvature), np.zeros(d), settings)
    slopes, bends = rng.normal(size=(3, d)), [np.diag(rng.normal(size=d)) for _ in range(3)]
    losses = [quadratic.Quadratic(bend, np.zeros(d), slope) for bend, slope in zip(bends, slopes, strict=True)]
    truth = np.array([[law.covariance_of(a, b) for b in losses] for a in losses])
    ridge = slopes @ np.linalg.inv(settings.nbeta * curvature + settings.gamma * np.eye(d)) @ slopes.T
    rest = [[np.trace(a @ law.covariance @ b @ law.covariance) / 2 for b in bends] for a in bends]
    np.testing.assert_allclose(truth, ridge + np.array(rest), rtol=1e-10)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_effective_dimension_lies_between_one_and_the_rank(seed, rank):
    assert 1 - 1e-9 <= resolution.effective_dimension(random_kernel(seed, 8, rank)) <= rank + 1e-9
    assert resolution.effective_dimension(np.eye(rank)) == pytest.approx(rank)


@pytest.mark.parametrize("turns", [1, 4])
def test_the_error_of_the_kernel_is_that_of_its_channels_folded_or_not(turns):
    """n normal draws folded into N <= n channels have the error of N draws."""
    channels, tokens, found = 64, 12, []
    root = np.random.default_rng(0).normal(size=(tokens, 5))
    truth = root @ root.T
    for seed in range(300):
        draws = np.random.default_rng([1, seed]).normal(size=(turns * channels, 5)) @ root.T
        sums = ResolvedSums(tokens, channels, seed)
        for t, losses in enumerate(draws):
            sums.update(t, losses)
        rows = sums.rows().astype(float)
        found.append(relative(rows @ rows.T, truth) ** 2)
    expected = resolution.kernel_error(truth, channels)
    assert np.sqrt(np.mean(found)) == pytest.approx(expected, rel=0.06)
    assert expected > 1.8 * resolution.kernel_error(truth, 4 * channels)  # and that of all draws would be seen


# What is not seen


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 9), st.integers(1, 9))
def test_rows_show_as_many_differences_as_they_have_channels_and_no_others(seed, tokens, channels, rank):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(tokens, rank)) @ rng.normal(size=(rank, channels)) + 3
    power, hidden = resolution.unseen(rows)
    assert power == min(tokens - 1, rank, channels)
    assert hidden.shape == (tokens - 1 - power, tokens)
    np.testing.assert_allclose(hidden @ hidden.T, np.eye(len(hidden)), atol=1e-10)
    np.testing.assert_allclose(hidden.sum(axis=1), 0, atol=1e-10)
    np.testing.assert_allclose(hidden @ rows, 0, atol=1e-8)


def test_rows_that_are_all_alike_show_nothing():
    power, hidden = resolution.unseen(np.ones((4, 3)))
    assert power == 0 and hidden.shape == (3, 4)


def test_a_row_is_blind_to_a_difference_of_coefficients_in_the_null_space():
    """The differences that exact susceptibilities do not show are those whose coefficients M maps to zero."""
    names, found = ("brackets", "common"), modes.decompose(BILINEAR.joint)
    settings = replace(SETTINGS, nbeta=30.0)
    full = enumerable.Grid(np.zeros((1, 1)), np.ones(1), 1.0, BILINEAR.losses(BILINEAR.best).numpy()[None])  # not used
    chi = np.stack([enumerable.susceptibilities(BILINEAR, n, settings, full=full).one_chain for n in names], axis=-1)
    response = modes.response_map(modes.pair_susceptibilities(chi, found))
    power, hidden = resolution.unseen(chi.reshape(-1, 2) / chi.std())
    c = modes.coefficients(found).reshape(BILINEAR.joint.size, -1)
    assert power == 2 == np.linalg.matrix_rank(response)
    mapped = np.linalg.norm(hidden @ c @ response.T, axis=1)
    assert (mapped < 1e-9 * np.linalg.norm(hidden @ c, axis=1) * np.linalg.norm(response)).all()


# How many channels


def crowd(seed: int, reasons: int = 6, each: int = 4, d: int = 20, spread: float = 0.4):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(reasons), each)
    rows = rng.normal(size=(reasons, d))[labels] + spread * rng.normal(size=(len(labels), d))
    return rows @ rows.T, labels, ~np.eye(len(labels), dtype=bool)


def wrong(kernel, labels, may, channels: int, trials: int) -> float:
    """Measured: rows of normal channels with this kernel."""
    value, axes = np.linalg.eigh(kernel)
    root, found = axes * np.sqrt(np.maximum(value, 0)), []
    for trial in range(trials):
        rows = root @ np.random.default_rng([3, trial]).normal(size=(len(root), channels))
        found.append(1 - purity.purity(purity.neighbours(rows, 1, may), labels).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_are_wrong_no_more_often_than_the_bound(seed):
    world, counts = crowd(seed), np.array([4, 8, 16, 24])
    bound = resolution.mistakes(*world, counts)
    measured = np.array([wrong(*world, int(n), 60) for n in counts])
    assert (measured <= bound).all()
    assert (np.diff(bound) <= 0).all() and bound[-1] < 0.1 < measured[0]  # it says something, and so does the question


def test_for_uncorrelated_differences_the_bound_is_its_closed_form():
    """Token 0 has a mate at distance a along one axis and a stranger at distance b along another."""
    a, b, channels = 0.5, 1.0, np.array([1, 5, 20])
    rows, labels = np.array([[0, 0], [a, 0], [0, b]]), np.array([0, 0, 1])
    may = np.array([[False, True, True], [False] * 3, [False] * 3])
    found = resolution.mistakes(rows @ rows.T, labels, may, channels)
    np.testing.assert_allclose(found, (2 * a * b / (a * a + b * b)) ** channels, rtol=1e-9)


def test_a_stranger_that_is_closer_cannot_be_excluded():
    rows, labels = np.array([[0, 0], [1, 0], [0, 0.5]]), np.array([0, 0, 1])
    may = np.array([[False, True, True], [False] * 3, [False] * 3])
    np.testing.assert_array_equal(resolution.mistakes(rows @ rows.T, labels, may, np.array([1, 1000])), 1)
