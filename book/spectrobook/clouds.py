"""Planted clouds: vectors that look like standardised susceptibilities, with clusters that we know.

A measured table has a dense, heavy-tailed core whose variance lies in few directions, and in and around it groups of
tokens that are closer together than the core would have them. Here the groups are planted, so that a method can be
scored against the truth, and against the best that anyone could do who knew the law (`bayes_labels`). The shape of the
clouds is a choice of ours, made to resemble measured tables; the paper is not known to do any of this.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrolib.estimator import standardise

from . import shipped_table

NONE = -1
"""The label of a token that is in no cluster."""


@dataclass(frozen=True)
class Clouds:
    """What is planted."""

    tokens: int = 4000
    """Rows in all: main body, hubs and clusters."""
    components: int = 32
    """Columns."""
    clusters: int = 12
    """Planted clusters. Their sizes run geometrically from ``smallest`` to ``largest``."""
    smallest: int = 20
    largest: int = 500
    tightest: float = 0.15
    """Spread of the tightest cluster, as a fraction of the body's; geometric up to ``loosest``, whatever the size."""
    loosest: float = 0.7
    reach: float = 0.8
    """Distance of the clusters' centres from the centre of the body, in units of the body's root mean square radius."""
    stretch: float = 0.2
    """Relative spread of a cluster along the ray through its centre: rows of one kind differ in strength."""
    decay: float = 1.5
    """The j-th principal variance of the body is proportional to j to the power of minus this."""
    tail: float = 5.0
    """Degrees of freedom of the body's t law: its columns have a kurtosis of 3 (tail - 2) / (tail - 4)."""
    hubs: int = 40
    """Rows of the body close to its centre, which many others have among their nearest neighbours."""

    def __post_init__(self):
        if not 0 < self.smallest <= self.largest or self.clusters < 1:
            raise ValueError(
                f"clusters must be at least 1 and sizes 0 < smallest <= largest, got {self.clusters} clusters of "
                f"{self.smallest} to {self.largest}"
            )
        if not 0 < self.tightest <= self.loosest:
            raise ValueError(f"spreads must be 0 < tightest <= loosest, got {self.tightest} and {self.loosest}")
        if self.tail <= 2:
            raise ValueError(f"tail must be above 2, or the body has no variance, got {self.tail}")
        if self.components < 2:
            raise ValueError(f"components must be at least 2: rows are centred over them, got {self.components}")
        if min(self.hubs, self.body) < 0 or self.body < self.hubs:
            raise ValueError(
                f"{self.tokens} tokens cannot hold {self.sizes.sum()} members of clusters and {self.hubs} hubs: "
                f"ask for more tokens, or for fewer or smaller clusters"
            )

    @property
    def sizes(self) -> Int[ndarray, " clusters"]:
        """Members of each planted cluster, the largest first, as found clusters are numbered too."""
        return np.geomspace(self.largest, self.smallest, self.clusters).round().astype(int)

    @property
    def body(self) -> int:
        """Rows that are in no cluster, hubs included."""
        return self.tokens - int(self.sizes.sum())


class Planted(NamedTuple):
    """Planted clouds and the law that they were drawn from."""

    vectors: Float[ndarray, "tokens components"]
    """Standardised as a measurement is: columns z-scored, rows centred."""
    labels: Int[ndarray, " tokens"]
    """The planted cluster of each row, -1 for the main body."""
    hubs: Int[ndarray, " hubs"]
    """Rows of the planted hubs."""
    spreads: Float[ndarray, " clusters"]
    """Spread of each cluster, as a fraction of the body's."""
    raw: Float[ndarray, "tokens components"]
    """The rows before they were standardised, along the principal axes of the body."""
    centres: Float[ndarray, "clusters components"]
    """Centres of the clusters in the coordinates of ``raw``."""
    settings: Clouds


def variances(settings: Clouds) -> Float[ndarray, " components"]:
    """Principal variances of the body, summing to 1."""
    law = np.arange(1, settings.components + 1) ** -settings.decay
    return law / law.sum()


def plant(settings: Clouds | None = None, seed: int = 0) -> Planted:
    """Draw planted clouds.

    The body is a multivariate t law with a power-law spectrum. A member of a cluster with centre c and spread t is

        c (1 + stretch · g) + t · z,

    g a standard normal number and z normal with the body's spectrum. Centres lie at one distance from the origin, in
    directions drawn as the body's are. Rows are then rotated at random (so that every component sees every axis),
    shuffled and standardised.

    Args:
        settings: `Clouds` at its defaults when None.
        seed: the same seed gives the same clouds.
    """
    settings = settings or Clouds()
    rng = np.random.default_rng(seed)
    scale = np.sqrt(variances(settings))
    dimensions = settings.components

    strength = np.sqrt((settings.tail - 2) / rng.chisquare(settings.tail, size=settings.body))
    strength[: settings.hubs] = 0.2
    raw = [strength[:, None] * scale * rng.normal(size=(settings.body, dimensions))]

    directions = scale * rng.normal(size=(settings.clusters, dimensions))
    centres = settings.reach * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    spreads = rng.permutation(np.geomspace(settings.tightest, settings.loosest, settings.clusters))
    for centre, spread, size in zip(centres, spreads, settings.sizes, strict=True):
        along = 1 + settings.stretch * rng.normal(size=(size, 1))
        raw.append(along * centre + spread * scale * rng.normal(size=(size, dimensions)))

    order = rng.permutation(settings.tokens)
    labels = np.repeat(np.arange(-1, settings.clusters), [settings.body, *settings.sizes])[order]
    rows = np.concatenate(raw)[order]
    rotation, _ = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))
    hubs = np.flatnonzero(order < settings.hubs)
    return Planted(standardise(rows @ rotation), labels, hubs, spreads, rows, centres, settings)


