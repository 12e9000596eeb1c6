"""The tables of the causal tests, in small: sets, planted kernels, what ships."""

import json

import numpy as np
import pytest

from spectrobook import DATA
from spectrobook.making import causal as room
from spectrolib.checks import causal


def test_the_partner_is_of_the_size_and_can_be_steered_towards():
    fit = np.tile([True, False], 100)
    labels = np.repeat([0, 1, 2, -1], [40, 20, 4, 136])  # the last is too small
    member = np.zeros(200, dtype=bool)
    member[150:165] = True
    assert room.likest(member, labels, fit) == 1
    member[100:150] = True
    assert room.likest(member, labels, fit) == 0


def test_a_planted_kernel_predicts_what_falls_together_and_noise_does_not():
    rng, place = np.random.default_rng(0), np.arange(6)
    seen = rng.normal(size=(6, 40))
    found = room.agreement(seen + 0.5 * rng.normal(size=seen.shape), seen, place, seed=0)
    assert found["agreement"].low > 0.5 > found["chance"] + 0.3
    noise = room.agreement(rng.normal(size=seen.shape), seen, place, seed=0)
    assert noise["agreement"].low < 0 < noise["agreement"].high
    general = np.repeat(rng.normal(size=(1, 40)), 6, axis=0)  # the same for every steered cluster: all of it is chance
    shared = room.agreement(general, general + 0.1 * rng.normal(size=seen.shape), place, seed=0)
    assert shared["agreement"].value > 0.9 and shared["agreement"].value - shared["chance"] < 0.05


def test_rows_are_thinned_to_unit_length():
    found = room.thinned(np.arange(1.0, 2001.0).reshape(2, 1000), most=250)
    assert found.shape == (2, 250)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)


def test_k_means_is_kept(tmp_path):
    table = np.repeat(np.eye(3), 10, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(30, 3))
    labels = np.repeat([0, 1, -1], 10)
    found = room.kmeans(tmp_path / "k.npy", table, labels, 0)
    assert len(set(found[:20].tolist())) == 2 and (found[20:] == -1).all()
    assert np.array_equal(room.kmeans(tmp_path / "k.npy", table[::-1], labels, 0), found)


def test_numbers_as_json_holds_them():
    found = room.plain({"a": np.float32(1.2345678), "b": [np.nan, causal.mean_of(np.array([]))], "c": np.int64(3)})
    assert found == {"a": 1.2346, "b": [None, [None] * 3], "c": 3}


def test_what_ships_is_of_the_shipped_model_and_clusters(bundled):
    table = json.loads((DATA / "causal.json").read_text())
    assert table["manifest"]["model"]["hash"] == bundled.hash
    with np.load(DATA / "resolved.npz") as stored:
        assert table["clusters"]["resolved"] == len(stored["sizes"])
    assert (DATA / "causal.json").stat().st_size < 200_000
    assert len(table["components"]) == 30
    for rows in table["ablation"]["signed"].values():
        assert len(rows) == 30 and all(low <= value <= high for value, low, high in rows)
    for kind, found in table["ablation"]["clusters"].items():
        assert len(table["ablation"]["costs"][kind]) == table["clusters"][kind]
        assert all(abs(one["agreement_chance"]) < 0.1 for one in found.values())
    control = [value for value, *_ in table["ablation"]["signed"]["two chains, rows shuffled"]]
    assert np.abs(control).max() < 0.05
    assert all(pair["predicted"] for pair in table["tilting"]["pairs"])
    with pytest.raises(KeyError):
        table["ablation"]["clusters"]["paper"]["loss"]  # it names no component
