"""Tilted data: chains against closed forms, exact worlds against the definition, a language model against its rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spectrolib.checks.tilting import (
    TiltedMeans,
    component_response,
    retilted,
    tilted_draws,
    two_chain_response,
    wanted_tilts,
)
from spectrolib.exact import enumerable, toys
from spectrolib.exact.quadratic import Quadratic, gibbs, replicated, sgld_law
from spectrolib.model.loading import engine_of
from spectrolib.posterior import Settings, lockstep, team

SETTINGS = Settings(
    nbeta=10.0,
    gamma=20.0,
    step_size=4e-3,
    preconditioner="none",
    draws=40,
    steps_between_draws=10,
    burn_in=100,
    antithetic=True,
    max_rise=float("inf"),
)
TEXT = Quadratic(np.diag([0.5, 4.0]), np.zeros(2), np.array([0.2, -0.1]))
SET = Quadratic(np.array([[2.0, 0.5], [0.5, 1.0]]), np.zeros(2), np.array([-0.5, 0.7]))


def tilted(h: float) -> Quadratic:
    """(1 - h) L + h L_S."""
    return Quadratic((1 - h) * TEXT.curvature + h * SET.curvature, np.zeros(2), (1 - h) * TEXT.slope + h * SET.slope)


def gradients(potential):
    """As the sampler asks for them."""

    def found(positions):
        leaves = [w.detach().clone().requires_grad_() for w in positions]
        losses = [potential(leaf) for leaf in leaves]
        return [float(loss.detach()) for loss in losses], list(torch.autograd.grad(losses, leaves))

    return found


@pytest.mark.parametrize("h", [0.1, 0.8])
def test_chains_give_the_closed_form(h):
    """200 chains at once, on a quadratic: the law of SGLD is known, tilted or not, for any h."""
    copies = 200
    draws = tilted_draws(
        torch.zeros(2 * copies, dtype=torch.float64),
        gradients(replicated(TEXT, copies)),
        gradients(replicated(SET, copies)),
        SETTINGS,
        h,
    )
    means = np.mean([[float(TEXT(w.view(copies, 2)).mean()) for w in draw.positions] for draw in draws], axis=0)
    found = (means[[0, 2]].mean() - means[[1, 3]].mean()) / (2 * h * SETTINGS.nbeta)
    above, below = (sgld_law(tilted(sign * h), np.zeros(2), SETTINGS).expectation(TEXT) for sign in (1, -1))
    expected = (above - below) / (2 * h * SETTINGS.nbeta)
    assert found == pytest.approx(expected, rel=0.03)
    assert abs(expected) > 1e-3


def test_the_closed_form_is_the_susceptibility_for_a_small_tilt():
    """-Cov[L, L_S - L], with the sign of the definition: the observable falls where the covariance is positive."""
    h, law = 1e-4, gibbs(TEXT, np.zeros(2), SETTINGS)
    means = [gibbs(tilted(sign * h), np.zeros(2), SETTINGS).expectation(TEXT) for sign in (1, -1)]
    chi = -(law.covariance_of(TEXT, SET) - law.covariance_of(TEXT, TEXT))
    assert (means[0] - means[1]) / (2 * h * SETTINGS.nbeta) == pytest.approx(chi, rel=1e-6)


@pytest.mark.parametrize("block", ["in", "out"])
def test_both_estimators_in_an_exact_world(block):
    """A toy language model, tilted towards a set of its tokens in context: response against susceptibility."""
    toy, settings, h = enumerable.Toy.random(seed=0), replace(SETTINGS, nbeta=30.0, gamma=4.0), 0.001
    exact = enumerable.susceptibilities(toy, block, settings)
    members = np.zeros_like(toy.joint)
    members.flat[np.argsort(exact.one_chain, axis=None)[:2]] = 1 / 2  # the two that the block expresses most
    found = {}
    for part in (block, "full"):
        values = []
        for sign in (1, -1):
            joint = toy.joint + sign * h * (members - toy.joint)
            grid = enumerable.integrate(toy, part, settings, joint=joint)
            rise, excess = enumerable.rise_and_excess(toy, grid.losses)
            at_rest = enumerable.rise_and_excess(toy, toy.losses(toy.best).numpy()[None])[1][0]
            moment = (grid.mean(excess - at_rest) * members).sum()
            values.append((float(grid.mean(rise)), float(moment)))
        found[part] = TiltedMeans(h, settings.nbeta, *np.array(values).T[:, None, :])
    one, two = ((table * members).sum() for table in (exact.one_chain, exact.two_chain))
    assert one < 0  # more of them, and the block's loss falls
    assert found[block].one_chain() == pytest.approx(one, rel=1e-3)
    assert two_chain_response(found[block], found["full"]) == pytest.approx(two, rel=1e-3)
    assert abs(one - two) > 0.01 * abs(one)  # else the test could not tell them apart


def test_a_language_model_answers_as_its_covariance_says(tiny_gpt_neox, tiny_windows):
    """The set is one window, L that of all: the response is minus their covariance over untilted draws."""
    engine = engine_of(tiny_gpt_neox)
    settings = Settings(
        nbeta=20.0,
        gamma=300.0,
        step_size=1.5e-3,
        preconditioner="none",
        batch_size=7,
        draws=30,
        steps_between_draws=4,
        burn_in=10,
        antithetic=True,
    )
    weights = np.full((1, tiny_windows.shape[1] - 1), 1 / (tiny_windows.shape[1] - 1))
    shared = {"sampling": tiny_windows, "read": tiny_windows, "windows": tiny_windows[:1], "weights": weights}
    found = component_response(engine, "l1 mlp", settings, 0.3, **shared)
    again = component_response(engine, "l1 mlp", settings, 0.15, **shared)
    assert found.one_chain() == pytest.approx(again.one_chain(), rel=0.2)  # linear
    # the same number as a response to nβ, which is what the estimator makes of teams
    nbeta, group = 2.0, engine.group(["l1 mlp"] * 4)
    teams = replace(settings, tilt=nbeta)
    cached, at = group.cache(tiny_windows), []
    chains = team(group.start[0], teams, name="l1 mlp")
    for draw in lockstep(chains, group.minibatch_gradients(tiny_windows, teams, 0), teams):
        losses = group.losses(draw.positions, cached).double()
        excess = losses[:, 0].mean(dim=1) - losses.mean(dim=(1, 2))
        at.append(float((excess[::2] - excess[1::2]).mean()) / (2 * nbeta))
    assert found.one_chain() == pytest.approx(np.mean(at), rel=0.25)
    assert abs(np.mean(at)) > 5 * np.std(at) / np.sqrt(len(at))


def test_bad_settings_are_refused(tiny_gpt_neox, tiny_windows):
    engine = engine_of(tiny_gpt_neox)
    text = {"sampling": tiny_windows, "read": tiny_windows, "windows": tiny_windows[:1]}
    weights = np.full((1, 11), 1 / 11)
    with pytest.raises(ValueError, match="moves nothing at nbeta = 0"):
        component_response(engine, "l0h0", replace(SETTINGS, nbeta=0.0), 0.1, **text, weights=weights)
    with pytest.raises(ValueError, match="h must be positive"):
        component_response(engine, "l0h0", SETTINGS, 0.0, **text, weights=weights)
    with pytest.raises(ValueError, match="must sum to 1, got 2"):
        component_response(engine, "l0h0", SETTINGS, 0.1, **text, weights=2 * weights)


# ---- the inverse problem


@pytest.fixture(scope="module")
def inverse():
    """A world of six components: their exact susceptibilities, one chain, as (observables, tokens)."""
    world, settings = toys.Bilinear.of(toys.planted_reasons(2, reasons=3)), replace(SETTINGS, nbeta=30.0, gamma=10.0)
    rows = []
    for block in world.components:
        grid = enumerable.integrate(world, block, settings)
        g, d = enumerable.rise_and_excess(world, grid.losses)
        rows.append(grid.mean(g) * grid.mean(d) - grid.mean(g[:, None, None] * d))
    return world, settings, np.stack(rows).reshape(len(rows), -1)


def responses(world, settings, joint) -> np.ndarray:
    """<g> of every component, exactly, with these data driving the posterior."""
    grids = [enumerable.integrate(world, block, settings, joint=joint) for block in world.components]
    return np.array([float(grid.mean(enumerable.rise_and_excess(world, grid.losses)[0])) for grid in grids])


def test_what_is_wanted_is_what_happens(inverse):
    world, settings, chi = inverse
    wanted = 1e-6 * np.array([1.0, -0.5, 0.0, 0.0, 0.3, 0.0])
    q = world.joint.ravel()
    tilts = wanted_tilts(chi, wanted, q, settings.nbeta)
    above, below = (responses(world, settings, retilted(q, s * tilts).reshape(world.joint.shape)) for s in (1, -1))
    assert (above - below) / 2 == pytest.approx(wanted, rel=1e-3, abs=1e-10)
    assert tilts.sum() == pytest.approx(0, abs=1e-9 * np.abs(tilts).sum())


def test_no_smaller_change_of_the_data_does_it(inverse):
    world, settings, chi = inverse
    q, wanted = world.joint.ravel(), np.eye(6)[2]
    tilts = wanted_tilts(chi, wanted, q, settings.nbeta)
    idle = np.linalg.svd(chi)[2][6:]  # directions in which no observable moves
    slopes = idle @ (tilts / q)  # of Σ h² / q along them
    assert np.abs(slopes).max() < 1e-7 * np.abs(tilts / q).max()
    plain = np.linalg.pinv(chi) @ wanted / settings.nbeta
    assert (tilts**2 / q).sum() < 0.5 * (plain**2 / q).sum()


def test_two_observables_that_are_one_meet_halfway(inverse):
    world, settings, chi = inverse
    twice, q = chi[[0, 0]], world.joint.ravel()
    tilts = wanted_tilts(twice, np.array([1.0, 0.0]), q, settings.nbeta)
    assert settings.nbeta * twice @ tilts == pytest.approx([0.5, 0.5])


def test_tilts_that_can_not_be_are_refused(inverse):
    world, _, chi = inverse
    q = world.joint.ravel()
    with pytest.raises(ValueError, match="chi must be of 5 observables and 60 tokens"):
        wanted_tilts(chi, np.zeros(5), q, 1.0)
    with pytest.raises(ValueError, match="sum to 1, got a sum of 2"):
        wanted_tilts(chi, np.zeros(6), 2 * q, 1.0)
    with pytest.raises(ValueError, match="moves nothing at nbeta = 0"):
        wanted_tilts(chi, np.zeros(6), q, 0.0)
    tilts = np.zeros(60)
    tilts[:2] = 2 * q[0], -2 * q[0]
    with pytest.raises(ValueError, match=r"take .* times as much") as refused:
        retilted(q, tilts - tilts.sum() * q)
    reach = float(str(refused.value).split("take ")[1].split()[0])
    assert retilted(q, 0.999 * reach * tilts).min() >= 0
