"""Nearest tokens: distances and ranks against rows written out, what halves share, contexts found in the text."""

import cardmaking
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from spectrolib.estimator import standardise
from spectrolib.reading.neighbours import find_tokens, near_tokens
from spectrolib.run.resolved import labelled, rows_of
from spectrolib.text.runningtext import running_text


def with_channels(result, halves):
    """The result with resolved rows of four channels for each of the four components."""
    found = labelled(cardmaking.COMPONENTS, [np.split(half, 4, axis=1) for half in halves])
    channels = {"channel_component": found.pop("channel_component")}
    return result.assign(found).assign_coords(channels)


@pytest.fixture(scope="module")
def resolved():
    """120 tokens, whose rows in the second half are those of the first and a little noise."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(120, 16)) * rng.lognormal(size=(120, 1))
    return with_channels(cardmaking.random_result(6, 20), [first, first + 0.3 * rng.normal(size=first.shape)])


def test_resolved_rows_are_compared_by_their_cosine(resolved):
    """Against scipy, on all channels side by side and on either half."""
    found = near_tokens(resolved, 17, count=8)
    tables = [cdist(rows, rows, "cosine")[17] for rows in (rows_of(resolved, halves=h) for h in (None, [0], [1]))]
    whole, halves = tables[0], tables[1:]
    assert [one.row for one in found.neighbours] == np.argsort(whole)[1:9].tolist()
    np.testing.assert_allclose([one.distance for one in found.neighbours], np.sort(whole)[1:9], atol=1e-6)
    for one in found.neighbours:
        np.testing.assert_allclose(one.halves, [half[one.row] for half in halves], atol=1e-6)
        assert one.ranks == tuple(int((half < half[one.row]).sum()) for half in halves)  # itself is before it
    nearest = [set(np.argsort(half)[1:9].tolist()) for half in halves]
    assert found.shared == len(nearest[0] & nearest[1]) / 8 and found.chance == 8 / 119
    assert found.typical == pytest.approx(np.median(np.delete(whole, 17)), abs=1e-6)
    rows = rows_of(resolved)
    assert found.length == pytest.approx(np.linalg.norm(rows[17]) / np.sqrt((rows**2).sum(axis=1).mean()))
    assert found.rows == "resolved"


@pytest.mark.parametrize("way", [{"rows": "center"}, {"rows": "zscore"}, {"rows": None, "whiten": True}])
def test_the_papers_rows_are_compared_by_their_distance(way):
    result = cardmaking.random_result(6, 20, halves=True)
    found = near_tokens(result, 40, count=5, standardisation=way)
    assert found.rows == "paper"
    parts = [result["susceptibility"].values, *result["half_susceptibility"].values[0, :, 0]]
    whole, *halves = (cdist(rows, rows)[40] for rows in (standardise(part, **way) for part in parts))
    assert [one.row for one in found.neighbours] == np.argsort(whole)[1:6].tolist()
    for one in found.neighbours:
        np.testing.assert_allclose([one.distance, *one.halves], [whole[one.row], *(half[one.row] for half in halves)])
        assert one.ranks == tuple(int((half < half[one.row]).sum()) for half in halves)


def test_the_papers_rows_can_be_asked_for_where_there_are_channels(resolved):
    assert near_tokens(resolved, 3, rows="paper").rows == "paper"


def test_halves_that_say_the_same_share_all_and_unrelated_ones_what_chance_gives():
    rng, result = np.random.default_rng(1), cardmaking.random_result(10, 30)
    first, second = rng.normal(size=(2, 300, 16))
    same = with_channels(result, [first, first])
    assert {near_tokens(same, row, count=20).shared for row in range(20)} == {1.0}
    other = with_channels(result, [first, second])
    shared = [near_tokens(other, row, count=20).shared for row in range(60)]
    assert np.mean(shared) == pytest.approx(20 / 299, abs=0.03)  # four standard errors


def test_one_half_has_no_ranks():
    for result in (
        cardmaking.random_result(6, 20),
        with_channels(cardmaking.random_result(6, 20), [np.random.default_rng(0).normal(size=(120, 16))]),
    ):
        found = near_tokens(result, 0)
        assert np.isnan(found.shared) and len(found.neighbours) == 10
        assert {(one.halves, one.ranks) for one in found.neighbours} == {((), ())}


def test_copies_are_at_no_distance_and_quiet_tokens_are_far():
    rows = np.random.default_rng(0).normal(size=(120, 16))
    rows[7], rows[8] = 3 * rows[5], 0.0
    found = near_tokens(with_channels(cardmaking.random_result(6, 20), [rows, rows]), 5, count=119)
    assert found.neighbours[0].row == 7 and found.neighbours[0].distance == pytest.approx(0, abs=1e-5)
    assert {one.row: one.distance for one in found.neighbours}[8] == 1.0
    assert 5 not in [one.row for one in found.neighbours]


def test_bad_questions_are_refused(resolved):
    for arguments, message in [
        ({"row": 120}, "there is no token 120: the result has 120, numbered 0 to 119"),
        ({"row": -1}, "there is no token -1"),
        ({"row": 3, "count": 0}, "0 neighbours were asked for: give 1 to 119"),
        ({"row": 3, "count": 120}, "120 neighbours were asked for"),
        ({"row": 3, "rows": "best"}, "unknown rows 'best': they must be resolved or paper"),
    ]:
        with pytest.raises(ValueError, match=message):
            near_tokens(resolved, **arguments)
    with pytest.raises(ValueError, match="the result holds no resolved rows: measure with --channels"):
        near_tokens(cardmaking.random_result(6, 20), 3, rows="resolved")
    rows = np.random.default_rng(0).normal(size=(120, 16))
    rows[8] = 0.0
    with pytest.raises(ValueError, match="moves the loss of token 8: its row has no direction"):
        near_tokens(with_channels(cardmaking.random_result(6, 20), [rows, rows]), 8)


# Finding a token


TEXT = [["if", " x", ":", "\n", "    ", "return", " x"], ["return", "s", " the", "\treturn", " xy"]]


@pytest.mark.parametrize(
    ("context", "rows"),
    [
        (" x", [1, 6]),  # not in " xy", where it ends inside a token
        ("return x", [6]),
        ("return", [5, 7, 10]),
        ("retur", [5, 7, 10]),  # nowhere the end of a token
        (":\n    return", [5]),
        (":↵    return", [5]),  # as pages show it
        ("→return", [10]),
        ("y", [11]),
    ],
)
def test_the_last_token_of_a_context_is_meant(context, rows):
    assert find_tokens(running_text(cardmaking.result(TEXT)), context).tolist() == rows


def test_a_context_that_is_nowhere_says_what_is():
    text = running_text(cardmaking.result(TEXT))
    with pytest.raises(
        ValueError, match=r"'else:\\n    return' stands nowhere in the 2 windows; its end ':\\n    return'"
    ):
        find_tokens(text, "else:\n    return")
    with pytest.raises(ValueError, match="'Ж' stands nowhere in the 2 windows; nor does its last character, 'Ж'"):
        find_tokens(text, "Ж")
    with pytest.raises(ValueError, match=r"number of a token, 0 to 11$"):
        find_tokens(text, " xreturn")  # across two windows
    with pytest.raises(ValueError, match="the context is empty"):
        find_tokens(text, "")
