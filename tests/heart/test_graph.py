"""The nearest-neighbour graph: against scikit-learn and brute force, on ties, copies, hard scales, any threads."""

import faiss
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from spectrobook.clouds import Clouds, plant
from spectrolib import graph


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """1500 rows that look like standardised susceptibilities."""
    return plant(Clouds(tokens=1500, clusters=4, largest=120), seed=3).vectors


def brute(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """k nearest others, ties by index, from differences in float64."""
    squared = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    indices = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return indices, np.sqrt(np.take_along_axis(squared, indices, 1))


def test_exact_search_is_brute_force(vectors):
    near = graph.nearest(vectors, k=45)
    distances, _ = NearestNeighbors(n_neighbors=45, algorithm="brute").fit(vectors).kneighbors()
    np.testing.assert_allclose(near.distances, distances, rtol=1e-9)
    indices, _ = brute(vectors[:400], 20)
    np.testing.assert_array_equal(graph.nearest(vectors[:400], k=20).indices, indices)


@pytest.mark.parametrize("wide", [graph.WIDE, 1])
@pytest.mark.parametrize(
    "hard",
    [
        pytest.param(lambda x: 1e8 + x * 1e-3, id="far from the origin"),
        pytest.param(lambda x: np.vstack([x[:-1], np.full(x.shape[1], 1e25)]), id="an outlier"),
        pytest.param(lambda x: x * 1e-60, id="tiny"),
        pytest.param(lambda x: np.round(x[:, :2] * 3), id="ties and copies"),
        pytest.param(lambda x: x[np.arange(len(x)) // 60], id="60 copies of each"),
        pytest.param(lambda x: x[np.arange(len(x)) // 7], id="7 copies of each"),
        pytest.param(lambda x: np.zeros_like(x), id="all equal"),
        pytest.param(lambda x: x[:31], id="k = n - 1"),
    ],
)
def test_hard_cases_are_exact_and_ties_go_by_index(vectors, hard, wide, monkeypatch):
    """By faiss, and by matrix products."""
    monkeypatch.setattr(graph, "WIDE", wide)
    rows = hard(vectors[:300])
    indices, distances = brute(rows, 30)
    near = graph.nearest(rows, k=30)
    np.testing.assert_allclose(near.distances, distances, rtol=1e-6)
    np.testing.assert_array_equal(near.indices, indices)


def test_cosine(vectors):
    near = graph.nearest(vectors * np.linspace(0.1, 9, len(vectors))[:, None], k=10, metric="cosine")
    distances, _ = NearestNeighbors(n_neighbors=10, metric="cosine").fit(vectors).kneighbors()
    np.testing.assert_allclose(near.distances, distances, atol=1e-12)
    assert graph.recall(vectors, near, metric="cosine") == 1
    with pytest.raises(ValueError, match=r"1 rows are, the first is 7"):
        graph.nearest(np.where(np.arange(len(vectors))[:, None] == 7, 0, vectors), k=10, metric="cosine")


def test_approximate_search_has_its_recall_measured(vectors, monkeypatch):
    assert graph.recall(vectors, graph.nearest(vectors, k=45)) == 1
    full = graph.nearest(vectors, k=45, exact=False)
    assert graph.recall(vectors, full) > 0.99
    monkeypatch.setattr(graph, "PROBES", 4)
    worse = graph.nearest(vectors, k=45, exact=False)
    measured = graph.recall(vectors, worse)
    true = graph.nearest(vectors, k=45)
    shared = [len(np.intersect1d(a, b)) / 45 for a, b in zip(worse.indices, true.indices, strict=True)]
    assert measured < 0.95
    assert measured == pytest.approx(np.mean(shared), abs=0.03)
    np.testing.assert_array_equal(worse.indices, graph.nearest(vectors, k=45, exact=False).indices)
    assert (worse.indices != graph.nearest(vectors, k=45, exact=False, seed=1).indices).any()


def test_union_and_mutual(vectors):
    k, vectors = 15, vectors[:300]
    indices, _ = brute(vectors, k)
    asked = np.zeros((len(vectors), len(vectors)), dtype=bool)
    np.put_along_axis(asked, indices, True, 1)
    for name, expected in (("union", asked | asked.T), ("mutual", asked & asked.T)):
        joined = graph.knn_graph(vectors, k=k, symmetrise=name)
        np.testing.assert_array_equal(joined.toarray(), expected)
        assert joined.has_sorted_indices
        assert joined.indices.dtype.kind == "i"
        assert not joined.diagonal().any()


def test_a_mutual_graph_may_isolate_tokens():
    crowd = np.random.default_rng(0).normal(size=(50, 3))
    vectors = np.vstack([crowd, [[40, 0, 0]]])
    assert graph.knn_graph(vectors, k=5, symmetrise="mutual").sum(axis=1)[50] == 0
    assert graph.knn_graph(vectors, k=5, symmetrise="union").sum(axis=1)[50] == 5


def test_weights_adapt_to_density(vectors):
    near = graph.nearest(vectors, k=15)
    weighted = graph.join(near, weighted=True)
    plain = graph.join(near)
    np.testing.assert_array_equal(weighted.indices, plain.indices)
    assert abs(weighted - weighted.T).max() == 0
    scale = near.distances[:, -1]
    i, j = 7, near.indices[7, 3]
    assert weighted[i, j] == pytest.approx(np.exp(-(near.distances[7, 3] ** 2) / (scale[i] * scale[j])))
    assert graph.LEAST_WEIGHT <= weighted.data.min() < weighted.data.max() <= 1
    larger = graph.knn_graph(vectors * 50, k=15, weighted=True)
    np.testing.assert_allclose(larger.data, weighted.data, rtol=1e-6)
    copies = graph.knn_graph(vectors[np.arange(300) // 20], k=15, weighted=True)
    assert np.isfinite(copies.data).all()


@pytest.mark.parametrize(("exact", "channels"), [(True, 24), (False, 24), (True, graph.WIDE)])
def test_the_same_for_any_number_of_threads(exact, channels):
    vectors = np.random.default_rng(0).standard_t(4, (3000, channels)).round(2)
    tables = []
    for threads in (1, 3):
        with threadpool_limits(limits=threads):
            assert faiss.omp_get_max_threads() == threads
            tables.append(graph.nearest(vectors, 30, exact=exact))
    np.testing.assert_array_equal(tables[0].indices, tables[1].indices)
    np.testing.assert_array_equal(tables[0].distances, tables[1].distances)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "from 1 to 1499"),
        ({"k": 1500}, "fewer than the 1500 vectors"),
        ({"k": 4.5}, "whole number"),
        ({"symmetrise": "both"}, "'union' or 'mutual'"),
        ({"metric": "manhattan"}, "'euclidean' or 'cosine'"),
    ],
)
def test_refusals(vectors, arguments, message):
    with pytest.raises(ValueError, match=message):
        graph.knn_graph(vectors, **arguments)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "1 rows are not, the first is 12"), (1e200, "below 1e\\+100")])
def test_values_that_cannot_be_compared(vectors, value, message):
    rows = vectors.copy()
    rows[12, 3] = value
    with pytest.raises(ValueError, match=message):
        graph.knn_graph(rows)
    with pytest.raises(ValueError, match="matrix"):
        graph.knn_graph(rows[0])
