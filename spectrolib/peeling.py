"""Peeling: find the best cut around one seed after another, and remove each cluster that is cut from the graph.

Users call `spectrolib.clustering.conductance_clusters`; this module holds its parts. `Rest` is what is left of the
graph. `literal` and `fast` are the two ways to look for the cut of one seed: at the full tolerance of the push at once,
or at small scales first. `judge` says whether a cut is a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

from . import pagerank
from .pagerank import Walk, compiled, degree_of

FIRST_LOOK = 100
"""The first tolerance of the fast method is 1 / (FIRST_LOOK x mean degree): the walk then reaches about this many
tokens."""
FINER = 0.5
"""Factor between the tolerances of one scale and the next."""
STEADY = 0.8
"""Two scales agree on a cut if the sets have this Jaccard overlap."""
EVERYWHERE = 0.75
"""Once a walk has reached more than this part of the tokens that are left, the exact vector costs less than a push."""
SPOKEN_FOR = 200
"""When a seed of the fast method yields no cluster, this many tokens at the start of its sweep are not tried as seeds
either; at most 5 % of the tokens that are left, and no more than its cut holds."""


@dataclass(frozen=True)
class Options:
    """What a search for one cut depends on; `spectrolib.clustering.conductance_clusters` says what each means.

    The first four are the paper's constants, the others our own.
    """

    alpha: float = 0.001
    tol: float = 1e-7
    main_body: float = 0.99
    min_size: int = 20
    half_volume: bool = True
    max_size: int | None = None
    barrier: float = 1.3


class Cut(NamedTuple):
    """The outcome for one seed."""

    kind: str
    """ "cluster", "main body" or "small"."""
    nodes: Int[ndarray, " m"]
    """The set that was cut, or would have been."""
    conductance: float
    spoken_for: Int[ndarray, " some"]
    """The first nodes of that set, which are not tried as seeds if this one yields no cluster. May be empty."""


class Rest:
    """What is left of a graph once clusters are removed.

    Removing nodes lowers the degrees of their neighbours in place. The arrays are rebuilt once more than half of their
    nodes are gone. So a node has a *name*, its number in the whole graph, and a *place*, its index in the arrays now.
    """

    def __init__(self, graph: csr_array):
        self.names = np.arange(graph.shape[0])
        self._set_up(graph)

    def _set_up(self, graph: csr_array) -> None:
        n = graph.shape[0]
        self.graph, self.degree = graph, graph.sum(axis=1)
        self.alive, self.volume = n, float(self.degree.sum())
        self.walk, self._inside = Walk(graph, self.degree), np.zeros(n, dtype=np.bool_)

    def place(self, node: int) -> int:
        """The place of a node, by its name; -1 if it was removed."""
        i = int(np.searchsorted(self.names, node))
        return i if i < len(self.names) and self.names[i] == node and self.degree[i] >= 0 else -1

    def remove(self, places: Int[ndarray, " m"]) -> None:
        """Remove nodes with their edges, and lower the degrees of their neighbours."""
        g = self.graph
        _remove(g.indptr, g.indices, g.data, self.degree, places)
        self.alive -= len(places)
        self.volume = float(np.maximum(self.degree, 0).sum())
        if 2 * self.alive < len(self.names):
            left = self.degree >= 0
            self.names = self.names[left]
            self._set_up(self.graph[left][:, left])

    def sweep(self, nodes: Int[ndarray, " support"], values: Float[ndarray, " support"], options: Options):
        """Order (places) and profile of a sweep; see `spectrolib.pagerank.swept`."""
        return pagerank.swept(
            self.graph, self.degree, nodes, values, self.volume, options.max_size, options.half_volume, self._inside
        )

    def exact(self, seed: int, alpha: float, rtol: float = 1e-8) -> Float[ndarray, " n"]:
        """The exact PageRank vector, on what is left of the graph, of the seed at this place."""
        return pagerank.solve(self.graph, np.maximum(self.degree, 0), seed, alpha, rtol)

    def scores(self) -> Float[ndarray, " n"]:
        """Conductance of each node's neighbourhood, the node with its neighbours.

        Infinite for a removed node, one without edges, and where the neighbourhood is all that is left.
        """
        g = self.graph
        return _neighbourhoods(g.indptr, g.indices, g.data, self.degree, self.volume)


@compiled
def _remove(indptr, indices, weights, degree, places):
    for u in places:
        degree[u] = -1
    for u in places:
        for e in range(indptr[u], indptr[u + 1]):
            if degree[indices[e]] >= 0:
                degree_of(indptr, indices, weights, degree, indices[e])


@compiled
def _neighbourhoods(indptr, indices, weights, degree, total):
    n = len(degree)
    scores = np.full(n, np.inf)
    mark = np.full(n, -1, dtype=np.int32)
    for u in range(n):
        if degree[u] <= 0:
            continue
        mark[u] = u
        volume = degree[u]
        for e in range(indptr[u], indptr[u + 1]):
            v = indices[e]
            if degree[v] >= 0:
                mark[v] = u
                volume += degree[v]
        inner = degree[u]  # all of its own edges are inside
        for e in range(indptr[u], indptr[u + 1]):
            v = indices[e]
            if degree[v] >= 0:
                for f in range(indptr[v], indptr[v + 1]):
                    if mark[indices[f]] == u:
                        inner += weights[f]
        side = min(volume, total - volume)
        if side > 1e-12 * total:
            scores[u] = (volume - inner) / side
    return scores


# Seeds ---------------------------------------------------------------------------------------------------------------


def by_score(scores: Float[ndarray, " n"]) -> Int[ndarray, " seeds"]:
    """Nodes with a finite score, by rising score, ties by index."""
    candidates = np.flatnonzero(np.isfinite(scores))
    return candidates[np.argsort(scores[candidates], kind="stable")]


# One seed ------------------------------------------------------------------------------------------------------------


def literal(rest: Rest, seed: int, options: Options) -> Cut:
    """The cut of one seed (a place): push to ``options.tol``, sweep, and judge the best prefix."""
    walk = rest.walk
    walk.start(seed)
    walk.push(options.alpha, options.tol)
    nodes = walk.support()
    if not len(nodes):  # the tolerance is so loose that the walk never left
        return Cut("main body", np.array([seed]), np.inf, nodes)
    order, profile = rest.sweep(nodes, walk.p[nodes], options)
    kind, best = judge(profile, rest.alive, options)
    return Cut(kind, order[:best], float(profile[best - 1]), order[:0])


def fast(rest: Rest, seed: int, options: Options) -> Cut:
    """The cut of one seed (a place), looked for at small scales first.

    The push starts at a loose tolerance, and sweep and `judge` follow. The tolerance is halved until two scales in a
    row find the same cluster (Jaccard overlap of at least `STEADY`), a tighter tolerance can show nothing new, or
    ``tol`` is reached. Each scale continues the push of the last. The walk never stays, which gives the same vector for
    half of the work. Once it has reached most nodes (`EVERYWHERE`), conjugate gradients give the exact vector in less
    time.
    """
    walk, wandering = rest.walk, 2 * options.alpha / (1 + options.alpha)
    walk.start(seed)
    tol = max(min(rest.alive / (FIRST_LOOK * rest.volume), 0.5 / rest.degree[seed]), options.tol)
    if tol * rest.degree[seed] > 1:
        return Cut("main body", np.array([seed]), np.inf, walk.support())
    spoken_for = max(1, min(SPOKEN_FOR, rest.alive // 20))
    last: Cut | None = None
    while True:
        walk.push(wandering, tol, rest=0.0)
        everywhere = len(walk.touched) > EVERYWHERE * rest.alive
        values = rest.exact(seed, options.alpha) if everywhere else walk.p
        nodes = np.flatnonzero(values > 0) if everywhere else walk.support()
        order, profile = rest.sweep(nodes, values[nodes], options)
        kind, best = judge(profile, rest.alive, options)
        cut = Cut(kind, order[:best], float(profile[best - 1]), order[: min(best, spoken_for)])
        is_last = everywhere or tol <= options.tol
        if kind == "cluster" and (is_last or (last and overlap(last.nodes, cut.nodes) >= STEADY)):
            return cut
        seen_all = len(order) < len(nodes) or not np.isfinite(profile[-1])  # no longer prefix will ever count
        if is_last or (seen_all and (kind != "cluster" or last)):
            return cut if kind != "cluster" else cut._replace(kind="main body")
        last = cut if kind == "cluster" else None
        tol = max(tol * FINER, options.tol)


def judge(profile: Float[ndarray, " swept"], alive: int, options: Options) -> tuple[str, int]:
    """Whether the best prefix of a sweep is a "cluster", "small" or "main body"; and its length.

    Prefixes count where ``profile``, their conductance, is finite. The best one is "main body" if

    - no prefix counts, or it holds at least ``main_body`` of the nodes that are left (``alive``);
    - it is at least ``main_body`` times as long as the longest prefix that counts;
    - no longer prefix has ``barrier`` times its conductance. The profile then still falls where the sweep ends, so the
      cut marks the end of the sweep and not the edge of a cluster.

    The last two rules do not apply to a connected component, whose conductance is 0. A prefix that is not "main body"
    is "small" below ``min_size`` nodes, else a "cluster".
    """
    counted = np.flatnonzero(np.isfinite(profile))
    best = int(profile.argmin()) + 1
    if not len(counted) or best >= options.main_body * alive:
        return "main body", best
    least, ridge = profile[best - 1], profile[counted[counted >= best]].max(initial=0.0)
    if least > 1e-12 and (best >= options.main_body * (counted[-1] + 1) or ridge < options.barrier * least):
        return "main body", best
    return ("small" if best < options.min_size else "cluster"), best


def overlap(a: Int[ndarray, " a"], b: Int[ndarray, " b"]) -> float:
    """Jaccard overlap of two sets: the size of their intersection over that of their union."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
