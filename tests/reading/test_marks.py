"""Marks: nothing on a page is invisible or turns its direction, and no two colours are the same."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrolib.reading import marks
from spectrolib.text.runningtext import FAMILIES


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", " the"),
        ("\r\n\t", "↵→"),
        ("\n\n", "↵↵"),
        ("\x00", "\\u0000"),
        ("\u202eabc", "\\u202eabc"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("<b>", "<b>"),
        ("", ""),
    ],
)
def test_what_has_no_shape_gets_one(token, shown):
    assert marks.visible(token) == shown


@given(st.text())
def test_all_that_is_shown_has_a_shape_and_is_not_changed_again(token):
    shown = marks.visible(token)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert marks.visible(shown) == shown


def test_each_family_of_clusters_has_a_colour_of_its_own():
    assert len(set(marks.PALETTE)) == len(marks.PALETTE) >= len(FAMILIES)
    assert {marks.BLUE, marks.VERMILION} <= set(marks.PALETTE)
