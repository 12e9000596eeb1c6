"""From chains to estimates, and from replicates to reliabilities and prices: formulas alone, nothing is sampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrobook.clouds import adjusted_rand
from spectrolib.estimator import standardise

from .grid import Cell

CHAINS = {"plain": slice(4, 5), "antithetic": slice(4, 6), "pairs": slice(0, 2), "quads": slice(0, 4)}
"""The chains of a team of six that an estimator reads: see `Cell.members`."""
ESTIMATORS = tuple(
    f"{quantity}_{team}"
    for quantity, teams in (
        ("covariance", ("plain", "antithetic", "pairs", "quads")),
        ("moment", ("plain", "antithetic", "quads")),
        ("two_chain", ("plain", "antithetic", "quads")),
    )
    for team in teams
)
OWN = "covariance_own"
"""The response of teams that are driven by the loss windows alone: the number of the plain covariance (`own_text`)."""
REPORTED = (*ESTIMATORS, OWN)
CLUSTERS = 8
"""Of k-means on the rows of the centre."""


def response(excess: Float[ndarray, "draws chains tokens"], tilt: float) -> Float[ndarray, " tokens"]:
    """∂<d>/∂(nβ), the mean over pairs of chains at nβ + η and nβ - η: minus the covariance."""
    return (excess[:, 0::2] - excess[:, 1::2]).mean(axis=(0, 1)) / (2 * tilt)


def responses(cell: Cell, arrays: dict[str, ndarray]) -> Float[ndarray, "replicates tokens"]:
    """Of a cell of pairs."""
    return np.stack([response(excess.astype(float), cell.tilt) for excess in arrays["excess"]])


def sample_covariance(
    rise: Float[ndarray, "draws chains"], excess: Float[ndarray, "draws chains tokens"]
) -> Float[ndarray, " tokens"]:
    """Cov(g, d) over all draws of the chains, without bias: divided by their number less one."""
    g, d = rise.flatten(), excess.reshape(rise.size, -1)
    return (g - g.mean()) @ d / (g.size - 1)


def per_rise(
    covariance: Float[ndarray, " tokens"],
    rise: float,
    restricted: Float[ndarray, " tokens"],
    full: Float[ndarray, " tokens"],
) -> Float[ndarray, " tokens"]:
    """The two-chain value over ḡ, the mean rise: -(Cov / ḡ + <d>_C - <d>_F).

    ḡ is one number for each column, which the z-score removes, and its noise with it. Left in, that noise would count
    against rows: 99 % of a raw column is common to all, and where ḡ wavers by a tenth, more of that is left in centred
    rows than there is signal. ``rise`` may be ḡ over all replicates, since the covariance is a small part.
    """
    return -(covariance / rise + restricted - full)


def estimates(
    arrays: dict[str, ndarray], full: dict[str, ndarray], tilt: float
) -> dict[str, Float[ndarray, "r tokens"]]:
    """Every estimate of one component, for each replicate of a team of six; the two-chain value as `per_rise`.

    Args:
        arrays, full: of the component and of the unrestricted chain, as `sample_cell` gives them.
    """
    found: dict[str, list[ndarray]] = {name: [] for name in ESTIMATORS}
    for r in range(len(arrays["rise"])):
        for name in ESTIMATORS:
            quantity, team = name.rsplit("_", 1)
            mine = CHAINS[team]
            excess, rise = arrays["excess"][r][:, mine].astype(float), arrays["rise"][r][:, mine]
            moment = excess.mean(axis=(0, 1))
            tilted = team in ("pairs", "quads")
            covariance = -response(excess, tilt) if tilted else sample_covariance(rise, excess)
            whole = full["excess"][r][:, mine].astype(float).mean(axis=(0, 1))
            two_chain = per_rise(covariance, arrays["rise"][:, :, mine].mean(), moment, whole)
            found[name].append({"covariance": covariance, "moment": moment, "two_chain": two_chain}[quantity])
    return {name: np.stack(tables) for name, tables in found.items()}


def sampled(estimator: str) -> bool:
    """Whether it is a sample covariance."""
    return estimator in ("covariance_plain", "covariance_antithetic")


# Signal and noise -----------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Covariances over tokens between the columns of a table."""

    signal: Float[ndarray, "components components"]
    """B, between different replicates."""
    noise: Float[ndarray, "components components"]
    """W - B, of one replicate."""


def split(tables: Float[ndarray, "replicates tokens components"]) -> Split:
    """Signal and noise of replicates that are independent given the signal; neither estimate is biased."""
    x = tables - tables.mean(axis=1, keepdims=True)
    tokens, replicates = x.shape[1], len(x)
    within = np.einsum("rtc,rtd->cd", x, x) / (replicates * tokens)
    total = x.sum(axis=0)
    between = (total.T @ total / tokens - replicates * within) / (replicates * (replicates - 1))
    return Split(between, within - between)


def column_reliability(parts: Split, m: float = 1.0) -> Float[ndarray, " components"]:
    """B / (B + noise / m) of each column: the correlation of two measurements of m replicates each."""
    signal = np.maximum(np.diag(parts.signal), 0)
    return signal / np.maximum(signal + np.diag(parts.noise) / m, 1e-300)


def row_reliability(parts: Split, m: float = 1.0) -> float:
    """tr(P D B D) / tr(P D K D), of rows that are standardised: z-scored columns, then centred rows."""
    whole = parts.signal + parts.noise / m
    scale = (np.maximum(np.diag(parts.signal), 0) + np.diag(parts.noise) / m) ** -0.5
    size = len(scale)
    centre = np.eye(size) - 1 / size
    share = lambda table: float((centre * (scale[:, None] * table * scale)).sum())  # noqa: E731
    return share(parts.signal) / share(whole) if share(whole) > 0 else math.nan  # by chance, where no signal is found


