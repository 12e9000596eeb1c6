"""The world of the appendix Resolving power, and rows of few or many channels in it."""

import numpy as np
import pytest
import torch

from spectrobook import resolving
from spectrolib import estimator
from spectrolib.exact import enumerable, resolution
from spectrolib.posterior import Settings

WORLD = resolving.Crowd.of(reasons=5, components=3, d=4)
SETTINGS = Settings(nbeta=30.0, gamma=30.0, step_size=1e-6, preconditioner="none")
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def component() -> resolving.Component:
    return resolving.measure(WORLD, 1, SETTINGS, points=512, seed=0)


def test_at_the_best_weights_the_model_is_its_data():
    np.testing.assert_allclose(np.exp(-WORLD.losses(WORLD.best).numpy()), WORLD.conditional)
    np.testing.assert_allclose(WORLD.conditional.sum(axis=1), 1)
    assert (WORLD.conditional * WORLD.own).sum(axis=1) == pytest.approx(0.5 + 0.5 / 5)
    context, token = WORLD.probe
    assert (WORLD.reason[context] == WORLD.reason[token]).all() and len(context) == 5 * 3 * 3


def test_one_component_alone_is_the_world_with_the_others_clamped():
    moved = torch.as_tensor(RNG(0).normal(size=(2, 16)))
    np.testing.assert_allclose(WORLD.only(1).losses(moved), WORLD.losses(WORLD.place("1", moved)))


def test_the_hessian_is_the_mean_outer_product_of_gradients():
    gradients = resolution.slopes(WORLD, "2")
    np.testing.assert_allclose(WORLD.curvature("2"), gradients.T @ (WORLD.joint.reshape(-1, 1) * gradients), atol=1e-12)


def test_what_is_called_exact_is_what_many_draws_tend_to(component):
    found = enumerable.importance(WORLD.only(1), "full", SETTINGS, draws=512)
    g, d = enumerable.rise_and_excess(WORLD.only(1), found.losses)
    chi = found.mean(g) * found.mean(d) - found.mean(g[:, None, None] * d)
    np.testing.assert_allclose(component.susceptibility, chi[WORLD.probe], atol=1e-12)
    rows = resolving.centred_draws(component.draw(RNG(1), 40_000)[1])
    error = np.linalg.norm(rows @ rows.T - component.kernel) / np.linalg.norm(component.kernel)
    assert error < 2 * resolution.kernel_error(component.kernel, 40_000)


def test_g_may_be_that_of_a_text(component):
    one = np.eye(len(component.kernel))[3]
    text = component.on_text(one)
    losses = enumerable.importance(WORLD.only(1), "full", SETTINGS, draws=512).losses[:, *WORLD.probe][:, 3]
    np.testing.assert_allclose(text.rise - text.rise[0], losses - losses[0], atol=1e-12)


def test_scaled_rows_are_those_of_the_library(component):
    rows = resolving.centred_draws(component.draw(RNG(2), 9)[1])
    np.testing.assert_allclose(resolving.scaled(rows), estimator.resolve({"one": rows}, centre=True), atol=1e-6)
    assert not resolving.scaled(np.ones((4, 2))).any()


def test_permuted_rows_are_projections_of_the_draws(component):
    row = resolving.permuted(component, RNG(3), draws=6)
    _, excess = component.draw(RNG(3), 6)
    rows = resolving.centred_draws(excess)
    weights, _, rank, _ = np.linalg.lstsq(rows, row, rcond=1e-12)
    np.testing.assert_allclose(rows @ weights, row, atol=1e-10 * np.abs(row).max())
    assert rank == 5 < len(row)


def test_neighbours_in_rows_of_the_reasons_themselves_are_right():
    context, _ = WORLD.probe
    assert resolving.right(np.eye(5)[WORLD.reason[context]], WORLD) == 1
    assert resolving.right(RNG(4).normal(size=(len(context), 9)), WORLD) < 0.5


# Ways to make rows


FOUR = resolving.Crowd.of(reasons=5, components=4, d=4)


@pytest.fixture(scope="module")
def four() -> list[resolving.Component]:
    return [resolving.measure(FOUR, c, SETTINGS, points=512, seed=c) for c in range(4)]


@pytest.fixture(scope="module")
def ways(four) -> dict[str, resolving.Way]:
    return resolving.ways(four, resolving.short_text(FOUR, 40, seed=0))


def test_ways_have_the_channels_that_they_say(ways):
    """Of n draws one goes into the mean, so that n + 1 are taken for n channels."""
    *numbers, one, several = ways.values()
    for way in numbers:
        assert way.channels == (1, 2, 4)
        assert [way.rows(RNG(0), n).shape for n in way.channels] == [(45, 1), (45, 2), (45, 4)]
    assert one.rows(RNG(0), 8).shape == (45, 9)
    assert resolution.unseen(one.rows(RNG(0), 8))[0] == 8
    assert several.rows(RNG(0), 8).shape == (45, 12) and several.channels[0] == 4
    assert resolution.unseen(several.rows(RNG(0), 8))[0] == 8


def test_one_number_each_is_what_its_name_says(four, ways):
    text = resolving.short_text(FOUR, 40, seed=0)
    (chosen,) = RNG(5).choice(4, 1, replace=False)
    wanted = {"exact": four[chosen].susceptibility, "loss of a short text": four[chosen].on_text(text).susceptibility}
    for name, column in wanted.items():
        (row,) = ways[f"one number each, {name}"].rows(RNG(5), 1).T
        assert np.corrcoef(row, column)[0, 1] == pytest.approx(1)
    with pytest.raises(ValueError, match="need at least four, got 3"):
        resolving.ways(four[:3], text)


def test_more_draws_tell_more(ways):
    draws = ways["draws of one component"]
    found = resolving.accuracy(draws, FOUR, repetitions=6, seed=0)
    assert found.shape == (len(draws.channels), 6)
    assert found[-1].mean() > found[0].mean() + 0.3
    again = resolving.accuracy(draws, FOUR, repetitions=6, seed=0)
    np.testing.assert_array_equal(found, again)


def test_a_short_text_has_frequencies():
    text = resolving.short_text(WORLD, 40, seed=1)
    assert text.sum() == pytest.approx(1) and len(text) == 45
    np.testing.assert_allclose(text * 40, np.round(text * 40), atol=1e-12)


def test_accuracy_grows_with_channels_and_keeps_its_bound():
    channels = np.array([4, 8, 32])
    found = resolving.grow(24, resolving.replace(SETTINGS, nbeta=0.0), channels, seed=0)
    assert (np.diff(found.right) > 0).all() and (np.diff(found.bound) >= 0).all()
    assert (found.right >= found.bound - 0.02).all()
    with pytest.raises(ValueError, match="need nβ = 0, got 30"):
        resolving.grow(6, SETTINGS, channels, seed=0)


def test_a_crossing_is_found_between_two_points():
    assert resolving.crossing(np.array([1, 2, 4]), np.array([0.2, 0.8, 1.0]), 0.5) == pytest.approx(1.5)
    assert resolving.crossing(np.array([1, 2, 4]), np.array([0.2, 0.8, 1.0]), 0.9) == pytest.approx(3)
    for values in ([0.1, 0.2, 0.3], [0.95, 0.97, 1.0]):
        with pytest.raises(ValueError, match=r"does not cross 0.9"):
            resolving.crossing(np.array([1, 2, 4]), np.array(values), 0.9)
