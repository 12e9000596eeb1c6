"""Points stand where their numbers say, on the line of their name."""

import math

import matplotlib.pyplot as plt
import pytest

from spectrobook import panels
from spectrolib.checks.intervals import Estimate


@pytest.fixture
def ax():
    return plt.subplots()[1]


def test_points_stand_on_their_lines(ax):
    panels.points(ax, [Estimate(0.5, 0.4, 0.7), None, (math.nan, 0, 1), [0.2, -math.inf, math.inf]], shift=0.1)
    (bars,) = ax.containers
    assert bars.lines[0].get_xydata().tolist() == [[0.5, 0.1], [0.2, 3.1]]
    ends = [segment[:, 0].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [pytest.approx([0.4, 0.7]), pytest.approx([0.2, 0.2])], "an unknown interval is no interval"


def test_the_first_line_is_at_the_top(ax):
    panels.name_lines(ax, ["a", "b", "c"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    bottom, top = ax.get_ylim()
    assert bottom > 2 and top < 0


def test_a_plot_has_a_panel_for_each_question():
    lines = {"one": {"x": (0.5, 0.4, 0.6), "y": (0.1, 0.0, 0.2)}, "two": {"x": (0.9, 0.8, 1.0)}}
    fig = panels.dot_plot(lines, {"x": "first", "y": "second"}, colours={"one": "C0", "two": "C1"}, size=(5, 2))
    left, right = fig.axes
    drawn = [[bars.lines[0].get_xydata().tolist() for bars in ax.containers] for ax in (left, right)]
    assert drawn == [[[[0.5, 0.0]], [[0.9, 1.0]]], [[[0.1, 0.0]], []]]
    assert (left.get_xlabel(), right.get_xlabel()) == ("first", "second")
