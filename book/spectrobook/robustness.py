"""Do clusters come back? One pipeline run on many tables of the same tokens, and counts of what the runs share.

A cluster *survives* a change if the changed run has a cluster that shares more than half of their union with it
(Jaccard index). Above one half no cluster can have two such partners, so counting needs no assignment problem.

Five kinds of interval, each for another question:

* shares of clusters: Wilson's, clusters as independent trials. How far would another draw of clusters move the share?
* differences of two shares over the same clusters: paired, from the clusters in which the two runs disagree;
* means over tokens: tokens of one window are alike, so windows are resampled, or left out one after another;
* sums over tokens and components: components are resampled too, and with them the draws that all tokens share;
* what a card promises: clusters are resampled, and so are the documents that they are seen in.

What the paper's controls are we know in outline [S]; these counts, and their intervals, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from spectrolib import clustering, graph
from spectrolib.checks.intervals import NORMAL, Estimate, wilson
from spectrolib.clustering import Clustering
from spectrolib.estimator import standardise

NONE = -1
"""The label of a token that is in no cluster."""


@dataclass(frozen=True)
class Run:
    """What the pipeline makes of a table."""

    neighbours: graph.Neighbours
    clustering: Clustering

    @property
    def labels(self) -> Int[ndarray, " tokens"]:
        """Cluster of each token, -1 for none."""
        return self.clustering.labels


def run(
    chi: Float[ndarray, "tokens components"],
    *,
    rows: Literal["center", "zscore"] | None = "center",
    whiten: bool = False,
    k: int = 45,
    symmetrise: graph.Symmetrise = "mutual",
    **options,
) -> Run:
    """The whole way from a table of responses to neighbours and clusters.

    Args:
        chi: as measured; columns that are constant over the tokens are refused.
        rows, whiten: of `estimator.standardise`.
        k, symmetrise: of `graph.knn_graph`.
        options: of `clustering.conductance_clusters`.
    """
    neighbours = graph.nearest(standardise(chi, rows=rows, whiten=whiten), k)
    return Run(neighbours, clustering.conductance_clusters(graph.join(neighbours, symmetrise), **options).complete())


# Clusters that come back ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survival:
    """What became of the clusters of one run in another."""

    overlap: Float[ndarray, " clusters"]
    """The largest Jaccard index of each cluster with any of the other run."""
    threshold: float

    @property
    def survived(self) -> Bool[ndarray, " clusters"]:
        """Which clusters have a partner."""
        return self.overlap > self.threshold

    @property
    def share(self) -> Estimate:
        """Share of the clusters that survive; NaN if there are none."""
        count = len(self.overlap)
        return wilson(float(self.survived.mean()) if count else math.nan, count)


def survival(reference: Int[ndarray, " tokens"], other: Int[ndarray, " tokens"], threshold: float = 0.5) -> Survival:
    """Which clusters of a run come back in another run over the same tokens.

    Args:
        reference, other: cluster of each token, -1 for none.
        threshold: the Jaccard index that a partner must exceed.

    Raises:
        ValueError: for labellings of different lengths, or a threshold outside 0.5 <= threshold < 1.
    """
    reference, other = _labels(reference, other)
    if not 0.5 <= threshold < 1:
        raise ValueError(
            f"threshold must be at least 0.5, or a cluster could survive as two, and below 1, got {threshold}"
        )
    names, of_reference = np.unique(reference[reference != NONE], return_counts=True)
    others, of_other = np.unique(other[other != NONE], return_counts=True)
    both = (reference != NONE) & (other != NONE)
    row, column = np.searchsorted(names, reference[both]), np.searchsorted(others, other[both])
    pair, common = np.unique(row * max(len(others), 1) + column, return_counts=True)
    row, column = np.divmod(pair, max(len(others), 1))
    overlap = np.zeros(len(names))
    np.maximum.at(overlap, row, common / (of_reference[row] + of_other[column] - common))
    return Survival(overlap, threshold)


def promises(
    share: Float[ndarray, " clusters"],
    reference: Int[ndarray, " tokens"],
    other: Int[ndarray, " tokens"],
    documents: Int[ndarray, " tokens"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Do clusters come back as often as is said of them? For each share that is named, and for all clusters.

    Args:
        share: promised of each cluster, 0 to the last.
        reference, other: cluster of each token, -1 for none, in the run that promises and in a fresh one.
        documents: the number of each token's document.

    Returns:
        For all clusters first, then for each share that is named, the least first: ``share`` (the mean), ``clusters``,
        ``came back`` and ``difference`` (what came back, less the share) with their 95 % intervals. Those are of
        percentiles over clusters drawn anew, in documents drawn anew; and as wide as Wilson's at least, for where all
        came back the others know of no doubt.

    Raises:
        ValueError: for another number of shares than clusters.
    """
    reference, other = _labels(reference, other)
    came = survival(reference, other).survived
    if len(share) != len(came):
        raise ValueError(f"{len(came)} clusters need as many shares, got {len(share)}")
    rng = np.random.default_rng(seed)
    again = _survived_in_samples(reference, other, documents, resamples, rng)
    drawn = rng.multinomial(len(came), np.full(len(came), 1 / len(came)), size=resamples)
    found = []
    for some in (np.ones(len(came), dtype=bool), *(share == level for level in np.unique(share))):
        weight = drawn[:, some].sum(axis=1)
        known = weight > 0
        value, said = float(came[some].mean()), round(float(share[some].mean()), 9)
        sampled = (drawn * again)[known][:, some].sum(axis=1) / weight[known]
        promised = (drawn * share)[known][:, some].sum(axis=1) / weight[known]
        plain = wilson(value, int(some.sum()))
        low, high = np.quantile(sampled, [0.025, 0.975])
        kept = Estimate(value, min(plain.low, float(low)), max(plain.high, float(high)))
        ends = np.quantile(sampled - promised, [0.025, 0.975])
        apart = Estimate(value - said, min(float(ends[0]), plain.low - said), max(float(ends[1]), plain.high - said))
        found.append({"share": said, "clusters": int(some.sum()), "came back": list(kept), "difference": list(apart)})
    return found


