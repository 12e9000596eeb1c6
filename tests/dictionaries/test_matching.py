"""Matches: against counting by hand, scikit-learn and exact laws; nulls against shuffled clusterings."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array, hstack, random_array
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from spectrolib.dictionaries import matching
from spectrolib.dictionaries.matching import (
    false_discovery,
    log_tail,
    match,
    match_rate,
    rate_difference,
    shuffle,
)


def text(seed: int, n: int = 240, kinds: int = 12) -> tuple[np.ndarray, np.ndarray, csr_array]:
    """Tokens with a skewed law, features that mostly know the token, clusters of a few kinds of token each."""
    rng = np.random.default_rng(seed)
    token = np.minimum(rng.geometric(0.25, n) - 1, kinds - 1)
    affinity = rng.uniform(size=(kinds, 30)) ** 4
    active = rng.uniform(size=(n, 30)) < affinity[token]
    values = np.where(active, rng.integers(1, 5, (n, 30)) / 2.0, 0)  # few values: many ties
    labels = np.where(rng.uniform(size=n) < 0.7, token % 4, -1)
    return token, labels, csr_array(values)


@given(st.integers(0, 10_000))
@settings(max_examples=3, deadline=None)
def test_scores_are_those_of_scikit_learn(seed):
    token, labels, activations = text(seed)
    found = match(labels, activations, keep=token, permutations=1)
    dense, seen = activations.toarray(), set()
    for i, (c, f) in enumerate(zip(found.pairs.cluster, found.pairs.feature, strict=True)):
        truth, active = labels == c, dense[:, f] > 0
        row = found.pairs.take(i)
        assert row["shared"] == (truth & active).sum()
        assert row["precision"] == pytest.approx(precision_score(truth, active))
        assert row["recall"] == pytest.approx(recall_score(truth, active))
        assert row["f1"] == pytest.approx(f1_score(truth, active))
        assert row["average_precision"] == pytest.approx(average_precision_score(truth, dense[:, f]))
        seen.add((int(c), int(f)))
    for c in range(labels.max() + 1):  # what is not listed shares nothing
        for f in range(activations.shape[1]):
            assert ((c, f) in seen) == bool(((labels == c) & (dense[:, f] > 0)).any())
        mine = found.pairs.cluster == c
        assert found.score[c] == found.pairs.f1[mine].max() == found.pairs.f1[found.best[c]]
    by_feature = [found.pairs.f1[found.pairs.feature == f].max(initial=0) for f in range(activations.shape[1])]
    np.testing.assert_allclose(found.feature_score(), by_feature)


def test_dense_and_negative_activations_count_where_they_are_positive():
    _, labels, activations = text(3)
    dense = activations.toarray() - 1.0
    a, b = match(labels, dense, permutations=5), match(labels, csr_array(np.maximum(dense, 0)), permutations=5)
    np.testing.assert_array_equal(a.pairs.shared, b.pairs.shared)
    np.testing.assert_array_equal(a.null, b.null)


@pytest.mark.parametrize("kept", [True, False])
def test_a_shuffle_moves_labels_among_equal_tokens_alone(kept):
    token, labels, _ = text(1)
    keep = token if kept else np.zeros_like(token)
    moved = shuffle(labels, keep, np.random.default_rng(0))
    assert (moved != labels).any()
    for value in np.unique(keep):
        np.testing.assert_array_equal(np.sort(moved[keep == value]), np.sort(labels[keep == value]))
    draws = np.array([shuffle(labels, keep, np.random.default_rng(i)) == 0 for i in range(4000)]).mean(axis=0)
    expected = np.array([(labels[keep == value] == 0).mean() for value in keep])
    assert np.abs(draws - expected).max() < 5 * np.sqrt(0.25 / 4000)  # uniform: each place gets its share


def test_the_null_is_the_best_feature_of_each_shuffle_counted_by_hand():
    token, labels, activations = text(5)
    for score in matching.SCORES:
        found = match(labels, activations, keep=token, score=score, permutations=3, seed=4)
        rng, dense = np.random.default_rng(4), activations.toarray()
        for row in found.null:
            moved = shuffle(labels, token, rng)
            for c in range(labels.max() + 1):
                scores = [
                    f1_score(moved == c, x > 0) if score == "f1" else average_precision_score(moved == c, x)
                    for x in dense.T
                    if ((moved == c) & (x > 0)).any()
                ]
                assert row[c] == pytest.approx(max(scores))
        again = (1 + (found.null >= found.score - 1e-12).sum(axis=0)) / 4
        np.testing.assert_allclose(found.p, again)


def test_the_bound_holds_against_the_exact_law_and_is_not_idle():
    n, size, active = 400, 30, 50
    t = np.arange(31)
    bound = np.exp(log_tail(t, np.full(31, size * active / n), np.full(31, min(size, active))))
    exact = stats.hypergeom(n, active, size).sf(t - 1)
    assert (bound >= exact - 1e-12).all()
    assert bound[15] < 1e-5 and np.log(bound[20]) < 0.75 * np.log(exact[20])


def test_the_bound_holds_within_tokens():
    token, labels, activations = text(7)
    found = match(labels, activations, keep=token, permutations=1)
    active, rng = activations.toarray() > 0, np.random.default_rng(0)
    draws = np.array([_shared(shuffle(labels, token, rng), active) for _ in range(3000)])
    now = _shared(labels, active)
    tail = (draws >= now).mean(axis=0)[found.pairs.cluster, found.pairs.feature]
    noise = 4 * np.sqrt(tail * (1 - tail) / 3000) + 1e-3
    assert (np.exp(found.pairs.log_p) >= tail - noise).all()
    mean = matching._expected(labels, matching._ones(activations), token, csr_array(now))
    empirical = draws.mean(axis=0)[now > 0]
    np.testing.assert_allclose(mean, empirical, atol=5 * draws.std(axis=0).max() / np.sqrt(3000))


def _shared(labels: np.ndarray, active: np.ndarray) -> np.ndarray:
    return np.stack([active[labels == c].sum(axis=0) for c in range(labels.max() + 1)])


def test_what_the_token_alone_explains_is_no_finding():
    """A cluster of all occurrences of a token, and the feature that detects it: perfect, and explained."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 20, 1000)
    labels = np.where(token < 3, token, -1)
    detectors = np.eye(20)[token]
    plain, kept = match(labels, detectors), match(labels, detectors, keep=token)
    assert (plain.score == 1).all() and plain.matched(0.9).all() and (plain.pairs.q[plain.best] < 1e-6).all()
    assert (kept.score == 1).all() and not kept.matched().any() and (kept.pairs.q == 1).all()
    half = np.where(rng.uniform(size=1000) < 0.5, labels, -1)  # half of the occurrences, and a feature that knows which
    knows = np.concatenate([detectors, (half == 0)[:, None]], axis=1)
    found = match(half, knows, keep=token)
    assert found.matched().tolist() == [True, False, False]
    assert found.pairs.feature[found.best[0]] == 20


