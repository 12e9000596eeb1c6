"""Clusters: on graphs whose clusters are known, certified, kept in files."""

import os
import sys
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from graphs import LITERAL, from_networkx, random_graph, ring_of_cliques, shuffled
from measuring import wait_for
from processes import group_lives, press_ctrl_c, started
from scipy.sparse import block_diag, csr_array
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from spectrolib import clustering, peeling
from spectrolib.clustering import conductance, conductance_clusters

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


def test_a_cluster_is_certified_on_what_was_left_when_it_was_found():
    """The smaller of two cliques was found first, and took its edges to the larger one with it."""
    g = nx.circulant_graph(60, [1, 2, 3])
    g.remove_nodes_from(range(20))
    g.add_edges_from((*nx.complete_graph(12).edges, *nx.complete_graph(range(12, 20)).edges))
    g.add_edges_from([(0, 12), (1, 13), (2, 14), (3, 20), (15, 40)])
    weights, large, small = from_networkx(g), np.arange(12), np.arange(12, 20)
    labels = np.repeat([0, 1, -1], [12, 8, 40])
    seeds, order = np.array([5, 16]), np.array([1, 0])
    made = clustering.Clustering(labels, np.zeros(2), seeds, np.array([12, 8]), order, np.array([""] * 60), 2)
    found = clustering.certify(weights, made, alpha=0.01)
    left = np.setdiff1d(np.arange(60), small)
    assert found.overlap.tolist() == [1, 1]
    truth = [conductance(weights[left][:, left], large), conductance(weights, small)]
    assert found.conductance == pytest.approx(truth) and truth[0] < 0.5 * conductance(weights, large)


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


