"""Noise of the posterior's width: what it does to the loss, and when it is too much."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from spectrolib.checks.locality import check_locality, rise_at
from spectrolib.model.engine import Engine
from spectrolib.model.loading import engine_of
from spectrolib.posterior import Settings

SETTINGS = Settings(nbeta=10.0, gamma=1e4, antithetic=True, tilt=10.0, max_rise=0.5)


@pytest.fixture(scope="module")
def engine(tiny_gpt_neox):
    return engine_of(tiny_gpt_neox)


def test_it_is_the_mean_rise_of_models_that_were_moved(engine, tiny_windows):
    weights = engine.weights
    gamma, start = 100.0, engine.losses(tiny_windows).double().mean()
    rises = []
    for seed in range(200):  # other noise of the same width
        generator = torch.Generator().manual_seed(seed)
        noise = {n: torch.randn(w.shape, generator=generator) / math.sqrt(gamma) for n, w in weights.items()}
        for sign in (1, -1):
            moved = Engine(engine.shape, {n: w + sign * noise[n] for n, w in weights.items()})
            rises.append(float(moved.losses(tiny_windows).double().mean() - start))
    own = [rise_at(engine, gamma, tiny_windows, seed=seed) for seed in range(60)]
    error = np.std(own) / math.sqrt(len(own)) + np.std(rises) / math.sqrt(len(rises) / 2)
    assert np.mean(own) == pytest.approx(np.mean(rises), abs=4 * error)
    assert np.mean(own) > 5 * error, "else nothing is compared"


def test_a_wider_posterior_rises_more_and_a_component_less_than_the_whole(engine, tiny_windows):
    rises = [np.mean([rise_at(engine, g, tiny_windows, seed=s) for s in range(20)]) for g in (1e4, 1e3, 1e2)]
    assert 0 < rises[0] < rises[1] < rises[2]
    part = np.mean([rise_at(engine, 1e2, tiny_windows, component="l0 mlp", seed=s) for s in range(20)])
    assert 0 < part < rises[2]


def test_a_gamma_that_is_too_loose_is_refused_with_one_that_would_do(engine, tiny_windows):
    check_locality(engine, SETTINGS, tiny_windows)
    with pytest.raises(ValueError, match="gamma 1 is too loose for this model") as refusal:
        check_locality(engine, replace(SETTINGS, gamma=1.0), tiny_windows)
    named = float(re.search(r"--gamma (\S+) would do", str(refusal.value))[1])
    check_locality(engine, replace(SETTINGS, gamma=named), tiny_windows)


def test_without_the_whole_model_the_loudest_component_must_be_local(engine, tiny_windows):
    names = ("l0h0", "l0 mlp", "unembed")
    gamma, some = 30.0, replace(SETTINGS, gamma=30.0)
    rises = {name: rise_at(engine, gamma, tiny_windows, component=name) for name in names}
    loudest = max(rises, key=rises.get)
    check_locality(engine, replace(some, max_rise=rises[loudest] * 1.01), tiny_windows, names)
    with pytest.raises(ValueError, match=f"noise of that width in {loudest} raises the loss"):
        check_locality(engine, replace(some, max_rise=rises[loudest] * 0.99), tiny_windows, names)
    assert rise_at(engine, gamma, tiny_windows) > rises[loudest] * 1.01


def test_nothing_is_said_of_chains_that_the_loss_may_hold(engine, tiny_windows):
    check_locality(engine, replace(SETTINGS, gamma=1.0, tilt=0.0), tiny_windows)
    with pytest.raises(ValueError, match="too loose"):
        check_locality(engine, replace(SETTINGS, gamma=1.0, tilt=0.0, nbeta=0.0), tiny_windows)
