r"""Walks, sweeps and conductance on a symmetric weighted graph.

The *lazy* walk jumps back to its seed with probability alpha. Otherwise it stays where it is with probability 1/2, and
else follows an edge, chosen by weight. The personalised PageRank of a seed s is the probability to find the walk at
each node in the long run,

    p = alpha e_s + (1 - alpha) W p,        W = (1 + A D⁻¹) / 2,

with A the weights and D the diagonal of degrees. The paper's alpha is 0.001 [S]; that it belongs to the lazy walk is
our reading [I]. The walk that never stays has the same vector at 2 alpha / (1 + alpha); networkx calls one minus that
``alpha``.

*Push* (Andersen, Chung and Lang, 2006) approximates p from below. It moves a residual r step by step into p, so that p
plus the PageRank of r stays exact, and stops when r is below ``tol`` times the degree at every node. Then p is too
small by less than ``tol`` times the degree. Each push at a node moves alpha r >= alpha tol degree into p, and p sums to
at most 1, so the degrees of all pushed nodes sum to at most 1 / (alpha tol).

*Sweep*: order nodes by p / degree and take the prefix of least *conductance*: the weight of the edges that leave a set,
over the sum of its degrees (or of those of the rest, if that is less).

Tags: [S] from a careful secondary source on the paper, [I] inferred by us.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array, issparse

_STEPS = 20_000_000
"""Edges that compiled code follows before Python may look at Ctrl-C: a fraction of a second."""


def compiled(function):
    """Compile a function with numba at its first call, and cache the machine code on disk where that is possible."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the library's folder nor the user's cache can be written
        return numba.njit(nogil=True)(function)


# Walks ---------------------------------------------------------------------------------------------------------------


def approximate_pagerank(
    graph: csr_array, seed: int, alpha: float = 0.001, tol: float = 1e-7
) -> tuple[Int[ndarray, " support"], Float[ndarray, " support"]]:
    """Personalised PageRank by push. The number of pushes is bounded by alpha and tol, however large the graph is.

    Args:
        graph: (n, n) symmetric weights, as from `spectrolib.graph.knn_graph`. Symmetry is not checked: that would cost
            more than the push.
        seed: the node where the walk starts and starts again.
        alpha: teleport probability of the lazy walk, 0 < alpha < 1; 0.001 in the paper [S], read as lazy [I].
        tol: the push ends when the residual is below tol x degree everywhere; 1e-7 in the paper [S]. With these two
            values the push visits all of any graph with fewer than about ten million edges.

    Returns:
        The nodes with p > 0, by index, and p there. ``0 <= exact - p < tol * degree`` at every node.

    Raises:
        ValueError: for a seed that is not a node or has no neighbours, or alpha or tol out of range.
    """
    graph = _sparse(graph)
    _check_walk(graph, seed, alpha, tol)
    walk = Walk(graph, np.zeros(graph.shape[0]))
    walk.start(seed)
    walk.push(alpha, tol)
    nodes = np.sort(walk.support())
    return nodes, walk.p[nodes]


def exact_pagerank(graph: csr_array, seed: int, alpha: float = 0.001, rtol: float = 1e-12) -> Float[ndarray, " n"]:
    """Personalised PageRank by conjugate gradients, on the whole graph.

    With q = D^(-1/2) p the system is symmetric and positive definite, with eigenvalues from alpha to 1:

        [1 - (1 - alpha) (1 + D^(-1/2) A D^(-1/2)) / 2] q = alpha D^(-1/2) e_s.

    About √(1/alpha) ln(2/rtol) / 2 products with A: on large graphs less than a tight push, and far more accurate.

    Args:
        graph, seed, alpha: as for `approximate_pagerank`.
        rtol: the iteration ends when the norm of the residual is at most rtol times that of the right-hand side.

    Returns:
        p at every node; it sums to 1.

    Raises:
        ValueError: as `approximate_pagerank`; for a graph that is not symmetric; if the iteration does not reach rtol.
    """
    graph = checked(graph)
    _check_walk(graph, seed, alpha, rtol)
    return solve(graph, graph.sum(axis=1), seed, alpha, rtol)


