"""Features and clusters: which pairs agree, and how much agreement chance alone would give.

A cluster is a set of tokens, and so is a feature: the tokens on which it is active. Of the paper's comparison we know
the outcome, 259 of 510 clusters matched [S]; its score and its threshold are unknown [U]. Ours are completions [I]:
precision, recall, F1 and average precision for every pair; the best pair of each cluster; and two nulls, both of which
shuffle the labels of tokens. The plain one shuffles all of them. The other shuffles them only among occurrences of the
same token, so it keeps whatever a cluster and a feature agree on because both know the token.

All counts are sparse products: a pair costs something only if it shares a token. `spectro match` does all this for the
clusters of a run: `compare`, `together`, and the file that they are kept in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_array, issparse

from ..checks.intervals import NORMAL, Estimate, wilson
from ..run.store import open_json, save_json

Score = Literal["f1", "average_precision"]
SCORES = ("f1", "average_precision")
NULLS = ("any token", "same token")
"""Among which tokens the labels are shuffled."""
FORMAT = 1
"""Of matches.json."""


@dataclass(frozen=True)
class Pairs:
    """Every pair of a cluster and a feature that share a token, by cluster, then feature. All others score zero."""

    cluster: Int[ndarray, " pairs"]
    feature: Int[ndarray, " pairs"]
    shared: Int[ndarray, " pairs"]
    """Tokens of the cluster on which the feature is active."""
    precision: Float[ndarray, " pairs"]
    """Shared tokens as part of those on which the feature is active."""
    recall: Float[ndarray, " pairs"]
    """Shared tokens as part of the cluster."""
    f1: Float[ndarray, " pairs"]
    average_precision: Float[ndarray, " pairs"]
    """Of the ranking of all tokens by the feature's magnitude."""
    log_p: Float[ndarray, " pairs"]
    """Natural logarithm of a bound on the p-value; see `log_tail`."""
    q: Float[ndarray, " pairs"]
    """The least false-discovery rate at which the pair is reported, over all pairs, those that share nothing too."""

    def take(self, index) -> dict[str, ndarray]:
        """The fields of some pairs, by name: the columns of a table."""
        return {name: values[index] for name, values in vars(self).items()}


@dataclass(frozen=True)
class Matches:
    """What `match` found: all pairs, and the best feature of each cluster against its null."""

    pairs: Pairs
    sizes: Int[ndarray, " clusters"]
    """Tokens of each cluster."""
    active: Int[ndarray, " features"]
    """Tokens on which each feature is active."""
    best: Int[ndarray, " clusters"]
    """Index into ``pairs`` of the cluster's best feature; -1 if no feature is active in it."""
    score: Float[ndarray, " clusters"]
    """What the best feature scores."""
    null: Float[ndarray, "permutations clusters"]
    """The best score over all features after each shuffle of the labels."""
    p: Float[ndarray, " clusters"]
    """Part of the shuffles whose best feature scores as much, the measured labels counted as one of them."""
    q: Float[ndarray, " clusters"]
    """The least false-discovery rate over clusters at which this one is reported."""

    def matched(self, threshold: float = 0.0, *, level: float = 0.05) -> Bool[ndarray, " clusters"]:
        """Clusters whose best feature scores ``threshold`` or more, and beats chance at this rate of false ones."""
        return (self.best >= 0) & (self.score >= threshold) & (self.q <= level)

    def beyond(self, level: float = 0.05) -> Bool[ndarray, " clusters"]:
        """Clusters with any pair reported at this rate. More sensitive than `matched`, which takes best pairs alone."""
        found = np.zeros(len(self.sizes), dtype=bool)
        found[self.pairs.cluster[self.pairs.q <= level]] = True
        return found

    def feature_score(self) -> Float[ndarray, " features"]:
        """For each feature, its best F1 with any cluster."""
        best = np.zeros(len(self.active))
        np.maximum.at(best, self.pairs.feature, self.pairs.f1)
        return best


