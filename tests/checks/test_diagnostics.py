"""Diagnostics against made-up results whose answers are known."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from spectrolib.checks.diagnostics import (
    RULES,
    acceptance,
    column_reliability,
    convergence,
    effective_draws,
    r_hat,
    rise_error,
    spearman_brown,
    token_reliability,
)
from spectrolib.posterior import Settings

PLAIN = Settings(step_size=1.3e-3, gamma=300.0, preconditioner="none", steps_between_draws=12)


def result(traces: dict[str, np.ndarray], settings: Settings = PLAIN, halves: np.ndarray | None = None) -> xr.Dataset:
    """A result with these (chain, draw) traces and (estimator, half, block, token, component) halves."""
    variables = {"loss_rise": (("sampled", "chain", "draw"), np.stack(list(traces.values())))}
    coordinates = {"sampled": list(traces)}
    if halves is not None:
        variables["half_susceptibility"] = (("estimator", "half", "block", "token", "component"), halves)
        names = [f"c{i}" for i in range(halves.shape[4])]
        coordinates |= {"estimator": ["two_chain", "one_chain"], "component": names}
        coordinates |= {"block": [10 * (b + 1) for b in range(halves.shape[2])]}
    attributes = {"manifest": json.dumps({"settings": vars(settings)}), "estimator": "two_chain"}
    return xr.Dataset(variables, coordinates, attributes)


def good(chains: int = 4, draws: int = 100, seed: int = 0) -> np.ndarray:
    return 0.05 + 0.01 * np.random.default_rng(seed).standard_normal((chains, draws))


# Chains


def split_r_hat(trace: np.ndarray) -> float:
    """R-hat of half chains as in the textbook (Gelman et al. 2013, section 11.4), without ranks."""
    n = trace.shape[1] // 2
    halves = np.concatenate([trace[:, :n], trace[:, -n:]])
    within = halves.var(axis=1, ddof=1).mean()
    between = n * halves.mean(axis=1).var(ddof=1)
    return math.sqrt((n - 1) / n + between / within / n)


def test_r_hat_is_the_textbooks_for_normal_draws():
    together, apart = good(), good() + 0.01 * np.arange(4)[:, None]
    assert r_hat(together) == pytest.approx(split_r_hat(together), abs=0.01)
    assert r_hat(apart) == pytest.approx(split_r_hat(apart), rel=0.05)
    assert r_hat(together) < 1.02 < 1.3 < r_hat(apart)


def test_effective_draws_of_an_autoregression():
    """Draws that keep a part a of the last one are worth (1 - a)/(1 + a) independent ones each."""
    rng, part = np.random.default_rng(1), 0.6
    trace = np.empty((4, 2000))
    trace[:, 0] = rng.standard_normal(4)
    for draw in range(1, 2000):
        trace[:, draw] = part * trace[:, draw - 1] + math.sqrt(1 - part**2) * rng.standard_normal(4)
    assert effective_draws(trace) == pytest.approx(8000 * (1 - part) / (1 + part), rel=0.15)
    assert effective_draws(good(4, 2000)) == pytest.approx(8000, rel=0.1)


def test_too_few_draws_give_nan_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(r_hat(good(1, 50)))
        assert math.isnan(r_hat(good(4, 7)))
        assert r_hat(good(4, 8)) > 0
        assert math.isnan(effective_draws(good(4, 11)))
        assert math.isnan(r_hat(np.ones((4, 50))))
        assert effective_draws(good(1, 50)) > 10
        checks = acceptance(result({"a": good(1, 3)}))
    assert {check.rule: check.passed for check in checks if check.component == "a"} == {
        "rises": True,
        "flat": None,
        "no spikes": None,
        "chains agree": None,
    }


def test_convergence_is_labelled():
    table = convergence(result({"l0h0": good(seed=1), "full": good(seed=2)}))
    assert table["sampled"].values.tolist() == ["l0h0", "full"]
    assert float(table["r_hat"].sel(sampled="full")) == r_hat(good(seed=2))
    assert float(table["effective_draws"].sel(sampled="l0h0")) == effective_draws(good(seed=1))
    assert float(table["rise_error"].sel(sampled="l0h0")) == rise_error(good(seed=1))


def test_the_error_of_the_rise_is_that_of_independent_draws_and_sees_chains_that_differ():
    """Over many sets, the mean squared error bar of independent draws is σ²/N, for few draws as for many."""
    for chains, draws in ((4, 4), (4, 100)):
        bars = [rise_error(good(chains, draws, seed)) for seed in range(400)]
        assert np.mean(np.square(bars)) == pytest.approx((0.01 / 0.05) ** 2 / (chains * draws), rel=0.15)
    heights = np.array([0.04, 0.06])[:, None] + np.zeros((2, 4))
    assert rise_error(heights) == pytest.approx(0.2)  # means 0.04 and 0.06: spread 0.0141, error 0.01 of 0.05
    assert math.isnan(rise_error(good(1, 50)))


def test_teams_of_few_draws_get_no_verdict_about_their_traces():
    team = Settings(step_size=1.3e-3, gamma=300.0, preconditioner="none", steps_between_draws=12, draws=4)
    made = result({"a": good(4, 4), "full": good(4, 4, 1)}, replace(team, antithetic=True, tilt=10.0))
    verdicts = {(check.component, check.rule): check.passed for check in acceptance(made)}
    assert verdicts["a", "rises"] is verdicts["all", "small steps"] is verdicts["all", "relaxed draws"] is True
    for rule in ("flat", "no spikes", "chains agree"):
        assert verdicts["a", rule] is verdicts["full", rule] is None
    table = convergence(made)
    assert np.isnan(table["r_hat"]).all()
    assert np.isnan(table["effective_draws"]).all()
    assert (table["rise_error"] > 0).all()


# Rules of acceptance


def failed(trace: np.ndarray) -> set[str]:
    checks = acceptance(result({"a": trace}))
    assert [check.rule for check in checks] == list(RULES)
    return {check.rule for check in checks if check.passed is False}


def test_a_good_trace_passes():
    assert failed(good()) == set()


def test_a_trace_below_the_start_does_not_rise():
    assert failed(good() - 0.1) == {"rises"}


def test_a_trace_that_still_climbs_is_not_flat():
    assert failed(good() + 0.05 * np.linspace(0, 1, 100)) >= {"flat"}
    assert failed(good() - 0.05 * np.linspace(0, 1, 100) + 0.05) >= {"flat"}
    settling = 0.2 * np.exp(-np.arange(100) / 3)  # over in the first quarter: fine
    assert "flat" not in failed(good() - settling)


def test_one_draw_far_above_the_others_is_a_spike():
    trace = good()
    trace[2, 60] += 0.15
    assert failed(trace) == {"no spikes"}
    early = good()
    early[2, 3] += 0.15  # before the chain has settled
    assert failed(early) == set()


def test_chains_at_different_heights_do_not_agree():
    assert failed(good() + 0.02 * np.arange(4)[:, None]) == {"chains agree"}


@pytest.mark.parametrize(("chains", "draws"), [(2, 8), (4, 12), (4, 100)])
def test_chance_alone_rarely_fails_a_rule(chains, draws):
    """Sets of chains of independent draws: at most one in thirty fails a rule, however few the draws."""
    runs = {f"set {seed}": good(chains, draws, seed) for seed in range(150)}
    failures = [check.rule for check in acceptance(result(runs)) if check.passed is False]
    for rule in ("rises", "flat", "no spikes", "chains agree"):
        assert failures.count(rule) <= 5, rule


@pytest.mark.parametrize(
    ("settings", "fraction", "small", "relaxed"),
    [
        (PLAIN, 0.195, True, True),
        (Settings(step_size=3e-3, gamma=300.0, preconditioner="none", steps_between_draws=4), 0.45, False, True),
        (Settings(step_size=1e-4, gamma=300.0, preconditioner="none", steps_between_draws=4), 0.015, True, False),
        (Settings(step_size=1e-4, gamma=300.0, preconditioner="rmsprop", steps_between_draws=16), 0.15, True, True),
    ],
)
def test_the_steps_are_judged_by_their_relaxation(settings, fraction, small, relaxed):
    steps, draws = acceptance(result({"a": good()}, settings))[-2:]
    assert (steps.rule, draws.rule) == ("small steps", "relaxed draws")
    assert steps.value == pytest.approx(fraction)
    assert draws.value == pytest.approx(fraction * settings.steps_between_draws)
    assert (steps.passed, draws.passed) == (small, relaxed)


def test_demands_read_as_words():
    demands = {check.rule: check.demand for check in acceptance(result({"a": good()}))}
    assert demands["rises"] == "above 0"
    assert demands["flat"] == "-0.5 to 0.5"
    assert demands["chains agree"] == "below 1.1"
    assert demands["relaxed draws"] == "1.2 to 5"


# Reliability


def halves_of_known_reliability(tokens: int, signal: np.ndarray, noise: np.ndarray, blocks: int = 1) -> np.ndarray:
    """Two halves that share a signal; the noise variance of a half falls as the blocks add up."""
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((tokens, len(signal))) * signal
    tables = [
        [shared + rng.standard_normal(shared.shape) * noise * math.sqrt(blocks / (b + 1)) for b in range(blocks)]
        for _ in range(2)
    ]
    one_chain = rng.standard_normal((2, blocks, *shared.shape))
    return np.stack([np.array(tables), one_chain])


def test_column_reliability_is_the_share_of_the_signal():
    """A half has noise variance n, so the whole n/2: its reliability is s / (s + n/2) with signal variance s."""
    signal, noise = np.array([1.0, 2.0, 1.0, 0.5]), np.array([1.0, 1.0, 0.5, 2.0])
    made = result({"a": good()}, halves=halves_of_known_reliability(20_000, signal, noise))
    measured = column_reliability(made)
    assert measured["component"].values.tolist() == ["c0", "c1", "c2", "c3"]
    np.testing.assert_allclose(measured, signal**2 / (signal**2 + noise**2 / 2), atol=0.02)
    np.testing.assert_allclose(column_reliability(made, "one_chain"), 0, atol=0.04)


def test_token_reliability_is_the_cosine_of_standardised_rows():
    """Many columns of equal signal and noise: the cosine between rows tends to s / (s + n)."""
    ones = np.ones(200)
    made = result({"a": good()}, halves=halves_of_known_reliability(500, ones, 0.7 * ones))
    measured = token_reliability(made)
    assert measured.shape == (500,)
    assert float(measured.mean()) == pytest.approx(1 / (1 + 0.49), abs=0.01)
    assert float(token_reliability(made, rows=None).mean()) == pytest.approx(1 / (1 + 0.49), abs=0.01)
    assert float(token_reliability(made, estimator="one_chain").mean()) == pytest.approx(0, abs=0.02)
    same = made.isel(half=[0, 0])
    np.testing.assert_allclose(token_reliability(same), 1)


def test_reliability_rises_with_the_draws():
    ones = np.ones(40)
    made = result({"a": good()}, halves=halves_of_known_reliability(2000, ones, 0.5 * ones, blocks=4))
    draws = made["block"].values.tolist()
    assert draws == [10, 20, 30, 40]
    column = [float(np.median(column_reliability(made, draws=n))) for n in draws]
    token = [float(np.median(token_reliability(made, draws=n))) for n in draws]
    noise = 0.25 * 4 / np.arange(1, 5)
    np.testing.assert_allclose(column, 1 / (1 + noise / 2), atol=0.02)
    np.testing.assert_allclose(token, 1 / (1 + noise), atol=0.05)


def test_spearman_brown():
    np.testing.assert_allclose(spearman_brown(np.array([0, 0.5, 1, -0.5, -1])), [0, 2 / 3, 1, -2 / 3, -1])


def test_a_constant_column_has_no_reliability():
    halves = halves_of_known_reliability(50, np.ones(3), np.ones(3))
    halves[..., 1] = 2.0
    made = result({"a": good()}, halves=halves)
    assert np.isnan(column_reliability(made).values).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"columns \[1\] are constant"):
        token_reliability(made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "mean"}, "unknown estimator 'mean'"),
        ({"draws": 7}, r"no split halves after 7 draws: there are some after \[10\]"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    made = result({"a": good()}, halves=halves_of_known_reliability(50, np.ones(3), np.ones(3)))
    for reliability in (column_reliability, token_reliability):
        with pytest.raises(ValueError, match=message):
            reliability(made, **arguments)


def test_one_chain_has_no_halves():
    with pytest.raises(ValueError, match="at least 2 chains"):
        column_reliability(result({"a": good(1)}))
