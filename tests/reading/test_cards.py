"""Cards of planted clusters; partitions to compare with; cards on disk."""

import dataclasses
import json
import math

import cardmaking
import numpy as np
import pytest

from spectrolib import clustering
from spectrolib.estimator import standardise
from spectrolib.reading import cards
from spectrolib.reading.conditions import describe
from spectrolib.text.runningtext import running_text


def clusters(labels) -> clustering.Clustering:
    sizes = np.bincount(labels[labels >= 0])
    some, why = np.arange(len(sizes)), np.where(labels >= 0, "cluster", "main body")
    return clustering.Clustering(labels, np.linspace(0.1, 0.2, len(sizes)), some, sizes, some, why, len(sizes))


@pytest.fixture(scope="module")
def result():
    return cardmaking.random_result(halves=True)


@pytest.fixture(scope="module")
def labels(result):
    """0: every ' the' but some, 1: ' cat', 2: noise, 3: one window's."""
    words = result["text"].values
    rng = np.random.default_rng(99)  # not the seed that drew the words
    found = np.full(len(words), -1)
    found[words == " the"] = 0
    found[rng.random(len(words)) < 0.2] = -1
    found[words == " cat"] = 1
    free = np.flatnonzero(found < 0)
    found[rng.choice(free, 40, replace=False)] = 2
    found[(result["sequence"].values == 5) & (found < 0)] = 3
    return found


@pytest.fixture(scope="module")
def made(result, labels):
    return cards.cards(result, clusters(labels), examples=7)


def test_a_card_says_what_the_cluster_is(result, labels, made):
    assert [card.cluster for card in made] == [0, 1, 2, 3]
    vectors = standardise(result["susceptibility"].values)
    for card in made:
        rows = np.flatnonzero(labels == card.cluster)
        words = result["text"].values[rows]
        assert card.size == len(rows)
        assert card.documents == len(set(result["document"].values[rows]))
        assert sum(count for _, count in card.tokens) <= card.size
        assert card.tokens[0][1] == max((words == word).sum() for word in set(words))
        assert card.conductance == pytest.approx(clusters(labels).conductance[card.cluster])
        mean = vectors[rows].mean(axis=0)
        strongest = card.responses[0]
        column = cardmaking.COMPONENTS.index(strongest.component)
        assert column == np.abs(mean).argmax() and strongest.mean == pytest.approx(mean[column])
        assert strongest.agree == pytest.approx((np.sign(vectors[rows, column]) == np.sign(mean[column])).mean())
        centres = [vectors[labels == c].mean(axis=0) for c in range(4)]
        distances = {c: np.linalg.norm(centres[c] - centres[card.cluster]) for c in range(4) if c != card.cluster}
        assert dict(card.nearest) == pytest.approx(distances)
        assert [n.cluster for n in card.nearest] == sorted(distances, key=distances.get)
        assert 0.9 < card.reliability <= 1
        assert len(card.examples) == 7 and len({e.row for e in card.examples}) == 7
        windows = result["sequence"].values[[e.row for e in card.examples]]
        assert len(set(windows)) == min(7, len(set(result["sequence"].values[rows])))
        for e in card.examples:
            assert labels[e.row] == card.cluster and e.token == result["text"].values[e.row]
            at = result.isel(token=e.row)
            assert (e.domain, e.document, e.position) == (
                str(at.domain.item()),
                str(at.document.item()),
                at.position.item(),
            )


def test_labels_are_confident_rules_or_say_so(made):
    assert [card.label for card in made[:2]] == ["' the'", "' cat'"]
    assert all(card.rule.confident for card in made[:2])
    assert made[0].family == "grammar" and made[0].family_share == 1
    assert not made[2].rule.confident and made[2].label.startswith("no confident rule; often: ")
    assert made[3].rule is None and made[3].documents == 1 and made[3].label.startswith("no confident rule; often: ")
    assert made[2].family == cards.MIXED or made[2].family_share >= 0.5


def test_the_same_seed_gives_the_same_cards(result, labels, made):
    again = cards.cards(result, clusters(labels), examples=7)
    assert [card.examples for card in again] == [card.examples for card in made]
    other = cards.cards(result, clusters(labels), examples=7, seed=1)
    assert [card.examples for card in other] != [card.examples for card in made]


