"""Small graphs whose walks and cuts are known."""

import networkx as nx
import numpy as np
from scipy.sparse import csr_array

LITERAL = {"method": "literal", "alpha": 0.01, "tol": 1e-5}
"""At alpha = 0.001 and tol = 1e-7 the literal search would take minutes."""


def random_graph(seed: int, n: int = 24, weighted: bool = True) -> csr_array:
    """A ring with random chords: connected, with weights of different size."""
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.uniform(0.1, 3, (n, n)) * (rng.uniform(size=(n, n)) < 0.15), 1)
    weights[np.arange(n - 1), np.arange(1, n)] = rng.uniform(0.1, 3, n - 1)
    return csr_array((weights if weighted else weights > 0).astype(float) + (weights if weighted else weights > 0).T)


def dense_pagerank(weights: csr_array, seed: int, alpha: float) -> np.ndarray:
    """p = alpha e_s + (1 - alpha) W p by elimination."""
    a = weights.toarray()
    lazy = (np.eye(len(a)) + a / a.sum(axis=0)) / 2
    return np.linalg.solve(np.eye(len(a)) - (1 - alpha) * lazy, alpha * np.eye(len(a))[seed])


def ring_of_cliques(count: int, size: int) -> csr_array:
    return from_networkx(nx.ring_of_cliques(count, size))


def from_networkx(g: nx.Graph) -> csr_array:
    return csr_array(nx.to_scipy_sparse_array(g, nodelist=sorted(g), dtype=float))


def shuffled(weights: csr_array, seed: int = 0) -> tuple[csr_array, np.ndarray]:
    """The same graph under other names: node i is now called name[i]."""
    name = np.random.default_rng(seed).permutation(weights.shape[0])
    old = np.argsort(name)
    renamed = csr_array(weights[old][:, old])
    renamed.sort_indices()
    return renamed, name
