"""Intervals of shares: a table, exact coverage, coverage by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from spectrolib.checks import intervals


def test_wilson_against_a_table_and_its_exact_coverage():
    assert intervals.wilson(0.1, 10) == pytest.approx((0.1, 0.01788, 0.40415), abs=1e-5)
    for n, p in [(20, 0.1), (20, 0.5), (50, 0.3), (100, 0.9), (100, 0.02)]:
        hits = np.arange(n + 1)
        spans = [intervals.wilson(k / n, n) for k in hits]
        inside = np.array([span.low <= p <= span.high for span in spans])
        assert 0.91 < binom.pmf(hits, n, p)[inside].sum() < 0.99
    assert intervals.wilson(0.0, 5)[:2] == (0.0, 0.0) and intervals.wilson(1.0, 5)[2] == 1.0
    unknown = intervals.wilson(math.nan, 0)
    assert math.isnan(unknown.value) and unknown[1:] == (0.0, 1.0)


@pytest.mark.parametrize(
    "sizes", [np.full(15, 6), np.r_[1:21], np.r_[np.full(14, 4), 40]], ids=["equal", "1-20", "one"]
)
@pytest.mark.parametrize("chance", [0.2, 0.5])
def test_a_proportion_of_grouped_trials_is_covered(sizes, chance):
    """Groups of one correlation 0.3: intervals that know of groups hold the truth, those that do not miss it."""
    rng, kept, naive = np.random.default_rng(0), [], []
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(250):
        within = rng.beta(chance * 0.7 / 0.3, (1 - chance) * 0.7 / 0.3, size=len(sizes))
        hits = rng.random(len(groups)) < within[groups]
        for found, span in (
            (kept, intervals.proportion(hits, groups)),
            (naive, intervals.wilson(float(hits.mean()), len(hits))),
        ):
            found.append(span.low <= chance <= span.high)
    assert np.mean(kept) > 0.86
    assert np.mean(naive) < 0.83


def test_a_proportion_of_independent_trials_is_no_wider_than_need_be():
    rng, kept, width = np.random.default_rng(1), [], []
    groups = np.repeat(np.arange(40), 5)
    for _ in range(250):
        span = intervals.proportion(rng.random(200) < 0.3, groups)
        kept.append(span.low <= 0.3 <= span.high)
        width.append(span.high - span.low)
    exact = intervals.wilson(0.3, 200)
    assert np.mean(kept) > 0.92
    assert np.mean(width) < 1.2 * (exact.high - exact.low)


def test_proportions_at_the_edges():
    yes = np.array([True, False, True, True])
    assert intervals.proportion(yes, np.arange(4)) == intervals.wilson(0.75, 4)
    assert intervals.proportion(yes, np.full(4, 7)) == pytest.approx(intervals.wilson(0.75, 1))
    assert intervals.proportion(yes | True, np.array([0, 0, 3, 3])) == pytest.approx(intervals.wilson(1.0, 2))
    pure = intervals.proportion(np.array([1, 1, 0, 0, 1, 1], dtype=bool), np.array([0, 0, 1, 1, 2, 2]))
    assert pure == pytest.approx(intervals.wilson(4 / 6, 3))  # trials of a group all agree: a group is one trial
    assert math.isnan(intervals.proportion(yes[:0], np.arange(0)).value)
