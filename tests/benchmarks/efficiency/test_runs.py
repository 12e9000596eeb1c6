"""The chains of the efficiency benchmark, on a tiny model."""

from dataclasses import replace

import numpy as np
import pytest
from efficiency import runs
from efficiency.grid import Cell

from spectrolib.model.loading import engine_of

CELL = Cell("l1h0", 10.0, 300.0, "six", replicates=2, draws=2, batch=2, steps=1)


@pytest.fixture
def work(tiny_model, tiny_windows):
    return runs.Work(engine_of(tiny_model), tiny_windows, tiny_windows[:3], tiny_windows[3:5])


def test_a_cell_keeps_every_draw_and_what_it_took(work):
    found = runs.sample_cell(work, CELL)
    tokens = work.probe[:, 1:].size
    assert found["excess"].shape == (2, 2, 6, tokens) and found["rise"].shape == (2, 2, 6)
    assert all((found[key] > 0).all() for key in ("gradient_seconds", "update_seconds", "evaluation_seconds"))
    assert not np.array_equal(found["excess"][0], found["excess"][1])
    single = runs.sample_cell(work, replace(CELL, team="pair"))  # the first two of the six have the same noise
    np.testing.assert_allclose(single["excess"], found["excess"][:, :, :2], atol=1e-4)


def test_a_chain_that_leaves_is_said_and_stops_nothing(work):
    found = runs.sample_cell(work, replace(CELL, gamma=1e-9))
    assert list(found) == ["message"] and "chain" in str(found["message"])


def test_what_is_there_is_not_sampled_again(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "COMPONENTS", ("l1h0",))
    monkeypatch.setattr(runs, "LONG", ("l1h0",))
    monkeypatch.setattr(runs, "long_run", lambda work, component: {"plain": np.zeros(3)})
    runs.sample(tmp_path, work, [CELL])
    names = {"own_l1h0.npy", "long_l1h0.npz", "slope_l1h0.npy", f"{CELL.name}.npz", "cells.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert "cell 1 of 1" in capsys.readouterr().out
    runs.sample(tmp_path, work, [CELL])
    assert not capsys.readouterr().out