@pytest.mark.parametrize("kept", [False, True])
def test_a_shuffled_clustering_is_matched_at_no_more_than_the_stated_rate(kept):
    """Calibration: p-values of clusters, any cluster reported at all, any pair reported at all."""
    token, labels, activations = text(11, n=400)
    keep = token if kept else np.zeros_like(token)
    trials, p, any_cluster, any_pair = 200, [], 0, 0
    for trial in range(trials):
        null = shuffle(labels, keep, np.random.default_rng(1000 + trial))
        found = match(null, activations, keep=keep, permutations=39, seed=trial)
        p.append(found.p)
        any_cluster += found.matched(level=0.05).any()
        any_pair += (found.pairs.q <= 0.05).any()
    p = np.concatenate(p)
    for level in (0.05, 0.2, 0.5):  # clusters of a trial are dependent: count trials in the error, not clusters
        assert (p <= level).mean() < level + 3 * np.sqrt(level * (1 - level) / trials)
    assert (p <= 0.5).mean() > 0.3  # and it is not merely silent
    allowed = 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    assert any_cluster / trials < allowed and any_pair / trials < allowed


def test_the_plain_null_takes_the_token_for_agreement():
    """The same clusterings, shuffled within tokens: they know the token and nothing else."""
    token, labels, activations = text(11, n=400)
    moved = [shuffle(labels, token, np.random.default_rng(i)) for i in range(20)]
    rates = {
        kept: np.mean([match(m, activations, keep=token if kept else None, permutations=99).matched() for m in moved])
        for kept in (False, True)
    }
    assert rates[True] < 0.05 and rates[False] > 0.5