def bayes_labels(planted: Planted) -> Int[ndarray, " tokens"]:
    """The most probable cluster of each row for someone who knows the law: the ceiling for every method.

    A cluster is normal around its centre c with covariance t² Λ + stretch² c cᵀ, Λ the principal variances of the body,
    which is a t law. The hubs' narrower law is left out: they lie where only the body is dense. Weights are the planted
    shares.
    """
    from scipy.stats import multivariate_normal, multivariate_t

    settings, law = planted.settings, np.diag(variances(planted.settings))
    body = multivariate_t(shape=law * (settings.tail - 2) / settings.tail, df=settings.tail)
    scores = [np.log(settings.body) + body.logpdf(planted.raw)]
    for centre, spread, size in zip(planted.centres, planted.spreads, settings.sizes, strict=True):
        covariance = spread**2 * law + settings.stretch**2 * np.outer(centre, centre)
        scores.append(np.log(size) + multivariate_normal(centre, covariance).logpdf(planted.raw))
    return np.argmax(scores, axis=0) - 1


# Scores --------------------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """How well found clusters match planted ones. All but ``rand`` and ``rand_planted`` are shares between 0 and 1."""

    rand: float
    """Adjusted Rand index over all tokens; those in no cluster count as one class."""
    rand_planted: float
    """The same over members of planted clusters alone."""
    precision: float
    """Share of the found clusters that match a planted one; 1 when nothing was found."""
    recall: float
    """Share of the planted clusters that a found one matches."""
    f1: float
    """Harmonic mean of precision and recall."""
    body_left: float
    """Share of the main body that is in no found cluster."""
    found: int
    """Number of found clusters."""


def scores(planted: Int[ndarray, " tokens"], found: Int[ndarray, " tokens"]) -> Scores:
    """Compare found labels with planted ones (-1 is in no cluster).

    Raises:
        ValueError: if the two have different lengths, or nothing is planted.
    """
    planted, found = _labels(planted, found)
    if planted.max(initial=NONE) == NONE:
        raise ValueError("there is no planted cluster to find: every planted label is -1")
    hits = len(matches(planted, found))
    count = len(np.setdiff1d(found, [NONE]))
    precision = hits / count if count else 1.0
    recall = hits / len(np.setdiff1d(planted, [NONE]))
    inside = planted != NONE
    return Scores(
        rand=adjusted_rand(planted, found),
        rand_planted=adjusted_rand(planted[inside], found[inside]),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        body_left=float((found[~inside] == NONE).mean()) if (~inside).any() else 1.0,
        found=count,
    )


def matches(
    first: Int[ndarray, " tokens"], second: Int[ndarray, " tokens"], overlap: float = 0.5
) -> list[tuple[int, int]]:
    """Pairs of clusters whose common members are more than ``overlap`` of their union (Jaccard index).

    Above one half no cluster can be in two pairs, so this is a matching that needs no assignment problem.

    Raises:
        ValueError: if the labels have different lengths, or ``overlap`` is below one half.
    """
    first, second = _labels(first, second)
    if not 0.5 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0.5, or a cluster could match two, and below 1, got {overlap}")
    table, names, others = _contingency(first, second)
    jaccard = table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table)
    jaccard[names == NONE] = 0
    jaccard[:, others == NONE] = 0
    return [(int(names[i]), int(others[j])) for i, j in np.argwhere(jaccard > overlap)]


def adjusted_rand(first: Int[ndarray, " tokens"], second: Int[ndarray, " tokens"]) -> float:
    """Adjusted Rand index of two labellings: agreement over pairs of tokens, 1 at best and 0 on average by chance.

    Hubert and Arabie (1985), with all tokens of label -1 as one class. Two labellings with one class each agree.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_labels(first, second)))


def keep_sizes(labels: Int[ndarray, " tokens"], smallest: int, largest: int) -> Int[ndarray, " tokens"]:
    """Labels with the clusters outside ``smallest <= size <= largest`` dissolved, the rest numbered by size."""
    names, counts = np.unique(labels[labels != NONE], return_counts=True)
    kept = (counts >= smallest) & (counts <= largest)
    order = names[kept][np.argsort(-counts[kept], kind="stable")]
    out = np.full(len(labels), NONE)
    for rank, name in enumerate(order):
        out[labels == name] = rank
    return out


def _labels(first, second) -> tuple[ndarray, ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"two labellings must have one label a token each, got shapes {first.shape} and {second.shape}"
        )
    return first, second


def _contingency(first, second) -> tuple[Float[ndarray, "first second"], ndarray, ndarray]:
    """How many tokens each pair of classes shares, and the names of the classes."""
    names, rows = np.unique(first, return_inverse=True)
    others, columns = np.unique(second, return_inverse=True)
    counts = np.bincount(rows * len(others) + columns, minlength=len(names) * len(others))
    return counts.reshape(len(names), len(others)).astype(float), names, others


def fingerprint(values: ndarray) -> str:
    """A short name for an array that changes when its numbers do."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]


def benchmark(name: Literal["clustering", "peeling"] = "clustering") -> dict:
    """What a benchmark wrote, as it ships: ``benchmarks/clustering.py``, the comparison of methods, or
    ``benchmarks/peeling.py``, time and memory for large tables."""
    return shipped_table(f"{name}_benchmark")
