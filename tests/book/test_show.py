"""What notebooks share: nothing becomes markup that is not meant to be, and numbers read as they should."""

import json
import math
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrobook import show
from spectrolib.checks.intervals import Estimate


class Page(HTMLParser):
    """Tags and text of some HTML."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def cells(page: str) -> list[list[str]]:
    """What stands between the tags of each row's cells."""
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in page.split("<tr")[1:])
    return [list(row) for row in rows]


# ---- HTML


def test_markup_stands_and_anything_else_is_escaped():
    assert show.escaped("<b>") == "&lt;b&gt;"
    assert show.escaped(show.Markup("<b>")) == "<b>"
    assert show.lines(["a & b", show.Markup("<i>c</i>"), 3]) == "a &amp; b<br><i>c</i><br>3"
    assert show.Markup("<b>x</b>")._repr_html_() == "<b>x</b>"


def test_a_block_is_not_read_as_mathematics():
    page = show.block("$x < y$", show.Markup("<hr>"), style='font-size:.8em;font-family:"a"')
    assert Page(page).tags == ["div", "hr"]
    assert "mathjax_ignore tex2jax_ignore" in page
    assert "$x &lt; y$" in page
    assert isinstance(page, show.Markup)


def test_a_table_writes_numbers_as_asked_and_leaves_gaps_empty():
    rows = [{"name": "a", "x": 0.123456, "n": 1234567}, {"name": "b", "x": math.nan, "n": 2, "more": 1e-9}]
    assert cells(show.table(rows)) == [
        ["name", "x", "n", "more"],
        ["a", "0.123", "1234567", ""],
        ["b", "", "2", "1e-09"],
    ]
    assert cells(show.table(rows, ".1f", missing="–"))[2] == ["b", "–", "2", "0.0"]


def test_a_table_takes_rows_as_they_come_and_data_frames():
    frame = pd.DataFrame({"x": [1.5, np.nan], "word": ["<i>", None]}, index=["one & two", "three"])
    assert cells(show.table(frame))[1] == ["1.5", "&lt;i&gt;"]
    assert cells(show.table(frame, index=True))[1] == ["one &amp; two", "1.5", "&lt;i&gt;"]
    assert frame.word.tolist()[0] == "<i>", "the frame itself is left alone"
    assert cells(show.table({"a": i} for i in range(2))) == [["a"], ["0"], ["1"]]
    twice = pd.concat([frame, frame], axis=1)
    assert cells(show.table(twice))[1] == ["1.5", "&lt;i&gt;"] * 2


def test_long_cells_are_not_cut():
    assert "x" * 500 in show.table([{"long": "x" * 500}])


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_text_becomes_markup_in_a_table(name, value):
    tags = Page(show.table([{name: value}])).tags
    assert set(tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert tags.count("td") == tags.count("th") == 1


def test_markup_in_a_table_stays_markup():
    page = show.table([{show.Markup("<i>head</i>"): show.Markup("<b>x</b>"), "own": "<b>y</b>"}])
    assert Page(page).tags.count("b") == 1
    assert Page(page).tags.count("i") == 1


# ---- text


@given(st.text(max_size=12), st.text(max_size=6), st.text(max_size=12))
def test_any_token_stands_in_its_context_as_text(before, token, after):
    page = show.in_context(before, token, after)
    assert Page(page).tags == ["code", "b", "u"]
    assert not {"\n", "\t", "\x00", "\u202e"} & set(Page(page).text)


def test_a_token_in_context_is_marked():
    page = show.in_context("if x <", "\n", "y")
    assert "if x &lt;<b><u>↵</u></b>y" in page
    assert "color" not in page, "the page's own colours"


def test_a_painted_text_is_shown_and_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRO_FIGURES", str(tmp_path))
    tokens, values = np.array(["a", "\n\n", "<b>"]), np.array([-1.0, 0.5, 2.0])
    page = show.paint(
        tokens,
        values,
        "painted",
        component="l0h0",
        document="a & b",
        limit=2.0,
        caption="l0h0, well",
        note="settings",
        profile="book",
        tokens=3,
    )
    assert Page(page).tags.count("span") == 4, "a token of two line ends is two pieces"
    assert "l0h0, well. a &amp; b (blue −2" in page
    saved = json.loads((tmp_path / "painted.json").read_text())
    assert saved["data"] == {
        "component": "l0h0",
        "document": "a & b",
        "tokens": ["a", "\n\n", "<b>"],
        "values": [-1.0, 0.5, 2.0],
    }
    assert saved["settings"] == {"profile": "book", "tokens": 3}
    assert (tmp_path / "painted.svg").exists()
    assert not plt.get_fignums(), "shown as text, so the figure is closed"
    with pytest.raises(ValueError):
        show.paint(tokens, values[:2], "x", component="", document="", limit=1.0, caption="", note="", profile="smoke")


def test_a_wide_table_is_turned():
    rows = [{"table": "a", "width": 1.5, "name": "<x>"}, {"table": "b", "width": 0.25}]
    upright = show.turned(rows, "table")
    assert upright == [{"": "width", "a": 1.5, "b": 0.25}, {"": "name", "a": "<x>", "b": None}]
    page = show.table(upright, ".2f")
    assert "<td>1.50</td>" in page and "<td>&lt;x&gt;</td>" in page and "None" not in page


# ---- numbers


def test_an_interval_is_written_in_any_form():
    assert show.interval(Estimate(0.5, 0.406, 0.594)) == "0.50 (0.41 to 0.59)"
    assert show.interval((0.5, -0.1, 0.6), "+.1f") == "+0.5 (-0.1 to +0.6)"
    assert show.interval([2.0, 1.0, 3.0, "more"], lambda x: f"{x:.0f} h") == "2 h (1 h to 3 h)"
    assert show.interval(Estimate(math.nan, 0, 1)) == ""
    assert show.percent(Estimate(0.5, 0.406, 0.594)) == "50% (41% to 59%)"
    assert show.percent(Estimate(0.04, -0.004, 0.11)) == "4% (0% to 11%)"
    assert show.percent(Estimate(math.nan, 0, 1)) == ""


@pytest.mark.parametrize("number, words", [(0, "0 documents"), (1, "1 document"), (1200, "1,200 documents")])
def test_one_thing_is_not_many(number, words):
    assert show.counted(number, "document") == words


@pytest.mark.parametrize(
    "estimate, word", [((0.2, 0.1, 0.3), "more"), ((-0.2, -0.3, -0.1), "less"), ((0.1, 0.0, 0.2), "neither")]
)
def test_a_verdict_says_no_more_than_the_interval(estimate, word):
    assert show.verdict(Estimate(*estimate), "more", "neither", "less") == word


@pytest.mark.parametrize(
    "one, other, word",
    [
        ((0.5, 0.4, 0.6), (0.2, 0.1, 0.3), "more"),
        ((0.2, 0.1, 0.3), (0.5, 0.4, 0.6), "less"),
        ((0.4, 0.2, 0.5), (0.5, 0.4, 0.6), "neither"),
    ],
)
def test_two_numbers_differ_where_their_intervals_are_apart(one, other, word):
    assert show.compared(Estimate(*one), Estimate(*other), "more", "neither", "less") == word
