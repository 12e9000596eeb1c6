"""Walks and cuts: against networkx, linear algebra and brute force."""

import networkx as nx
import numpy as np
import pytest
from graphs import dense_pagerank, from_networkx, random_graph, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import block_diag, csr_array

from spectrolib import pagerank
from spectrolib.clustering import approximate_pagerank, conductance, conductance_clusters, exact_pagerank, sweep_cut

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
