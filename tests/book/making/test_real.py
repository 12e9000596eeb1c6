"""One text read by two models, and what the tables of the chapter A real model say of planted cases."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from spectrobook import DATA, realmodel
from spectrobook.making import real
from spectrolib.model.loading import LanguageModel


def test_tokens_that_both_have_are_the_same_bytes_at_the_same_place(bundled, bytewise, some_windows):
    read = realmodel.reread(some_windows, bundled, bytewise, 90)
    skipped = real.broken(some_windows, bundled)
    ours, theirs = real.spans(some_windows, bundled, skipped), real.spans(read, bytewise, [0] * 8)
    one, other = real.matched(theirs, ours)
    np.testing.assert_array_equal(theirs[one], ours[other])
    single = ours[:, 2] - ours[:, 1] == 1
    inside = single & (ours[:, 1] >= 1) & (ours[:, 2] <= 90)  # byte 0 is the first token, which has no loss
    assert sorted(other.tolist()) == np.flatnonzero(inside).tolist() and len(other) > 50
    texts = [text.encode() for text in realmodel.text_of(some_windows, bundled)]
    words = {i: bundled.tokens.decode([int(i)]) for i in np.unique(some_windows.ids)}
    said = [words[int(i)] for i in some_windows.ids[:, 1:].ravel()]
    for row in other.tolist():
        window, start, end = ours[row]
        assert texts[window][start:end] == said[row].encode() or "\ufffd" in said[row]


def test_a_character_cut_by_the_start_of_a_window_is_counted(bytewise):
    ids = np.array(bytewise.tokens.encode("é x").ids)
    assert [real.broken(SimpleNamespace(ids=own[None]), bytewise) for own in (ids, ids[1:], ids[2:])] == [[0], [1], [0]]


def test_clusters_of_two_models_are_compared_beside_their_tokens():
    rng = np.random.default_rng(0)
    token = rng.integers(0, 8, 800)
    split = rng.integers(0, 2, 800)
    labels = 2 * token + split  # each token's occurrences fall into two clusters
    sequence = np.repeat(np.arange(20), 40)
    same = real.compared(labels, labels, token, sequence)
    assert same["found"][0] == 1 and same["adjusted Rand"] == pytest.approx(1)
    assert same["within tokens"][0] == pytest.approx(1) and same["found by token"] < 0.5
    chance = real.compared(labels, 2 * token + rng.integers(0, 2, 800), token, sequence)
    assert abs(chance["within tokens"][0]) < 0.1 and chance["adjusted Rand"] > 0.3
    few = np.where(np.arange(800) < 5, 99, labels)  # a cluster of five tokens does not count
    assert real.compared(few, labels, token, sequence)["clusters"][0] == 16


def test_labels_are_dealt_within_groups():
    labels, groups = np.arange(60) % 7, np.arange(60) % 4
    dealt = real.shuffled_within(labels, groups, np.random.default_rng(1))
    assert (dealt != labels).any()
    for group in range(4):
        assert sorted(dealt[groups == group]) == sorted(labels[groups == group])


def test_what_is_linear_is_explained_and_what_is_not_is_not():
    limit = np.random.default_rng(0).normal(size=(6, 50))
    assert real.explained(3 * limit, limit) == pytest.approx(1)
    other = np.random.default_rng(1).normal(size=(6, 50))
    assert real.explained(limit + other, limit) == pytest.approx(0.5, abs=0.15)
    assert real.explained(other, limit) < 0.1


def test_draws_at_a_large_gamma_are_linear_and_share_their_noise(tiny_gpt_neox):
    model = LanguageModel(tiny_gpt_neox, None, "tiny")
    ids = np.random.default_rng(0).integers(0, 53, size=(3, 10))
    wide, narrow, limit = (real.draws_at(model, "l0 mlp", ids, gamma) for gamma in (1e2, 1e4, 1e6))
    assert wide.shape == (2 * real.PAIRS, 27)
    assert real.explained(narrow, limit) > 0.99 > real.explained(wide, limit)
    ratio = np.sqrt((narrow**2).mean() / (limit**2).mean())
    assert ratio == pytest.approx(math.sqrt(1e6 / 1e4), rel=0.05)


def test_the_shipped_tables_hold_together():
    table = json.loads((DATA / "real.json").read_text())
    with np.load(DATA / "real.npz") as arrays:
        labels, share = arrays["smollm2/labels"], arrays["smollm2/share"]
        assert len(labels) == table["smollm2"]["tokens"] == len(arrays["layout"]) == len(arrays["smollm2/loss"])
        assert len(share) == labels.max() + 1 == table["smollm2"]["clusters"]
        lengths = arrays["smollm2/lengths"]
        assert lengths.shape == (len(labels) // 128, 129)
        one, other = arrays["matched/smollm2"], arrays["matched/bundled"]
        np.testing.assert_array_equal(
            lengths[:, 1:].ravel()[one], arrays["bundled/lengths"][:, 1:].ravel()[other], "a token of as many bytes"
        )
    assert len(table["smollm2"]["components"]) == 121
    assert set(table["gallery"]) <= set(range(len(share)))
    for name in ("bundled", "smollm2"):
        for gammas in table[name]["gamma"].values():
            by_gamma = [gammas[f"{gamma:g}"]["linear"] for gamma in table["settings"]["gammas"]]
            assert by_gamma == sorted(by_gamma), "the nearer to w*, the more linear"
