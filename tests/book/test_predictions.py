"""Numbers of the causal tests, on a table that is made up so that they are known; and on the one that ships."""

import math

import numpy as np
import pytest

from spectrobook import predictions, shipped_table


@pytest.fixture(scope="module")
def table():
    """Two kinds of six clusters; those of resolved rows fall by 1 more than what they are compared with."""
    rng = np.random.default_rng(0)
    steering, pairs = {}, []
    for kind, own in (("resolved", 2.0), ("paper", 1.0)):
        noise = rng.normal(size=6)
        steering[kind] = {
            "clusters": [
                {"own": [own + e, 0, 3], "k-means": [1 + e, 0, 3], "by_outside": [None] * 3, "outside": [1 + e, 0, 3]}
                | {"random": 0.0, "rest": 0.0}
                for e in noise
            ],
            "together": {name: {"agreement": [0.6, 0.5, 0.7], "chance": 0.1} for name in predictions.TOGETHER},
        }
        for cluster in range(6):
            for component in ("a", "b"):
                said = float(np.exp(rng.normal()))
                pair = {"kind": kind, "cluster": cluster, "component": component, "predicted": said}
                pairs.append(pair | {"seen": 1.5 * said, "two predicted": said, "two seen": -said})
    bent = [{"kind": kind, "h": h, "seen": 2 - h} for kind in predictions.KINDS for h in (0.5, 0.3)]
    return {"steering": steering, "tilting": {"pairs": pairs, "bend": bent}}


def test_a_lead_is_paired(table):
    ahead = predictions.lead(table, "resolved", "k-means")
    assert tuple(ahead) == pytest.approx((1, 1, 1)), "the noise is the same in both"
    assert predictions.mean_fall(table, "resolved", "own").high > 2.1
    assert tuple(predictions.lead(table, "paper", "k-means")) == pytest.approx((0, 0, 0))
    assert math.isnan(predictions.lead(table, "resolved", "by_outside").value)


def test_a_line_knows_sign_order_and_size(table):
    one, two = (predictions.line(table["tilting"]["pairs"], two=two) for two in (False, True))
    assert (one.sign.value, one.sign.high) == (1, 1) and 0.5 < one.sign.low < 1, "so few clusters leave room for doubt"
    assert (two.sign.value, two.sign.low) == (0, 0) and 0 < two.sign.high < 0.5
    assert tuple(one.ratio) == pytest.approx((1.5, 1.5, 1.5))
    assert one.correlation.value == pytest.approx(1) and two.correlation.value == pytest.approx(-1)
    assert predictions.bend(table, "paper") == (0.5, pytest.approx(1.5 / 1.7))


def test_a_finite_tilt_bends_a_ratio_of_partition_functions():
    """<g> Z_C / Z with log (Z_C / Z) linear in h: the response at h is the derivative times the factor, exactly."""
    h, nbeta, rise, slopes = 0.3, 10.0, {"a": 0.02, "b": 0.5}, {"a": 0.4, "b": -0.9}
    pairs = []
    for component, slope in slopes.items():
        above, below = (rise[component] * np.exp(sign * h * nbeta * slope) for sign in (1, -1))
        seen = (above - below) / (2 * h * nbeta)
        pairs.append({"kind": "paper", "cluster": 0, "component": component, "two seen": seen})
        pairs[-1]["two predicted"] = rise[component] * slope
    measured = {"settings": {"tilting": {"h": h, "nbeta": nbeta}}, "tilting": {"pairs": pairs}}
    factor = predictions.finite_tilt(measured, rise)
    assert (factor > 1.2).all()
    assert predictions.line(pairs, two=True, factor=factor).ratio.value == pytest.approx(1)


def test_the_interval_of_a_line_is_over_clusters():
    """Twenty components that all say the same of their cluster are no more evidence than one."""
    pairs = [
        {"kind": "paper", "cluster": cluster, "predicted": 1.0 + c, "seen": (1.0 + c) * (-1 if cluster < 2 else 1)}
        for cluster in range(6)
        for c in range(20)
    ]
    sign = predictions.line(pairs).sign
    assert sign.value == pytest.approx(2 / 3)
    assert sign.high - sign.low > 0.5


def test_agreement_is_read_above_chance():
    assert tuple(predictions.beyond_chance({"agreement": [0.6, 0.5, 0.7], "chance": 0.1})) == pytest.approx(
        (0.5, 0.4, 0.6)
    )
    part = {"named": [0.3, 0.2, 0.4], "named_chance": 0.1}
    assert tuple(predictions.beyond_chance(part, "named")) == pytest.approx((0.2, 0.1, 0.3))


def test_what_ships_can_be_drawn():
    measured = shipped_table("causal")
    figures = [
        predictions.silenced_figure(measured, list(predictions.ROWS), ("signed", "size")),
        predictions.steered_figure(measured),
        predictions.together_figure(measured),
        predictions.tilted_figure(measured),
    ]
    dots, *_ = figures[0].axes[0].lines
    assert dots.get_xdata().tolist() == pytest.approx(predictions.correlations(measured, "signed", "two chains"))
    pairs = measured["tilting"]["pairs"]
    drawn = sum(len(line.get_xdata()) for line in figures[3].axes[0].lines if line.get_linestyle() == "None")
    assert drawn == len(pairs)
