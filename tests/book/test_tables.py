"""Numbers of tables, against what they are where the answer is known."""

import numpy as np
import pytest

from spectrobook.tables import column_correlations, dimension, row_cosines

rng = np.random.default_rng(0)


def test_equal_directions_are_counted():
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert dimension(axes) == pytest.approx(5)
    assert dimension(np.outer(rng.normal(size=30), [1.0, 2.0, 3.0])) == pytest.approx(1)


def test_cosines_go_row_by_row():
    one, other = np.array([[1.0, 0], [1, 1], [2, 0]]), np.array([[0.0, 3], [2, 2], [-1, 0]])
    np.testing.assert_allclose(row_cosines(one, other), [0, 1, -1], atol=1e-12)


def test_correlations_go_column_by_column():
    one, other = rng.normal(size=(2, 50, 3))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, other.T, strict=True)]
    np.testing.assert_allclose(column_correlations(one, other), expected)