def match(
    clusters,
    activations,
    *,
    keep: Int[ndarray, " tokens"] | None = None,
    score: Score = "f1",
    permutations: int = 300,
    seed: int = 0,
) -> Matches:
    """Compare every cluster with every feature over the same tokens.

    The p-value of a cluster is that of its best feature *among all*: each shuffle picks a best feature of its own. So
    a large dictionary has no advantage over a small one.

    Args:
        clusters: labels (tokens,), -1 for none; or a `spectrolib.clustering.Clustering`.
        activations: (tokens, features), sparse or dense. A feature is active where its value is above zero.
        keep: what a shuffle keeps: labels move only among tokens with the same value, say the same token id. None:
            labels move among all tokens.
        score: by which the best feature is chosen.
        permutations: shuffles of the labels. The least p-value is 1 / (permutations + 1), so at rate α over C
            clusters none is reported unless C / (α (permutations + 1)) of them have it: take some times C / α.
        seed: of the shuffles.

    Raises:
        ValueError: for labels, activations and ``keep`` of different lengths; no cluster at all; values that are not
            finite; an unknown score; fewer than one permutation.
    """
    labels, activations, keep = _checked(clusters, activations, keep)
    check_comparison(score, permutations)
    active = _ones(activations)
    counts, sizes = np.diff(active.tocsc().indptr).astype(np.int64), np.bincount(labels[labels >= 0])
    ranked = _Ranking(activations)
    pairs = _pairs(labels, active, ranked, keep, sizes, counts)
    rng = np.random.default_rng(seed)
    null = np.empty((permutations, len(sizes)))
    for row in null:
        shuffled = shuffle(labels, keep, rng)
        shared = _shared(shuffled, active, len(sizes))
        values = _f1(shared, sizes, counts) if score == "f1" else ranked.average_precision(shuffled, shared, sizes)
        row[:] = _row_maximum(values, shared.indptr)
    return _against(null, pairs, sizes, counts, score)


def check_comparison(score: str, permutations: int) -> None:
    """Refuse (ValueError) a score that `match` does not know, or fewer than one permutation."""
    if score not in SCORES:
        raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")


def compare(clusters, activations, token: Int[ndarray, " tokens"], **options) -> dict[str, Matches]:
    """`match` against both nulls, by their names in `NULLS`.

    Args:
        token: the token ids, which the second null keeps.
        options: of `match`.
    """
    kept = zip(NULLS, (None, np.asarray(token)), strict=True)
    return {null: match(clusters, activations, keep=keep, **options) for null, keep in kept}


def together(found: Sequence[Matches], score: Score = "f1") -> Matches:
    """What `match` finds with the features of several dictionaries together, from its results for each.

    So the best feature is the best of all dictionaries, in the shuffles as in the measured labels, and the rates of
    false discovery hold for all of them at once.

    Args:
        found: of the same clusters, nulls, seeds and score.

    Raises:
        ValueError: for other clusters, or another number of shuffles.
    """
    first = found[0]
    if any(not np.array_equal(m.sizes, first.sizes) or m.null.shape != first.null.shape for m in found):
        raise ValueError("only matches of the same clusters, with as many shuffles, go together")
    begins = np.cumsum([0, *(len(m.active) for m in found)])
    fields = {name: np.concatenate([getattr(m.pairs, name) for m in found]) for name in vars(first.pairs)}
    fields["feature"] = np.concatenate([m.pairs.feature + begin for m, begin in zip(found, begins, strict=False)])
    fields["q"] = false_discovery(np.exp(fields["log_p"]), tests=len(first.sizes) * int(begins[-1]))
    order = np.lexsort((fields["feature"], fields["cluster"]))
    pairs = Pairs(**{name: values[order] for name, values in fields.items()})
    active, null = np.concatenate([m.active for m in found]), np.max([m.null for m in found], axis=0)
    return _against(null, pairs, first.sizes, active, score)