def _survived_in_samples(reference, other, documents, resamples: int, rng) -> Bool[ndarray, "resamples clusters"]:
    """Which clusters come back as the partner that they have in all documents, in documents drawn with replacement."""
    document = np.unique(documents, return_inverse=True)[1]
    table, count = clustering.overlaps(reference, other), int(document.max()) + 1
    if not table.shape[1]:
        return np.zeros((resamples, table.shape[0]), dtype=bool)
    partner = np.asarray(table.argmax(axis=1)).ravel()

    def by_document(where: Bool[ndarray, " tokens"], cluster: ndarray) -> Float[ndarray, "clusters documents"]:
        key = cluster[where] * count + document[where]
        return np.bincount(key, minlength=len(partner) * count).reshape(-1, count)

    mine = reference != NONE
    both = mine & (other == np.where(mine, partner[reference], NONE)) & (other != NONE)
    own, common = by_document(mine, reference), by_document(both, reference)
    sizes = np.zeros((int(other.max(initial=-1)) + 1, count))
    np.add.at(sizes, (other[other != NONE], document[other != NONE]), 1)
    union = own + sizes[partner] - common
    weight = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    above, below = weight @ common.T, weight @ union.T
    whole = common.sum(axis=1) / union.sum(axis=1)
    overlap = np.divide(above, below, out=np.broadcast_to(whole, above.shape).copy(), where=below > 0)
    return overlap > 0.5


def difference(first: Bool[ndarray, " clusters"], second: Bool[ndarray, " clusters"]) -> Estimate:
    """The share of trials in which the first holds, less that in which the second does; the trials are the same.

    The interval is that of Agresti and Min (2005): Wald's for matched pairs, half a trial added to each of the four
    cells. The value is the plain difference.

    Raises:
        ValueError: without a trial, or for different numbers of them.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(f"two outcomes of the same trials are needed, got {first.shape} and {second.shape}")
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    n, a, b = len(first) + 2, gained + 0.5, lost + 0.5
    centre, half = (a - b) / n, NORMAL / n * math.sqrt(a + b - (a - b) ** 2 / n)
    value = (gained - lost) / len(first)
    return Estimate(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def adjusted_rand(
    first: Int[ndarray, " tokens"],
    second: Int[ndarray, " tokens"],
    within: Int[ndarray, " tokens"] | None = None,
) -> float:
    """Adjusted Rand index: 1 where two runs put the same tokens together, 0 on average by chance.

    A token in no cluster counts as a class of its own: what no run clusters is no agreement. (`clouds.adjusted_rand`
    has such tokens as one class.)

    Args:
        within: a group for each token, say its token id. Then only pairs of one group count, and chance is that of
            labels shuffled inside each group: what the two runs agree on *beyond* the groups.

    Returns:
        NaN if no pair can agree: all of each group in one class, or no two tokens of a group in any.

    Raises:
        ValueError: for labellings of different lengths.
    """
    above, possible = (float(part.sum()) for part in _rand_parts(first, second, within))
    return above / possible if possible > 1e-9 else math.nan


def agreement_by_window(
    first: Int[ndarray, " tokens"], second: Int[ndarray, " tokens"], windows: Int[ndarray, " tokens"]
) -> Estimate:
    """`adjusted_rand`, with the 95 % interval of the jackknife: one window after another is left out.

    Windows drawn with replacement would not do: a token that is drawn twice agrees with itself.

    Raises:
        ValueError: for fewer than two windows.
    """
    names = np.unique(windows)
    if len(names) < 2:
        raise ValueError("leaving out a window at a time takes two windows at least")
    value = adjusted_rand(first, second)
    without = np.array([adjusted_rand(first[left], second[left]) for left in (windows != name for name in names)])
    half = NORMAL * math.sqrt((len(names) - 1) / len(names) * ((without - without.mean()) ** 2).sum())
    return Estimate(value, value - half, value + half)


def agreement_within(
    first: Int[ndarray, " tokens"],
    second: Int[ndarray, " tokens"],
    groups: Int[ndarray, " tokens"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`adjusted_rand` within groups, with a 95 % percentile interval over resampled groups.

    All NaN where no pair can agree.
    """
    above, possible = _rand_parts(first, second, groups)
    if not possible.sum() > 1e-9:
        return Estimate(math.nan, math.nan, math.nan)
    able = possible > 0  # the others add nothing to either sum
    numbers = np.arange(int(able.sum()))
    return mean_by_window(above[able], numbers, possible[able], resamples=resamples, seed=seed)


