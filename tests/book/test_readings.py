"""Reading by hand and by rule: judged on the unread half alone, counts against loops, a gallery that keeps its word."""

import numpy as np
import pytest

from spectrobook import readings, shipped, stable
from spectrolib.clustering import Clustering


@pytest.fixture(scope="module")
def text():
    return shipped.features().text


@pytest.fixture(scope="module")
def told(text):
    return readings.facts(text, stable.clusters(), shipped.result()["loss"].values)


def test_halves_part_documents_and_no_document(text):
    half = readings.reading_halves(text, seed=0)
    assert 0.3 < half.mean() < 0.7
    assert not set(text.document[half]) & set(text.document[~half])
    assert (readings.reading_halves(text, seed=1) != half).any()


def test_members_are_shown_from_as_many_documents_as_there_are(text):
    rows = np.flatnonzero(text.token_id == np.bincount(text.token_id).argmax())
    shown = str(readings.members_in_context(text, rows, most=8)).split("<br>")
    assert len(shown) == 8 and all("<u>" in line for line in shown)
    few = rows[text.documents[rows] == text.documents[rows[0]]][:3]
    assert str(readings.members_in_context(text, few, most=8)).count("<u>") == len(few)


def test_a_rule_is_judged_where_nobody_read(text):
    unread = ~readings.reading_halves(text, seed=0)
    rng = np.random.default_rng(0)
    member, rule = (rng.random(len(text)) < share for share in (0.02, 0.03))
    rule |= member & (rng.random(len(text)) < 0.5)
    judged = readings.judge_reading(rule, member, unread, text)
    picked = [i for i in range(len(text)) if unread[i] and rule[i]]
    both = [i for i in picked if member[i]]
    assert (judged.picked, judged.both) == (len(picked), len(both))
    assert judged.members == sum(unread & member)
    assert judged.precision.value == pytest.approx(len(both) / len(picked))
    assert judged.recall.value == pytest.approx(len(both) / judged.members)
    assert judged.recall.low < judged.recall.value < judged.recall.high
    changed = readings.judge_reading(rule ^ ~unread, member, unread, text)  # what was read has no say
    assert changed == judged


def test_a_rule_that_picks_nothing_is_no_rule(text):
    nothing, member = np.zeros(len(text), dtype=bool), np.ones(len(text), dtype=bool)
    with pytest.raises(ValueError, match="rule picks 0 tokens and 20480 are members"):
        readings.judge_reading(nothing, member, member, text)


def test_facts_are_those_of_the_members(text, told):
    found, loss = stable.clusters(), shipped.result()["loss"].values
    assert [one.size for one in told] == found.sizes.tolist() and [one.share for one in told] == found.share.tolist()
    one, rows = told[51], np.flatnonzero(found.labels == 51)
    assert one.documents == len(set(text.document[rows])) and one.loss == np.sort(loss[rows])[18:20].mean()
    assert dict(one.tokens)["' can'"] == sum(text.pieces[row] == b" can" for row in rows)
    assert sum(count for _, count in one.tokens) == one.size == 38


def test_clusters_found_once_have_no_share(text):
    one = np.zeros(1)
    labels = np.zeros(len(text), dtype=int)
    once = Clustering(labels, one, one, np.array([len(text)]), one, np.array(["cluster"] * len(text)), 1)
    with pytest.raises(ValueError, match="these clusters were found once: take"):
        readings.facts(text, once, np.zeros(len(text)))


def test_the_gallery_keeps_its_rule(told):
    shown = readings.fit_to_show(told)
    assert shown and [one.documents for one in shown] == sorted((one.documents for one in shown), reverse=True)
    for one in told:
        fits = one.share >= 0.8 and one.documents >= 5 and one.loss > 0.5
        assert (one in shown) == (fits and max(count for _, count in one.tokens) <= 0.8 * one.size)


def test_an_excerpt_says_what_the_cluster_holds(text, told):
    rows = stable.clusters().members(51)
    page = readings.excerpt(told[51], text, rows, most=3)
    assert page.startswith('<a href="../catalogue.html#cluster-51"><b>Cluster 51</b></a>: 38 tokens in 24 documents')
    assert page.count("<u>") == 3 and "came back in 80% of the repetitions" in page
    several = readings.excerpts(told[50:53], text, stable.clusters(), most=2)
    assert several.count("<u>") == 6 and several.count("came back in") == 3


def test_every_cluster_has_one_place_in_the_landscape(told):
    shown = readings.fit_to_show(told)
    ax = readings.landscape_figure(told, shown).axes[0]
    drawn = [len(line.get_xdata()) for line in ax.lines[:3]]
    assert sum(drawn) == len(told) and drawn[2] == len(shown)
    assert max(ax.lines[1].get_xdata()) < readings.QUIET


def test_occurrences_are_counted_by_cluster():
    ids, labels = np.array([7, 7, 7, 7, 7, 7, 3, 7]), np.array([0, 2, 2, 2, -1, 0, 2, 1])
    assert readings.where_occurrences_go(7, ids, labels, least=2) == [(2, 3), (0, 2)]


def test_occurrences_are_shown_by_cluster(text):
    token = next(int(text.token_id[i]) for i, piece in enumerate(text.pieces) if piece == b" p")
    labels = stable.clusters().labels
    page = readings.occurrences_shown(token, text, labels, most=2)
    for cluster, count in readings.where_occurrences_go(token, text.token_id, labels):
        assert f"{readings.cluster_link(cluster)}, {count} of them:" in page
    assert page.count("<b><u> p</u></b>") == page.count("<u>") == 2 * page.count("of them")


def test_figures_show_the_numbers_that_they_are_given():
    judged = readings.Judged(10, 5, 4, readings.Estimate(0.4, 0.2, 0.6), readings.Estimate(0.8, 0.5, 0.9))
    left, right = readings.readings_figure({"a rule": judged}).axes
    assert [ax.containers[0].lines[0].get_xdata()[0] for ax in (left, right)] == [0.4, 0.8]
    table = {"as found": {"text": [0.4, 0.3, 0.5]}, "shuffled": {"text": [0.1, 0.0, 0.2]}}
    bars = [bar.get_height() for bar in readings.rules_figure(table).axes[0].patches]
    assert bars == [0.4, 0.1]
    (ax,) = readings.two_rows_figure(table).axes
    assert [bars.lines[0].get_xdata()[0] for bars in ax.containers] == [0.4, 0.1] and ax.get_title() == "text"
