"""The page of traces: every trial, every component, nothing but text in it."""

import re

from measuring import SETTINGS

from spectrolib.run.traces import trace_page
from spectrolib.run.tuning import HEALTHY, Trial


def test_every_chain_is_a_line_and_the_chosen_trial_is_marked():
    traces = {"l0h0": [[0.1, 0.2, 0.1], [0.2, 0.1, -0.1]], "full": [[1.0, 2.0, 1.0], [2.0, 1.0, 1.0]]}
    one = Trial(SETTINGS, HEALTHY, "all is well", 2.0, reliability=0.5, traces=traces)
    other = Trial(SETTINGS, "not local", "a loss of <b>12</b> nats", 1.0)
    page = trace_page([one, other])
    assert page.count("<polyline") == 4 and page.count("<figure>") == 2 and page.count("← chosen") == 1
    assert "healthy ← chosen" in page and "&lt;b&gt;12" in page
    (points,) = re.findall(r'class="c1" points="([^"]*)"', page)[:1]
    y = [float(pair.split(",")[1]) for pair in points.split()]
    assert y[0] < y[1] < y[2], "a higher loss stands higher"
    zero = float(re.search(r'<line x1="0" x2="180" y1="([\d.]+)"', page)[1])
    assert y[1] < zero < y[2], "the dotted line is where the loss is that of w*"
