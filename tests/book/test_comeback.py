"""Nulls that keep what they should and nothing else; figures that show the numbers they are given."""

import numpy as np
import pytest

from spectrobook import comeback, shipped_table


@pytest.fixture(scope="module")
def chi():
    rng = np.random.default_rng(3)
    return rng.standard_t(4, size=(20000, 1)) * [1.0, 2.0, 0.0] + rng.standard_t(4, size=(20000, 3)) + [0, 1, 5]


def test_shuffled_columns_keep_their_values_and_lose_what_ties_them(chi):
    null = comeback.null_rows(chi, "shuffled", seed=1)
    np.testing.assert_array_equal(np.sort(null, axis=0), np.sort(chi, axis=0))
    assert np.corrcoef(chi.T)[0, 1] > 0.5 and abs(np.corrcoef(null.T)[0, 1]) < 0.05


def test_a_normal_sample_keeps_means_and_covariance_and_loses_the_tails(chi):
    null = comeback.null_rows(chi, "normal", seed=1)
    np.testing.assert_allclose(null.mean(axis=0), chi.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(null.T), np.cov(chi.T), atol=0.05 * np.cov(chi.T).max())
    kurtosis = lambda x: (((x - x.mean(0)) / x.std(0)) ** 4).mean(0)  # noqa: E731
    assert (kurtosis(chi) > 4).all() and (np.abs(kurtosis(null) - 3) < 0.2).all()


def test_another_null_is_refused(chi):
    with pytest.raises(ValueError, match="kinds of nulls are shuffled and normal, got 'mixed'"):
        comeback.null_rows(chi, "mixed")


def test_normal_scores_keep_the_order_and_lose_the_tails(chi):
    scores = comeback.normal_scores(chi)
    np.testing.assert_array_equal(np.argsort(scores, axis=0), np.argsort(chi, axis=0, kind="stable"))
    np.testing.assert_allclose((scores**4).mean(axis=0), 3, atol=0.05)
    assert np.corrcoef(scores.T)[0, 1] > 0.5


def test_counts_are_drawn_and_said():
    ax = comeback.counts_figure({"as measured": [81], "shuffled": [88, 69, 93], "normal": [0, 0]}).axes[0]
    assert [list(line.get_xdata()) for line in ax.lines] == [[81], [88, 69, 93], [0, 0]]
    assert [text.get_text() for text in ax.texts] == ["81", "69 to 93", "0"]
    assert ax.yaxis_inverted()  # measured on top


def test_the_ladder_shows_every_rung_that_has_a_kind():
    ladder = shipped_table("resolved")["ladder"]
    named = [rung for rung in ladder if comeback.kind_of_rung(rung["rows"])]
    assert {comeback.kind_of_rung(rung["rows"]) for rung in named} == set(comeback.MARKS)
    for ax, what in zip(comeback.ladder_figure(ladder).axes, ("neighbours", "come back"), strict=True):
        drawn = np.concatenate([bars.lines[0].get_ydata() for bars in ax.containers])
        assert sorted(drawn) == pytest.approx(sorted(rung[what][0] for rung in named))


def test_promises_are_drawn_where_they_were_made():
    levels = [
        {"share": 0.5, "clusters": 28, "came back": [0.4, 0.3, 0.6]},
        {"share": 1.0, "clusters": 9, "came back": [0.9, 0.8, 1.0]},
    ]
    ax = comeback.calibration_figure(levels).axes[0]
    points = [(bars.lines[0].get_xdata()[0], bars.lines[0].get_ydata()[0]) for bars in ax.containers]
    assert points == [(0.5, 0.4), (1.0, 0.9)]
    assert [text.get_text() for text in ax.texts] == ["28", "9"]


def test_growth_is_drawn_and_said():
    parts = [
        {"tokens": 1000, "clusters": 40, "in every repetition": 9},
        {"tokens": 2000, "clusters": 1100, "in every repetition": 20},
    ]
    ax = comeback.growth_figure(parts).axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == [[40, 1100], [9, 20]]
    assert all(list(line.get_xdata()) == [1000, 2000] for line in ax.lines)
    assert [text.get_text() for text in ax.texts] == ["40", "1,100", "9", "20"]
