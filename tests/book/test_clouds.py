"""Planted clouds keep their promises; the scores against brute force, hand counts and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from sklearn.metrics import adjusted_rand_score

from spectrobook import clouds
from spectrolib.clustering import conductance
from spectrolib.graph import knn_graph

SMALL = clouds.Clouds(tokens=1200, clusters=5, smallest=20, largest=150, hubs=20)
labellings = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 3)), min_size=1, max_size=60).map(
    lambda pairs: tuple(np.array(side) for side in zip(*pairs, strict=True))
)


@pytest.fixture(scope="module")
def planted():
    return clouds.plant(SMALL, seed=3)


def test_clusters_have_the_sizes_and_spreads_that_were_asked_for(planted):
    counts = np.bincount(planted.labels + 1)
    assert counts.tolist() == [SMALL.body, *SMALL.sizes]
    assert (SMALL.sizes[0], SMALL.sizes[-1]) == (150, 20)
    assert sorted(planted.spreads) == pytest.approx(np.geomspace(SMALL.tightest, SMALL.loosest, 5))
    for cluster in range(3):  # the largest: their spread is known to a tenth
        members = planted.raw[planted.labels == cluster]
        centre = planted.centres[cluster] / np.linalg.norm(planted.centres[cluster])
        across = members - (members @ centre)[:, None] * centre  # without the stretch
        law = clouds.variances(SMALL)
        expected = planted.spreads[cluster] ** 2 * (1 - law @ centre**2)
        assert across.var(axis=0).sum() == pytest.approx(expected, rel=0.25)


def test_vectors_are_standardised_as_a_measurement_is(planted):
    assert planted.vectors.shape == (1200, 32)
    np.testing.assert_allclose(planted.vectors.sum(axis=1), 0, atol=1e-10)
    assert planted.vectors.var() > 0.5  # z-scored columns: not all of it is lost with the row means


def test_the_body_has_its_spectrum_and_its_heavy_tails():
    law = clouds.Clouds(tokens=20000, hubs=0, clusters=1, smallest=20, largest=20)
    drawn = clouds.plant(law, seed=0)
    body = drawn.raw[drawn.labels == -1]
    np.testing.assert_allclose(body.var(axis=0), clouds.variances(law), rtol=0.15)
    radius = np.median(np.abs(body), axis=0) / body.std(axis=0)
    assert radius.mean() < 0.62  # 0.674 for a normal law; heavy tails put more of the variance far out


def test_hubs_are_among_the_neighbours_of_many(planted):
    _, neighbours = cKDTree(planted.vectors).query(planted.vectors, k=16)
    popularity = np.bincount(neighbours[:, 1:].ravel(), minlength=SMALL.tokens)
    assert len(planted.hubs) == SMALL.hubs
    assert (planted.labels[planted.hubs] == -1).all()
    assert popularity[planted.hubs].mean() > 2 * popularity.mean()


def test_same_seed_same_clouds_other_seed_others(planted):
    again, other = clouds.plant(SMALL, seed=3), clouds.plant(SMALL, seed=4)
    np.testing.assert_array_equal(again.vectors, planted.vectors)
    assert (other.labels != planted.labels).any()


def test_whoever_knows_the_law_finds_nearly_all_and_less_when_clusters_are_loose(planted):
    """The ceiling is a ceiling: high, but below one where cluster and body overlap."""
    best = clouds.scores(planted.labels, clouds.bayes_labels(planted))
    assert best.rand > 0.9 and best.recall == 1
    loose = clouds.plant(replace(SMALL, tightest=0.9, loosest=0.9, reach=0.3), seed=3)
    assert clouds.scores(loose.labels, clouds.bayes_labels(loose)).rand < best.rand - 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 300}, "300 tokens cannot hold"),
        ({"clusters": 0}, "clusters must be at least 1"),
        ({"smallest": 200}, "smallest <= largest"),
        ({"tightest": 0.9}, "tightest <= loosest"),
        ({"tail": 2.0}, "tail must be above 2"),
        ({"components": 1}, "components must be at least 2"),
        ({"hubs": -1}, "-1 hubs"),
    ],
)
def test_impossible_clouds_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize("size", [5, 12, 20, 29])
def test_small_sets_cannot_have_a_low_conductance_in_the_union_graph(size):
    """φ >= (k + 1 - n) / k for n <= k members, however tight: the bound of the chapter on clusters."""
    k = 30
    law = replace(SMALL, tokens=600, clusters=1, smallest=size, largest=size, tightest=0.01, loosest=0.01)
    drawn = clouds.plant(law, seed=size)
    members = np.flatnonzero(drawn.labels == 0)
    union, mutual = (conductance(knn_graph(drawn.vectors, k, symmetrise=s), members) for s in ("union", "mutual"))
    assert union >= (k + 1 - size) / k
    assert mutual < union


# Scores


@given(labellings)
def test_adjusted_rand_is_scikit_learns(pair):
    assert clouds.adjusted_rand(*pair) == pytest.approx(adjusted_rand_score(*pair), abs=1e-12)


@settings(max_examples=50)
@given(labellings, st.sampled_from([0.5, 0.7]))
def test_matches_are_the_pairs_of_large_jaccard_index(pair, overlap):
    first, second = pair
    expected = []
    for i in set(first.tolist()) - {-1}:
        for j in set(second.tolist()) - {-1}:
            a, b = first == i, second == j
            if (a & b).sum() > overlap * (a | b).sum():
                expected.append((i, j))
    found = clouds.matches(first, second, overlap)
    assert sorted(found) == sorted(expected)
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)


def test_scores_of_a_case_counted_by_hand():
    """Two planted clusters and two tokens of the body; one cluster is found less one member, the body is clustered."""
    planted = np.array([0, 0, 0, 0, 1, 1, 1, -1, -1, -1])
    found = np.array([5, 5, 5, -1, -1, -1, -1, 7, 7, -1])
    result = clouds.scores(planted, found)
    assert (result.precision, result.recall, result.found) == (0.5, 0.5, 2)
    assert result.f1 == 0.5
    assert result.body_left == pytest.approx(1 / 3)
    assert result.rand_planted == pytest.approx(adjusted_rand_score(planted[:7], found[:7]))


def test_perfect_and_empty_answers():
    planted = np.array([0, 0, 1, 1, -1])
    assert clouds.scores(planted, planted)[:6] == (1, 1, 1, 1, 1, 1)
    nothing = clouds.scores(planted, np.full(5, -1))
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.found) == (1, 0, 0, 0)
    assert nothing.rand == 0


def test_keep_sizes_dissolves_and_renumbers():
    labels = np.array([4, 4, 4, 2, 2, 9, 9, 9, 9, -1, 2, 2, 2, 2])
    assert clouds.keep_sizes(labels, 3, 5).tolist() == [1, 1, 1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1, -1]
    assert (clouds.keep_sizes(labels, 7, 9) == -1).all()


def test_labels_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="one label a token"):
        clouds.adjusted_rand(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="no planted cluster"):
        clouds.scores(np.full(3, -1), np.zeros(3))
    with pytest.raises(ValueError, match=r"at least 0\.5"):
        clouds.matches(np.zeros(3), np.zeros(3), overlap=0.3)


# The comparison that ships


def test_shipped_benchmark_is_complete():
    """Each method has scores on each test seed, and no seed was used to tune and to test."""
    shipped = clouds.benchmark()
    settings, law = shipped["settings"], clouds.Clouds(**shipped["settings"]["clouds"])
    assert set(settings["tuning_seeds"]).isdisjoint(settings["test_seeds"])
    for name, method in shipped["methods"].items():
        assert len(method["trials"]) == (settings["trials"] if method["space"] else 0), name
        assert len(method["test"]) == len(settings["test_seeds"]), name
        for run in method["test"]:
            assert set(clouds.Scores._fields) <= set(run), name
            assert [cluster["size"] for cluster in run["by_cluster"]] == law.sizes.tolist(), name
            assert run["recall"] == pytest.approx(np.mean([c["found"] for c in run["by_cluster"]]), abs=1e-4), name
    names = set(shipped["methods"])
    assert {row["method"] for row in shipped["real"]["rows"]} == names
    assert {row["method"] for row in shipped["sizes"]} == names


def test_shipped_benchmark_is_of_these_clouds():
    """Its clouds and its scores come out again."""
    shipped = clouds.benchmark()
    law, seed = clouds.Clouds(**shipped["settings"]["clouds"]), shipped["settings"]["test_seeds"][0]
    planted = clouds.plant(law, seed)
    again = clouds.scores(planted.labels, clouds.bayes_labels(planted))._asdict()
    assert again == pytest.approx(shipped["ceiling"][0], abs=1e-4)
