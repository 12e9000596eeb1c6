"""Counting what comes back: against sets, scikit-learn, and planted truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import adjusted_rand_score

from spectrobook import clouds, robustness
from spectrolib import graph
from spectrolib.clustering import conductance_clusters
from spectrolib.estimator import standardise

LABELS = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-1, 3), min_size=n, max_size=n).map(np.array)] * 3)
)


def alone(labels):
    """Tokens in no cluster as classes of their own."""
    return np.where(labels >= 0, labels, 1000 + np.arange(len(labels)))


# Clusters ------------------------------------------------------------------------------------------------------------


@given(LABELS)
def test_survivors_against_sets(drawn):
    first, second, _ = drawn
    found = robustness.survival(first, second)
    sets = [[set(np.flatnonzero(of == name)) for name in np.unique(of[of >= 0])] for of in (first, second)]
    best = [max((len(a & b) / len(a | b) for b in sets[1]), default=0.0) for a in sets[0]]
    np.testing.assert_allclose(found.overlap, best)
    assert found.survived.sum() == len(clouds.matches(first, second))
    same = robustness.survival(first, np.where(first >= 0, 7 - first, -1))
    assert same.survived.all()


def test_a_share_has_its_interval_and_nothing_is_unknown():
    first = np.repeat(np.arange(10), 5)
    half = np.where(first < 4, first, -1)
    found = robustness.survival(first, half)
    assert found.share.value == 0.4
    # Wilson's interval is where the normal test of the share does not reject
    for end in (found.share.low, found.share.high):
        assert abs(0.4 - end) / np.sqrt(end * (1 - end) / 10) == pytest.approx(norm.ppf(0.975), rel=1e-6)
    assert robustness.survival(first, first, threshold=0.9).share.value == 1
    assert np.isnan(robustness.survival(np.full(9, -1), np.zeros(9, int)).share.value)
    assert robustness.survival(first, np.full(50, -1)).share.value == 0


def test_the_interval_of_a_difference_covers_as_often_as_it_says():
    rng, truth, hits = np.random.default_rng(0), 0.6 * 0.9 - 0.5, []
    for _ in range(2000):
        first = rng.random(80) < 0.54
        second = np.where(first, rng.random(80) < 0.7, rng.random(80) < (0.5 - 0.54 * 0.7) / 0.46)
        found = robustness.difference(first, second)
        assert found.low <= found.value <= found.high
        hits.append(found.low <= truth <= found.high)
    assert 0.935 < np.mean(hits) < 0.975
    # it is paired: independent outcomes of the same shares leave more room
    apart = robustness.difference(rng.permutation(first), second)
    assert found.high - found.low < 0.8 * (apart.high - apart.low)


@given(LABELS)
def test_adjusted_rand_is_that_of_scikit_learn_with_loners(drawn):
    first, second, _ = drawn
    found = robustness.adjusted_rand(first, second)
    if np.isnan(found):  # nobody together, or all, in either
        assert all(len(np.unique(alone(of))) in (1, len(of)) for of in (first, second))
    else:
        assert found == pytest.approx(adjusted_rand_score(alone(first), alone(second)), abs=1e-12)


@given(LABELS)
def test_within_groups_chance_is_what_shuffles_inside_them_give(drawn):
    """Numerator and denominator are sums over groups, each as if it stood alone."""
    first, second, groups = drawn
    over = under = 0.0
    for name in np.unique(groups):
        a, b = first[groups == name], second[groups == name]
        same = lambda x: (x[:, None] == x) & (x >= 0)[:, None] & np.triu(np.ones((len(x), len(x)), bool), 1)  # noqa: E731
        pairs = len(a) * (len(a) - 1) / 2
        expected = same(a).sum() * same(b).sum() / pairs if pairs else 0
        over += (same(a) & same(b)).sum() - expected
        under += (same(a).sum() + same(b).sum()) / 2 - expected
    found = robustness.adjusted_rand(first, second, groups)
    assert np.isnan(found) if under < 1e-9 else found == pytest.approx(over / under, abs=1e-9)


def test_what_the_groups_know_is_no_agreement_within_them():
    rng = np.random.default_rng(1)
    token, sense = rng.integers(0, 30, 6000), rng.integers(0, 2, 6000)
    by_token = [token, rng.permutation(30)[token]]
    assert robustness.adjusted_rand(*by_token) == 1
    assert np.isnan(robustness.adjusted_rand(*by_token, token))
    by_sense = [2 * token + np.where(rng.random(6000) < 0.1, 1 - sense, sense) for _ in range(2)]
    inside = robustness.adjusted_rand(*by_sense, token)
    assert inside == pytest.approx((1 - 2 * 0.18) ** 2, abs=0.05)  # senses agree with probability 0.82
    estimate = robustness.agreement_within(*by_sense, token)
    assert estimate.value == pytest.approx(inside)
    assert estimate.low < (1 - 2 * 0.18) ** 2 < estimate.high < estimate.low + 0.1
    assert np.isnan(robustness.agreement_within(*by_token, token).value)
    shuffled = 2 * token + rng.integers(0, 2, 6000)
    assert abs(robustness.adjusted_rand(by_sense[0], shuffled, token)) < 0.02
    assert robustness.adjusted_rand(by_sense[0], shuffled) > 0.4


def test_the_pipeline_is_its_parts_put_together():
    raw = clouds.plant(clouds.Clouds(tokens=700, clusters=4, largest=90, hubs=10), seed=3).raw
    found = robustness.run(raw, k=20, symmetrise="union", seed=1, min_size=15)
    parts = conductance_clusters(graph.knn_graph(standardise(raw), k=20, symmetrise="union"), seed=1, min_size=15)
    np.testing.assert_array_equal(found.labels, parts.labels)
    np.testing.assert_array_equal(found.neighbours.indices, graph.nearest(standardise(raw), 20).indices)
    assert len(found.clustering.sizes) > 1
    white = conductance_clusters(graph.knn_graph(standardise(raw, "zscore", whiten=True), k=9, symmetrise="mutual"))
    np.testing.assert_array_equal(robustness.run(raw, k=9, rows="zscore", whiten=True).labels, white.labels)
    assert not np.array_equal(found.labels, white.labels)
    with pytest.raises(ValueError, match="columns"):
        robustness.run(np.ones((50, 3)))


# Tokens --------------------------------------------------------------------------------------------------------------


def test_means_by_window_know_that_tokens_of_a_window_are_alike():
    rng = np.random.default_rng(2)
    windows = np.repeat(np.arange(200), 30)
    loud = rng.normal(size=200)[windows]
    found, naive = robustness.mean_by_window(loud, windows), robustness.mean_by_window(loud, np.arange(6000))
    assert [found.value, naive.value] == pytest.approx([loud.mean()] * 2)
    theory = 2 * norm.ppf(0.975) * loud.std() / np.sqrt(200)
    assert found.high - found.low == pytest.approx(theory, rel=0.12)
    assert naive.high - naive.low == pytest.approx(theory / np.sqrt(30), rel=0.12)


def test_a_mean_with_weights_is_a_ratio_with_its_delta_interval():
    rng = np.random.default_rng(3)
    weights = rng.uniform(1, 3, 400)
    values = 0.3 * weights + rng.normal(size=400)
    found = robustness.mean_by_window(values, np.arange(400), weights, resamples=4000)
    ratio = values.sum() / weights.sum()
    assert found.value == pytest.approx(ratio)
    theory = 2 * norm.ppf(0.975) * (values - ratio * weights).std() / np.sqrt(400) / weights.mean()
    assert found.high - found.low == pytest.approx(theory, rel=0.1)


def test_common_neighbours_are_those_in_both_tables():
    rng = np.random.default_rng(4)
    first, second = (np.array([rng.permutation(30)[:6] for _ in range(40)]) for _ in range(2))
    expected = [len(np.intersect1d(a, b)) / 6 for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(robustness.common_neighbours(first, second), expected)


# Predictions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """Rows = features · weights + an effect of the group + a rest, each of variance 1, measured twice with noise."""
    rng, n, d = np.random.default_rng(5), 6000, 4
    features, groups = rng.normal(size=(n, 3)), rng.integers(0, 60, n)
    linear = features @ rng.normal(size=(3, d))
    parts = [linear, rng.normal(size=(60, d))[groups], rng.normal(size=(n, d))]
    signal = sum((part - part.mean(axis=0)) / part.std(axis=0) for part in parts)
    first, second = (signal + 2 * rng.normal(size=(n, d)) for _ in range(2))
    return features, groups, np.arange(n) // 50, signal, first, second


def share(planted, features=None, groups=None):
    _, _, windows, _, first, second = planted
    prediction = robustness.predict((first + second) / 2, windows, features, groups)
    return robustness.predicted_share(first, second, prediction, windows)


def test_the_share_that_is_predicted_is_the_planted_one_whatever_the_noise(planted):
    features, groups, *_ = planted
    learning = (1 + 1 + 4 / 2) / 80 / 3  # what the error of a group's mean costs: what is no group effect, over tokens
    for known, expected in (((None, None), 0), ((features, None), 1 / 3), ((None, groups), 1 / 3 - learning)):
        found = share(planted, *known)
        assert found.low < expected < found.high
        assert found.high - found.low < 0.15
    both = share(planted, features, groups)
    assert both.low < 2 / 3 < both.high
    assert both.low > 0.5
    # the noise is four times the signal's rest, yet the error is that against the signal without noise
    _, _, windows, signal, first, second = planted
    prediction = robustness.predict((first + second) / 2, windows, features, groups)
    truth = 1 - ((signal - prediction) ** 2).sum() / (signal**2).sum()
    assert both.value == pytest.approx(truth, abs=0.03)


def test_groups_say_less_where_they_were_seen_less():
    """Each token in a window and a fold of its own: the mean of all others, and n/(n + 1) of what its group's n add."""
    rows, groups = np.random.default_rng(8).normal(size=(9, 2)), np.array([0, 0, 1, 2, 2, 2, 2, 3, 3])
    found = robustness.predict(rows, np.arange(9), groups=groups, folds=9)
    for i in range(9):
        others = np.arange(9) != i
        mean, same = rows[others].mean(axis=0), others & (groups == groups[i])
        np.testing.assert_allclose(found[i], mean + (rows[same] - mean).sum(axis=0) / (same.sum() + 1), atol=1e-12)