def _rand_parts(first, second, within) -> tuple[Float[ndarray, " groups"], Float[ndarray, " groups"]]:
    """Of each group: pairs together in both runs above what chance gives, and at most."""
    first, second = _labels(first, second)
    group = np.zeros(len(first), dtype=np.int64) if within is None else np.unique(within, return_inverse=True)[1]
    if group.shape != first.shape:
        raise ValueError(f"each of the {len(first)} tokens needs a group, got {group.shape}")
    sizes = np.bincount(group)
    rows, columns, both = (_pairs(len(sizes), group, *labels) for labels in ((first,), (second,), (first, second)))
    total = sizes * (sizes - 1) / 2
    expected = np.divide(rows * columns, total, out=np.zeros(len(sizes)), where=total > 0)
    return both - expected, (rows + columns) / 2 - expected


def _pairs(groups: int, group: ndarray, *labels: ndarray) -> Float[ndarray, " groups"]:
    """How many pairs of tokens of each group share all the labels, tokens in no cluster sharing none."""
    kept = np.logical_and.reduce([label != NONE for label in labels])
    key = np.stack([group, *labels])[:, kept]
    named, counts = np.unique(key, axis=1, return_counts=True)
    return np.bincount(named[0], weights=counts * (counts - 1) / 2, minlength=groups)


def _labels(first, second) -> tuple[ndarray, ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"two labellings must have one label a token each, got shapes {first.shape} and {second.shape}"
        )
    return first, second


# Neighbours, and other means over tokens -----------------------------------------------------------------------------