def solve(graph: csr_array, degree: Float[ndarray, " n"], seed: int, alpha: float, rtol: float) -> Float[ndarray, " n"]:
    """`exact_pagerank` without checks. ``degree`` holds the row sums; nodes with degree 0 are left out of the walk."""
    root = np.sqrt(degree)
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)

    def system(q: Float[ndarray, " n"]) -> Float[ndarray, " n"]:
        return (1 + alpha) / 2 * q - (1 - alpha) / 2 * inverse * (graph @ (inverse * q))

    right = np.zeros(len(root))
    right[seed] = alpha * inverse[seed]
    return root * _conjugate_gradients(system, right, rtol)


def _conjugate_gradients(system, right: Float[ndarray, " n"], rtol: float) -> Float[ndarray, " n"]:
    """Solve ``system(x) = right`` by the method of Hestenes and Stiefel (1952).

    Written out because scipy's sums go through BLAS, which rounds differently on another number of threads.
    """
    x, residual = np.zeros_like(right), right.copy()
    direction, square = residual.copy(), float((residual * residual).sum())
    goal = rtol**2 * square
    for _ in range(10 * len(right) + 100):
        if square <= goal:
            return x
        image = system(direction)
        step = square / float((direction * image).sum())
        x += step * direction
        residual -= step * image
        last, square = square, float((residual * residual).sum())
        direction = residual + square / last * direction
    raise ValueError(f"conjugate gradients did not come to a relative residual of {rtol:g}: ask for less")


