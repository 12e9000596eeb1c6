"""Shakes of a few weights, against second order by autograd in float64."""

import numpy as np
import pytest
import torch
from reference import Reference, put

from spectrobook import directions, shaking
from spectrolib.exact.quadratic import Normal, Quadratic
from spectrolib.model.components import blocks, gather, weight_count
from spectrolib.model.loading import engine_of

NAME, MOVING, GAMMA = "l1 mlp", 12, 1000.0


@pytest.fixture(scope="module")
def engine(tiny_model):
    return engine_of(tiny_model)


def test_means_spreads_and_covariances_are_those_of_second_order(engine, tiny_gpt_neox, tiny_windows):
    reference, text = Reference(tiny_gpt_neox), tiny_windows[:2]
    own = blocks(NAME, engine.shape, tuple(engine.weights))
    start = gather(reference.weights, own)
    some = shaking.chosen_weights(weight_count(NAME, engine.shape), MOVING, NAME)

    def losses(x):
        return reference.losses(put(reference.weights, own, start.index_add(0, some, x)), text).flatten()

    zero = torch.zeros(MOVING, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(losses, zero)
    curvature = torch.stack(
        [torch.autograd.functional.hessian(lambda x, i=i: losses(x)[i], zero) for i in range(len(slope))]
    )
    g, h = slope.mean(0), curvature.mean(0)
    d, k = slope - g, curvature - h
    trace = lambda a: a.diagonal(dim1=-2, dim2=-1).sum(-1).numpy()  # noqa: E731
    moment = trace(k) / (2 * GAMMA)
    covariance = (d @ g).numpy() / GAMMA + trace(k @ h) / (2 * GAMMA**2)
    spread = np.sqrt((d**2).sum(-1).numpy() / GAMMA + trace(k @ k) / (2 * GAMMA**2))

    gradient = directions.mean_gradients(engine, text, [NAME])[NAME]
    options = dict(text=text, gamma=GAMMA, pairs=128, weights=MOVING)
    found = shaking.shake(engine, text, NAME, gradient, **options)
    assert np.corrcoef(found.moment.mean(0), moment)[0, 1] > 0.97
    assert found.rise == pytest.approx(trace(h) / (2 * GAMMA), abs=4 * found.rise_spread / 128**0.5)
    assert found.rise_spread == pytest.approx(
        float((g @ g / GAMMA + (h @ h).trace() / (2 * GAMMA**2)) ** 0.5), rel=0.25
    )
    assert np.corrcoef(found.moment_spread, spread)[0, 1] > 0.97
    assert np.median(found.moment_spread / spread) == pytest.approx(1, rel=0.1)
    assert np.corrcoef(found.covariance.mean(0), covariance)[0, 1] > 0.99
    assert found.covariance.mean(0).std() == pytest.approx(covariance.std(), rel=0.05)


def test_what_two_halves_have_in_common():
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=100_000), rng.normal(size=(2, 100_000))
    assert shaking.spread(2 * truth + noise) == pytest.approx(2, rel=0.01)
    assert np.isnan(shaking.spread(np.array([[1.0, -1], [-1, 1]])))


def test_what_cannot_be_shaken(engine, tiny_windows):
    gradient = directions.mean_gradients(engine, tiny_windows, [NAME])[NAME]
    shake = lambda **other: shaking.shake(engine, tiny_windows, NAME, gradient, text=tiny_windows, gamma=1, **other)  # noqa: E731
    with pytest.raises(ValueError, match="pairs must be a multiple of four, two for each half, got 6"):
        shake(pairs=6)
    with pytest.raises(ValueError, match=r"l1 mlp has \d+ weights: from 1 to all of them can move, not 0"):
        shake(weights=0)


def test_widths_in_bowls_are_those_of_the_normal_law():
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(5, 3)), rng.exponential(size=(5, 3))
    law = Normal(np.zeros(3), np.eye(3) / 7)
    token = lambda b, a: Quadratic(np.diag(a), np.zeros(3), b)  # noqa: E731
    mean = token(b.mean(0), a.mean(0))
    rest = [token(x - b.mean(0), y - a.mean(0)) for x, y in zip(b, a, strict=True)]
    found = shaking.widths_in_bowls(b, a, 7.0)
    assert found.covariance == pytest.approx(np.std([law.covariance_of(mean, d) for d in rest]))
    assert found.moment == pytest.approx(law.expectation(mean) * np.std([law.expectation(d) for d in rest]))