def test_false_discovery_rates_are_those_of_scipy():
    p = np.random.default_rng(0).uniform(size=50) ** 3
    np.testing.assert_allclose(false_discovery(p), stats.false_discovery_control(p))
    padded = stats.false_discovery_control(np.concatenate([p, np.ones(200)]))[:50]
    np.testing.assert_allclose(false_discovery(p, tests=250), padded)


def test_pairs_that_share_nothing_count_among_the_tests():
    """Four clusters and 50 features, most of which are active elsewhere."""
    rng = np.random.default_rng(3)
    labels, activations = np.repeat([0, 1, 2, 3, -1], [9, 9, 9, 9, 64]), np.zeros((100, 50))
    activations[rng.integers(0, 36, 20), np.arange(20)] = 1
    activations[:12, 0], activations[40:, 20:] = 1, 1
    pairs = match(labels, activations, permutations=1).pairs
    every = np.concatenate([np.exp(pairs.log_p), np.ones(4 * 50 - len(pairs.q))])
    np.testing.assert_allclose(pairs.q, stats.false_discovery_control(every)[: len(pairs.q)])
    assert len(pairs.q) < 50 and pairs.q.min() < 0.5


def test_the_match_rate_counts_and_its_interval_covers():
    score = np.array([0.1, 0.4, 0.4, 0.9])
    curve = match_rate(score, [0, 0.4, 0.41, 1], significant=np.array([True, True, False, True]))
    np.testing.assert_allclose(curve.rate, [0.75, 0.5, 0.25, 0])
    law = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert (curve.low[1], curve.high[1]) == pytest.approx((law.low, law.high), rel=1e-4)
    assert curve.low[3] == 0 and curve.high[3] > 0.4  # none of four says little


def test_the_difference_of_two_rates_covers_and_knows_that_the_clusters_are_the_same():
    one, other = np.array([True, True, False, True]), np.array([True, False, False, False])
    assert rate_difference(one, other).value == 0.5
    same = rate_difference(one, one)
    assert same.value == 0 and same.low < 0 < same.high
    hit, rng = 0, np.random.default_rng(0)
    for _ in range(400):
        common, extra = rng.uniform(size=60) < 0.4, rng.uniform(size=60)
        drawn = rate_difference(common | (extra < 0.1), common | (extra > 0.97))
        hit += drawn.low <= 0.6 * (0.1 - 0.03) <= drawn.high
    assert 0.92 < hit / 400 < 0.995
    many = np.arange(200) < 100
    assert rate_difference(many, np.roll(many, 2)).high < 0.04  # unpaired, 0.1
    with pytest.raises(ValueError, match="of the same clusters"):
        rate_difference(one, other[:2])


