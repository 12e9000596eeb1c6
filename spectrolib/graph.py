"""The nearest-neighbour graph of standardised vectors.

Every vector is joined to its k nearest others. That relation is not symmetric: a hub may be among the nearest of many
vectors, and has only k nearest ones itself. The *union* graph joins two vectors if either has the other among its k
nearest, the *mutual* graph only if both have. The paper uses k = 45 [S]; which of the two graphs it cuts is unknown to
us. The choice changes conductance drastically: in the union graph each member of a set of n < k tokens has at least
k + 1 - n of its k nearest outside the set, and all these pairs are edges that leave it.

Neighbours are found in float32 (by faiss, or for wide rows by matrix products) and ranked again in float64, ties by
index. For exact search a bound on the rounding errors of float32 tells which rows could still be wrong, and those are
searched again in float64. So the result is a function of the vectors alone, whatever the number of threads.

Tags: [S] from a careful secondary source on the paper, [I] inferred by us.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

Symmetrise = Literal["union", "mutual"]
Metric = Literal["euclidean", "cosine"]

EXACT_UP_TO = 2**17
"""Up to this many vectors every pair is compared. Beyond, an inverted file is searched, which finds about 99.9 % of the
true neighbours."""
SPARE = 16
"""Candidates beyond k that are ranked again in float64."""
WIDE = 128
"""Rows of at least so many channels are compared by matrix products: 2.5 times as fast as faiss at 341, 4 at 1,365."""
LEAST_WEIGHT = 1e-6
"""Smallest weight of a pair in a weighted graph."""
PROBES = 64
"""Cells of the inverted file that a search looks into, out of 4 √n."""
_LARGEST = 1e100  # its square is still finite


class Neighbours(NamedTuple):
    """The k nearest others of each vector, the nearest first, ties by index."""

    indices: Int[ndarray, "n k"]
    distances: Float[ndarray, "n k"]
    """Euclidean distances (not squared), or 1 - cosine."""


def knn_graph(
    vectors: Float[ndarray, "n d"],
    k: int = 45,
    symmetrise: Symmetrise = "union",
    metric: Metric = "euclidean",
    weighted: bool = False,
    exact: bool | None = None,
    seed: int = 0,
) -> csr_array:
    """The symmetric graph of k nearest neighbours: `nearest`, then `join`.

    Args:
        vectors: one row a token. Rows may be equal: they are at distance 0.
        k: neighbours of each vector, itself not counted; 45 in the paper [S].
        symmetrise: "union" keeps a pair that either end has among its k nearest, "mutual" one that both have. The
            mutual graph may leave tokens without any neighbour. Union by default [I].
        metric: "euclidean", or "cosine" (1 - cosine; rows of zeros are refused).
        weighted: weights 1 [I], or those of `join`.
        exact: True compares every pair, False searches an inverted file; by default True up to `EXACT_UP_TO` vectors.
        seed: of the inverted file's k-means; exact search does not use it.

    Returns:
        (n, n) weights: symmetric, no self-loops, column indices of each row sorted.

    Raises:
        ValueError: for values that are not finite, k < 1, k >= n, an unknown name, or rows of zeros with "cosine".
    """
    check_symmetrise(symmetrise)
    return join(nearest(vectors, k, metric, exact, seed), symmetrise, weighted)


def nearest(
    vectors: Float[ndarray, "n d"],
    k: int = 45,
    metric: Metric = "euclidean",
    exact: bool | None = None,
    seed: int = 0,
) -> Neighbours:
    """The k nearest others of each vector, the nearest first, ties by index.

    Arguments and errors are those of `knn_graph`. Equal vectors are neighbours at distance 0. UMAP takes this table as
    precomputed neighbours, once each vector itself is put in front of its own.
    """
    rows = _checked(vectors, metric)
    n = len(rows)
    if not isinstance(k, (int, np.integer)) or not 1 <= k < n:
        raise ValueError(f"k must be a whole number from 1 to {n - 1}, fewer than the {n} vectors, got {k!r}")
    exact = n <= EXACT_UP_TO if exact is None else exact
    centred, size = _centred(rows)
    wanted = min(k + 1 + SPARE, n)  # each row finds itself too
    farthest, candidates = _search(centred.astype(np.float32), wanted, exact, seed)
    indices, squared = _ranked(rows, candidates, k)
    open_to_doubt = (candidates < 0).any(axis=1)
    if exact and wanted < n:
        open_to_doubt |= squared[:, -1] / size**2 + _rounding(centred, squared[:, -1] / size**2) >= farthest
    crowded = squared[:, -1] == 0
    _join_copies(rows, np.flatnonzero(crowded), indices)
    unsure = np.flatnonzero(open_to_doubt & ~crowded)
    for some in np.array_split(unsure, -(-len(unsure) // 64)) if len(unsure) else ():
        indices[some], squared[some] = _every_pair(rows, some, k)
    return Neighbours(indices, squared / 2 if metric == "cosine" else np.sqrt(squared))


def join(neighbours: Neighbours, symmetrise: Symmetrise = "union", weighted: bool = False) -> csr_array:
    """The symmetric graph of a neighbour table.

    Without ``weighted`` every edge weighs 1. With it, a pair at distance d weighs exp(-d² / (s_i s_j)), but at least
    `LEAST_WEIGHT`, where s_i is the distance from i to its k-th neighbour (the self-tuning kernel of Zelnik-Manor and
    Perona, 2004). Whether the paper weights edges is unknown to us [I].

    Raises:
        ValueError: for an unknown ``symmetrise``.
    """
    check_symmetrise(symmetrise)
    n, k = neighbours.indices.shape
    weights = _self_tuning(neighbours) if weighted else np.ones((n, k))
    narrow = np.int32 if 2 * n * k < 2**31 else np.int64
    columns, starts = neighbours.indices.ravel().astype(narrow), np.arange(n + 1, dtype=narrow) * narrow(k)
    asked = csr_array((weights.ravel(), columns, starts), shape=(n, n))
    asked.sort_indices()
    answered = asked.T.tocsr()
    joined = asked.maximum(answered) if symmetrise == "union" else asked.minimum(answered)
    joined.sort_indices()
    return joined


def recall(
    vectors: Float[ndarray, "n d"],
    neighbours: Neighbours,
    metric: Metric = "euclidean",
    sample: int = 500,
    seed: int = 0,
) -> float:
    """The share of the true k nearest that a neighbour table holds, measured on a random sample of rows.

    The truth is a search of every pair in float64. A neighbour counts if it is no farther than the true k-th, so a
    different choice among ties costs nothing.

    Args:
        vectors, metric: those that the table was made of.
        sample: number of rows to check.
        seed: of their choice.
    """
    rows = _checked(vectors, metric)
    some = np.sort(np.random.default_rng(seed).permutation(len(rows))[:sample])
    k = neighbours.indices.shape[1]
    found = _squared(rows, some, neighbours.indices[some])
    true = np.concatenate([_every_pair(rows, part, k)[1] for part in np.array_split(some, -(-len(some) // 64))])
    return float((found <= true[:, -1:]).mean())


def check_symmetrise(name: str) -> None:
    """Refuse (ValueError) a name that `join` does not know."""
    if name not in ("union", "mutual"):
        raise ValueError(f"symmetrise must be 'union' or 'mutual', got {name!r}")


# How it is done ------------------------------------------------------------------------------------------------------


def _checked(vectors: Float[ndarray, "n d"], metric: Metric) -> Float[ndarray, "n d"]:
    rows = np.ascontiguousarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"vectors must be a matrix with a row for each token, got shape {rows.shape}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"vectors must be finite: {(~finite).sum()} rows are not, the first is {finite.argmin()}")
    if np.abs(rows).max() > _LARGEST:
        raise ValueError(f"vectors must stay below {_LARGEST:g}, or their distances overflow: standardise them")
    if metric == "euclidean":
        return rows
    if metric != "cosine":
        raise ValueError(f"metric must be 'euclidean' or 'cosine', got {metric!r}")
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise ValueError(
            f"rows of zeros have no direction: {(largest == 0).sum()} rows are, the first is {largest.argmin()}; "
            "drop them, or take metric='euclidean'"
        )
    rows = rows / largest
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # |x - y|² = 2 (1 - cosine) between unit vectors


def _centred(rows: Float[ndarray, "n d"]) -> tuple[Float[ndarray, "n d"], float]:
    """Rows minus their mean, divided by their largest entry, which float32 rounds least; and that entry."""
    centred = rows - rows.mean(axis=0)
    size = float(np.abs(centred).max()) or 1.0
    centred /= size
    return centred, size


def _search(points: ndarray, wanted: int, exact: bool, seed: int) -> tuple[ndarray, ndarray]:
    """The ``wanted`` nearest of each point, in float32: squared distance of the last, and the indices of all.

    An index of -1 means that an inverted file found too few.
    """
    import faiss

    n, d = points.shape
    if exact and d >= WIDE:
        return _search_wide(points, wanted)
    index: faiss.Index
    if exact:
        index = faiss.IndexFlatL2(d)
    else:
        cells = min(4 * int(np.sqrt(n)), n)
        index = cut = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, cells)
        cut.cp.seed, cut.cp.min_points_per_centroid, cut.cp.max_points_per_centroid = seed, 1, 64
        cut.nprobe = min(PROBES, cells)
        cut.train(points)
    index.add(points)
    distances, numbers = index.search(points, wanted)
    return distances[:, -1].astype(np.float64), numbers


def _search_wide(points: ndarray, wanted: int) -> tuple[ndarray, ndarray]:
    """`_search` of every pair, by |x - y|² = |x|² + |y|² - 2 x·y."""
    import torch

    x = torch.from_numpy(points)
    norms = x.double().square_().sum(dim=1).float()
    farthest, numbers = np.empty(len(x)), np.empty((len(x), wanted), dtype=np.int64)
    count = max(1, 2**24 // len(x))  # rows at a time: 64 MB of distances
    for block in (slice(begin, begin + count) for begin in range(0, len(x), count)):
        found, which = torch.addmm(norms, x[block], x.T, alpha=-2).topk(wanted, dim=1, largest=False)
        farthest[block], numbers[block] = found[:, -1].double() + norms[block], which
    return farthest, numbers


def _squared(rows: ndarray, which: ndarray, numbers: Int[ndarray, "which c"]) -> Float[ndarray, "which c"]:
    """Squared distances in float64, from ``rows[which]`` to the rows with these indices."""
    squared = np.empty(numbers.shape)
    count = max(1, 2**19 // max(1, numbers.shape[1] * rows.shape[1]))  # rows at a time: 4 MB stay in the cache
    for begin in range(0, len(which), count):
        block = slice(begin, begin + count)
        difference = rows[numbers[block]]
        difference -= rows[which[block], None]
        squared[block] = np.einsum("ijd,ijd->ij", difference, difference)
    return squared


def _ranked(rows: ndarray, candidates: Int[ndarray, "n c"], k: int) -> tuple[ndarray, ndarray]:
    """The k nearest among each row's candidates: their indices and squared distances, nearest first, ties by index."""
    own = np.arange(len(rows))
    squared = _squared(rows, own, candidates)
    squared[(candidates == own[:, None]) | (candidates < 0)] = np.inf  # neither itself nor what was not found
    best = np.lexsort((candidates, squared))[:, :k]
    return np.take_along_axis(candidates, best, 1), np.take_along_axis(squared, best, 1)


