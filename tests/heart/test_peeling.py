"""What is left of a graph, and the two ways to look for the cut of one seed."""

import networkx as nx
import numpy as np
import pytest
from graphs import LITERAL, from_networkx, random_graph
from sklearn.metrics import adjusted_rand_score

from spectrobook.clouds import Clouds, plant
from spectrolib import graph, peeling
from spectrolib.clustering import conductance, conductance_clusters, exact_pagerank


def test_fast_and_literal_agree_on_an_easy_table():
    """One chosen for its plain clusters; on harder ones they differ (``benchmarks/peeling.py --agreement``)."""
    clouds = plant(Clouds(tokens=500, clusters=4, smallest=25, largest=80, hubs=5), seed=2)
    weights = graph.knn_graph(clouds.vectors, k=25, symmetrise="mutual")
    literal = conductance_clusters(weights, **LITERAL)
    fast = conductance_clusters(weights, alpha=0.01)
    random = conductance_clusters(weights, alpha=0.01, seed_choice="random", seed=5)
    assert literal.seeds_tried > fast.seeds_tried
    for other in (fast, random):
        assert adjusted_rand_score(literal.labels, other.labels) > 0.9
    assert adjusted_rand_score(literal.labels, clouds.labels) > 0.7


def test_a_tolerance_too_loose_to_leave_the_seed_and_a_hub():
    star = from_networkx(nx.disjoint_union(nx.star_graph(400), nx.complete_graph(30)))
    for method in ("fast", "literal"):
        assert conductance_clusters(star, method=method, tol=1.0).left() == {
            "main body": 431,
            "small": 0,
            "isolated": 0,
            "unvisited": 0,
        }
    found = conductance_clusters(star)  # the hub's degree is 200 times the mean
    assert set(range(401, 431)) <= set(found.members(int(found.labels[401])).tolist())


def test_a_removal_changes_degrees_in_place():
    weights = random_graph(8, n=80)
    rest = peeling.Rest(weights)
    left = np.arange(80)
    for gone in (np.arange(0, 80, 9), np.array([1, 2, 3]), np.arange(30, 60), np.array([61, 79])):
        gone = np.intersect1d(gone, left)
        rest.remove(np.array([rest.place(u) for u in gone]))
        left = np.setdiff1d(left, gone)
        kept = weights[left][:, left]
        places = np.array([rest.place(u) for u in left])
        np.testing.assert_allclose(rest.degree[places], kept.sum(axis=1), rtol=1e-12)
        assert rest.volume == pytest.approx(kept.sum())
        assert rest.alive == len(left)
        assert rest.place(int(gone[0])) == -1
        seed = int(np.argmax(kept.sum(axis=1)))
        np.testing.assert_allclose(rest.exact(places[seed], 0.01)[places], exact_pagerank(kept, seed, 0.01), atol=1e-8)
        if kept.sum(axis=1).min() > 0:
            scores = rest.scores()[places]
            for u in range(len(left)):
                around = np.append(kept.indices[kept.indptr[u] : kept.indptr[u + 1]], u)
                assert scores[u] == pytest.approx(conductance(kept, around))
    assert len(rest.names) < 80  # it was rebuilt when half was gone