class Walk:
    """A push on one graph that can continue at a smaller tolerance, or start again at another seed.

    Its arrays have one entry a node and are allocated once. A new start resets only the entries that the last push
    touched, so it is cheap on a large graph.
    """

    def __init__(self, graph: csr_array, degree: Float[ndarray, " n"]):
        """``degree``: row sums. 0 means not known yet (filled in when needed), negative that the node is removed."""
        n = graph.shape[0]
        self.graph, self.degree = graph, degree
        self.p, self.r = np.zeros(n), np.zeros(n)
        self._queue, self._queued = np.empty(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        self._touched = np.empty(n, dtype=np.int64)
        self._state = np.zeros(3, dtype=np.int64)  # head and length of the queue, nodes touched

    @property
    def touched(self) -> Int[ndarray, " touched"]:
        """Nodes with p or r above 0, in the order in which the walk came to them."""
        return self._touched[: self._state[2]]

    def support(self) -> Int[ndarray, " support"]:
        """Nodes with p above 0, in the same order."""
        return self.touched[self.p[self.touched] > 0]

    def start(self, seed: int) -> None:
        """Reset the walk: p is 0, and the residual is 1 at the seed."""
        self.p[self.touched] = 0
        self.r[self.touched] = 0
        self.r[seed], self._touched[0] = 1.0, seed
        self._state[2] = 1

    def push(self, alpha: float, tol: float, rest: float = 0.5) -> None:
        """Push until the residual is below tol x degree everywhere.

        ``rest`` is the probability that the walk stays where it is: 1/2 for the lazy walk, 0 for one that never stays.
        """
        g = self.graph
        arrays = g.indptr, g.indices, g.data, self.degree, self.p, self.r, self._queue, self._queued, self._touched
        _fill_queue(*arrays, self._state, tol)
        while not _push(*arrays, self._state, alpha, tol, rest, _STEPS):
            pass


@compiled
def degree_of(indptr, indices, weights, degree, u):
    """Degree of node u: the sum of its weights to nodes that are not removed. It is also written into ``degree``."""
    total = 0.0
    for e in range(indptr[u], indptr[u + 1]):
        if degree[indices[e]] >= 0:
            total += weights[e]
    degree[u] = total
    return total


@compiled
def _fill_queue(indptr, indices, weights, degree, p, r, queue, queued, touched, state, tol):
    length = 0
    for i in range(state[2]):
        u = touched[i]
        d = degree[u] if degree[u] != 0 else degree_of(indptr, indices, weights, degree, u)
        if r[u] >= tol * d:
            queue[length] = u
            queued[u] = True
            length += 1
    state[0], state[1] = 0, length


@compiled
def _push(indptr, indices, weights, degree, p, r, queue, queued, touched, state, alpha, tol, rest, steps):
    """Push the nodes of the queue, first in, first out. Returns False if it stopped after ``steps`` edges instead."""
    n = len(p)
    head, length, count = state[0], state[1], state[2]
    while length > 0 and steps > 0:
        u = queue[head]
        head = head + 1 if head + 1 < n else 0
        length -= 1
        queued[u] = False
        p[u] += alpha * r[u]
        share = (1 - alpha) * (1 - rest) * r[u] / degree[u]
        r[u] *= (1 - alpha) * rest
        steps -= indptr[u + 1] - indptr[u]
        for e in range(indptr[u], indptr[u + 1]):
            v = indices[e]
            d = degree[v]
            if d < 0:
                continue
            if r[v] == 0 and p[v] == 0 and share * weights[e] > 0:
                touched[count] = v
                count += 1
                if d == 0:
                    d = degree_of(indptr, indices, weights, degree, v)
            r[v] += share * weights[e]
            if r[v] >= tol * d and not queued[v]:
                tail = head + length
                queue[tail if tail < n else tail - n] = v
                queued[v] = True
                length += 1
        if r[u] >= tol * degree[u] and not queued[u]:
            tail = head + length
            queue[tail if tail < n else tail - n] = u
            queued[u] = True
            length += 1
    state[0], state[1], state[2] = head, length, count
    return length == 0


# Cuts ----------------------------------------------------------------------------------------------------------------


def conductance(graph: csr_array, nodes: Int[ndarray, " m"]) -> float:
    """Conductance of a set S: cut(S, rest) / min(vol S, vol rest).

    cut is the weight of the edges between S and the rest, vol the sum of degrees. The result lies between 0, for a set
    without edges to the rest, and 1, for a set of at most half the volume without edges inside.

    Raises:
        ValueError: if the set holds something that is not a node, or S or the rest has no volume.
    """
    graph = _sparse(graph)
    inside = np.zeros(graph.shape[0])
    inside[node_list(nodes, graph.shape[0])] = 1
    degree = graph.sum(axis=1)
    volume, total = float(degree @ inside), float(degree.sum())
    side = min(volume, total - volume)
    if side <= 1e-12 * total:
        raise ValueError("conductance takes a set that has edges and leaves out some that have")
    return float(inside @ (graph @ (1 - inside)) / side)


@dataclass(frozen=True)
class SweepCut:
    """The prefix of least conductance, and the sweep that it was found in."""

    nodes: Int[ndarray, " best"]
    """The best prefix, in the order of the sweep: the shortest one, if several are best."""
    conductance: float
    order: Int[ndarray, " swept"]
    """The nodes that were swept, by falling value over degree, ties by index."""
    profile: Float[ndarray, " swept"]
    """Conductance of each prefix of ``order``; infinite for a prefix that does not count: one side has no volume, or
    ``half_volume`` rules it out."""


def sweep_cut(
    graph: csr_array,
    nodes: Int[ndarray, " support"],
    values: Float[ndarray, " support"],
    *,
    max_size: int | None = None,
    half_volume: bool = False,
) -> SweepCut:
    """Order nodes by value over degree, and take the prefix of least conductance.

    Args:
        graph: (n, n) symmetric weights.
        nodes, values: the nodes to order, and the value of each, as from `approximate_pagerank`. Nodes without edges
            are left out.
        max_size: longest prefix that counts; any by default.
        half_volume: only prefixes with at most half of the graph's volume count. Andersen, Chung and Lang's theorem
            asks for it; whether the paper does is unknown to us.

    Raises:
        ValueError: if no prefix has volume on both sides, or arguments do not fit each other.
    """
    graph = _sparse(graph)
    nodes, values = node_list(nodes, graph.shape[0]), np.asarray(values, dtype=np.float64)
    if nodes.shape != values.shape or not len(nodes):
        raise ValueError(f"sweep takes one value for each of at least one node, got {len(nodes)} and {values.shape}")
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size must be at least 1, got {max_size}")
    degree = graph.sum(axis=1)
    order, profile = swept(graph, degree, nodes, values, float(degree.sum()), max_size, half_volume)
    if not np.isfinite(profile).any():
        raise ValueError("no prefix of the sweep has volume on both sides")
    best = int(profile.argmin())
    return SweepCut(order[: best + 1], float(profile[best]), order, profile)


def swept(graph, degree, nodes, values, volume, max_size=None, half_volume=False, inside=None):
    """``order`` and ``profile`` of a sweep (`SweepCut`), without checks.

    ``volume`` is the sum of all degrees. ``inside`` may hand over n zeros as working memory; they are zeros again
    after.
    """
    has = degree[nodes] > 0
    nodes, values = nodes[has], values[has]
    order = nodes[np.lexsort((nodes, -values / degree[nodes]))][:max_size]
    inside = np.zeros(graph.shape[0], dtype=np.bool_) if inside is None else inside
    limit = volume / 2 if half_volume else volume
    profile = _profile(graph.indptr, graph.indices, graph.data, degree, order, inside, volume, limit)
    inside[order] = False
    return order, profile


@compiled
def _profile(indptr, indices, weights, degree, order, inside, total, limit):
    """Conductance of each prefix of ``order``."""
    profile = np.full(len(order), np.inf)
    cut = volume = 0.0
    for i in range(len(order)):
        u = order[i]
        within = 0.0
        for e in range(indptr[u], indptr[u + 1]):
            if inside[indices[e]]:
                within += weights[e]
        inside[u] = True
        cut += degree[u] - 2 * within
        volume += degree[u]
        side = min(volume, total - volume)
        if side > 1e-12 * total and volume <= limit * (1 + 1e-12):
            profile[i] = max(cut, 0.0) / side
    return profile


# Checks --------------------------------------------------------------------------------------------------------------


def checked(graph: csr_array) -> csr_array:
    """The graph as float64, after a check that it is square, symmetric, non-negative, finite and without self-loops.

    Raises:
        ValueError: if one of these does not hold; the message says which.
    """
    graph = _sparse(graph)
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise ValueError("weights must be finite and not negative")
    if graph.diagonal().any():
        raise ValueError("the graph has self-loops: set its diagonal to 0")
    if not graph.has_canonical_format:
        graph = graph.copy()
        graph.sum_duplicates()
    mirrored = graph.T.tocsr()
    same = np.array_equal(graph.indptr, mirrored.indptr) and np.array_equal(graph.indices, mirrored.indices)
    if not (same and np.allclose(graph.data, mirrored.data, rtol=1e-9, atol=0)):
        raise ValueError("the graph is not symmetric: take its maximum with its transpose, or make it by knn_graph")
    return graph


def _sparse(graph) -> csr_array:
    if not issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"a graph is a square scipy.sparse matrix of weights, got {type(graph).__name__}")
    graph = csr_array(graph)
    return graph if graph.dtype == np.float64 else graph.astype(np.float64)