def _rounding(centred: ndarray, squared: ndarray) -> ndarray:
    """How far a float32 distance from each row may be off, for any point no farther than its k-th neighbour.

    |x|² + |y|² - 2 x·y is summed over d terms, so it errs by at most about 3 d u (|x|² + |y|²), u = 2⁻²⁴, and
    |y| <= |x| + |x - y|.
    """
    norm = np.linalg.norm(centred, axis=1)
    return (3 * centred.shape[1] + 8) * 2.0**-24 * (norm**2 + (norm + np.sqrt(squared)) ** 2) + 1e-37


def _join_copies(rows: ndarray, crowded: ndarray, indices: ndarray) -> None:
    """Give each row of a group of more than k equal rows the k others of lowest index as its neighbours, in place."""
    if not len(crowded):
        return
    k = indices.shape[1]
    _, group = np.unique(rows[crowded] + 0.0, axis=0, return_inverse=True)
    by_group = np.argsort(group.ravel(), kind="stable")
    for members in np.split(crowded[by_group], np.cumsum(np.bincount(group.ravel()))[:-1]):
        if len(members) <= k:  # not equal: their distance is too small to be squared
            continue
        indices[members] = members[:k]
        first = members[: k + 1]
        for i, number in enumerate(first[:k]):
            indices[number] = np.delete(first, i)


