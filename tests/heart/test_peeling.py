"""What is left of a graph, and the two ways to look for the cut of one seed."""

import networkx as nx
import numpy as np
import pytest
from graphs import LITERAL, dense_pagerank, from_networkx, random_graph
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


def test_the_walk_of_the_fast_search_has_the_teleport_of_the_lazy_one():
    """It never rests, and yet p + the lazy PageRank of r is the lazy PageRank of the seed."""
    weights, options = random_graph(4, n=60), peeling.Options(alpha=0.1)
    rest = peeling.Rest(weights)
    peeling.fast(rest, 7, options)
    from_every = np.stack([dense_pagerank(weights, seed, options.alpha) for seed in range(60)], axis=1)
    assert 0.1 < rest.walk.r.sum() < 0.9  # neither at its start nor at its end
    np.testing.assert_allclose(rest.walk.p + from_every @ rest.walk.r, from_every[:, 7], rtol=1e-9, atol=1e-12)


def test_a_neighbourhood_of_more_than_half_is_scored_by_the_rest():
    """Three of five nodes on a ring: two edges are cut, and the two nodes outside have four ends."""
    assert peeling.Rest(from_networkx(nx.cycle_graph(5))).scores() == pytest.approx(np.full(5, 2 / 4))


def test_a_cut_of_99_in_100_is_main_body_and_one_of_98_is_not():
    """Even if nothing ties it to the rest."""
    for best, kind in ((99, "main body"), (98, "cluster")):
        profile = np.ones(100)
        profile[best - 1] = 0
        assert peeling.judge(profile, 100, peeling.Options(main_body=0.99)) == (kind, best)


def test_a_cut_counts_when_two_scales_agree_on_it(monkeypatch):
    """Scales that are made to cut 5, 20, 20 tokens: the first two do not agree."""
    weights = graph.knn_graph(np.random.default_rng(0).normal(size=(3000, 2)), k=8)
    sizes, seen = iter([5, 20, 20]), []

    def judge(profile, alive, options):
        seen.append(len(profile))
        return "cluster", next(sizes)

    monkeypatch.setattr(peeling, "judge", judge)
    cut = peeling.fast(peeling.Rest(weights), 11, peeling.Options(max_size=500))
    assert (cut.kind, len(cut.nodes), len(seen)) == ("cluster", 20, 3)
    assert sorted(seen) == seen  # tighter and tighter