def test_a_prediction_never_sees_the_windows_it_is_for(planted):
    """Groups that live in one window only, and as many features as tokens of a fold, say nothing."""
    _, _, windows, _, first, _ = planted
    assert share(planted, None, windows).value == pytest.approx(0, abs=0.02)
    noise = np.random.default_rng(6).normal(size=(len(first), 200))
    found = share(planted, noise)
    assert -0.15 < found.value < 0.02  # learned noise costs, and never pays
    one = robustness.predict(first, windows, noise)
    assert abs(((first - first.mean(axis=0)) * one).sum()) < 0.1 * (first * first).sum()


def test_the_correlation_without_noise_is_the_planted_one_though_halves_share_their_noise():
    rng, shape = np.random.default_rng(7), (8000, 3)
    truth = rng.normal(size=shape)
    other = 0.6 * truth + 0.8 * rng.normal(size=shape)
    noise = rng.normal(size=(2, *shape))  # the same in both measurements, as chains of one seed have it
    first, second = [truth + 1.5 * e for e in noise], [3 * (other + 1.5 * e) for e in noise]
    windows = np.arange(8000) // 20
    found = robustness.true_correlation(first, second, windows)
    assert found.low < 0.6 < found.high < found.low + 0.12
    naive = (first[0] * second[0]).sum() / np.sqrt((first[0] ** 2).sum() * (second[0] ** 2).sum())
    assert naive > found.high + 0.1
    assert robustness.true_correlation(first, first, windows).value == pytest.approx(1)
    assert np.isnan(robustness.true_correlation(first, (noise[0], -noise[0]), windows).value)