def replicates_for(reliability: Callable[[float], float], target: float) -> float:
    """How many replicates reach a reliability that grows with their number; NaN where a million do not."""
    low, high = -12.0, math.log(1e6)
    if not reliability(math.exp(high)) >= target:
        return math.nan
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reliability(math.exp(middle)) >= target else (middle, high)
    return math.exp(high)


def jackknife(values: Float[ndarray, "replicates ..."]) -> Float[ndarray, ...]:
    """Standard error of a statistic, from its values without each of the replicates."""
    n = len(values)
    return np.sqrt((n - 1) / n * ((values - values.mean(axis=0)) ** 2).sum(axis=0))


def interval(value: float, error: float, replicates: int) -> tuple[float, float]:
    """A 90 % interval by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.95, replicates - 1)) * error
    return value - half, value + half


def without(tables: ndarray) -> list[ndarray]:
    """The tables without each of the replicates, after the whole."""
    return [tables, *(np.delete(tables, r, axis=0) for r in range(len(tables)))]


def crossed(
    a: Float[ndarray, "replicates tokens ..."], b: Float[ndarray, "replicates tokens ..."]
) -> Float[ndarray, ...]:
    """Mean over different replicates r, s of the covariance over tokens of a_r and b_s."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    n = min(len(a), len(b))
    same = (a[:n] * b[:n]).mean(axis=1).sum(axis=0)
    return ((a.sum(axis=0) * b.sum(axis=0)).mean(axis=0) - same) / (len(a) * len(b) - n)


def likeness(a: Float[ndarray, "replicates tokens"], b: Float[ndarray, "replicates tokens"]) -> dict[str, float]:
    """Correlation of what two sets of replicates estimate, free of noise, with a 90 % interval; replicate r of one may
    share its noise with replicate r of the other."""
    n = min(len(a), len(b))
    values = [
        crossed(x, y) / math.sqrt(max(crossed(x, x) * crossed(y, y), 1e-300))
        for x, y in zip(without(a[:n]), without(b[:n]), strict=True)
    ]
    low, high = interval(values[0], float(jackknife(np.array(values[1:]))), n)
    return {"value": float(values[0]), "low": max(low, -1.0), "high": min(high, 1.0)}


def along(a: Float[ndarray, "replicates tokens"], known: Float[ndarray, " tokens"]) -> dict[str, float]:
    """The same with a column that is known without noise."""
    centred = known - known.mean()
    values = [
        (x.mean(axis=0) @ centred) / len(known) / math.sqrt(max(crossed(x, x), 1e-300)) / known.std()
        for x in without(a)
    ]
    low, high = interval(values[0], float(jackknife(np.array(values[1:]))), len(a))
    return {"value": float(values[0]), "low": max(low, -1.0), "high": min(high, 1.0)}


# Rows of two measurements --------------------------------------------------------------------------------------------


def cosine(a: Float[ndarray, "tokens components"], b: Float[ndarray, "tokens components"]) -> float:
    """Median over tokens of the cosine between standardised rows of two tables."""
    a, b = standardise(a), standardise(b)
    return float(np.median((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def labels(table: Float[ndarray, "tokens components"]) -> Int[ndarray, " tokens"]:
    """Clusters of standardised rows by k-means."""
    from sklearn.cluster import KMeans

    return KMeans(CLUSTERS, n_init=2, random_state=0).fit_predict(standardise(table))


def agreement(pairs: Iterable[tuple[ndarray, ndarray]]) -> float:
    """Mean adjusted Rand index of two labellings."""
    return float(np.mean([adjusted_rand(a, b) for a, b in pairs]))


# Prices --------------------------------------------------------------------------------------------------------------


class Price(NamedTuple):
    """What one team of a component costs: at the start, and for each draw."""

    start: float
    draw: float

    def of(self, draws: float) -> float:
        """At least one draw is paid."""
        return self.start + max(draws, 1.0) * self.draw


def price(cell: Cell, chains: int, driven: int, step: float, update: float, token: float, tokens: float) -> Price:
    """The price of a team.

    Args:
        chains, driven: its chains, and those of them whose steps need a gradient.
        step, update: a chain's gradient, and the rest of its step.
        token: the loss of one token.
        tokens: how many are evaluated at each draw.
    """
    one = driven * step + chains * update
    return Price(cell.settings.burn_in * one, cell.steps * one + chains * token * tokens)


def driven(cell: Cell, mine: slice = slice(None)) -> int:
    """How many of the cell's chains need a gradient."""
    return sum(cell.settings.drives(member) for member in cell.members[mine])


def prices(cell: Cell, cost: dict[str, float], mine: slice, tokens: int) -> dict[str, Price]:
    """The price of some chains of a cell, in seconds and in operations."""
    count = len(cell.members[mine])
    moving = driven(cell, mine)
    return {
        "seconds": price(
            cell,
            count,
            moving,
            cost["gradient_seconds"],
            cost["update_seconds"],
            cost["evaluation_seconds"],
            tokens,
        ),
        "operations": price(
            cell, count, moving, cost["gradient_operations"], 0.0, cost["evaluation_operations"], tokens
        ),
    }


def together(parts: Iterable[Price]) -> Price:
    """The price of several teams."""
    return Price(*np.sum([tuple(part) for part in parts], axis=0).tolist())
