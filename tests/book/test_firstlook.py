"""What the first chapter shows: the right tokens, and pictures that say what is true."""

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from spectrobook import figures, firstlook, shipped, shipped_table, slider
from spectrolib import load_model
from spectrolib.exact import toys
from spectrolib.model.loading import engine_of
from spectrolib.text.corpus import bundled_windows


def test_what_closes_a_bracket():
    names = ["')'", "'))'", '"\')"', "' ]'", "'('", "'()'", "'),'", "' '", "'}'", "bytes 29"]
    np.testing.assert_array_equal(firstlook.closing(names), [1, 1, 1, 1, 0, 0, 0, 0, 1, 0])


def test_the_statement_that_tells_best():
    inside, others = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool), np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    said = {"always": np.ones(8, bool), "mostly": np.array([1, 1, 1, 0, 1, 0, 0, 0], bool), "never": np.zeros(8, bool)}
    assert firstlook.tell_apart(inside, others, said) == ("mostly", 0.75, 0.25)


def test_best_guesses_are_those_of_the_model():
    model, ids = load_model(), bundled_windows("heldout").ids[3, :40]
    found = firstlook.best_guesses(engine_of(model), ids, 3)
    with torch.no_grad():
        logits = model.model(torch.as_tensor(ids[None]).long()).logits[0, -1]
    best = torch.softmax(logits, -1).topk(3)
    assert [token for token, _ in found] == best.indices.tolist()
    assert [p for _, p in found] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_blanks_are_squeezed_and_nothing_else_is():
    text = shipped.features().text
    for row in range(40, 4000, 97):
        before, token, after = firstlook.squeezed(text, row, 30, 10)
        whole = text.context(row, 120, 40)
        assert token == whole[1] and len(before) <= 30 and len(after) <= 10
        assert "  " not in before and "  " not in after
        assert re.sub(" +", " ", whole[0]).endswith(before) and re.sub(" +", " ", whole[2]).startswith(after)


def test_bins_hold_as_many_points_each_and_keep_the_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = 2 * x + rng.normal(size=60)
    found = np.array(firstlook.binned(x, y, 6))
    assert (np.diff(found[:, 0]) > 0).all()
    assert found[:, 1].mean() == pytest.approx(y.mean())
    lowest = y[np.argsort(x)[:10]]
    assert found[0, 2] == pytest.approx(lowest.std(ddof=1) / np.sqrt(10))


def test_a_concordance_has_every_token_in_one_column():
    contexts = [("x" * 50, ",", "y" * 50), ("$a", ",", "\nb")]
    groups = [firstlook.Lines("first", "#0072B2", contexts), firstlook.Lines("second", "#D55E00", contexts[:1])]
    fig = firstlook.concordance(groups, before=20, after=10)
    (ax,) = fig.axes
    words = [text.get_text() for text in ax.texts]
    assert words == ["first", "x" * 20, ",", "y" * 10, "$a", ",", "↵b", "second", "x" * 20, ",", "y" * 10]
    assert {text.get_position()[0] for text in ax.texts if text.get_text() == ","} == {20}
    assert len({patch.get_x() for patch in ax.patches}) == 1 and len(ax.patches) == 3
    fig.canvas.draw()
    edges = [text.get_window_extent() for text in ax.texts]
    half = fig.bbox.width / 31 / 2  # of a character: pixels round it
    assert all(box.x0 >= -half and box.x1 <= fig.bbox.width + half for box in edges)


@pytest.mark.filterwarnings("error")
def test_pictures_of_text_are_saved_without_a_layout(tmp_path):
    """A layout asked for by the book's style would warn that there is nothing to lay out."""
    with mpl.rc_context(figures.STYLE):
        text = firstlook.concordance([firstlook.Lines("first", "#0072B2", [("x", ",", "y")])], before=9, after=9)
        for fig in (text, figures.painted_figure(["def", " f"], np.array([1.0, -1.0]))):
            for _ in range(2):  # matplotlib forgets at the first time
                fig.savefig(tmp_path / "text.png", bbox_inches="tight")


def test_a_row_has_a_bar_for_each_component_and_dots_for_the_halves():
    values = np.array([-1.0, 2.0, 0.5])
    ax = firstlook.row_bars(values, np.stack([values - 0.1, values + 0.1]), ["l0h0", "l0 mlp", "embed"])
    assert [bar.get_width() for bar in ax.patches] == values.tolist()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["l0h0", "l0 mlp", "embed"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), values - 0.1)


def test_the_tangent_touches_the_response():
    found = slider.curves(toys.CopyingHead.random(seed=0), "direct", [(0, 0)])
    shown = firstlook.draw_response(plt.subplots()[1], found)
    rise, line = shown["mean"] - shown["mean"][0], shown["line"] - shown["line"][0]
    assert rise[1] == pytest.approx(line[1], rel=0.05)
    assert abs(rise[-1] / line[-1] - 1) > 0.1  # and leaves it


def test_as_many_strong_modes_as_reasons():
    s = firstlook.draw_modes(plt.subplots()[1])["strength"]
    assert s[4] > 2 * s[5]


def test_the_cut_finds_what_was_planted():
    shown = firstlook.draw_cut(plt.subplots()[1])
    np.testing.assert_array_equal(shown["cut"], shown["planted"])
    assert shown["conductance"] < 0.1


def test_features_are_shown_beside_both_nulls():
    matches = shipped_table("resolved")["matches"]
    ax = plt.subplots()[1]
    shown = firstlook.draw_features(ax, matches)
    assert list(shown) == ["clusters", "shuffled among\nequal tokens", "shuffled"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([100 * share for share in shown.values()])
    (whole,) = (d for d in matches["dictionaries"] if d["dictionary"] == "all of them" and d["at"] == "predicted")
    assert shown["clusters"] == whole["rates"][0]["rate"]
