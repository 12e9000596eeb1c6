"""Pictures of the exact world show the numbers that they are given."""

import numpy as np
import pytest

from spectrobook import exactworld, modepictures
from spectrobook.exactworld import Blocks, Bounded, ExactWorld
from spectrolib import modes


@pytest.fixture(scope="module")
def world() -> ExactWorld:
    return ExactWorld.of(3)


def image(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_the_table_is_the_conditional(world):
    (ax, _) = modepictures.table(world).axes
    q = world.table.joint
    np.testing.assert_allclose(image(ax), q / q.sum(axis=1, keepdims=True))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert [name.split(" (")[0] for name in names] == list(world.table.names)
    assert names[0].endswith(f"({q[:8].sum():.0%})")
    assert [label.get_text() for label in ax.get_xticklabels()] == list(world.table.tokens)


def test_modes_are_drawn_one_a_row(world):
    first, *others = modepictures.leading_modes(world).axes
    np.testing.assert_allclose(first.lines[0].get_ydata(), world.modes.s)
    assert len(others) == 6
    for a in range(3):
        heights = [bar.get_height() for bar in others[2 * a + 1].patches]
        np.testing.assert_allclose(heights, world.modes.u[:, a])
        drawn = np.concatenate([line.get_ydata() for line in others[2 * a].lines[:3]])
        np.testing.assert_allclose(drawn, world.modes.v[:, a])


def test_energy_marks_the_number_of_reasons():
    pair = np.ones((12, 12, 2))
    curve = Blocks(np.arange(1, 11), np.linspace(0.1, 1, 10), np.linspace(0, 0.5, 10))
    left, right, _ = modepictures.energy(pair, {4: curve}).axes
    np.testing.assert_allclose(image(left), np.log10(1 / 144))
    measured, marker, permuted = right.lines
    np.testing.assert_allclose(measured.get_ydata(), curve.measured)
    np.testing.assert_allclose(permuted.get_ydata(), curve.permuted)
    assert (np.ravel(marker.get_xdata()), np.ravel(marker.get_ydata())) == (4, pytest.approx(0.4))


def test_distances_have_one_scale_for_all_panels(world):
    rows = np.random.default_rng(0).normal(size=(len(world.reason), 3))
    groups = {name: exactworld.grouped(world, scale * rows) for name, scale in (("one", 1), ("two", 2))}
    one, two, _ = modepictures.token_distances(world, groups).axes
    np.testing.assert_allclose(image(one), groups["one"].distance)
    np.testing.assert_allclose(image(two), image(one))  # distances are in units of their median
    assert one.images[0].get_clim() == two.images[0].get_clim()
    words = [label.get_text() for label in one.get_yticklabels()]
    assert words == [world.table.tokens[y] for y in groups["one"].token] and words.count(",") == 3


def test_the_bound_is_a_line_above_all_points():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, size=40)
    found = Bounded(x, x * rng.uniform(0, 3, size=40), 3.0, rng.random(40) < 0.5)
    for ax in modepictures.bound(found, found, 5).axes:
        other, same, line = ax.lines
        assert len(other.get_xdata()) + len(same.get_xdata()) == 40
        np.testing.assert_allclose(line.get_ydata(), 3 * np.asarray(line.get_xdata()))


def test_temperature_compares_with_the_first():
    nbetas, strength = np.array([0.0, 1.0, 10.0]), np.array([[2.0, 4.0], [1.0, 3.0], [0.5, 1.5]])
    left, right = modepictures.temperature(nbetas, strength, np.array([1.0, 3.0]), gamma=3.0).axes
    np.testing.assert_allclose(left.lines[1].get_ydata(), [0.75, 0.375])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.25, 0.25])
    np.testing.assert_allclose(left.lines[-1].get_ydata(), [(3 / 6) ** 2, (3 / 33) ** 2])


def test_draws_and_corpus_show_what_they_are_given():
    values = np.random.default_rng(0).random((4, 2, 3))
    axes = modepictures.draws([10, 30], {"g": values, "g permuted": values}, np.full(3, 0.9), np.full(3, 0.2)).axes
    for j, ax in enumerate(axes):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), values[:, :, j].mean(axis=0))
    (ax,) = modepictures.corpus({"a": np.array([2.0, 1.0])}, {"a": np.array([2.0, 0.5])}).axes
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], [[2, 1], [2, 0.5]])


def test_the_pictures_of_a_real_decomposition_can_be_drawn(world):
    chi = world.susceptibilities(exactworld.posterior_at())["one_chain"]
    pair = modes.pair_susceptibilities(chi, world.modes)
    fig = modepictures.energy(pair, {3: exactworld.blocks(world, chi)})
    assert np.isfinite(image(fig.axes[0])).all()
