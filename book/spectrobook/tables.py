"""What two tables of rows have in common, and how much there is in one: numbers that several chapters quote.

A table has a row for each token and a column for each component.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from spectrolib.estimator import standardise


def dimension(vectors: Float[ndarray, "tokens components"]) -> float:
    """In how many directions the rows vary: (Σ λ)² / Σ λ², λ the principal variances; n for n equal ones."""
    variances = np.linalg.eigvalsh(np.cov(vectors.T))
    return float(variances.sum() ** 2 / (variances**2).sum())


def row_cosines(
    one: Float[ndarray, "tokens components"], other: Float[ndarray, "tokens components"]
) -> Float[ndarray, " tokens"]:
    """Cosine of each row of one table with the same row of the other."""
    return (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))


def column_correlations(
    one: Float[ndarray, "tokens components"], other: Float[ndarray, "tokens components"]
) -> Float[ndarray, " components"]:
    """Correlation over tokens of each column of one table with the same column of the other.

    Raises:
        ValueError: if a column is constant.
    """
    return (standardise(one, rows=None) * standardise(other, rows=None)).mean(axis=0)