def _every_pair(rows: ndarray, which: ndarray, k: int) -> tuple[ndarray, ndarray]:
    """The k nearest of a few rows among all rows, in float64: indices and squared distances."""
    norms = np.einsum("id,id->i", rows, rows)
    rough = norms + norms[which, None] - 2 * rows[which] @ rows.T
    slack = 4 * (rows.shape[1] + 4) * np.finfo(float).eps * (norms.max() + norms[which])
    rough[np.arange(len(which)), which] = np.inf
    radius = np.partition(rough, k - 1, axis=1)[:, k - 1] + slack
    indices, squared = np.empty((len(which), k), dtype=np.int64), np.empty((len(which), k))
    for i in range(len(which)):
        near = np.flatnonzero(rough[i] <= radius[i])
        exactly = _squared(rows, which[i : i + 1], near[None])[0]
        best = np.lexsort((near, exactly))[:k]
        indices[i], squared[i] = near[best], exactly[best]
    return indices, squared


def _self_tuning(neighbours: Neighbours) -> Float[ndarray, "n k"]:
    scale = neighbours.distances[:, -1]
    positive = scale[scale > 0]
    scale = np.maximum(scale, positive.min() if len(positive) else 1.0)  # of a vector with k copies
    weights = np.exp(-(neighbours.distances**2) / (scale[:, None] * scale[neighbours.indices]))
    return np.maximum(weights, LEAST_WEIGHT)