def test_noise_that_all_tokens_share_is_in_the_interval():
    """Two measurements of the same rows, each half wrong by a few common directions: the truth is 1, always."""
    covered, widths = 0, []
    for seed in range(20):
        rng, shape = np.random.default_rng(seed), (400, 24)
        truth, loads = rng.normal(size=shape), rng.normal(size=(400, 3))
        halves = [truth + 0.5 * loads @ rng.normal(size=(3, 24)) for _ in range(4)]
        found = robustness.true_correlation(halves[:2], halves[2:], np.arange(400) // 10, resamples=300)
        covered += found.low < 1 < found.high
        widths.append(found.high - found.low)
    assert covered >= 16
    assert np.mean(widths) < 0.6


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: robustness.survival(np.zeros(3, int), np.zeros(4, int)), r"\(3,\) and \(4,\)"),
        (lambda: robustness.survival(np.zeros(3, int), np.zeros(3, int), 0.4), "at least 0.5"),
        (lambda: robustness.adjusted_rand(np.zeros(3, int), np.zeros(4, int)), r"\(3,\) and \(4,\)"),
        (lambda: robustness.adjusted_rand(*np.zeros((2, 3), int), np.zeros(2, int)), "3 tokens needs a group"),
        (lambda: robustness.difference(np.zeros(0, bool), np.zeros(0, bool)), "same trials"),
        (lambda: robustness.mean_by_window(np.zeros(3), np.zeros(2, int)), "needs its window"),
        (lambda: robustness.common_neighbours(np.zeros((3, 2), int), np.zeros((3, 4), int)), r"\(3, 2\) and \(3, 4\)"),
        (lambda: robustness.predict(np.zeros((6, 2)), np.array([0, 0, 1, 1, 2, 2])), "5 folds need as many windows"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What a card promises ------------------------------------------------------------------------------------------------


def crowd(rng, shares, members=20):
    """Clusters of so many tokens, each of which comes back with its own probability, else falls into single tokens."""
    reference = np.repeat(np.arange(len(shares)), members)
    came = rng.random(len(shares)) < shares
    return reference, np.where(came[reference], reference, -1), rng.integers(0, 40, len(reference)), came


def test_promises_that_are_kept_and_promises_that_are_not():
    rng = np.random.default_rng(3)
    shares = np.repeat([0.5, 0.8, 1.0], 80)
    reference, other, documents, came = crowd(rng, shares)
    every, *levels = robustness.promises(shares, reference, other, documents)
    assert every["clusters"] == 240 and every["came back"][0] == came.mean()
    assert every["difference"][0] == pytest.approx(came.mean() - shares.mean())
    assert every["difference"][1] < 0 < every["difference"][2]
    assert [level["share"] for level in levels] == pytest.approx([0.5, 0.8, 1.0])
    for level, own in zip(levels, came.reshape(3, 80), strict=True):
        value, low, high = level["came back"]
        assert value == own.mean() and low < level["share"] <= high and low < value <= high
    assert levels[2]["came back"][1] < 0.97  # all came back, and still no certainty
    assert levels[2]["difference"] == pytest.approx([end - 1 for end in levels[2]["came back"]])
    reference, other, documents, _ = crowd(rng, np.full(240, 0.6))
    assert robustness.promises(np.full(240, 0.9), reference, other, documents)[0]["difference"][2] < -0.15
    assert robustness.promises(shares, reference, np.full(4800, -1), documents)[0]["came back"][0] == 0
    with pytest.raises(ValueError, match="240 clusters need as many shares, got 3"):
        robustness.promises(np.ones(3), reference, other, documents)


def test_survival_in_sampled_documents_by_repeated_tokens():
    rng = np.random.default_rng(1)
    reference, documents = np.repeat(np.arange(12), 15), rng.integers(0, 6, 180)
    other = np.where(rng.random(180) < 0.6, reference, -1)
    other[rng.random(180) < 0.1] = 3
    found = robustness._survived_in_samples(reference, other, documents, 20, np.random.default_rng(5))
    weight = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=20)
    for own, drawn in zip(found, weight, strict=True):
        again = np.repeat(np.arange(180), drawn[documents])
        truth = robustness.survival(reference[again], other[again])
        present = np.unique(reference[again])
        np.testing.assert_array_equal(own[present], truth.survived)
    assert 0.2 < found.mean() < 0.98


def test_the_rand_index_has_the_spread_of_other_windows():
    """The jackknife's interval is as wide as the index varies over fresh texts of as many windows."""
    rng = np.random.default_rng(2)
    windows = np.repeat(np.arange(20), 20)

    def text():
        first = np.repeat(rng.integers(0, 4, (20, 4)), 5)
        moved = np.repeat(rng.random(20) < 0.4, 20)  # whole windows agree, or do not
        return first, np.where(moved, rng.integers(0, 4, 400), first)

    found = [robustness.agreement_by_window(*text(), windows) for _ in range(40)]
    values = np.array([one.value for one in found])
    width = np.mean([one.high - one.low for one in found]) / (2 * robustness.NORMAL)
    assert 0.7 < width / values.std() < 1.4
    assert np.mean([one.low <= values.mean() <= one.high for one in found]) > 0.85
    with pytest.raises(ValueError, match="two windows at least"):
        robustness.agreement_by_window(*text(), np.zeros(400))