def test_without_limits_the_main_body_is_cut_up(planted):
    bare, limited = (conductance_clusters(planted[1], seed_choice=range(0, 1200, 60), **o) for o in (BARE, LITERAL))
    assert bare.sizes.max() > 300  # twice the largest planted cluster
    assert limited.sizes.max() < 200


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
    assert found.complete() is found
    with pytest.raises(KeyboardInterrupt):
        part.complete()


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
        ({"barrier": 0.5}, "barrier must be a number of at least 1"),
        ({"barrier": np.nan}, "barrier must be a number of at least 1"),
        ({"barrier": np.inf}, "barrier must be a number of at least 1"),
        ({"seed_choice": "best"}, "seed_choice must be"),
        ({"seed_choice": [0, 99]}, "from 0 to 23"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        conductance_clusters(random_graph(0), **options)


# Clusters that come back


def groups(clusters: int = 4, each: int = 30, loners: int = 60, channels: int = 60, noise: float = 1.0, seed: int = 0):
    """Rows whose channels are independent looks at the same inner products: planted directions, and noise."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(clusters), each), np.full(loners, -1)])
    centres = rng.normal(size=(clusters + loners, 12))
    place = np.concatenate([np.repeat(np.arange(clusters), each), clusters + np.arange(loners)])
    own = centres[place] + 0.25 * rng.normal(size=(len(place), 12))
    looks = np.random.default_rng([seed, 1]).normal(size=(12, channels))
    return labels, (own @ looks + noise * np.random.default_rng([seed, 2]).normal(size=(len(own), channels)))


def test_planted_clusters_come_back():
    labels, rows = groups(noise=0.3, channels=120)
    found = clustering.stable_clusters(rows, k=10, repeats=6)
    for group in range(4):
        (cluster,) = set(found.labels[labels == group]) - {-1}
        mine = labels[found.members(cluster)]
        assert found.share[cluster] >= 0.5 and (mine == group).mean() > 0.8 and (mine == group).sum() >= 24
    assert found.support[found.labels >= 0].min() > 0 and (found.support[found.labels < 0] == 0).all()
    assert ((found.why == "cluster") == (found.labels >= 0)).all()


def test_noise_alone_has_no_clusters_that_come_back():
    rows = np.random.default_rng(0).normal(size=(300, 90))
    assert len(clustering.stable_clusters(rows, k=10, repeats=8).sizes) == 0


def test_a_share_is_what_a_fresh_measurement_gives():
    """Over many planted tables: of clusters that name a share above 0.8 at least 0.8 are found in fresh channels."""
    named, came = [], []
    for seed in range(12):
        _, both = groups(clusters=6, each=14, channels=80, noise=2.5, seed=seed)
        one, two = (clustering.stable_clusters(half, k=8, repeats=8) for half in (both[:, :40], both[:, 40:]))
        best = clustering.overlaps(one.labels, two.labels).max(axis=1).toarray().ravel() if len(two.sizes) else 0
        named += one.share.tolist()
        came += ((best if len(two.sizes) else np.zeros(len(one.sizes))) > 0.5).tolist()
    named, came = np.array(named), np.array(came)
    assert len(named) > 25
    assert came[named > 0.8].mean() > 0.8
    assert came[named > 0.8].mean() >= came[named <= 0.8].mean() or (named <= 0.8).sum() < 5


def test_lengths_of_rows_do_not_matter_and_quiet_ones_are_left_out():
    _, rows = groups()
    first = clustering.stable_clusters(rows, k=10, repeats=4)
    scaled = clustering.stable_clusters(rows * np.linspace(0.5, 2, len(rows))[:, None], k=10, repeats=4)
    np.testing.assert_array_equal(first.labels, scaled.labels)
    quiet = rows.copy()
    quiet[:5] *= 1e-3
    found = clustering.stable_clusters(quiet, k=10, repeats=4)
    assert (found.why[:5] == "quiet").all() and (found.labels[:5] == -1).all()


def test_any_number_of_processes_gives_the_same_clusters():
    _, rows = groups()
    one, two = (clustering.stable_clusters(rows, k=10, repeats=3, workers=workers) for workers in (1, 2))
    for name in ("labels", "share", "support", "conductance", "seeds", "why"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_ctrl_c_keeps_what_the_finished_repetitions_agree_on(monkeypatch):
    _, rows = groups(noise=0.3, channels=120)
    count, search = [], clustering.conductance_clusters

    def stopped(*arguments, **options):
        count.append(1)
        found = search(*arguments, **options)
        return replace(found, finished=len(count) <= stop)  # as one does that Ctrl-C met

    monkeypatch.setattr(clustering, "conductance_clusters", stopped)
    stop = 3
    found = clustering.stable_clusters(rows, k=10, repeats=6)
    assert len(count) == 4 and not found.finished and len(found.sizes) >= 4
    np.testing.assert_allclose(found.share * 3, np.round(found.share * 3))
    count.clear()
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        clustering.stable_clusters(rows, k=10, repeats=6)
    assert len(count) == 2


SLOW = """
import time
import numpy as np
from spectrolib import clustering

def slow(*arguments, **options):
    print("begun", flush=True)
    time.sleep(600)

clustering.conductance_clusters = slow
if __name__ == "__main__":
    rows = np.random.default_rng(0).normal(size=(60, 30))
    clustering.stable_clusters(rows, k=10, repeats=4, workers=2)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of another kind")
def test_ctrl_c_ends_processes_at_once(tmp_path):
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    with started([sys.executable, program]) as process:
        assert process.stdout.readline().startswith("begun")  # two processes may write it at once
        press_ctrl_c(process)
        _, error = process.communicate(timeout=60)
        assert error.count("Traceback") == 1 and error.rstrip().endswith("KeyboardInterrupt")
        wait_for(lambda: not group_lives(process), "the last of its processes")


def test_each_repetition_takes_a_third_of_the_channels_anew(monkeypatch):
    rows, taken, run = np.random.default_rng(0).normal(size=(60, 30)).astype(np.float32), [], clustering._repetition

    def recorded(rows, k, options):
        taken.append(rows[0].tolist())
        return run(rows, k, options)

    monkeypatch.setattr(clustering, "_repetition", recorded)
    clustering.stable_clusters(rows, repeats=4, k=5, min_size=5)
    assert [len(set(own)) for own in taken] == [len(own) for own in taken] == [10] * 4
    assert len(set(map(tuple, taken))) == 4


def test_what_repetitions_agree_on_against_brute_force():
    """Blocks of eight tokens whose labels wander: shares and supports are counts of partners above one half."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        labels = []
        for _ in range(5):
            own = np.where(rng.random(24) < rng.choice([0.2, 0.4]), rng.integers(-1, 3, 24), np.arange(24) // 8)
            labels.append(np.unique(np.append(own, -1), return_inverse=True)[1][:-1] - 1)
        found = clustering._agreement(labels, 0.6, 2)
        assert len(np.unique(np.concatenate([[], *found.members]))) == sum(map(len, found.members))
        for members, share in zip(found.members, found.share, strict=True):
            votes = np.zeros(24)
            back = 0
            for own in labels:
                for cluster in range(own.max() + 1):
                    theirs = own == cluster
                    common = theirs[members].sum()
                    if 2 * common > theirs.sum() + len(members) - common:
                        back, votes = back + 1, votes + theirs
            assert share == back / 5 >= 0.6
            np.testing.assert_allclose(found.support[members], votes[members] / 5)
            shares.append(share)
    assert {0.6, 0.8, 1.0} == set(shares)


def test_a_token_that_half_of_the_matches_hold_is_not_agreed_on():
    first, second = np.where(np.arange(20) < 10, 0, -1), np.where(np.arange(20) < 13, 0, -1)
    found = clustering._agreement([first, second], 0.5, 2)
    assert [own.tolist() for own in found.members] == [list(range(10))] and found.share == [1.0]


def test_overlaps_are_jaccard_indices():
    first, second = np.array([0, 0, 0, 1, 1, -1]), np.array([0, 0, 1, 1, -1, 1])
    np.testing.assert_allclose(clustering.overlaps(first, second).toarray(), [[2 / 3, 1 / 5], [0, 1 / 4]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 1}, "repeats must be at least 2, got 1"),
        ({"share": 0.0}, "share must lie above 0"),
        ({"least": 1.5}, "least must lie above 0 and be at most 1, got 1.5"),
        ({"quiet": 10.0}, "0 rows are long enough"),
    ],
)
def test_stable_clusters_refuse_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        clustering.stable_clusters(groups()[1], **{"k": 10} | change)
