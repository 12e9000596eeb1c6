r"""Error bars that can be believed: of a susceptibility, of a standardised vector, of the distance of two tokens.

A measurement has few chains, and the spread of n of them gives an error bar with n - 1 degrees of freedom: with two
halves of the chains, one. Student's t makes such intervals right and useless: 3.7 times as wide as those of a known
error at 90 %. But there are many entries. The noise of an entry is taken from its token's level r and its column,

    Var(χ̂_xy,C) = s_C r_xy^(b_C),

with r, s and b fitted to D², where D is half the difference between the halves, brought to the variance of the whole:
r in the product of token and column that lies nearest (b = 1), s and b by a gamma regression of each column on r.
Heads and MLPs of the bundled model all have b near 1, embedding and unembedding about a half. Components run on chains
of their own, so r rests on as many degrees of freedom as there are components, p. The level of a column does not rest
on its thousands of tokens: all were measured on the same draws, and their noise moves together. How many independent
tokens a column is worth, ν, shows in the noise of other columns: if all share one noise covariance K over tokens,
E[(D_C·D_C')²] = tr K², so that

    1/ν_C = mean over C' ≠ C of cos²(D_C, D_C'),        1/freedom = 1/p + 1/ν + (κ - 1)/(4κ - 2),

with each D divided by its standard error. κ is a third of its kurtosis: where the fit misses differences between
entries it exceeds 1, and the last term is one over the freedom of Student's t with that kurtosis. Intervals are
Student's t with this freedom. Halves serve all of this: they exist for both estimators, and what standardising does to
the noise (a common shift or factor of a column drops out) it does to them as well. `estimator.standard_error` has n - 1
degrees of freedom instead of one, but knows nothing of how the noise of entries hangs together.

Where each column's noise has a shape of its own over tokens, ν comes out too large and intervals too short: 90 % ones
covered 86 % on quadratic losses that shared nothing, over three weights.

Not in these error bars: what all chains have in common (bias of finite steps, of a finite tilt, a rise that is not
over; minibatches, if the chains share them), and that one factor of each column is unknown. Standardised vectors and
distances are in units of this measurement's columns, whose spread contains its noise.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import stdtrit

from ..estimator import standardise
from ..graph import nearest
from .diagnostics import half_tables

Rows = Literal["center", "zscore"] | None
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Errors:
    """Standard errors, and how far to trust them."""

    error: Float[ndarray, "tokens components"]
    freedom: Float[ndarray, " components"]
    """Degrees of freedom behind the errors of a column."""

    def width(self, level: float = 0.9) -> Float[ndarray, "tokens components"]:
        """Half the width of a two-sided interval with this coverage."""
        return self.error * _student(self.freedom, level)


class Interval(NamedTuple):
    """Interval for the value that an endlessly long run would give, entry by entry, with the coverage asked for."""

    low: Float[ndarray, "tokens components"]
    high: Float[ndarray, "tokens components"]


def errors(noise: Float[ndarray, "tokens components"]) -> Errors:
    """Errors of a table from one draw of its noise: the model of the module docstring.

    Args:
        noise: D of the module docstring: a sample of noise, with the variance of the noise in the table.
    """
    if noise.shape[1] < 2:  # no other column to learn from
        return Errors(np.abs(noise), np.ones(noise.shape[1]))
    error = np.sqrt(fitted_variances(noise**2))
    scaled = noise / error
    kurtosis = np.maximum((scaled**4).mean(axis=0) / np.maximum((scaled**2).mean(axis=0), TINY) ** 2 / 3, 1)
    scaled = scaled / np.maximum(np.linalg.norm(scaled, axis=0), TINY)
    together = (scaled.T @ scaled) ** 2
    np.fill_diagonal(together, 0)
    components = len(together)
    share = 1 / components + together.sum(axis=1) / (components - 1) + (kurtosis - 1) / (4 * kurtosis - 2)
    return Errors(error, 1 / share)


def fitted_variances(
    squares: Float[ndarray, "tokens components"], sweeps: int = 8
) -> Float[ndarray, "tokens components"]:
    """The variances s_C r_xy^(b_C) of the module docstring, from one squared error of each entry."""
    squares = np.maximum(squares, TINY)
    column = squares.mean(axis=0)
    for _ in range(sweeps):
        row = (squares / column).mean(axis=1)
        column = (squares / row[:, None]).mean(axis=0)
    level = np.log(row)
    design = np.stack([np.ones_like(level), level - level.mean()], axis=1)
    if np.ptp(level) < 1e-9:  # all tokens alike
        return np.broadcast_to(squares.mean(axis=0), squares.shape)
    weights = np.stack([np.log(column) + level.mean(), np.ones_like(column)])
    inverse = np.linalg.pinv(design)
    for _ in range(20):  # Fisher scoring
        ratio = squares / np.exp(design @ weights)
        weights = weights + np.clip(inverse @ (ratio - 1), -1, 1)
    return np.maximum(np.exp(design @ weights), TINY)


def susceptibility_error(result) -> Errors:
    """Errors of the susceptibilities as measured.

    Args:
        result: of `measure.measure`, by whichever estimator (`estimator.with_estimator`).

    Raises:
        ValueError: for a measurement with one chain.
    """
    first, second = half_tables(result, None, None)
    return errors((first - second) / math.sqrt(_inflation(result)))


def intervals(result, level: float = 0.9) -> Interval:
    """Intervals for the susceptibilities as measured, each with coverage ``level``.

    Raises:
        ValueError: for a measurement with one chain, or a level that is not between 0 and 1.
    """
    width, centre = susceptibility_error(result).width(level), _table(result)
    return Interval(centre - width, centre + width)


def vector_error(result, rows: Rows = "center") -> Errors:
    """Errors of the standardised susceptibilities: columns z-scored, rows as in `estimator.standardise`.

    Rows of unit spread (``rows="zscore"``) are followed to first order: what changes a row's length drops out.

    Raises:
        ValueError: for a measurement with one chain, a constant column, or an unknown ``rows``.
    """
    first, second = _standardised_halves(result, rows)
    return errors((first - second) / math.sqrt(_inflation(result)))


class Distance(NamedTuple):
    """The squared distance of two tokens' standardised vectors."""

    squared: float
    """With the mean contribution of noise subtracted, so it may be below zero."""
    error: float
    low: float
    high: float
    plain: float
    """Without that correction: the square of the distance that a neighbour graph uses."""