def test_other_inputs_are_refused(result, labels):
    features, vectors = describe(running_text(result)), result["susceptibility"].values
    with pytest.raises(ValueError, match="the clusters are of 100 tokens, the result has 4,800: cluster it again"):
        cards.cards(result, clusters(labels[:100]))
    with pytest.raises(ValueError, match=r"vectors must be 4800 tokens x 4 components, got \(4800, 3\)"):
        cards.for_labels(features, labels, vectors[:, :3], cardmaking.COMPONENTS)
    with pytest.raises(ValueError, match="without a gap: 1 is empty"):
        cards.for_labels(features, np.where(labels == 1, -1, labels), vectors, cardmaking.COMPONENTS)
    assert cards.for_labels(features, labels * 0 - 1, vectors, cardmaking.COMPONENTS) == []


# Levels --------------------------------------------------------------------------------------------------------------


def test_paths_find_planted_directions_whatever_the_length_of_rows():
    """48 clusters in four far directions, each with three near ones inside."""
    rng = np.random.default_rng(0)
    coarse, fine = np.divmod(np.arange(48) % 12, 3)
    means = np.eye(16)[coarse] + 0.4 * np.eye(16)[4 + np.arange(48) % 12] + 0.02 * rng.normal(size=(48, 16))
    found = cards.paths(means * rng.uniform(0.1, 10, (48, 1)))
    assert [path[0] for path in found] == coarse.tolist()  # numbered in the order of the clusters
    assert [path[1] for path in found] == (3 * coarse + fine).tolist()


def test_few_clusters_have_no_paths_and_a_row_of_nothing_stands_alone():
    assert cards.paths(np.eye(7)) == [()] * 7
    found = cards.paths(np.vstack([np.ones((11, 3)), np.zeros(3)]))
    assert found[-1][0] == 1 and {path[0] for path in found[:-1]} == {0}


def test_titles_are_short(made):
    assert made[0].title == "' the'"
    assert made[2].title == made[2].label.replace("no confident rule; often: ", "often ") != made[2].label
    named = dataclasses.replace(made[2], name=cards.Name("noise", "model", cards.Estimate(0.5, 0.4, 0.6)))
    assert named.title == "noise"


def test_rows_have_a_length_in_root_mean_squares(result, labels, made):
    length = np.linalg.norm(standardise(result["susceptibility"].values), axis=1)
    for card in made:
        expected = np.median(length[labels == card.cluster]) / np.sqrt((length**2).mean())
        assert card.length == pytest.approx(expected)


def test_resolved_rows_have_their_own_length(result, labels):
    """Over all halves and channels."""
    rows = np.random.default_rng(0).normal(size=(2, len(labels), 5)) * np.linspace(0.1, 3, len(labels))[:, None]
    resolved = result.assign(resolved=(("half", "token", "channel"), rows.astype(np.float16)))
    length = np.sqrt((rows**2).sum(axis=(0, 2)))
    for card in cards.cards(resolved, clusters(labels)):
        expected = np.median(length[labels == card.cluster]) / np.sqrt((length**2).mean())
        assert card.length == pytest.approx(expected, rel=1e-3)


def test_examples_are_of_as_many_windows_as_there_are(result):
    text = running_text(result)
    rows = np.concatenate([np.flatnonzero(text.windows == 3), np.flatnonzero(text.windows > 3)[::60][:4]])
    for seed in range(5):
        shown = cards.draw(text, rows, 6, np.random.default_rng(seed))
        assert len(set(shown)) == 6 and set(shown) <= set(rows.tolist())
        assert np.bincount(text.windows[shown]).max() == 2  # five windows, and one of them again


def test_half_of_the_members_make_a_family(result):
    words = result["text"].values
    the, one = np.flatnonzero(words == " the"), np.flatnonzero(words == "1")  # grammar, numbers
    features, vectors = describe(running_text(result)), result["susceptibility"].values
    for count, share in ((20, 0.5), (19, 20 / 39)):
        labels = np.full(len(words), -1)
        labels[the[:20]] = labels[one[:count]] = 0
        (card,) = cards.for_labels(features, labels, vectors, cardmaking.COMPONENTS)
        assert card.family_share == share and card.family != cards.MIXED


