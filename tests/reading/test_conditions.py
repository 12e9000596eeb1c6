"""Conditions against brute force."""

from itertools import pairwise

import cardmaking
import numpy as np
import pytest

from spectrolib.model.guesses import Guesses
from spectrolib.reading.conditions import GROUPS, OUTPUT, describe
from spectrolib.text.runningtext import running_text


@pytest.fixture(scope="module")
def features():
    return describe(running_text(cardmaking.random_result(count=30, length=40)))


def by_hand(words: list[str], i: int) -> dict[str, bool]:
    """Some conditions of the token at place i of a window."""
    before = words[i - 1] if i else None
    second = words[i - 2] if i > 1 else None
    earlier = words[:i]
    pairs = list(pairwise(earlier))
    triples = list(zip(earlier, earlier[1:], earlier[2:], strict=False))
    body = words[i].strip()
    joined = "".join(words[: i + 1])
    line = "".join(words[:i]).rpartition("\n")[2]
    pair_seen = i > 0 and (before, words[i]) in pairs
    return {
        "' the'": words[i] == " the",
        "newline and 4 spaces": words[i] == "\n    ",
        "after ' of'": before == " of",
        "two tokens after ' of'": second == " of",
        "after ' of' then ' the'": (second, before) == (" of", " the"),
        "token seen earlier in the window": words[i] in earlier,
        "token new to the window": words[i] not in earlier,
        "repeats a pair of tokens seen earlier in the window": pair_seen,
        "ends a pair of tokens new to the window": not pair_seen,
        "repeats three tokens seen earlier in the window": i > 1 and (second, before, words[i]) in triples,
        "same as the token before": words[i] == before,
        "same as the token two before": words[i] == second,
        "single letter": len(body) == 1 and body.isalpha(),
        "keyword of a programming language": body in ("for", "if", "in"),
        "capitalised": body == "Rome",
        "number": body.isdigit(),
        "word after space": words[i][0] == " " and body.isalpha() and body.isascii(),
        "after a word that follows a space": i > 0
        and before[0] == " "
        and before.strip().isascii()
        and before[1:].isalpha(),
        "among the first 8 tokens of the window": i < 8,
        "in the second half of the window": i + 1 > 20,
        "first on its line": "\n" in joined and not line.strip() and bool(body) and "\n" in "".join(words[:i]),
        "Cyrillic letter": body == "я",
        "accented Latin letter": body == "é",
    }


def test_conditions_by_brute_force(features):
    text = features.text
    words = np.array([piece.decode() for piece in text.pieces], dtype=object)
    truth: dict[str, np.ndarray] = {}
    for window in np.unique(text.sequence):
        rows = np.flatnonzero(text.sequence == window)
        for i, row in enumerate(rows):
            for name, holds in by_hand(words[rows].tolist(), i).items():
                truth.setdefault(name, np.zeros(len(text), dtype=bool))[row] = holds
    named = {condition.text: i for i, condition in enumerate(features.conditions)}
    checked = 0
    for name, holds in truth.items():
        if 10 <= holds.sum() < len(holds):
            np.testing.assert_array_equal(features.column(named[name]), holds, err_msg=name)
            checked += 1
        else:
            assert name not in named
    assert checked >= 20


def test_domain_and_kind(features):
    named = {condition.text: i for i, condition in enumerate(features.conditions)}
    np.testing.assert_array_equal(features.column(named["in the domain readme"]), features.text.domain == "readme")
    assert "in a document of prose" not in named  # holds for all


def test_matrix_columns_and_totals(features):
    dense = features.matrix.toarray()
    assert dense.shape == (1200, len(features.conditions)) and set(np.unique(dense)) == {0, 1}
    np.testing.assert_array_equal(features.totals, dense.sum(axis=0))
    assert (features.totals >= 10).all() and (features.totals < 1200).all()
    np.testing.assert_array_equal(features.column(3), dense[:, 3] > 0)
    assert {condition.group for condition in features.conditions} <= set(GROUPS)
    assert len({condition.text for condition in features.conditions}) == len(features.conditions)


def test_groups(features):
    few = features.only("token", "repeat")
    assert {condition.group for condition in few.conditions} == {"token", "repeat"}
    np.testing.assert_array_equal(few.column(0), features.column(features.group("token")[0]))
    with pytest.raises(ValueError, match="no group of conditions colour, taste: they are token, class,"):
        features.only("taste", "colour")


def test_frequency_ranks():
    words = [f" w{i}" for i in range(12) for _ in range(24 - i)]
    rng = np.random.default_rng(0)
    features = describe(running_text(cardmaking.result([list(rng.permutation(words))])))
    named = {condition.text: i for i, condition in enumerate(features.conditions)}
    frequent = features.column(named["one of the 10 most frequent tokens"])
    assert {piece.decode() for piece, held in zip(features.text.pieces, frequent, strict=True) if held} == {
        f" w{i}" for i in range(10)
    }
    np.testing.assert_array_equal(features.column(named["token ranked 11 to 100 by frequency"]), ~frequent)


def test_conditions_on_the_output_by_brute_force():
    text = running_text(cardmaking.random_result(count=30, length=40))
    rng, n = np.random.default_rng(0), len(text)
    loss = rng.exponential(size=n)
    expected = np.where(rng.random(n) < 0.5, text.token_id, 10**6)
    output = Guesses(expected, rng.random(n), np.where(expected == text.token_id, 1, 40))
    features = describe(text, loss=loss, guesses=output, names={10**6: "' wanted'"})
    column = {condition.text: features.column(i) for i, condition in enumerate(features.conditions)}
    np.testing.assert_array_equal(column["of loss below 0.3 nats"], loss < 0.3)
    np.testing.assert_array_equal(column["of loss above 2 nats"], loss > 2)
    np.testing.assert_array_equal(column["where the model expects ' wanted'"], expected == 10**6)
    the = next(i for i, name in text.names.items() if name == "' the'")
    np.testing.assert_array_equal(column["where the model expects ' the'"], expected == the)
    np.testing.assert_array_equal(column["which the model expects"], expected == text.token_id)
    np.testing.assert_array_equal(
        column["not among the 20 tokens that the model expects most"], expected != text.token_id
    )
    np.testing.assert_array_equal(column["where the model is sure to 90% or more"], output.probability >= 0.9)
    assert not set(OUTPUT) & {condition.group for condition in describe(text).conditions}
    plain = describe(text, loss=loss, guesses=output)
    assert "where the model expects token 1000000" in [condition.text for condition in plain.conditions]
    with pytest.raises(ValueError, match="1200 tokens need as many losses, got 3"):
        describe(text, loss=np.ones(3))