def _against(null, pairs: Pairs, sizes, active, score: Score) -> Matches:
    """The best pair of each cluster, and how many shuffles do as well."""
    values = getattr(pairs, score)
    best = _row_argmax(values, np.searchsorted(pairs.cluster, np.arange(len(sizes) + 1)))
    top = np.where(best >= 0, values[best] if len(values) else 0.0, 0.0)
    p = (1 + (null >= top - 1e-12).sum(axis=0)) / (len(null) + 1)
    return Matches(pairs, sizes, active, best, top, null, p, false_discovery(p))


def _checked(clusters, activations, keep) -> tuple[ndarray, csr_array, ndarray]:
    labels = np.asarray(getattr(clusters, "labels", clusters))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"cluster labels must be integers of shape (tokens,), got {labels.dtype} {labels.shape}")
    activations = csr_array(activations if issparse(activations) else np.asarray(activations))
    if activations.shape[0] != len(labels):
        raise ValueError(
            f"{len(labels)} labels and activations of {activations.shape[0]} tokens: both must be of the same tokens"
        )
    if not np.isfinite(activations.data).all():
        raise ValueError("activations hold values that are not finite")
    if not (labels >= 0).any():
        raise ValueError("there is no cluster to match: every label is -1")
    if keep is None:
        keep = np.zeros(len(labels), dtype=np.int64)
    keep = np.asarray(keep)
    if keep.shape != labels.shape:
        raise ValueError(f"keep must have one value for each of {len(labels)} tokens, got shape {keep.shape}")
    activations.sum_duplicates()
    positive = activations.data > 0
    if not positive.all():
        activations = csr_array(activations.multiply(activations > 0))
        activations.eliminate_zeros()
    return labels.astype(np.int64), activations, np.unique(keep, return_inverse=True)[1]


def _ones(x: csr_array) -> csr_array:
    return csr_array((np.ones(x.nnz, dtype=np.int32), x.indices, x.indptr), shape=x.shape)


def _indicator(labels: Int[ndarray, " tokens"], count: int) -> csr_array:
    """(count, tokens), one where the token has the label."""
    tokens = np.flatnonzero(labels >= 0)
    ones = np.ones(len(tokens), dtype=np.int32)
    return csr_array((ones, (labels[tokens], tokens)), shape=(count, len(labels)))


def _shared(labels: Int[ndarray, " tokens"], active: csr_array, count: int) -> csr_array:
    """(clusters, features): tokens of the cluster on which the feature is active."""
    shared = csr_array(_indicator(labels, count) @ active)
    shared.sort_indices()
    return shared


def _rows(x: csr_array) -> Int[ndarray, " stored"]:
    return np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))


def _f1(shared: csr_array, sizes: Int[ndarray, " clusters"], counts: Int[ndarray, " features"]) -> ndarray:
    return 2 * shared.data / (sizes[_rows(shared)] + counts[shared.indices])


def _row_maximum(values: Float[ndarray, " pairs"], starts: Int[ndarray, " clusters+1"]) -> Float[ndarray, " clusters"]:
    best = np.zeros(len(starts) - 1)
    filled = np.diff(starts) > 0
    if filled.any():
        best[filled] = np.maximum.reduceat(values, starts[:-1][filled])
    return best


def _row_argmax(values: Float[ndarray, " pairs"], starts: Int[ndarray, " clusters+1"]) -> Int[ndarray, " clusters"]:
    """The first of the best of each row; -1 for an empty one."""
    return np.array([a + int(values[a:b].argmax()) if b > a else -1 for a, b in pairwise(starts)], dtype=np.int64)


def _pairs(labels, active, ranked, keep, sizes, counts) -> Pairs:
    shared = _shared(labels, active, len(sizes))
    cluster, feature = _rows(shared), shared.indices.astype(np.int64)
    both = shared.data.astype(np.int64)
    log_p = log_tail(both, _expected(labels, active, keep, shared), np.minimum(sizes[cluster], counts[feature]))
    return Pairs(
        cluster=cluster,
        feature=feature,
        shared=both,
        precision=both / counts[feature],
        recall=both / sizes[cluster],
        f1=_f1(shared, sizes, counts),
        average_precision=ranked.average_precision(labels, shared, sizes),
        log_p=log_p,
        q=false_discovery(np.exp(log_p), tests=len(sizes) * len(counts)),
    )