def test_a_pair_below_the_best_may_be_the_one_that_counts():
    """A detector of the token scores best, and is explained; another feature knows which occurrences."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 20, 1000)
    labels = np.where((token == 0) & (rng.uniform(size=1000) < 0.6), 0, np.where(token == 1, 1, -1))
    knows = (labels == 0) & (rng.uniform(size=1000) < 0.5)
    found = match(labels, np.column_stack([token == 0, token == 1, knows]).astype(float), keep=token)
    assert found.pairs.feature[found.best].tolist() == [0, 1]
    assert not found.matched().any() and found.beyond().tolist() == [True, False]


def test_twenty_thousand_tokens_by_32768_features_stay_under_a_gigabyte():
    rng = np.random.default_rng(0)
    tokens, features, k = 20_000, 32_768, 16
    indices = (rng.integers(0, features, (tokens, k)) ** 2 // features).astype(np.int32)  # skewed, as features are
    activations = csr_array(
        (rng.uniform(0.1, 1, tokens * k).astype(np.float32), indices.ravel(), np.arange(0, tokens * k + 1, k)),
        shape=(tokens, features),
    )
    token = np.minimum(rng.geometric(0.005, tokens), 4000)
    labels = np.where(rng.uniform(size=tokens) < 0.6, rng.integers(0, 500, tokens), -1)
    tracemalloc.start()
    begin = time.process_time()
    found = match(labels, activations, keep=token, permutations=50)
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"{len(found.pairs.cluster):,} pairs, 50 shuffles: {seconds:.1f} s, {peak:.0f} MB")
    assert peak < 1000


def test_bad_input_is_named():
    labels, activations = np.array([0, 0, 1, -1]), random_array((4, 3), density=1.0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="4 labels and activations of 3 tokens"):
        match(labels, activations.T)
    with pytest.raises(ValueError, match="every label is -1"):
        match(np.full(4, -1), activations)
    with pytest.raises(ValueError, match="must be integers"):
        match(labels.astype(float), activations)
    with pytest.raises(ValueError, match="one value for each of 4 tokens"):
        match(labels, activations, keep=np.zeros(3))
    with pytest.raises(ValueError, match="score must be one of"):
        match(labels, activations, score="mcc")
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        match(labels, activations, permutations=0)
    with pytest.raises(ValueError, match="not finite"):
        match(labels, np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="at least one cluster"):
        match_rate([], [0.5])


def test_damaged_files_of_matches(tmp_path):
    with pytest.raises(ValueError, match="run `spectro match"):
        matching.open_matches(tmp_path)
    for content in ("[1]", "{", '{"format": 0}', '{"format": 1}'):
        (tmp_path / "matches.json").write_text(content)
        with pytest.raises(ValueError, match=r"matches\.json is damaged"):
            matching.open_matches(tmp_path)
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        matching.save_matches([], tmp_path / "nowhere", {})


def test_a_rate_that_every_shuffle_has_too_is_no_news():
    """Clusters of whole tokens: shuffled inside tokens they stay what they are."""
    token = np.repeat(np.arange(6), 10)
    found = matching.compare(np.where(token < 3, token, -1), np.eye(6)[token], token, permutations=19)
    _, half = matching.match_summary(found)["rates"]
    assert (half["threshold"], half["rate"]) == (0.5, 1)
    assert half["chance"]["same token"] == {"rate": 1.0, "p": 1.0}
    assert half["chance"]["any token"]["p"] == pytest.approx(1 / 20)


# Dictionaries side by side


@given(st.integers(0, 10_000), st.sampled_from(matching.SCORES))
@settings(max_examples=10, deadline=None)
def test_together_is_a_match_with_all_features_side_by_side(seed, score):
    rng = np.random.default_rng(seed)
    labels, token = rng.integers(-1, 4, 120), rng.integers(0, 5, 120)
    labels[:4] = np.arange(4)
    several = [random_array((120, n), density=0.15, rng=rng, format="csr") for n in (3, 1, 7)]
    options = {"keep": token, "score": score, "permutations": 9, "seed": 2}
    found = matching.together([matching.match(labels, values, **options) for values in several], score)
    whole = matching.match(labels, hstack(several, format="csr"), **options)
    for name, values in vars(whole).items():
        if name != "pairs":
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    for name, values in vars(whole.pairs).items():
        check = (
            np.testing.assert_allclose if name in ("log_p", "q", "average_precision") else np.testing.assert_array_equal
        )
        check(getattr(found.pairs, name), values)


def test_only_matches_of_the_same_clusters_go_together():
    values = np.eye(6)
    one, other = (matching.match(np.array(labels), values, permutations=2) for labels in ([0] * 6, [0] * 5 + [1]))
    few = matching.match(np.zeros(6, dtype=int), values, permutations=1)
    for pair in ([one, other], [one, few]):
        with pytest.raises(ValueError, match="same clusters"):
            matching.together(pair)
