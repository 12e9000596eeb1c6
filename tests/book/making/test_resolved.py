"""The tables of the chapter Resolved rows, in small: what agrees, what must not."""

import json

import numpy as np
import pytest
import xarray as xr

from spectrobook import DATA
from spectrobook.making import resolved


@pytest.fixture(scope="module")
def result():
    ids = np.random.default_rng(0).integers(0, 9, 240)
    return xr.Dataset(coords={"sequence": ("token", np.repeat(np.arange(12), 20)), "token_id": ("token", ids)})


def planted(seed: int, noise: float = 0.4) -> np.ndarray:
    """Six groups of 40 tokens; another seed gives another look at them."""
    own = np.repeat(np.random.default_rng(5).normal(size=(6, 8)), 40, axis=0)
    own = own + 0.2 * np.random.default_rng(6).normal(size=own.shape)
    rng = np.random.default_rng([7, seed])
    return resolved.unit(own @ rng.normal(size=(8, 50)) + noise * rng.normal(size=(240, 50)))


def test_two_looks_at_planted_groups_agree_and_noise_does_not(result):
    found = resolved.agreement(planted(0), planted(1), result)
    assert min(found["clusters"]) >= 5 and found["come back"][0] >= 0.8 and found["adjusted Rand"] > 0.7
    assert found["neighbours"][1] <= found["neighbours"][0] <= found["neighbours"][2]
    noise = resolved.unit(np.random.default_rng(1).normal(size=(240, 50)))
    other = resolved.agreement(planted(0), noise, result)
    assert other["neighbours"][0] < 0.15 and other["adjusted Rand"] < 0.1


def test_channels_are_thinned_and_combined_component_by_component():
    rows, owner = np.arange(12.0).reshape(2, 6), np.array(list("aaabbb"))
    np.testing.assert_array_equal(resolved.thinned(rows, owner, 2), rows[:, [0, 1, 3, 4]])
    found = resolved.combined(rows, owner, seed=0)
    assert found.shape == (2, 2)
    weights = np.linalg.lstsq(rows[:, :3], found[:, 0], rcond=None)[0]
    np.testing.assert_allclose(rows[:, :3] @ weights, found[:, 0])


def test_a_normal_sample_has_the_covariance_and_no_clusters(result):
    rows = planted(0)
    sample = resolved.normal_like(rows, seed=0)
    np.testing.assert_allclose(np.cov(sample.T), np.cov(rows.T), atol=0.03)
    _, found = resolved.cut(resolved.unit(sample))
    assert found.coverage < 0.3


def test_the_shipped_tables_are_of_the_shipped_model():
    table = json.loads((DATA / "resolved.json").read_text())
    from spectrolib import load_model

    model = load_model("bundled", device="cpu")
    manifests = table["manifests"]
    assert {manifests[name]["model"]["hash"] for name in ("first", "draws")} == {model.hash}
    assert manifests["shuffled"]["model"]["hash"] != model.hash
    assert manifests["first"]["first_order"] and not manifests["draws"].get("first_order")
    with np.load(DATA / "resolved.npz") as arrays:
        labels, share = arrays["labels"], arrays["share"]
    assert len(share) == labels.max() + 1 and ((share > 0) & (share <= 1)).all()
    rungs = {rung["rows"]: rung for rung in table["ladder"]}
    assert all(low <= value <= high for rung in rungs.values() for value, low, high in [rung["neighbours"]])
