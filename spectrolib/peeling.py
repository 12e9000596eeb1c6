"""Peeling: find the best cut around one seed after another, and remove each cluster that is cut from the graph.

`spectrolib.clustering` is the way in. Here are the rest of a graph (`Rest`), the choice of seeds, and the two ways
to look for the cut of one seed: `literal`, at the full tolerance at once, and `fast`, at small scales first.
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
"""The first scale of the fast method: tol = 1 / (FIRST_LOOK x mean degree) lets a walk reach about so many tokens."""
FINER = 0.5
"""Factor between the tolerances of one scale and the next."""
STEADY = 0.8
"""Two scales agree on a cut if the sets have this Jaccard overlap."""
EVERYWHERE = 0.75
"""Once a walk has reached this part of all tokens, push is no longer local, and the exact vector costs less."""
SPOKEN_FOR = 200
"""Where a seed of the fast method fails, so many tokens at the start of its sweep are not tried either; 5 % at most."""


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
    """Nodes, the first of that set, that are not tried as seeds after this one failed; or none."""


class Rest:
    """What is left of a graph once clusters are removed. Degrees are updated in place; arrays are rebuilt at half size.

    A node has a name, its number in the whole graph, and a place in the arrays here.
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
        """Order and profile of a sweep; see `spectrolib.pagerank.swept`."""
        return pagerank.swept(
            self.graph, self.degree, nodes, values, self.volume, options.max_size, options.half_volume, self._inside
        )

    def exact(self, seed: int, alpha: float, rtol: float = 1e-8) -> Float[ndarray, " n"]:
        """The exact PageRank vector of a seed on what is left."""
        return pagerank.solve(self.graph, np.maximum(self.degree, 0), seed, alpha, rtol)

    def scores(self) -> Float[ndarray, " n"]:
        """Conductance of each neighbourhood, a node with its neighbours; infinite where there is nothing to cut."""
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
    """Nodes with a finite score, the lowest first, ties by index."""
    candidates = np.flatnonzero(np.isfinite(scores))
    return candidates[np.argsort(scores[candidates], kind="stable")]


# One seed ------------------------------------------------------------------------------------------------------------


def literal(rest: Rest, seed: int, options: Options) -> Cut:
    """Push to the full tolerance, sweep, and judge the best cut."""
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
    """Push to a loose tolerance, and tighten it only while the best cut lies at the end of the sweep.

    A cut counts when two scales agree on it. At the next scale the push goes on from where it was. Its walk never
    rests, which gives the same vector for half of the work. When it has reached nearly all nodes, conjugate gradients
    take less time for an exact vector.
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
    """Whether a sweep's best prefix is a cluster, small or main body; and its length.

    "main body" if it covers ``main_body`` of what is alive or of all prefixes that count, or if conductance does not
    rise to ``barrier`` times its value anywhere behind it: then the cut is where the sweep ends, not where a cluster
    does. A component that nothing ties to the rest (conductance 0) is exempt from all but the first rule.
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
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
