"""Slopes of token losses: against autograd, against the covariance under a Gaussian, and back from a file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from measuring import SETTINGS, windows
from reference import Reference, put

from spectrobook import directions
from spectrolib.model.components import FULL, blocks, components, gather
from spectrolib.model.loading import engine_of
from spectrolib.run.plan import Plan


@pytest.fixture(scope="module")
def engine(tiny_model):
    return engine_of(tiny_model)


@pytest.fixture(scope="module")
def reference(tiny_gpt_neox):
    return Reference(tiny_gpt_neox)


def along(reference, engine, name, direction):
    """All token losses as a function of t, with a component at w* + t direction; float64."""
    own = blocks(name, engine.shape, tuple(engine.weights))
    start = gather(reference.weights, own)
    return lambda t, text: reference.losses(put(reference.weights, own, start + t * direction.double()), text).flatten()


@pytest.mark.parametrize("name", ["embed", "l0h1", "l1 mlp", "unembed", FULL])
def test_slopes_are_those_of_autograd(engine, reference, tiny_windows, name):
    random = directions.random_directions(engine, [name], 2, seed=3)
    got = directions.slopes(engine, tiny_windows, random, reach=0.02)
    for direction, found in zip(random[name], got, strict=True):
        losses = along(reference, engine, name, direction)
        exact = torch.autograd.functional.jacobian(
            lambda t, losses=losses: losses(t, tiny_windows), torch.zeros((), dtype=torch.float64)
        )
        assert np.abs(found[:, 0] - exact.numpy()).max() < 2e-2 * exact.abs().max()
        assert np.corrcoef(found[:, 0], exact.numpy())[0, 1] > 0.9999


def test_odd_and_even_parts_are_those_of_the_losses(engine, reference, tiny_windows):
    names = components(engine.shape)
    moves = {name: 0.1 * v for name, v in directions.random_directions(engine, names, 2).items()}
    parts = directions.mirrored(engine, tiny_windows, moves)
    assert parts.odd.shape == parts.even.shape == (2, tiny_windows[:, 1:].size, len(names))
    for column, name in enumerate(names):
        for row, move in enumerate(moves[name]):
            losses = along(reference, engine, name, move)
            above, here, below = (losses(t, tiny_windows).detach().numpy() for t in (1.0, 0.0, -1.0))
            np.testing.assert_allclose(parts.odd[row, :, column], (above - below) / 2, atol=2e-5)
            np.testing.assert_allclose(parts.even[row, :, column], (above + below) / 2 - here, atol=2e-5)


def test_the_slope_along_the_mean_gradient_sums_to_its_square(engine, tiny_windows):
    """The mean over tokens of <∇L, ∇l> is |∇L|²."""
    names = ["embed", "l0h2", "l1 mlp", "unembed"]
    gradients = directions.mean_gradients(engine, tiny_windows, names)
    found = directions.slopes(engine, tiny_windows, {name: g[None] for name, g in gradients.items()}, reach=0.01)
    expected = [gradients[name].norm() ** 2 for name in names]
    np.testing.assert_allclose(found[0].mean(axis=0), expected, rtol=3e-3)


def gradients(reference, engine, name, text):
    """∇l of every token with respect to a component, by autograd in float64."""
    own = blocks(name, engine.shape, tuple(engine.weights))
    losses = lambda w: reference.losses(put(reference.weights, own, w), text).flatten()  # noqa: E731
    return torch.autograd.functional.jacobian(losses, gather(reference.weights, own)).numpy()


def test_the_mean_gradient_is_that_of_a_second_implementation(reference, engine, tiny_windows):
    for name, found in directions.mean_gradients(engine, tiny_windows, ["embed", "l0h2", "l1 mlp"]).items():
        expected = gradients(reference, engine, name, tiny_windows).mean(axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max() + 1e-7)


def second_moment_error(kernel, count):
    """Root mean square Frobenius error of (1/n) Σ z zᵀ over n draws of z ~ N(0, K): √((tr² K + |K|²) / n)."""
    return np.sqrt((np.trace(kernel) ** 2 + np.linalg.norm(kernel) ** 2) / count)


def test_random_slopes_and_draws_of_a_narrow_gaussian_both_give_the_influence_kernel(engine, reference, tiny_windows):
    """<∇l, ∇l'> by autograd, against products of slopes, and against γ Cov(l, l') over draws of N(w*, I/γ)."""
    gamma, text, kernel, found = 1e6, tiny_windows[:2], {}, {}
    for name in ("l1h0", "l0h0"):
        jacobian = gradients(reference, engine, name, text)
        kernel[name] = jacobian @ jacobian.T
        random = directions.random_directions(engine, [name], 400, seed=0)
        slopes = directions.slopes(engine, text, random, reach=0.01)[..., 0]
        others = directions.random_directions(engine, [name], 400, seed=1)[name]
        parts = directions.mirrored(engine, text, {name: others / gamma**0.5})
        draws = (parts.odd + parts.even)[..., 0]
        found[name] = {"slopes": slopes.T @ slopes / 400, "draws": gamma * np.cov(draws.T, ddof=0)}
        # draw by draw: a product of slopes is that of the gradients with the same directions
        np.testing.assert_allclose(slopes, random[name].numpy() @ jacobian.T, atol=2e-2 * np.abs(slopes).max())
    for name, other in (("l1h0", "l0h0"), ("l0h0", "l1h0")):
        error = second_moment_error(kernel[name], 400)
        for estimate in found[name].values():
            assert 0.3 * error < np.linalg.norm(estimate - kernel[name]) < 2 * error
            assert np.linalg.norm(estimate - kernel[other]) > 4 * error  # another component's kernel is told apart


def test_components_of_a_layer_move_together_whatever_their_sizes(engine, tiny_windows):
    names = ["l1 mlp", "l1h0", "embed", "l1h2"]
    moves = {name: 0.1 * v for name, v in directions.random_directions(engine, names, 3).items()}
    together = directions.mirrored(engine, tiny_windows, moves)
    for column, name in enumerate(names):
        alone = directions.mirrored(engine, tiny_windows, {name: moves[name]})
        np.testing.assert_allclose(together.odd[..., column], alone.odd[..., 0], atol=2e-5)
        np.testing.assert_allclose(together.even[..., column], alone.even[..., 0], atol=2e-5)


def test_a_direction_depends_on_its_component_and_the_seed_alone(engine):
    all_at_once = directions.random_directions(engine, ["embed", "l0h0"], 2, seed=5)
    alone = directions.random_directions(engine, ["l0h0"], 2, seed=5)
    assert torch.equal(all_at_once["l0h0"], alone["l0h0"])
    assert not torch.equal(alone["l0h0"], directions.random_directions(engine, ["l0h0"], 2, seed=6)["l0h0"])


@pytest.mark.parametrize(
    "moves, message",
    [
        ({}, "there are no steps"),
        ({"l9h9": torch.ones(1, 3)}, "l9h9"),
        ({"l0h0": torch.ones(1, 3)}, r"must have the shape \(directions, \d+\), got \(1, 3\)"),
    ],
)
def test_steps_that_make_no_sense_are_refused(engine, tiny_windows, moves, message):
    with pytest.raises(ValueError, match=message):
        directions.mirrored(engine, tiny_windows, moves)


def test_as_many_steps_for_each_and_none_of_length_zero(engine, tiny_windows):
    one, two = (directions.random_directions(engine, ["l0h0", "l0h1"], n) for n in (1, 2))
    with pytest.raises(ValueError, match="as many steps"):
        directions.mirrored(engine, tiny_windows, {"l0h0": one["l0h0"], "l0h1": two["l0h1"]})
    with pytest.raises(ValueError, match="no length"):
        directions.slopes(engine, tiny_windows, {"l0h0": 0 * one["l0h0"]})


def test_a_table_and_what_comes_back_from_its_file(tiny_model, tmp_path):
    vocabulary = lambda w: replace(w, ids=w.ids % 53)  # noqa: E731
    plan = Plan(
        tiny_model,
        sampling=vocabulary(windows(0, 12)),
        loss=vocabulary(windows(1, 3)),
        probe=vocabulary(windows(2, 5)),
        settings=replace(SETTINGS, gamma=1e4),
        components=("l0h0", "l1 mlp", "unembed"),
    )
    table = directions.tabulate(plan, every=2, text=3)
    assert table.windows.tolist() == [0, 2, 4]
    assert set(table.values) == set(directions.KINDS)
    assert all(values.shape == (3 * 8, 3) for values in table.values.values())
    # the draw lies along the first random direction, so at a large γ it changes the loss as that slope says
    draw, slope = table.values["draw"] * 1e2, table.values["random 1"]
    assert np.corrcoef(draw.ravel(), slope.ravel())[0, 1] > 0.99
    # the two texts are disjoint, and L is their mean where they are all there is
    whole = directions.mean_gradients(engine_of(tiny_model), plan.sampling, plan.components)
    full = directions.tabulate(plan, every=2, text=6)
    slope = directions.slopes(engine_of(tiny_model), plan.probe.take([0, 2, 4]), {n: g[None] for n, g in whole.items()})
    np.testing.assert_allclose(
        (full.values["loss 1"] + full.values["loss 2"]) / 2, slope[0], rtol=0.2, atol=0.05 * np.abs(slope).max()
    )
    table.save(tmp_path / "table.npz")
    back = directions.Table.open(tmp_path / "table.npz")
    assert (back.components, back.gamma, back.hashes) == (table.components, table.gamma, table.hashes)
    for kind in directions.KINDS:
        spread = table.values[kind].std(axis=0)
        assert (
            np.abs(back.values[kind] - table.values[kind]) < 2e-3 * np.abs(table.values[kind]) + 1e-5 * spread
        ).all()
    with pytest.raises(ValueError, match="need 14 sampling windows, there are 12"):
        directions.tabulate(plan, text=7)


def test_the_table_that_ships_is_of_the_bundled_model_and_every_other_window_of_the_book():
    table, plan = directions.shipped(), Plan.from_profile("book")
    assert table.hashes == {"model": plan.model.hash, "probe": plan.probe.hash}
    assert table.components == plan.components
    assert table.gamma == plan.settings.gamma
    np.testing.assert_array_equal(table.windows, np.arange(0, len(plan.probe), 2))
    assert all(values.shape == (80 * 128, 32) and np.isfinite(values).all() for values in table.values.values())
    # two texts have some gradient in common, two random directions have nothing; a draw holds its slope

    def correlation(first, second):
        columns = zip(table.values[first].T, table.values[second].T, strict=True)
        return [np.corrcoef(*pair)[0, 1] for pair in columns]

    assert np.median(correlation("loss 1", "loss 2")) > 0.1
    assert np.median(np.abs(correlation("random 1", "random 2"))) < 0.1
    assert min(correlation("random 1", "draw")) > 0.5
