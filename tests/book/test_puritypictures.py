"""Pictures of the planted language show the numbers that they are given."""

import numpy as np
from matplotlib.colors import to_rgba

from spectrobook import language as planted
from spectrobook import purity
from spectrobook import puritypictures as pictures
from spectrolib.checks.intervals import Estimate


def test_every_token_stands_on_the_colour_of_its_reason():
    language = planted.Language()
    windows, labels = planted.draw(language, 2, planted.LENGTH, seed=1)
    (ax,) = pictures.language_windows(language, windows, labels).axes
    assert [text.get_text() for text in ax.texts] == [language.words[i] for i in windows.ids[:, 1:].ravel()]
    wanted = [to_rgba(pictures.HUES[r], 0.45) for r in labels.ravel()]
    assert [patch.get_facecolor() for patch in ax.patches] == wanted


def test_training_has_a_bar_for_each_reason():
    losses = {"model": np.arange(8) + 0.5, "least possible": np.arange(8.0)}
    left, right = pictures.training(np.array([3.0, 2.0]), 10, 1.5, losses).axes
    assert list(left.lines[0].get_xdata()) == [5, 15]
    assert [bar.get_width() for bar in right.patches] == [*losses["model"], *losses["least possible"]]


def test_purities_leave_out_what_was_not_asked():
    full = {kind: Estimate(0.5, 0.4, 0.6) for kind in purity.KINDS}
    found = {"rows": full, "free": {"all": Estimate(0.3, 0.2, 0.4)}}
    fig = pictures.purities(found, dict.fromkeys(purity.KINDS, 0.1), {"rows": "0.2", "free": "0.5"})
    assert [len(ax.lines) for ax in fig.axes] == [5, 3, 3]
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["rows", "free"]


def test_dependence_has_a_panel_for_each_setting_and_question():
    values = np.array([[0.5, 0.4, 0.6], [0.6, 0.5, 0.8]])
    panels, chance = {"draws": [8, 16], "γ": [100, 300]}, {"all": 0.2, "other": 0.1}
    found = {(kind, setting, "one_chain"): values for kind in chance for setting in panels}
    fig = pictures.dependence(panels, found, chance)
    assert len(fig.axes) == 4
    for ax, level in zip(fig.axes, (0.2, 0.2, 0.1, 0.1), strict=True):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.5, 0.6])
        np.testing.assert_allclose(ax.lines[-1].get_ydata(), level)


def test_by_reason_marks_each_reason_and_its_chance():
    found = {
        (kind, name): {0: Estimate(0.5, 0.4, 0.6), 3: Estimate(0.7, 0.6, 0.8)}
        for kind in purity.KINDS
        for name in pictures.LINES
    }
    fig = pictures.by_reason(found, {kind: {0: 0.2, 3: 0.1} for kind in purity.KINDS})
    for ax in fig.axes:
        assert len(ax.lines) == 2 * 2 * len(pictures.LINES) + 2
        marks = [line for line in ax.lines if line.get_marker() != "None"]
        assert {round(float(np.ravel(line.get_ydata())[0])) for line in marks} == {0, 3}
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == list(planted.REASONS[:6])


def test_pairs_show_quantiles():
    values = [np.arange(101.0) + i for i in range(4)]
    fig = pictures.pairs({"one": {"rows": values, "others": values}, "two": {"others": values}})
    left, right = fig.axes
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["rows", "others"]
    assert left.lines[12].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert len(left.lines) == 24 and len(right.lines) == 12
    line, bar, dot = right.lines[:3]
    assert (list(line.get_xdata()), list(bar.get_xdata())) == ([5, 95], [25, 75])
    assert np.ravel(dot.get_xdata()) == 50