# Chance --------------------------------------------------------------------------------------------------------------


def shuffle(
    labels: Int[ndarray, " tokens"], keep: Int[ndarray, " tokens"], rng: np.random.Generator
) -> Int[ndarray, " tokens"]:
    """The labels, moved at random among tokens that have the same value of ``keep``."""
    moved = np.empty_like(labels)
    moved[np.argsort(keep, kind="stable")] = labels[np.lexsort((rng.random(len(labels)), keep))]
    return moved


def _expected(labels, active: csr_array, keep, shared: csr_array) -> Float[ndarray, " pairs"]:
    """Mean of the shared tokens over all shuffles: Σ over values of ``keep`` of (of the cluster) x (active) / (all)."""
    groups = _indicator(keep, int(keep.max()) + 1)
    part = csr_array(_indicator(labels, shared.shape[0]) @ groups.T) / groups.sum(axis=1)[None, :]
    part, by_group = csr_array(part), csr_array(groups @ active)
    mean = np.empty(shared.nnz)
    for cluster, (a, b) in enumerate(pairwise(shared.indptr)):
        mean[a:b] = (part[[cluster]] @ by_group).toarray()[0, shared.indices[a:b]]
    return mean


def log_tail(
    shared: Int[ndarray, " pairs"], mean: Float[ndarray, " pairs"], most: Int[ndarray, " pairs"]
) -> Float[ndarray, " pairs"]:
    """Bound on log P(a shuffle shares as many tokens), from the mean over shuffles and the most that can be shared.

    Among tokens of one value of ``keep`` the shared count is hypergeometric, and so a sum of independent Bernoulli
    variables (its generating polynomial has real zeros only). So is the sum over values. For a sum of at most ``n``
    of them with mean μ, Hoeffding (1963) has P(S >= t) <= exp(-n KL(t/n | μ/n)), for any t above μ. It is valid at
    any size and for any number of pairs, and a little conservative.
    """
    t, n = np.asarray(shared, dtype=np.float64), np.asarray(most, dtype=np.float64)
    mean = np.minimum(mean, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = t * np.log(t / mean)
        below = np.where(n > t, (n - t) * np.log((n - t) / (n - mean)), 0.0)
        # a difference of rounding must not pass for one of counts
        return np.where(t > mean + 1e-9 * n, -(above + below), 0.0)


def false_discovery(p: Float[ndarray, " tests"], *, tests: int | None = None) -> Float[ndarray, " tests"]:
    """Benjamini and Hochberg's q-values: reporting those at most α keeps the expected part of false ones below α.

    It is proved for independent p-values and for those that depend on each other positively.

    Args:
        tests: how many tests there were, if some with p = 1 are not listed.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    scaled = p[order] * (tests or len(p)) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


class Curve(NamedTuple):
    """The share of clusters that match, for each threshold, with its 95 % interval."""

    thresholds: Float[ndarray, " thresholds"]
    rate: Float[ndarray, " thresholds"]
    low: Float[ndarray, " thresholds"]
    high: Float[ndarray, " thresholds"]


def match_rate(
    score: Float[ndarray, " clusters"],
    thresholds: Float[ndarray, " thresholds"] | Sequence[float],
    *,
    significant: Bool[ndarray, " clusters"] | None = None,
) -> Curve:
    """The share of clusters whose best feature scores at least each threshold.

    The interval is Wilson's, for clusters as independent draws. It tells how far another draw of as many clusters from
    the same text would move the rate, and nothing of another text, or of another clustering of this one.

    Args:
        significant: count only these.

    Raises:
        ValueError: without a cluster.
    """
    score, thresholds = np.asarray(score, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if score.size == 0:
        raise ValueError("a match rate needs at least one cluster")
    counts = np.ones(len(score), dtype=bool) if significant is None else np.asarray(significant, dtype=bool)
    rates = ((score[None, :] >= thresholds[:, None]) & counts).mean(axis=1)
    return Curve(thresholds, *np.array([wilson(rate, len(score)) for rate in rates]).reshape(-1, 3).T)


def rate_difference(one: Bool[ndarray, " clusters"], other: Bool[ndarray, " clusters"]) -> Estimate:
    """Difference between the match rates of two dictionaries on the same clusters, with a 95 % interval.

    It depends on the clusters that one of them matches and the other does not. The interval is that of Agresti and Min
    (2005): the normal one, after half a cluster is added to each of the four cells of the table.

    Raises:
        ValueError: for unequal numbers of clusters, or none.
    """
    one, other = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    if one.shape != other.shape or one.size == 0:
        raise ValueError(f"both must be of the same clusters, at least one: got {one.shape} and {other.shape}")
    n, gained, lost = one.size + 2, (one & ~other).sum() + 0.5, (other & ~one).sum() + 0.5
    centre, half = (gained - lost) / n, NORMAL * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return Estimate(float(one.mean() - other.mean()), max(-1.0, float(centre - half)), min(1.0, float(centre + half)))


# On disk -------------------------------------------------------------------------------------------------------------

THRESHOLDS = (0.2, 0.5)
"""Thresholds of the score that a summary gives rates for; the file holds the whole curve."""
LEVEL = 0.05
"""Rate of false discoveries."""


def match_summary(found: Mapping[str, Matches]) -> dict:
    """What `compare` found, in numbers that JSON has: rates at two thresholds, and how many clusters beat chance.

    ``best``: clusters whose best feature beats the best of the shuffles (`Matches.matched`). ``any``: clusters with any
    pair that shares more tokens than shuffles would (`Matches.beyond`). Both at a false-discovery rate of 5 %.
    """
    first = found[NULLS[0]]
    rates = match_rate(first.score, THRESHOLDS)
    return {
        "clusters": len(first.sizes),
        "features": len(first.active),
        "silent": int((first.active == 0).sum()),
        "score": float(np.median(first.score)),
        "rates": [
            {
                "threshold": threshold,
                "rate": float(rate),
                "interval": [float(low), float(high)],
                "chance": {null: _chance(m, threshold) for null, m in found.items()},
            }
            for threshold, rate, low, high in zip(*rates, strict=True)
        ],
        "beat_chance": {
            null: {"best": int(m.matched(level=LEVEL).sum()), "any": int(m.beyond(LEVEL).sum())}
            for null, m in found.items()
        },
    }


def _chance(found: Matches, threshold: float) -> dict[str, float]:
    """The share of clusters that reach a threshold after a shuffle: its mean, and how often it is the measured one."""
    shuffled, measured = (found.null >= threshold).mean(axis=1), (found.score >= threshold).mean()
    p = (1 + (shuffled >= measured - 1e-12).sum()) / (1 + len(shuffled))
    return {"rate": float(shuffled.mean()), "p": float(p)}


def columns(found: Mapping[str, Matches]) -> dict:
    """What `compare` found, cluster by cluster, and the curve of the rate: columns of numbers that JSON has.

    For each cluster its best feature, and, for each null, its pair with the least p-value. -1 where there is no such
    feature.
    """
    first = found[NULLS[0]]
    some, best = first.best >= 0, np.maximum(first.best, 0)
    pick = lambda values, none: np.where(some, values[best] if len(values) else none, none).tolist()  # noqa: E731
    pairs, grid = first.pairs, np.linspace(0, 1, 101)
    names = ("precision", "recall", "f1", "average_precision")
    return {
        "cluster": list(range(len(first.sizes))),
        "size": first.sizes.tolist(),
        "feature": pick(pairs.feature, -1),
        "shared": pick(pairs.shared, 0),
        **{name: pick(getattr(pairs, name), 0.0) for name in names},
        "p": {null: m.p.tolist() for null, m in found.items()},
        "q": {null: m.q.tolist() for null, m in found.items()},
        "sharpest": {null: _sharpest(m) for null, m in found.items()},
        "active": first.active.tolist(),
        "curve": {
            "threshold": grid.tolist(),
            "rate": match_rate(first.score, grid).rate.tolist(),
            "chance": {null: [float((m.null >= t).mean()) for t in grid] for null, m in found.items()},
        },
    }


def _sharpest(found: Matches) -> dict[str, list]:
    """The pair of each cluster with the least p-value: its feature and its q-value."""
    starts = np.searchsorted(found.pairs.cluster, np.arange(len(found.sizes) + 1))
    least = _row_argmax(-found.pairs.log_p, starts)
    take = lambda values, none: [none if i < 0 else values[i].item() for i in least]  # noqa: E731
    return {"feature": take(found.pairs.feature, -1), "q": take(found.pairs.q, 1.0)}


def save_matches(matches: Sequence[Mapping], folder: str | Path, about: Mapping) -> Path:
    """Write matches.json, whole or not at all: ``about`` the comparison, and a table of columns for each dictionary.

    Raises:
        ValueError: if the folder cannot be written.
    """
    return save_json(folder, "matches.json", {"format": FORMAT, "about": dict(about), "matches": list(matches)})


def open_matches(folder: str | Path) -> dict:
    """What `save_matches` wrote: ``about``, and ``matches``.

    Raises:
        ValueError: if there is none, or the file is damaged or of another format.
    """
    return open_json(
        folder, "matches.json", FORMAT, "match", lambda held: {name: held[name] for name in ("about", "matches")}
    )


# Rankings ------------------------------------------------------------------------------------------------------------


class _Ranking:
    """Every feature's active tokens in order of magnitude; equal magnitudes share the later place."""

    def __init__(self, activations: csr_array):
        token = np.repeat(np.arange(activations.shape[0]), np.diff(activations.indptr))
        order = np.lexsort((-activations.data, activations.indices))
        self.token, self.tokens, self.features = token[order], activations.shape[0], activations.shape[1]
        self.feature = activations.indices[order].astype(np.int64)
        value = activations.data[order]
        new = np.ones(len(value), dtype=bool)
        new[1:] = (np.diff(self.feature) != 0) | (np.diff(value) != 0)
        self.tie = np.cumsum(new) - 1
        """Number of the run of equal magnitudes, increasing over features and down the ranking."""
        ends = np.append(np.flatnonzero(new)[1:], len(value))
        self.place = ends[self.tie] - np.searchsorted(self.feature, self.feature)

    def average_precision(self, labels: ndarray, shared: csr_array, sizes: ndarray) -> ndarray:
        """Σ over a cluster's tokens of the precision at their place, over the size of the cluster, for each pair.

        Tokens on which the feature is silent tie for the last place.
        """
        label = labels[self.token]
        mine = np.flatnonzero(label >= 0)
        pair = label[mine] * self.features + self.feature[mine]
        order = np.argsort(pair, kind="stable")  # by pair, then down the ranking
        pair, tie, place = pair[order], self.tie[mine][order], self.place[mine][order]
        new = np.ones(len(pair), dtype=bool)
        new[1:] = (np.diff(pair) != 0) | (np.diff(tie) != 0)
        ends = np.append(np.flatnonzero(new)[1:], len(pair))
        found = ends[np.cumsum(new) - 1] - np.searchsorted(pair, pair)
        begins = np.flatnonzero(np.append(True, np.diff(pair) != 0)) if len(pair) else []
        total = np.add.reduceat(found / place, begins) if len(pair) else np.zeros(0)
        size = sizes[_rows(shared)]
        return total / size + (1 - shared.data / size) * size / self.tokens
