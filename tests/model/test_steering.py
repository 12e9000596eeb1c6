"""Steering: against steps by autograd in float64, and against its own first order."""

import numpy as np
import pytest
import torch
from reference import Reference

from spectrolib.model.engine import Engine
from spectrolib.model.gradients import mean_gradient, weighted_gradient
from spectrolib.model.loading import engine_of
from spectrolib.model.steering import Steered, Steering

RNG = np.random.default_rng(0)
TEXT, FIT, TEST = (RNG.integers(0, 53, size=(count, 12)) for count in (4, 3, 2))
CHOSEN = np.array([0, 3, 12, 20, 32])


def in_float64(model) -> Engine:
    engine = engine_of(model)
    return Engine(engine.shape, {name: weight.double() for name, weight in engine.weights.items()})


def descended(model, settings: Steering, rate: float, h: float) -> torch.Tensor:
    """Losses of the test windows after the steps, by transformers and autograd."""
    reference = Reference(model)
    weights = reference.weights
    for _ in range(settings.steps):
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        chosen = reference.losses(leaves, FIT).flatten()[torch.as_tensor(CHOSEN)].mean()
        ((1 - h) * reference.losses(leaves, TEXT).mean() + h * chosen).backward()
        weights = {name: w.detach() - rate * w.grad for name, w in leaves.items()}
    return reference.losses(weights, TEST).detach().flatten()


def test_the_fall_is_that_of_steps_by_autograd(tiny_gpt_neox):
    settings = Steering(h=0.4, steps=2, fall=0.02)
    steered = Steered(in_float64(tiny_gpt_neox), TEXT, FIT, TEST, settings)
    expected = descended(tiny_gpt_neox, settings, steered.rate, 0.0) - descended(
        tiny_gpt_neox, settings, steered.rate, settings.h
    )
    found = steered.fall(CHOSEN)
    assert np.abs(found).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_short_steps_follow_the_kernel_of_gradients(tiny_gpt_neox):
    """η steps h ∇l · (∇L_S - ∇L), up to what is of second order in η."""
    engine, settings = in_float64(tiny_gpt_neox), Steering(h=0.5, steps=2, fall=1e-6)
    steered = Steered(engine, TEXT, FIT, TEST, settings)
    weights = torch.zeros(FIT[:, 1:].size, dtype=torch.float64)
    weights[CHOSEN] = 1 / len(CHOSEN)
    towards, away = weighted_gradient(engine, FIT, weights.view(len(FIT), -1)), mean_gradient(engine, TEXT)
    one = torch.zeros(TEST[:, 1:].size, dtype=torch.float64)
    one[7] = 1
    token = weighted_gradient(engine, TEST, one.view(len(TEST), -1))
    product = sum((token[name] * (towards[name] - away[name])).sum() for name in token)
    expected = steered.rate * settings.steps * settings.h * float(product)
    assert steered.fall(CHOSEN)[7] == pytest.approx(expected, rel=1e-2)


def test_a_step_without_a_tilt_lowers_the_text_as_asked(tiny_gpt_neox):
    settings = Steering(steps=1, fall=1e-5)
    engine = in_float64(tiny_gpt_neox)
    steered = Steered(engine, TEXT, FIT, TEXT, settings)
    before = engine.losses(TEXT).double().mean()
    assert float(before - steered.plain.mean()) == pytest.approx(1e-5, rel=0.05)


def test_the_weighted_gradient_of_equal_weights_is_the_mean_one(tiny_gpt_neox):
    engine = in_float64(tiny_gpt_neox)
    weights = torch.full(FIT[:, 1:].shape, 1 / FIT[:, 1:].size, dtype=torch.float64)
    mean = mean_gradient(engine, FIT)
    for name, slope in weighted_gradient(engine, FIT, weights).items():
        torch.testing.assert_close(slope, mean[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"h": 0.0}, "h must lie above 0"), ({"steps": 0}, "steps must be"), ({"fall": 0.0}, "fall must be positive")],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Steering(**change)


@pytest.mark.parametrize("chosen", [[], [33], [-1]])
def test_sets_that_are_none_are_refused(chosen, tiny_gpt_neox):
    with pytest.raises(ValueError, match="some of the 33 tokens of the fit windows"):
        Steered(engine_of(tiny_gpt_neox), TEXT, FIT, TEST).fall(np.array(chosen, dtype=int))
