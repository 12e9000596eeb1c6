"""Terms of the two-chain value: against the library's estimators, and on tables whose shares are known."""

import numpy as np
import pytest

from spectrobook import terms
from spectrolib.estimator import CovarianceSums, standardise, two_chain


@pytest.fixture
def some(rng):
    return terms.two_chain_terms(
        rng.normal(size=(40, 3)), rng.uniform(1, 2, 3), rng.normal(size=(40, 3)), rng.normal(size=40)
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_they_add_up_to_the_two_chain_value(rng):
    draws = rng.normal(size=(2, 20)), rng.normal(size=(2, 20, 5))
    restricted, full = (CovarianceSums() for _ in range(2))
    for sums, g, d in zip((restricted, full), *draws, strict=True):
        for phi, losses in zip(g, d, strict=True):
            sums.update(phi, losses)
    found = terms.two_chain_terms(
        restricted.covariance()[:, None],
        np.array([restricted.mean_phi]),
        restricted.mean_losses[:, None],
        full.mean_losses,
    )
    np.testing.assert_allclose(sum(found.values())[:, 0], two_chain(restricted, full), atol=1e-14)


def test_standardised_terms_add_up_to_the_standardised_rows(some):
    np.testing.assert_allclose(sum(terms.standardised_terms(some).values()), standardise(sum(some.values())))


def test_shares_add_up_to_one_and_are_those_of_a_known_table():
    x, y = np.eye(4)[:, :1] - 0.25, np.array([[0.0], [1], [-1], [0]])
    y = y - x * (x * y).sum() / (x**2).sum()  # at right angles
    known = {"a": 3 * x / np.linalg.norm(x), "b": y / np.linalg.norm(y)}
    assert terms.table_shares(known) == pytest.approx({"a": 0.9, "b": 0.1})
    assert terms.column_shares(known)["a"] == pytest.approx([0.9])


def test_a_term_that_works_against_the_others_has_a_negative_share():
    x = np.array([[1.0], [-1]])
    assert terms.table_shares({"a": 2 * x, "b": -x}) == pytest.approx({"a": 2, "b": -1})


def test_widths_have_a_sign_in_neither_term(rng):
    """The spread, and not that of absolute values: a column of either sign is as wide as it is."""
    x = rng.normal(size=(1000, 2))
    np.testing.assert_allclose(terms.relative_widths({"covariance": x, "restricted moment": -3 * x}), 3)