def node_list(nodes, n: int) -> Int[ndarray, " m"]:
    """The nodes as int64, after a check that they are different whole numbers from 0 to n - 1 (else ValueError)."""
    nodes = np.asarray(nodes)
    if nodes.ndim != 1 or nodes.dtype.kind not in "iu":
        raise ValueError(f"nodes must be a list of whole numbers, got {nodes.dtype} of shape {nodes.shape}")
    if len(nodes) and not (0 <= nodes.min() and nodes.max() < n):
        raise ValueError(f"nodes must lie from 0 to {n - 1}")
    if len(np.unique(nodes)) < len(nodes):
        raise ValueError("nodes must be named once each")
    return nodes.astype(np.int64)


def _check_walk(graph: csr_array, seed: int, alpha: float, tol: float) -> None:
    n = graph.shape[0]
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < n:
        raise ValueError(f"seed must be a node from 0 to {n - 1}, got {seed!r}")
    check_rates(alpha, tol)
    if not graph.data[graph.indptr[seed] : graph.indptr[seed + 1]].any():
        raise ValueError(f"node {seed} has no neighbours: a walk cannot leave it")


def check_rates(alpha: float, tol: float) -> None:
    """Refuse (ValueError) a teleport probability or a tolerance that is out of range."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    if not (tol > 0 and math.isfinite(tol)):
        raise ValueError(f"the tolerance must be positive, got {tol}")