def mean_by_window(
    values: Float[ndarray, " tokens"],
    windows: Int[ndarray, " tokens"],
    weights: Float[ndarray, " tokens"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean over tokens, with a 95 % percentile interval over resampled windows.

    Two quantities are compared by the mean of their difference token by token: its interval is a paired one.

    Args:
        weights: the mean is Σ values / Σ weights; 1 by default. Any numbers whose sum over windows stays away from 0.

    Raises:
        ValueError: unless there is a window, and a weight, for every value, and one value at least.
    """
    values, windows = np.asarray(values, dtype=np.float64), np.asarray(windows)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or not values.shape == windows.shape == weights.shape or len(values) == 0:
        raise ValueError(f"every value needs its window, got {values.shape}, {windows.shape} and {weights.shape}")
    number = np.unique(windows, return_inverse=True)[1]
    sums, totals = (np.bincount(number, weights=of) for of in (values, weights))
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    low, high = np.quantile(drawn @ sums / (drawn @ totals), [0.025, 0.975])
    return Estimate(float(sums.sum() / totals.sum()), float(low), float(high))


def common_neighbours(first: Int[ndarray, "tokens k"], second: Int[ndarray, "tokens k"]) -> Float[ndarray, " tokens"]:
    """The share of each token's neighbours in one table that it has in another too.

    Raises:
        ValueError: for tables of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"two tables of as many neighbours are needed, got {first.shape} and {second.shape}")
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


# What of a measurement could be said without it ----------------------------------------------------------------------


def predict(
    rows: Float[ndarray, "tokens components"],
    windows: Int[ndarray, " tokens"],
    features: Float[ndarray, "tokens features"] | None = None,
    groups: Int[ndarray, " tokens"] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Float[ndarray, "tokens components"]:
    """What other knowledge of a token says about its row, learned from windows that the token is not in.

    Args:
        windows: dealt to so many folds; each is predicted from the rest.
        features: numbers known of each token: least squares with an intercept.
        groups: a group for each token, say its token id: the mean of what the features leave, over the group's n other
            tokens, times n / (n + 1). So a group never seen predicts nothing, and one seen once half of what it showed.

    Raises:
        ValueError: for fewer windows than folds.
    """
    _, number = np.unique(windows, return_inverse=True)
    count = int(number.max()) + 1
    if count < folds:
        raise ValueError(f"{folds} folds need as many windows at least, there are {count}")
    fold = (np.random.default_rng(seed).permutation(count) % folds)[number]
    design = np.ones((len(rows), 1)) if features is None else np.column_stack([np.ones(len(rows)), features])
    found = np.zeros(rows.shape)
    for held in range(folds):
        known, asked = fold != held, fold == held
        weights = np.linalg.lstsq(design[known], rows[known], rcond=None)[0]
        found[asked] = design[asked] @ weights
        if groups is not None:
            found[asked] += _group_means(rows[known] - design[known] @ weights, groups[known], groups[asked])
    return found


def _group_means(rows: ndarray, groups: ndarray, asked: ndarray) -> ndarray:
    names, number = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, number, rows)
    means = sums / (np.bincount(number) + 1)[:, None]
    place = np.minimum(np.searchsorted(names, asked), len(names) - 1)
    return np.where((names[place] == asked)[:, None], means[place], 0)


def predicted_share(
    first: Float[ndarray, "tokens components"],
    second: Float[ndarray, "tokens components"],
    prediction: Float[ndarray, "tokens components"],
    windows: Int[ndarray, " tokens"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How much of what two independent measurements have in common a prediction gets right.

    With s the rows that both would have without noise, ε and ε' their noise, and f a prediction that knows of neither,

        E[(s + ε)(s + ε')] = E[s²]        and        E[(s + ε - f)(s + ε' - f)] = E[(s - f)²],

    so that 1 - Σ(first - f)(second - f) / Σ first · second estimates 1 - E[(s - f)²] / E[s²], whatever the noise.

    The interval is that of `_two_ways`.

    Args:
        first, second: centred rows, from chains that share nothing.
        prediction: from `predict`, on other windows than those it is for.
    """
    both = first * second
    missed = (first - prediction) * (second - prediction)
    total = _two_ways((both - missed, both), windows, resamples, seed)
    shares = total[:, 0] / total[:, 1]
    return Estimate(float(shares[0]), *(float(end) for end in np.quantile(shares[1:], [0.025, 0.975])))


def true_correlation(
    first: tuple[Float[ndarray, "tokens components"], Float[ndarray, "tokens components"]],
    second: tuple[Float[ndarray, "tokens components"], Float[ndarray, "tokens components"]],
    windows: Int[ndarray, " tokens"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The correlation that the rows of two measurements would have without noise (Spearman, 1904).

    Each measurement comes as two halves. A half of one is only ever compared with the other half of the other, so
    halves of the same number may share their noise, as chains of one seed do:

        r = ½ Σ (a·b' + a'·b) / √( Σ a·a' Σ b·b' ).

    Above 1 by chance is possible. The interval is that of `_two_ways`; all NaN if either measurement has no
    reproducible part.

    Args:
        first, second: the halves (a, a') and (b, b'): centred rows.
    """
    (a, a2), (b, b2) = first, second
    total = _two_ways(((a * b2 + a2 * b) / 2, a * a2, b * b2), windows, resamples, seed)
    if not (total[0, 1:] > 0).all():
        return Estimate(math.nan, math.nan, math.nan)
    total = total[(total[:, 1:] > 0).all(axis=1)]
    r = total[:, 0] / np.sqrt(total[:, 1] * total[:, 2])
    return Estimate(float(r[0]), *(float(end) for end in np.quantile(r[1:], [0.025, 0.975])))


def _two_ways(
    products: Sequence[Float[ndarray, "tokens components"]],
    windows: Int[ndarray, " tokens"],
    resamples: int,
    seed: int,
) -> Float[ndarray, "1+resamples products"]:
    """Sums of products over tokens and components: of all, then over windows and components drawn anew.

    All tokens are read on the same few draws, and their noise is common noise. Windows drawn anew know nothing of it.
    But each component has chains of its own, so components drawn anew are draws drawn anew too.
    """
    number = np.unique(windows, return_inverse=True)[1]
    sums = np.zeros((len(products), int(number.max()) + 1, products[0].shape[1]))
    for own, product in zip(sums, products, strict=True):
        np.add.at(own, number, product)
    rng, (_, count, components) = np.random.default_rng(seed), sums.shape
    by_window, by_component = (
        rng.multinomial(size, np.full(size, 1 / size), size=resamples) for size in (count, components)
    )
    drawn = np.einsum("rw,pwc,rc->rp", by_window, sums, by_component, optimize=True)
    return np.vstack([sums.sum(axis=(1, 2)), drawn])
