"""Documents that stand twice, and stretches of tokens that two sets of windows share."""

import numpy as np

from spectrolib.text.corpus import Document
from spectrolib.text.overlap import Remembered, shared_stretches


def test_documents_are_known_by_their_content():
    one = Remembered([Document("a text\n", "x", name="one"), Document("another", "x", name="two")])
    other = Remembered([Document("a text", "y", name="elsewhere"), Document("a third", "y", name="three")])
    assert [document.name for document in one] == ["one", "two"] and len(list(other)) == 2
    assert one.also_in(other) == ["one"] and other.also_in(one) == ["elsewhere"]


def test_stretches_are_found_wherever_they_stand():
    rng = np.random.default_rng(0)
    ids, others = rng.integers(0, 50_000, (6, 64)), rng.integers(0, 50_000, (5, 64))
    assert not shared_stretches(ids, others).any()
    others[2, 40:56] = ids[1, 3:19]
    others[4, :15] = ids[5, 49:]  # a token too few
    others[0, :32:2] = ids[3, :32:2]  # not in a row
    assert shared_stretches(ids, others[:2], others[2:]).tolist() == [False, True, False, False, False, False]
    assert shared_stretches(ids, others, stretch=15).tolist() == [False, True, False, False, False, True]


def test_the_order_of_tokens_counts():
    ids = np.arange(20)[None]
    assert not shared_stretches(ids, ids[:, ::-1]).any()
    assert shared_stretches(ids, ids).all()


def test_short_windows_are_compared_whole():
    ids = np.arange(30).reshape(3, 10)
    assert shared_stretches(ids, ids[1:2]).tolist() == [False, True, False]
