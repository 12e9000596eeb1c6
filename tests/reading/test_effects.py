"""What is done to clusters: against the parts that it is made of, interrupted and taken up again, kept on disk."""

import math

import measuring
import numpy as np
import pytest

from spectrolib.checks import causal
from spectrolib.checks.intervals import Estimate
from spectrolib.model.ablation import silenced_losses
from spectrolib.model.loading import engine_of, load_model
from spectrolib.reading import effects
from spectrolib.run.result import token_coordinates
from spectrolib.text.runningtext import running_text

NAMES = ["l0h0", "l0 mlp", "l1h1"]


@pytest.fixture(scope="module")
def checked(narrow_folder):
    import xarray as xr

    model, probe = load_model(narrow_folder, device="cpu"), measuring.windows(2, 40)
    text = running_text(xr.Dataset(coords=token_coordinates(model, probe)))
    labels = np.full(probe.ids[:, 1:].size, -1)
    labels[::7], labels[3::40] = 0, 1
    return effects.Checked(engine_of(model), probe.ids, text, labels)


def test_rises_are_those_of_silenced_components(checked, tmp_path):
    seen = []
    found = effects.rises(checked, NAMES, tmp_path, seen.append)
    losses = silenced_losses(checked.engine, NAMES, checked.windows) - checked.engine.losses(checked.windows)
    np.testing.assert_allclose(found, losses.flatten(1).T, atol=1e-6)
    assert seen == ["components of layer 0 silenced", "components of layer 1 silenced"]
    again = effects.rises(checked, NAMES, tmp_path, lambda what: pytest.fail(f"{what} again"))
    assert np.array_equal(found, again)


def test_costs_are_of_members_against_all_others(checked):
    rise = np.random.default_rng(0).normal(size=(len(checked.labels), 3))
    member = checked.labels == 1
    rise[member, 2] += 5
    first, second = effects.effects(checked, rise, NAMES, {})
    assert (first.cluster, second.cluster, first.falls) == (0, 1, None)
    worst = second.costs[0]
    assert worst.component == "l1h1" and len(second.costs) == 3
    assert worst.own.value == pytest.approx(rise[member, 2].mean())
    assert worst.own.low < worst.own.value < worst.own.high
    assert worst.others == pytest.approx(rise[~member, 2].mean())


def test_steering_goes_on_where_it_stopped(checked, tmp_path, monkeypatch):
    chosen = checked.steered(None)
    assert chosen == causal.steerable(checked.labels, checked.fit).tolist() and 0 in chosen
    assert checked.steered(1) == chosen[:1]
    done = dict(effects.fallen(checked, [0], tmp_path))
    expected, _ = causal.steer(checked.halves(), checked.labels == 0, (0, 0))
    assert repr(done[0]) == repr(expected)
    monkeypatch.setattr(causal, "steer", lambda *_: pytest.fail("it was done"))
    assert repr(dict(effects.fallen(checked, [0], tmp_path))) == repr(done)


def test_pieces_of_another_check_are_not_taken(checked, tmp_path):
    from dataclasses import replace

    first = checked.pieces(tmp_path)
    assert checked.pieces(tmp_path) == first and first.is_dir()
    other = replace(checked, labels=checked.labels[::-1].copy()).pieces(tmp_path)
    assert other != first and not first.exists()


def test_a_table_survives_the_disk(checked, tmp_path):
    unknown = Estimate(math.nan, math.nan, math.nan)
    falls = causal.Falls(5, 6, Estimate(0.5, 0.25, 0.75), 0.125, -0.5, unknown, unknown)
    cost = effects.RemovalCost("l0 mlp", Estimate(1.5, 1.0, 2.0), 0.25)
    made = [effects.Effect(0, (cost,), falls), effects.Effect(1, (cost, cost), None)]
    effects.save_effects(made, tmp_path, {"seed": 0})
    assert repr(effects.open_effects(tmp_path)) == repr(made)
    with pytest.raises(ValueError, match=r"no check.json\): run `spectro check"):
        effects.open_effects(tmp_path / "nowhere")
