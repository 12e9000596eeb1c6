"""A susceptibility table beside the same table from each half of the chains: what comes back, and how it is built.

Halves hold whole chains (or teams), so they share no noise of the chains. What two halves have in common is therefore
no noise of theirs; what they do not, may be. Columns stand in the order of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrolib.checks.diagnostics import half_tables, spearman_brown
from spectrolib.estimator import Estimator, standardise, with_estimator
from spectrolib.model.components import layer_of

from .tables import column_correlations, row_cosines


@dataclass(frozen=True)
class Halved:
    """A table, and the same from each of two halves of the chains."""

    components: tuple[str, ...]
    whole: Float[ndarray, "tokens components"]
    first: Float[ndarray, "tokens components"]
    second: Float[ndarray, "tokens components"]

    def standardised(self, rows: str | None = "center") -> Halved:
        """Each of the three by itself, as `spectrolib.estimator.standardise` does it."""
        return Halved(
            self.components, *(standardise(table, rows=rows) for table in (self.whole, self.first, self.second))
        )

    @property
    def reliability(self) -> Float[ndarray, " components"]:
        """Correlation over tokens of each column between the halves, taken to full length (Spearman and Brown)."""
        return spearman_brown(column_correlations(self.first, self.second))

    @property
    def cosines(self) -> Float[ndarray, " tokens"]:
        """Of each row between the halves; not taken to full length."""
        return row_cosines(self.first, self.second)

    @property
    def agreed(self) -> Float[ndarray, "tokens components"]:
        """The whole table where the halves agree in sign, 0 elsewhere."""
        return np.where(np.sign(self.first) == np.sign(self.second), self.whole, 0.0)


def network_order(components: Sequence[str]) -> Int[ndarray, " components"]:
    """Places of components from the embedding up: in each layer the heads, then the MLP; the unembedding last."""

    def place(i: int) -> tuple:
        name, layer = components[i], layer_of(components[i])
        outside = -1 if name == "embed" else np.inf
        return (outside if layer is None else layer, name.endswith("mlp"), i)

    return np.array(sorted(range(len(components)), key=place))


def halved(result, estimator: Estimator) -> Halved:
    """A measurement's table by one estimate, raw, with its halves.

    Raises:
        ValueError: if the measurement has one chain only, or was not made for this estimate.
    """
    names = result["component"].values.tolist()
    order = network_order(names)
    whole = with_estimator(result, estimator)["susceptibility"].transpose("token", "component").values
    first, second = half_tables(result, estimator, None)
    return Halved(
        tuple(names[i] for i in order), *(table.astype(np.float64)[:, order] for table in (whole, first, second))
    )


# How a table is built ------------------------------------------------------------------------------------------------


class Principal(NamedTuple):
    """Principal directions, the widest first."""

    axes: Float[ndarray, "directions components"]
    """Of unit length; each with the sign that makes its largest entry negative."""
    shares: Float[ndarray, " directions"]
    """Of the variance."""


def principal(vectors: Float[ndarray, "tokens components"]) -> Principal:
    """Directions in which the rows vary most."""
    _, scale, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    return Principal(-axes * np.sign(largest)[:, None], scale**2 / (scale**2).sum())


def between(vectors: Float[ndarray, "tokens components"], labels: ndarray) -> float:
    """Share of the variance of rows that lies between the means of groups."""
    centred = vectors - vectors.mean(axis=0)
    found, sizes = np.unique(labels, return_counts=True)
    means = np.array([centred[labels == label].mean(axis=0) for label in found])
    return float((sizes @ means**2).sum() / (centred**2).sum())


def crossed(
    first: Float[ndarray, "tokens components"], second: Float[ndarray, "tokens components"]
) -> Float[ndarray, "components components"]:
    """Correlations over tokens of each column of one half with each of the other, averaged over both ways.

    Noise that the columns of one half share has no part in them.
    """
    scored = standardise(first, rows=None).T @ standardise(second, rows=None) / len(first)
    return (scored + scored.T) / 2


def shared_dimension(first: Float[ndarray, "tokens components"], second: Float[ndarray, "tokens components"]) -> float:
    """In how many directions rows vary, but for noise: `spectrobook.tables.dimension` of covariances across halves.

    Negative variances, which only noise can make, count as none.
    """
    shared = (first - first.mean(axis=0)).T @ (second - second.mean(axis=0))
    variances = np.linalg.eigvalsh(shared + shared.T).clip(0)
    return float(variances.sum() ** 2 / (variances**2).sum())
