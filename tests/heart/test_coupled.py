"""Coupled chains estimate what single ones do: against closed forms, and with less noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from spectrolib.estimator import CovarianceSums
from spectrolib.model.loading import engine_of
from spectrolib.posterior import PRECONDITIONERS, Member, Settings, sample

CURVATURE = torch.tensor([0.5, 4.0])
SLOPE = torch.tensor([0.7, -0.3])
PLAIN = Settings(
    nbeta=10.0,
    gamma=20.0,
    step_size=2e-3,
    preconditioner="none",
    draws=400,
    steps_between_draws=10,
    burn_in=300,
    seed=3,
)
TEAM = replace(PLAIN, antithetic=True, tilt=1.0)


def potential(w: torch.Tensor) -> torch.Tensor:
    """L(w) = slope·w + ½ Σ curvature w²."""
    return w @ SLOPE + (CURVATURE * w * w).sum() / 2


def losses(w: torch.Tensor) -> np.ndarray:
    """Two linear and two quadratic functions in place of token losses."""
    w = w.double()
    return np.array([w[0], w[1], w[0] ** 2 / 2, w[1] ** 2 / 2])


def exact_covariance(nbeta: float) -> np.ndarray:
    """Cov[L, losses] under the exact posterior, a Gaussian: E[δ²] and E[δ³] about its mean in closed form."""
    precision = PLAIN.gamma + nbeta * CURVATURE.double().numpy()
    mean, variance = -nbeta * SLOPE.double().numpy() / precision, 1 / precision
    slope = SLOPE.double().numpy() + CURVATURE.double().numpy() * mean  # of L at the mean
    linear = slope * variance
    quadratic = slope * mean * variance + CURVATURE.double().numpy() * variance**2 / 2
    return np.concatenate([linear, quadratic])


def estimate(settings: Settings, chain: int) -> np.ndarray:
    """Cov[L, losses] from one chain, or from one team."""
    sums = CovarianceSums()
    for draw in sample(potential, settings, start=torch.zeros(2), chain=chain):
        values = [losses(w) for w in draw.positions]
        for w, own in zip(draw.positions, values, strict=True):
            sums.update(float(potential(w)), own)
        if settings.tilt:
            for above, below in zip(values[::2], values[1::2], strict=True):
                sums.respond(above, below, settings.tilt)
    return sums.covariance()


def test_members_of_a_team():
    assert PLAIN.members == [Member(10.0, False, 0.0)]
    assert TEAM.members == [Member(11, False, 1), Member(9, False, -1), Member(11, True, 1), Member(9, True, -1)]
    assert TEAM.plain() == replace(PLAIN, draws=1600)
    assert not replace(PLAIN, tilt=10.0).drives(Member(0.0, False, -10.0))
    with pytest.raises(ValueError, match="tilt must be zero or positive"):
        replace(PLAIN, tilt=-1.0)


def test_the_response_is_the_covariance_with_less_noise():
    teams = np.array([estimate(replace(TEAM, draws=100), chain) for chain in range(12)])
    singles = np.array([estimate(PLAIN, chain) for chain in range(12)])
    truth = exact_covariance(PLAIN.nbeta)
    error = teams.std(axis=0, ddof=1) / np.sqrt(len(teams))
    # 3 %: the law of SGLD is wider than the posterior, and the tilt is finite
    assert (np.abs(teams.mean(axis=0) - truth) < 4 * error + 0.03 * np.abs(truth)).all()
    assert (teams.std(axis=0)[:2] < 0.05 * singles.std(axis=0)[:2]).all()  # of linear losses hardly any noise is left
    assert (np.abs(singles.mean(axis=0) - truth) < 4 * singles.std(axis=0) / np.sqrt(12) + 0.03 * np.abs(truth)).all()


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
def test_a_mirrored_chain_is_the_mirror_image_where_the_loss_is_even(preconditioner):
    even = lambda w: (CURVATURE * w * w).sum() / 2  # noqa: E731
    settings = replace(PLAIN, antithetic=True, draws=20, preconditioner=preconditioner)
    for draw in sample(even, settings, start=torch.zeros(2)):
        torch.testing.assert_close(draw.positions[1], -draw.positions[0], rtol=1e-4, atol=1e-6)


def test_the_first_member_without_a_tilt_is_the_plain_chain():
    plain = [d.position.clone() for d in sample(potential, replace(PLAIN, draws=5), start=torch.zeros(2))]
    team = replace(PLAIN, draws=5, antithetic=True)
    assert all(
        torch.equal(a, d.positions[0])
        for a, d in zip(plain, sample(potential, team, start=torch.zeros(2)), strict=True)
    )


def test_members_that_no_loss_drives_walk_as_the_control_at_nbeta_0():
    """Beside driven ones, whose losses stand where they stand."""
    even = lambda w: (CURVATURE * w * w).sum() / 2  # noqa: E731
    settings = replace(PLAIN, antithetic=True, tilt=PLAIN.nbeta, draws=5)
    control = sample(even, replace(PLAIN, nbeta=0.0, draws=5), start=torch.zeros(2))
    for draw, free in zip(sample(even, settings, start=torch.zeros(2)), control, strict=True):
        assert torch.equal(draw.positions[1], free.position)
        assert [math.isnan(loss) for loss in draw.losses] == [False, True, False, True]
        assert draw.losses[2] == pytest.approx(draw.losses[0], rel=1e-3)  # of mirror images


def test_controls_know_nothing_of_the_observable():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        phi = rng.normal(size=40)
        table = np.stack([phi, rng.normal(size=40)], axis=1)  # the first loss is φ itself
        sums = CovarianceSums()
        for own, row in zip(phi, table, strict=True):
            sums.update(own, row)
        found.append(sums.control(phi, table, seed).controls)
        assert sums.sample_covariance()[0] == pytest.approx(phi.var())
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(mean) < 4 * error).all() and (error > 0).all()


def test_both_controls_have_the_spread_of_the_observable():
    """So a loss that is unrelated to either has covariances of spread σ_φ σ_l / √draws with both."""
    rng = np.random.default_rng(1)
    phi, table = 5 + 3 * rng.normal(size=50), rng.normal(size=(50, 1))
    sums = CovarianceSums().update(0.0, table[0])
    found = np.array(
        [CovarianceSums.from_arrays(sums.to_arrays()).control(phi, table, seed).controls for seed in range(400)]
    )
    np.testing.assert_allclose(found.std(axis=0)[:, 0], phi.std() * table.std() / np.sqrt(50), rtol=0.12)


def test_controls_of_blocks_are_averaged_by_their_draws():
    """Taken in one after the other, or merged; a block of two draws says nothing."""
    rng = np.random.default_rng(0)
    blocks = [(rng.normal(size=n), rng.normal(size=(n, 3))) for n in (12, 5, 2)]
    alone = [CovarianceSums(3).update(0.0, np.zeros(3)).control(*block, seed) for seed, block in enumerate(blocks)]
    truth = (12 * alone[0].controls + 5 * alone[1].controls) / 17
    both = CovarianceSums(3).update(0.0, np.zeros(3))
    for seed, block in enumerate(blocks):
        both.control(*block, seed)
    for found in (both, alone[0].merge(alone[1]).merge(alone[2])):
        assert found.controlled == 17
        np.testing.assert_allclose(found.controls, truth, rtol=1e-12)


def test_merging_weighs_responses_by_their_pairs():
    parts = []
    for values in ([1.0, 3.0], [8.0]):
        sums = CovarianceSums()
        for value in values:
            sums.update(0.0, np.zeros(1)).respond(np.array([value]), np.zeros(1), 0.5)
        parts.append(sums)
    merged = parts[0].merge(parts[1])
    assert merged.pairs == 3
    assert merged.response == pytest.approx([4.0])
    assert merged.covariance() == pytest.approx([-4.0])


@pytest.mark.parametrize("name", ["l0h0", "l0 mlp", "embed", "unembed", "full"])
def test_copies_of_a_component_move_on_their_own(tiny_engine, name):
    engine, windows = tiny_engine
    group, alone = engine.group([name, name]), engine.group([name])
    generator = torch.Generator().manual_seed(1)
    start = group.start[0]
    positions = [start + 0.02 * torch.randn(len(start), generator=generator) for _ in range(2)]
    losses_of = group.losses(positions, group.cache(windows))
    values, slopes = group.gradients(positions, group.cache(windows), np.arange(len(windows)))
    for i, position in enumerate(positions):
        torch.testing.assert_close(losses_of[i], alone.losses([position], alone.cache(windows))[0])
        value, slope = alone.gradients([position], alone.cache(windows), np.arange(len(windows)))
        assert values[i] == pytest.approx(value[0], rel=1e-5)
        torch.testing.assert_close(slopes[i], slope[0], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def tiny_engine():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        rotary_pct=0.25,
    )
    windows = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(2)).numpy()
    return engine_of(GPTNeoXForCausalLM(config)), windows