def distance(result, i: int, j: int, rows: Literal["center"] | None = "center", level: float = 0.9) -> Distance:
    """The squared distance of tokens i and j, with its noise bias removed and an interval.

    Noise lengthens distances. Halves have independent noise, so with a and b the differences of the two tokens' vectors
    in either half, a·b has the mean that a long run has. Its variance is q Σ_k σ_k² d_k², with d the difference in the
    whole measurement and q = 4 for equal halves: the noise of d_k that this sum contains is just what the product of
    noise with noise adds. σ_k² is the pair's own level of noise, from all components, times the column's share: tokens
    that are alike share noise, which their difference does not have.

    Raises:
        ValueError: as `vector_error`; for a token that there is not; or for rows of unit spread.
    """
    if rows == "zscore":
        raise ValueError("distances have error bars for rows 'center' and None only, got 'zscore'")
    tokens = result.sizes["token"]
    for token in (i, j):
        if not 0 <= token < tokens:
            raise ValueError(f"tokens are numbered 0 to {tokens - 1}, got {token}")
    halves, inflation = _standardised_halves(result, rows), _inflation(result)
    first, second = halves[:, i] - halves[:, j]
    vectors = standardise(_table(result), rows=rows)
    whole = vectors[i] - vectors[j]
    share = np.maximum(((halves[0] - halves[1]) ** 2).mean(axis=0) / inflation, TINY)
    variance = share * ((first - second) ** 2 / inflation / share).mean()
    squared, error = float(first @ second), math.sqrt(inflation * float(variance @ whole**2))
    width = error * float(_student(len(share), level))
    return Distance(squared, error, squared - width, squared + width, float(whole @ whole))


class Neighbourhood(NamedTuple):
    """How far the k nearest neighbours of each token are a matter of noise."""

    kept: Float[ndarray, " tokens"]
    """Share of its k nearest neighbours by one half of the chains that the other half finds too."""
    noise: Float[ndarray, " tokens"]
    """Noise in the squared distances to its k nearest neighbours in the whole measurement, as a share of them."""


def neighbourhoods(result, k: int = 45, rows: Literal["center"] | None = "center") -> Neighbourhood:
    """The noise floor of the neighbour graph, token by token.

    ``kept`` compares two half measurements, so the whole keeps more. Where ``noise`` is near 1, a longer run may find
    other neighbours. It may exceed 1, for neighbours are chosen by their small measured distances.

    Raises:
        ValueError: as `vector_error`; or as `graph.nearest` for k.
    """
    halves, vectors = _standardised_halves(result, rows), standardise(_table(result), rows=rows)
    near = nearest(vectors, k).indices
    found = [nearest(half, k).indices for half in halves]
    kept = np.array([len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(*found, strict=True)]) / k
    noise = (halves[0] - halves[1]) / math.sqrt(_inflation(result))
    total = lambda table: sum(((table - table[near[:, n]]) ** 2).sum(axis=1) for n in range(k))  # noqa: E731
    distances = total(vectors)
    share = np.divide(total(noise), distances, out=np.full(len(kept), np.nan), where=distances > 0)
    return Neighbourhood(kept, share)


def _standardised_halves(result, rows: Rows) -> Float[ndarray, "half tokens components"]:
    """Either half's vectors in units of the whole measurement's columns; a common factor of a column drops out."""
    vectors = standardise(_table(result), rows=rows)  # checks what it is given
    halves = half_tables(result, None, None)
    spread = halves.std(axis=1, keepdims=True)
    if (spread == 0).any():
        raise ValueError("a column is constant over tokens in half of the chains: it has no standardised values")
    unit = np.sqrt(spread[0] * spread[1]) / _table(result).std(axis=0)
    scores = (halves - halves.mean(axis=1, keepdims=True)) / spread * unit
    if rows is not None:
        scores -= scores.mean(axis=2, keepdims=True)
    if rows == "zscore":
        centred = standardise(_table(result), rows="center")
        length = np.maximum(centred.std(axis=1, keepdims=True), TINY)
        change = (scores - centred) / length
        along = (change * vectors).mean(axis=2, keepdims=True)
        scores = vectors + change - along * vectors
    return scores


def _table(result) -> Float[ndarray, "tokens components"]:
    return result["susceptibility"].transpose("token", "component").values.astype(np.float64)


def _inflation(result) -> float:
    """Variance of the difference between the halves over that of the whole: n²/ab for halves of a and b chains."""
    chains = json.loads(result.attrs["manifest"])["settings"]["chains"]
    return chains**2 / ((chains // 2) * (chains - chains // 2))


def _student(freedom, level: float):
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must lie between 0 and 1, got {level!r}")
    return stdtrit(freedom, (1 + level) / 2)
