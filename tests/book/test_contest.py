"""Trials on planted clouds against truth and bound; figures that show the shipped comparison as it is."""

import numpy as np
import pandas as pd
import pytest

from spectrobook import clouds, contest


@pytest.fixture(scope="module")
def benchmark():
    return clouds.benchmark()


def test_every_knob_is_tried_at_its_default_and_beside_it():
    values, defaults = contest.knob_values(400), contest.knob_defaults(400)
    assert list(values) == list(contest.KNOBS) and set(defaults) == set(contest.KNOBS)
    assert all(defaults[knob] in some and len(some) > 1 for knob, some in values.items())
    assert (defaults["alpha"], defaults["min_size"], defaults["max_size"]) == (0.001, 20, 100)
    assert all(len(some) <= 2 for some in contest.knob_values(400, quick=True).values())


def test_a_trial_at_the_defaults_is_the_plain_run_whatever_the_knob():
    setting = clouds.Clouds(tokens=240, clusters=2, smallest=20, largest=40, hubs=10)
    defaults = contest.knob_defaults(240)
    some = {"min_size": [20, 60], "barrier": [defaults["barrier"]]}
    trials = contest.knob_trials(setting, some, seed=1)
    assert len(trials) == 6
    same = trials[trials.value == trials.knob.map(defaults)].groupby("graph")
    assert (same.f1.nunique() == 1).all()
    assert (trials[trials.value == 60].recall == 0).all()  # no planted cluster has as many


def test_small_sets_obey_the_bound_in_the_union_graph_alone():
    trials = contest.smallest_trials(300, (12, 30), repeats=2)
    union, mutual = (trials[trials.graph == kind] for kind in contest.KINDS)
    assert (union.conductance >= contest.least_conductance(union["size"]) - 1e-12).all()
    assert (mutual.conductance < contest.least_conductance(mutual["size"])).any()
    assert contest.least_conductance([1, 20, 46, 80]).tolist() == pytest.approx([1, 26 / 45, 0, 0])
    left = contest.smallest_figure(trials).axes[0]
    assert sorted(np.concatenate([line.get_ydata() for line in left.lines[1:3]])) == sorted(trials.conductance)


def test_knobs_are_drawn_by_their_means():
    rows = [
        {"graph": kind, "knob": "k", "value": value, "f1": f1, "body_left": 1 - f1}
        for kind in contest.KINDS
        for value, f1 in ((8, 0.2), (8, 0.4), (45, 0.9))
    ]
    ax = contest.knobs_figure(pd.DataFrame(rows), {"k": 45}).axes[0]
    assert ax.lines[0].get_ydata() == pytest.approx([0.3, 0.9]) and ax.lines[1].get_ydata() == pytest.approx([0.7, 0.1])


def test_the_comparison_is_drawn_and_said_as_it_was_made(benchmark):
    methods = benchmark["methods"]
    rand = [np.mean([run["rand"] for run in record["test"]]) for record in methods.values()]
    ax = contest.methods_figure(benchmark).axes[0]
    assert [line.get_xdata()[0] for line in ax.lines[1:-1:2]] == pytest.approx(rand)
    assert [label.get_text() for label in ax.get_yticklabels()] == contest.short_names(methods)
    runs = next(iter(methods.values()))["test"]
    assert contest.over_seeds(runs, "rand").startswith(f"{rand[0]:.2f} (")
    assert contest.over_seeds([{"recall": 1.0}], "rand") == ""


def test_shares_found_are_counted_over_seeds(benchmark):
    methods = benchmark["methods"]
    sizes, share = contest.found_shares(methods)
    runs = list(methods.values())[1]["test"]
    assert share[1, 0] == np.mean([run["by_cluster"][0]["found"] for run in runs])
    assert len(sizes) == share.shape[1] and len(methods) == len(share)
    assert len(contest.found_figure(methods).axes[0].texts) == share.size
