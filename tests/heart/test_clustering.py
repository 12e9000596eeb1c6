"""Walks, cuts and peeling: against networkx, linear algebra and brute force; on graphs whose clusters are known."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import block_diag, csr_array
from sklearn.metrics import adjusted_rand_score
from spectrobook.clouds import Clouds, plant
from threadpoolctl import threadpool_limits

from spectrolib import clustering, graph, pagerank, peeling
from spectrolib.clustering import approximate_pagerank, conductance, conductance_clusters, exact_pagerank, sweep_cut


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


# Walks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
def test_networkx_has_the_same_vector_at_its_own_alpha(alpha):
    weights = random_graph(1)
    theirs = nx.pagerank(
        nx.from_scipy_sparse_array(weights),
        alpha=1 - 2 * alpha / (1 + alpha),
        personalization={5: 1},
        tol=1e-14,
        max_iter=100_000,
    )
    ours = exact_pagerank(weights, 5, alpha)
    np.testing.assert_allclose(ours, [theirs[i] for i in range(weights.shape[0])], rtol=1e-8)
    nodes, values = approximate_pagerank(weights, 5, alpha, tol=1e-11)
    np.testing.assert_allclose(values, ours[nodes], atol=1e-10 * weights.sum(axis=1).max())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 23),
    st.sampled_from([0.001, 0.03, 0.5]),
    st.sampled_from([1e-2, 1e-4, 1e-7]),
    st.booleans(),
)
def test_push_errs_by_less_than_tol_times_degree(number, seed, alpha, tol, weighted):
    weights = random_graph(number, weighted=weighted)
    degree, exact = weights.sum(axis=1), dense_pagerank(weights, seed, alpha)
    np.testing.assert_allclose(exact_pagerank(weights, seed, alpha), exact, rtol=1e-7)
    nodes, values = approximate_pagerank(weights, seed, alpha, tol)
    p = np.zeros(len(degree))
    p[nodes] = values
    assert (values > 0).all()
    assert (np.diff(nodes) > 0).all()
    assert (p <= exact + 1e-12).all()
    assert (exact - p < tol * degree + 1e-12).all()

    walk = pagerank.Walk(weights, degree.copy())
    walk.start(seed)
    walk.push(alpha, tol)
    assert walk.p.sum() + walk.r.sum() == pytest.approx(1, abs=1e-12)
    assert (walk.r < tol * degree).all()
    np.testing.assert_allclose(walk.p, p, rtol=1e-12)
    # what the residual would become is what is missing
    missing = sum(r * dense_pagerank(weights, u, alpha) for u, r in enumerate(walk.r))
    np.testing.assert_allclose(p + missing, exact, atol=1e-12)


def test_a_walk_goes_on_starts_again_and_need_not_rest():
    weights = random_graph(2, n=60)
    degree = weights.sum(axis=1)
    walk = pagerank.Walk(weights, degree.copy())
    for seed in (3, 40):
        exact = dense_pagerank(weights, seed, 0.01)
        walk.start(seed)
        for tol in (1e-2, 1e-3, 1e-6):
            walk.push(0.01, tol)
            assert (walk.r < tol * degree).all()
            assert (np.abs(exact - walk.p) < tol * degree).all()
        walk.start(seed)
        walk.push(0.02 / 1.01, 1e-6, rest=0.0)
        assert walk.p.sum() + walk.r.sum() == pytest.approx(1, abs=1e-12)
        assert (np.abs(exact - walk.p) < 1e-6 * degree).all()


def test_push_does_not_see_the_size_of_the_graph(monkeypatch):
    def ring(n: int) -> csr_array:
        return from_networkx(nx.cycle_graph(n))

    small, large = (approximate_pagerank(ring(n), n // 2, 0.05, 1e-4) for n in (400, 40_000))
    np.testing.assert_array_equal(small[0] - 200, large[0] - 20_000)
    np.testing.assert_array_equal(small[1], large[1])
    assert len(small[0]) * 2 <= 1 / (0.05 * 1e-4)
    # interrupted after every push, as Ctrl-C may be, it goes on where it was
    monkeypatch.setattr(pagerank, "_STEPS", 1)
    again = approximate_pagerank(ring(400), 200, 0.05, 1e-4)
    np.testing.assert_array_equal(again[1], small[1])


def test_compiles_where_nothing_can_be_written():
    scope: dict = {}
    exec("def double(x):\n    return 2 * x", scope)  # as in a folder without a cache: numba finds no place for one
    assert pagerank.compiled(scope["double"])(21) == 42


# Cuts ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_conductance_and_sweep_against_networkx(number, data):
    weights = random_graph(number, n=14)
    g = nx.from_scipy_sparse_array(weights)
    some = data.draw(st.lists(st.integers(0, 13), min_size=1, max_size=13, unique=True))
    assert conductance(weights, np.array(some)) == pytest.approx(nx.conductance(g, some, weight="weight"))

    values = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5, 1.0]), min_size=14, max_size=14)))[some]
    cut = sweep_cut(weights, np.array(some), values)
    rank = values / weights.sum(axis=1)[some]
    np.testing.assert_array_equal(cut.order, [u for _, u in sorted(zip(-rank, some, strict=True))])
    theirs = [nx.conductance(g, cut.order[: i + 1].tolist(), weight="weight") for i in range(len(some))]
    np.testing.assert_allclose(cut.profile, theirs)
    assert cut.conductance == pytest.approx(min(theirs))
    assert len(cut.nodes) == np.argmin(cut.profile) + 1
    np.testing.assert_array_equal(cut.nodes, cut.order[: len(cut.nodes)])


def test_sweep_limits():
    weights = random_graph(5, n=40)
    degree = weights.sum(axis=1)
    nodes, values = np.arange(40), dense_pagerank(weights, 0, 0.02)
    full = sweep_cut(weights, nodes, values)
    assert np.isinf(full.profile[-1])  # nothing is left outside
    short = sweep_cut(weights, nodes, values, max_size=7)
    np.testing.assert_array_equal(short.profile, full.profile[:7])
    half = sweep_cut(weights, nodes, values, half_volume=True)
    within = np.cumsum(degree[full.order]) <= degree.sum() / 2
    np.testing.assert_array_equal(np.isfinite(half.profile), within)
    np.testing.assert_array_equal(half.profile[within], full.profile[within])


def test_the_bell_of_a_barbell():
    weights = from_networkx(nx.barbell_graph(20, 6))
    cut = sweep_cut(weights, *approximate_pagerank(weights, 3))
    assert set(range(20)) <= set(cut.nodes.tolist()) <= set(range(23))  # and at most half of the bridge
    assert cut.conductance == pytest.approx(1 / weights.sum(axis=1)[cut.nodes].sum())
    assert conductance(weights, np.arange(20)) == pytest.approx(1 / (20 * 19 + 1))


def test_names_do_not_matter_to_cuts():
    weights = random_graph(6, n=50)
    renamed, name = shuffled(weights)
    cut = sweep_cut(weights, np.arange(50), exact_pagerank(weights, 9))
    same = sweep_cut(renamed, np.arange(50), exact_pagerank(renamed, int(name[9])))
    np.testing.assert_array_equal(name[cut.order], same.order)
    np.testing.assert_allclose(cut.profile, same.profile)


# Peeling -------------------------------------------------------------------------------------------------------------

LITERAL = {"method": "literal", "alpha": 0.01, "tol": 1e-5}
"""At alpha = 0.001 and tol = 1e-7 these tests would take minutes."""
BARE = {**LITERAL, "alpha": 0.001, "half_volume": False, "max_size": 10**6, "barrier": 1}


@pytest.mark.parametrize("options", [{}, LITERAL, BARE], ids=["fast", "literal", "bare"])
def test_ring_of_cliques(options):
    weights, name = shuffled(ring_of_cliques(9, 25))
    clique = np.empty(225, dtype=int)
    clique[name] = np.arange(225) // 25
    found = conductance_clusters(weights, min_size=10, **{"max_size": 40, **options})
    if options == BARE:  # without limits the best cut is half of the ring
        assert found.sizes.max() in (100, 125)
        assert found.conductance[found.order == 0] == pytest.approx(2 / (4 * (25 * 24 + 2)))
        return
    kept = found.labels >= 0
    assert adjusted_rand_score(clique[kept], found.labels[kept]) == 1
    assert len(found.sizes) >= 7
    assert (found.why[~kept] == "main body").all()  # of two cliques each is half of all that is left
    first = int(np.flatnonzero(found.order == 0)[0])
    assert found.conductance[first] == pytest.approx(2 / (25 * 24 + 2))
    assert conductance(weights, found.members(first)) == pytest.approx(2 / (25 * 24 + 2))


def test_stochastic_block_model():
    sizes = [40, 60, 80, 700]
    inside = [0.5, 0.4, 0.4, 0.03]
    p = np.full((4, 4), 0.01)
    np.fill_diagonal(p, inside)
    weights, name = shuffled(from_networkx(nx.Graph(nx.stochastic_block_model(sizes, p, seed=1))))
    block = np.empty(880, dtype=int)
    block[name] = np.repeat([0, 1, 2, -1], sizes)
    found = conductance_clusters(weights)
    assert len(found.sizes) == 3
    assert adjusted_rand_score(block, found.labels) > 0.9
    np.testing.assert_array_equal(found.main_body, found.why == "main body")
    assert found.main_body[block < 0].mean() > 0.9


@pytest.fixture(scope="module")
def planted():
    """1200 rows, six clusters of 20 to 150, and their mutual graph."""
    clouds = plant(Clouds(tokens=1200, clusters=6, largest=150, hubs=12), seed=1)
    return clouds, graph.knn_graph(clouds.vectors, symmetrise="mutual")


@pytest.fixture(scope="module")
def found(planted) -> clustering.Clustering:
    return conductance_clusters(planted[1])


def test_planted_clusters_in_a_main_body(planted, found):
    clouds, weights = planted
    assert adjusted_rand_score(clouds.labels, found.labels) > 0.85
    assert (found.labels[clouds.labels < 0] >= 0).mean() < 0.05
    assert (np.diff(found.sizes) <= 0).all()
    assert sorted(found.order.tolist()) == list(range(len(found.sizes)))
    left, out = np.arange(1200), []
    for k in np.argsort(found.order):  # each was cut from what its predecessors had left
        members = found.members(k)
        assert len(members) == found.sizes[k]
        assert found.seeds[k] in members
        remaining = weights[left][:, left]
        assert conductance(remaining, np.searchsorted(left, members)) == pytest.approx(found.conductance[k])
        left = np.setdiff1d(left, members)
        out.append(members)
    assert set(np.unique(found.why[left])) <= {"main body", "small", "isolated", "unvisited"}
    assert (found.why[found.labels >= 0] == "cluster").all()
    assert sum(found.left().values()) == len(left)
    assert ((found.why == "isolated") >= (weights.sum(axis=1) == 0)).all()
    again = conductance_clusters(weights)
    np.testing.assert_array_equal(again.labels, found.labels)
    np.testing.assert_array_equal(again.why, found.why)


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


def test_names_do_not_matter_to_peeling(planted, found):
    _, weights = planted
    renamed, name = shuffled(weights, seed=2)
    order = np.argsort(found.order)
    same = conductance_clusters(renamed, seed_choice=name[found.seeds[order]])
    assert adjusted_rand_score(found.labels[np.argsort(name)], same.labels) > 0.98
    np.testing.assert_allclose(same.conductance, found.conductance, atol=0.02)


def test_the_same_for_any_number_of_threads(planted, found):
    for threads in (1, 3):
        with threadpool_limits(limits=threads):
            again = conductance_clusters(planted[1])
        np.testing.assert_array_equal(again.labels, found.labels)
        np.testing.assert_array_equal(again.conductance, found.conductance)


def test_exact_walks_certify_what_was_found(planted, found):
    _, weights = planted
    exact = clustering.certify(weights, found)
    assert exact.clusters.tolist() == list(range(len(found.sizes)))
    assert exact.overlap.min() > 0.8
    assert np.median(exact.overlap) > 0.95
    some = clustering.certify(weights, found, sample=2, seed=1)
    np.testing.assert_array_equal(some.overlap, exact.overlap[some.clusters])
    # a set that no walk would cut is found out
    labels = found.labels.copy()
    swapped = found.members(0)[: found.sizes[0] // 2]
    labels[swapped] = -1
    labels[np.flatnonzero(found.main_body)[: len(swapped)]] = 0
    assert clustering.certify(weights, replace(found, labels=labels)).overlap[0] < 0.7


def test_what_becomes_of_every_token():
    """Two cliques of 30, one of 8, a sparse body, two tokens without neighbours."""
    body = from_networkx(nx.random_regular_graph(12, 300, seed=0))
    cliques = [from_networkx(nx.complete_graph(n)) for n in (30, 30, 8)]
    weights = csr_array(block_diag([*cliques, body, np.zeros((2, 2))]))
    found = conductance_clusters(weights)
    assert found.sizes.tolist() == [30, 30]
    assert found.conductance.tolist() == [0, 0]
    assert set(found.why[60:68]) == {"small"}
    assert found.why[368:].tolist() == ["isolated"] * 2
    assert set(found.why[68:368]) <= {"main body", "unvisited"}
    assert found.left()["main body"] > 250
    assert found.coverage == 60 / 370
    assert conductance_clusters(weights, min_size=8).sizes.tolist() == [30, 30, 8]
    assert conductance_clusters(weights, min_size=31).sizes.tolist() == []


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


def test_without_limits_the_main_body_is_cut_up(planted):
    bare, limited = (conductance_clusters(planted[1], seed_choice=range(0, 1200, 60), **o) for o in (BARE, LITERAL))
    assert bare.sizes.max() > 300  # twice the largest planted cluster
    assert limited.sizes.max() < 200


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


def test_ctrl_c_leaves_what_was_found(planted, found, monkeypatch):
    calls, fast = [], peeling.fast

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return fast(*arguments)

    monkeypatch.setattr(peeling, "fast", stopped)
    part = conductance_clusters(planted[1])
    assert not part.finished
    assert part.seeds_tried == 10
    first = [found.members(k).tolist() for k in np.argsort(found.order)[: len(part.sizes)]]
    assert [part.members(k).tolist() for k in np.argsort(part.order)] == first
    assert 1 <= len(first) < len(found.sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "quick"}, "'fast' or 'literal'"),
        ({"alpha": 0.0}, "alpha must lie between"),
        ({"alpha": 1.0}, "alpha must lie between"),
        ({"tol": 0.0}, "tolerance must be positive"),
        ({"main_body": 1.5}, "main_body"),
        ({"min_size": 0}, "min_size must be at least 1"),
        ({"max_size": 10}, "at least min_size = 20"),
        ({"stop": 1.0}, "stop must lie"),
        ({"barrier": 0.5}, "barrier must be at least 1"),
        ({"seed_choice": "best"}, "seed_choice must be"),
        ({"seed_choice": [0, 99]}, "from 0 to 23"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        conductance_clusters(random_graph(0), **options)


def test_refused_graphs():
    weights = random_graph(0)
    one_way = weights.copy().tolil()
    one_way[0, 1] = 9
    loop = weights.copy().tolil()
    loop[3, 3] = 1
    for bad, message in (
        (weights.toarray(), "square scipy.sparse matrix"),
        (weights[:5], "square scipy.sparse matrix"),
        (-weights, "not negative"),
        (weights * np.nan, "finite"),
        (csr_array(one_way), "not symmetric"),
        (csr_array(loop), "self-loops"),
    ):
        for use in (conductance_clusters, lambda g: exact_pagerank(g, 0)):
            with pytest.raises(ValueError, match=message):
                use(bad)
    lonely = csr_array(block_diag([weights, np.zeros((1, 1))]))
    for walk in (approximate_pagerank, exact_pagerank):
        with pytest.raises(ValueError, match="24 has no neighbours"):
            walk(lonely, 24)
        with pytest.raises(ValueError, match="node from 0 to 24"):
            walk(lonely, 25)
    with pytest.raises(ValueError, match="leaves out some"):
        conductance(weights, np.arange(24))
    with pytest.raises(ValueError, match="once each"):
        conductance(weights, np.array([1, 1]))
    with pytest.raises(ValueError, match="whole numbers"):
        conductance(weights, np.array([0.5]))
    with pytest.raises(ValueError, match="volume on both sides"):
        sweep_cut(lonely, np.array([24]), np.array([1.0]))
