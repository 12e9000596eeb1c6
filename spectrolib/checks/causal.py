"""Causal tests: what susceptibilities predict of a cluster's tokens, against what an intervention does to their losses.

There are two interventions: a component is silenced (`model.ablation`), or a set of tokens gets more weight for a few
gradient steps (`model.steering`). Each gives the change of every token's loss, in nats. This module compares such
changes with predictions: by rank correlations, whose intervals resample whole windows; by the profile of a cluster over
components, against its own row and (for the level of chance) against the rows of other clusters; and by control sets of
tokens for a cluster.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.stats import rankdata

from ..model.steering import Steered
from .intervals import Estimate, wilson

RESAMPLES = 1000
LEAST = 5
"""The fewest tokens that a set needs in each half of the text: to be steered towards in one, or read in the other."""


def mean_of(values: Float[ndarray, " n"], groups: Int[ndarray, " n"] | None = None, seed: int = 0) -> Estimate:
    """A mean with its 95 % interval, by percentiles over resampled values, or over resampled groups of values.

    All three are NaN without any value. With a single value or group the interval is infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    number = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(number, weights=values), np.bincount(number)
    if len(sums) == 1:
        return Estimate(float(values.mean()), -math.inf, math.inf)
    drawn = _resampled(len(sums), seed)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def _resampled(count: int, seed: int) -> Int[ndarray, "resamples count"]:
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def rank_correlation(
    predicted: Float[ndarray, " tokens"],
    seen: Float[ndarray, " tokens"],
    windows: Int[ndarray, " tokens"],
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation, with a 95 % percentile interval over resampled windows.

    Ranks are those of the whole. NaN where either is constant.
    """
    x, y = (rankdata(values) for values in (predicted, seen))
    x, y = x - x.mean(), y - y.mean()
    number = np.unique(windows, return_inverse=True)[1]
    parts = np.stack([np.bincount(number, weights=w) for w in (np.ones(len(x)), x, y, x * x, y * y, x * y)], axis=1)
    total = np.vstack([parts.sum(axis=0), _resampled(len(parts), seed) @ parts])
    n, sx, sy, xx, yy, xy = total.T
    spread = (xx - sx**2 / n) * (yy - sy**2 / n)
    if not spread[0] > 0:
        return Estimate(math.nan, math.nan, math.nan)
    r = (xy - sx * sy / n)[spread > 0] / np.sqrt(spread[spread > 0])
    return Estimate(float(r[0]), *(float(end) for end in np.quantile(r[1:], [0.025, 0.975])))


def same_token_elsewhere(
    values: Float[ndarray, "tokens components"], token_id: Int[ndarray, " tokens"], windows: Int[ndarray, " tokens"]
) -> Float[ndarray, "tokens components"]:
    """The mean value of the same token in all other windows; the mean of all tokens where it occurs in no other window.

    This is the prediction from a token's identity alone, which a row has to beat.
    """
    number, window = (np.unique(x, return_inverse=True)[1] for x in (token_id, windows))
    pair = np.unique(number * (window.max() + 1) + window, return_inverse=True)[1]
    out = np.empty(values.shape)
    known = np.bincount(number)[number] - np.bincount(pair)[pair]
    for column in range(values.shape[1]):
        own = values[:, column]
        rest = np.bincount(number, weights=own)[number] - np.bincount(pair, weights=own)[pair]
        out[:, column] = np.divide(rest, known, out=np.full(len(own), own.mean()), where=known > 0)
    return out


# Clusters and components ---------------------------------------------------------------------------------------------


def cluster_means(
    values: Float[ndarray, "tokens components"], labels: Int[ndarray, " tokens"]
) -> Float[ndarray, "clusters components"]:
    """The mean over the members of each cluster."""
    inside = labels >= 0
    sizes = np.bincount(labels[inside])
    sums = [np.bincount(labels[inside], weights=column) for column in values[inside].T]
    return np.stack(sums, axis=1) / sizes[:, None]


def rest_means(
    values: Float[ndarray, "tokens components"], labels: Int[ndarray, " tokens"]
) -> Float[ndarray, "clusters components"]:
    """The mean over all tokens that are not in a cluster, for each cluster."""
    sizes = np.bincount(labels[labels >= 0])[:, None]
    return (values.sum(axis=0) - cluster_means(values, labels) * sizes) / (len(values) - sizes)


def excess(
    values: Float[ndarray, "tokens components"], labels: Int[ndarray, " tokens"]
) -> Float[ndarray, "clusters components"]:
    """By how much a cluster's mean lies above that of all other tokens, each column by its spread over tokens.

    So a component that hurts every token alike counts for nothing, and components are on one scale, as in rows.
    """
    spread = values.std(axis=0)
    apart = cluster_means(values, labels) - rest_means(values, labels)
    return np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)


class Profiles(NamedTuple):
    """What clusters' rows say of components, against what silencing each did to them."""

    agreement: Estimate
    """Rank correlation over components of a cluster's row with what it lost, on average over clusters."""
    agreement_chance: float
    """The same with the row of another cluster, on average over all pairs."""
    named: Estimate
    """Share of the clusters whose row names the component that it loses most by."""
    named_chance: float
    """The same with the row of another cluster."""


def profiles(
    predicted: Float[ndarray, "clusters components"], lost: Float[ndarray, "clusters components"], seed: int = 0
) -> Profiles:
    """Each cluster's prediction against its loss, and against all other clusters' for the level of chance.

    The interval of the agreement is over resampled clusters, that of the share Wilson's.

    Raises:
        ValueError: for fewer than two clusters, or tables of different shapes.
    """
    if predicted.shape != lost.shape or len(lost) < 2:
        raise ValueError(f"two tables of at least two clusters are needed, got {predicted.shape} and {lost.shape}")
    one, other = (_unit_ranks(table) for table in (predicted, lost))
    cosines, count = one @ other.T, len(lost)
    first, worst = predicted.argmax(axis=1), lost.argmax(axis=1)
    hits = first[:, None] == worst

    def elsewhere(table: ndarray) -> float:
        return float((table.sum() - np.trace(table)) / (count * (count - 1)))

    return Profiles(
        mean_of(np.diag(cosines), seed=seed),
        elsewhere(cosines),
        wilson(float(np.diag(hits).mean()), count),
        elsewhere(hits.astype(np.float64)),
    )


def _unit_ranks(table: Float[ndarray, "rows columns"]) -> Float[ndarray, "rows columns"]:
    """Ranks within each row, centred, of unit length; a constant row is zero."""
    ranks = rankdata(table, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)


# Sets to compare a cluster with --------------------------------------------------------------------------------------


def steerable(
    labels: Int[ndarray, " tokens"], fit: Bool[ndarray, " tokens"], least: int = LEAST
) -> Int[ndarray, " some"]:
    """The clusters with so many members in the half that is steered on, and in the other."""
    count = int(labels.max(initial=-1)) + 1
    sizes = [np.bincount(labels[(labels >= 0) & half], minlength=count) for half in (fit, ~fit)]
    return np.flatnonzero(np.minimum(*sizes) >= least)


def random_like(member: Bool[ndarray, " tokens"], fit: Bool[ndarray, " tokens"], rng) -> Bool[ndarray, " tokens"]:
    """As many tokens as a cluster has in each half, at random among those that are not in it."""
    chosen = np.zeros(len(member), dtype=bool)
    for half in (fit, ~fit):
        others = np.flatnonzero(half & ~member)
        chosen[rng.choice(others, min(int((member & half).sum()), len(others)), replace=False)] = True
    return chosen


def same_tokens_outside(
    member: Bool[ndarray, " tokens"], fit: Bool[ndarray, " tokens"], token_id: Int[ndarray, " tokens"], rng
) -> Bool[ndarray, " tokens"]:
    """Occurrences outside a cluster of the tokens in it.

    Of each token as many as the cluster has in each half, if there are so many: a cluster that holds all occurrences of
    its tokens has none outside.
    """
    chosen = np.zeros(len(member), dtype=bool)
    for half in (fit, ~fit):
        for token, count in zip(*np.unique(token_id[member & half], return_counts=True), strict=True):
            others = np.flatnonzero(half & ~member & (token_id == token))
            chosen[rng.choice(others, min(int(count), len(others)), replace=False)] = True
    return chosen


def shared_tokens(labels: Int[ndarray, " tokens"], token_id: Int[ndarray, " tokens"]) -> Float[ndarray, "k k"]:
    """How far the tokens of two clusters are the same ones: the common part of their frequencies, from 0 to 1."""
    inside = labels >= 0
    number = np.unique(token_id[inside], return_inverse=True)[1]
    table = np.zeros((int(labels.max()) + 1, int(number.max()) + 1))
    np.add.at(table, (labels[inside], number), 1)
    table /= table.sum(axis=1, keepdims=True)
    return np.stack([np.minimum(row, table).sum(axis=1) for row in table])


# Steering ------------------------------------------------------------------------------------------------------------


class Falls(NamedTuple):
    """What steering towards a cluster's members in one half of the text does in the other half, nats.

    A *fall* is how much more the mean loss of some tokens of the other half falls with the tilt than without. Intervals
    resample windows; NaN where there are too few tokens.
    """

    fit: int
    """Members in the half that is steered on."""
    test: int
    """Members in the other half."""
    own: Estimate
    """Fall of the cluster's members."""
    rest: float
    """Fall of all tokens that are not members."""
    random: float
    """Fall of a random set when the model is steered towards it instead: the level of chance."""
    outside: Estimate
    """Fall of occurrences of the members' tokens outside the cluster."""
    by_outside: Estimate
    """Fall of the members when the model is steered towards such occurrences instead."""


class Halves(NamedTuple):
    """A text dealt to two halves of whole windows: a model is steered on the one and looked at on the other."""

    steered: Steered
    fit: Bool[ndarray, " tokens"]
    token_id: Int[ndarray, " tokens"]
    windows: Int[ndarray, " tokens"]

    def fall(self, chosen: Bool[ndarray, " tokens"]) -> Float[ndarray, " tokens"]:
        """Of every token of the half that is looked at, where some of the other are steered towards; NaN for those."""
        found = np.full(len(self.fit), np.nan)
        found[~self.fit] = self.steered.fall(np.flatnonzero(chosen[self.fit]))
        return found

    def mean(self, fall: Float[ndarray, " tokens"], where: Bool[ndarray, " tokens"]) -> Estimate:
        """Over some tokens of the half that is looked at; NaN for fewer than `LEAST`."""
        where = where & ~self.fit
        few = where.sum() < LEAST
        return Estimate(math.nan, math.nan, math.nan) if few else mean_of(fall[where], self.windows[where])


def steer(
    halves: Halves, member: Bool[ndarray, " tokens"], seed: int | tuple[int, ...] = 0
) -> tuple[Falls, Float[ndarray, " tokens"]]:
    """Steer towards a cluster, and towards the sets that it is compared with.

    Args:
        member: the cluster; it needs `LEAST` members in each half (`steerable`).
        seed: of the sets.

    Returns:
        What there is to say of it, and the fall of every token (`Halves.fall`).
    """
    rng, fit = np.random.default_rng(seed), halves.fit
    random = random_like(member, fit, rng)
    same = same_tokens_outside(member, fit, halves.token_id, rng)
    fall = halves.fall(member)
    by_outside = Estimate(math.nan, math.nan, math.nan)
    if (same & fit).sum() >= LEAST:
        by_outside = halves.mean(halves.fall(same), member)
    falls = Falls(
        int((member & fit).sum()),
        int((member & ~fit).sum()),
        halves.mean(fall, member),
        float(fall[~fit & ~member].mean()),
        float(halves.fall(random)[random & ~fit].mean()),
        halves.mean(fall, same),
        by_outside,
    )
    return falls, fall