# On disk -------------------------------------------------------------------------------------------------------------


def same(a, b) -> bool:
    """Equal, NaN with NaN."""
    return repr(a) == repr(b)


def test_round_trip_with_everything_unknown(made, tmp_path):
    unknown = cards.Estimate(math.nan, 0.0, math.inf)
    rule = dataclasses.replace(made[0].rule, precision=unknown, fitted=(math.nan, 0.5))
    named = cards.Name('a "name"', "model", cards.Estimate(0.8, 0.6, 0.9))
    odd = dataclasses.replace(
        made[0], path=(2, 7), rule=rule, name=named, conductance=None, reliability=None, label="\u202e</script>"
    )
    kept = [odd, *made[1:]]
    file = cards.save_cards(kept, tmp_path, {"seed": 3})
    assert same(cards.open_cards(tmp_path), kept)
    content = json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["about"] == {"seed": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["cards.json"]
    assert cards.open_cards(cards.save_cards([], tmp_path).parent) == []


def test_half_a_surrogate_pair_does_not_stop_it(made, tmp_path):
    cards.save_cards([dataclasses.replace(made[0], label="a\ud800b")], tmp_path)
    assert cards.open_cards(tmp_path)[0].label == "a?b"


def without(content, name):
    del content["cards"][0][name]


def shorter(content, name):
    content["cards"][0][name][0] = content["cards"][0][name][0][:3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(format=99),
        lambda content: without(content, "label"),
        lambda content: without(content, "rule"),
        lambda content: shorter(content, "shared"),
        lambda content: shorter(content, "examples"),
        lambda content: content.update(cards=[3]),
        lambda content: content.update(cards={"a": 1}),
    ],
)
def test_damaged_files_are_named(made, tmp_path, damage):
    file = cards.save_cards(made, tmp_path)
    content = json.loads(file.read_text(encoding="utf-8"))
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"cards\.json is damaged \(.*run `spectro cards .*` again"):
        cards.open_cards(tmp_path)
    file.write_text(json.dumps(content)[:-9])
    with pytest.raises(ValueError, match=r"cards\.json is damaged"):
        cards.open_cards(tmp_path)


def test_no_cards_and_no_folder(tmp_path, made):
    with pytest.raises(ValueError, match=r"holds no cards \(no cards\.json\): run `spectro cards "):
        cards.open_cards(tmp_path)
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        cards.save_cards(made, tmp_path / "nowhere")


# Partitions ----------------------------------------------------------------------------------------------------------


def test_kmeans_finds_what_was_planted():
    truth = np.repeat([0, 1, 2, -1], [50, 30, 20, 10])
    vectors = np.eye(4)[truth] * 10 + np.random.default_rng(0).normal(size=(110, 4))
    found = cards.kmeans_labels(vectors, 3, where=truth >= 0, seed=1)
    np.testing.assert_array_equal(found, truth)
    assert np.bincount(cards.kmeans_labels(vectors, 4)).tolist() == sorted([50, 30, 20, 10], reverse=True)


def test_token_labels(result):
    text = running_text(result)
    found = cards.token_labels(text, 5)
    words = result["text"].values
    names, counts = np.unique(words, return_counts=True)
    for cluster, name in enumerate(names[np.argsort(-counts)[:5]]):
        np.testing.assert_array_equal(found == cluster, words == name)
    every = cards.token_labels(text, 100, min_size=50)
    assert every.max() + 1 == (counts >= 50).sum()


def test_the_rule_table_says_what_the_cards_say(result, labels, made):
    features = describe(running_text(result))
    table = cards.rule_table({"planted": labels, "token": cards.token_labels(features.text, 3)}, features)
    mine = table[table.partition == "planted"]
    for card, (_, row) in zip(made, mine.iterrows(), strict=True):
        assert row["size"] == card.size and row.confident == bool(card.rule and card.rule.confident)
        if card.rule:
            assert (row.precision, row.recall_low, row.rule) == (
                card.rule.precision.value,
                card.rule.recall.low,
                card.rule.text,
            )
        else:
            assert math.isnan(row.precision) and row.f1 == 0 and row.rule == ""
