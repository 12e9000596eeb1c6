"""Pictures of resolving power show the numbers that they are given."""

import numpy as np

from spectrobook import resolvingpictures as pictures


def test_channels_shows_means_and_chance():
    values = np.random.default_rng(0).random((3, 5))
    (ax,) = pictures.channels({"draws": ((1, 2, 4), values)}, 0.25).axes
    curve, chance = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), values.mean(axis=1))
    np.testing.assert_allclose(chance.get_ydata(), 0.25)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]


def test_kernels_shows_spectra_and_errors():
    spectra = {name: np.array([0.6, 0.4]) for name in ("few", "draws", "kernel")}
    errors = {"kept": np.array([1.0, 0.5]), "folded": np.array([1.0, 0.8])}
    left, right = pictures.kernels(spectra, [8, 32], errors, np.array([1.1, 0.55]), 0.9).axes
    assert len(left.lines) == 3
    np.testing.assert_allclose([line.get_ydata() for line in right.lines], [[1, 0.5], [1, 0.8], [1.1, 0.55], [0.9] * 2])


def test_growth_shows_each_world_and_what_is_needed():
    measured = {6: np.array([0.5, 1.0]), 12: np.array([0.4, 0.9])}
    left, right = pictures.growth([4, 8], measured, {"measured": [6, 8], "bound": [12, 16]}, 0.9).axes
    np.testing.assert_allclose([line.get_ydata() for line in left.lines], [[0.5, 1], [0.4, 0.9], [0.9, 0.9]])
    np.testing.assert_allclose([line.get_ydata() for line in right.lines], [[6, 8], [12, 16]])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [6, 12])


def test_first_order_shows_the_law_through_the_last_point():
    gammas, ones = np.array([10.0, 100.0]), np.ones(2)
    errors = {"a": np.array([0.2, 0.02]), "b": ones, "c": ones}
    left, right = pictures.first_order(gammas, errors, np.array([1.0, 2.0]), 0.5 * ones, 0.6 * ones, 3.0).axes
    np.testing.assert_allclose(left.lines[-1].get_ydata(), [0.2, 0.02])
    np.testing.assert_allclose([line.get_ydata() for line in right.lines[:2]], [[0.5, 0.5], [0.6, 0.6]])
    np.testing.assert_allclose(right.lines[2].get_xdata(), [3, 3])
