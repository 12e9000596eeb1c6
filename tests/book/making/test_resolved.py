"""The tables behind the chapters on clusters, in small: what agrees, what must not."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from spectrobook import DATA
from spectrobook.making import resolved
from spectrolib.run.result import token_coordinates
from spectrolib.text.corpus import bundled_windows


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
    assert min(found["clusters"]) >= 5 and found["come back"][0] >= 0.8 and found["adjusted Rand"][0] > 0.7
    assert all(found[what][1] <= found[what][0] <= found[what][2] for what in ("neighbours", "adjusted Rand"))
    noise = resolved.unit(np.random.default_rng(1).normal(size=(240, 50)))
    other = resolved.agreement(planted(0), noise, result)
    assert other["neighbours"][0] < 0.15 and other["adjusted Rand"][0] < 0.1
    given = resolved.agreement(planted(0), noise, result, np.repeat(np.arange(6), 40))
    assert given["clusters"][1] == 6 and given["come back"][0] >= 0.8  # clusters that another method made


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


def test_quanta_discovery_finds_planted_groups():
    found = resolved.quanta(planted(0), 6)
    assert resolved.robustness.adjusted_rand(np.repeat(np.arange(6), 40), found) > 0.95


def test_the_whole_gradient_has_the_lengths_that_components_had():
    rng = np.random.default_rng(0)
    true = [rng.normal(size=(50, 8)) * size for size in (1.0, 20.0)]
    scale = [np.sqrt((part**2).sum(axis=1).mean()) for part in true]
    kept = np.concatenate([part / size for part, size in zip(true, scale, strict=True)], axis=1)
    result = xr.Dataset(
        {"resolved": (("half", "token", "channel"), kept[None]), "resolved_scale": (("half", "component"), [scale])},
        coords={"component": ["a", "b"], "channel_component": ("channel", np.repeat(["a", "b"], 8))},
    )
    np.testing.assert_allclose(resolved.whole_gradient(result, 0), np.concatenate(true, axis=1), rtol=1e-5)


def test_simple_rows_know_of_token_and_output_alone(bundled):
    ids = np.array([[5, 9, 7, 9], [1, 9, 9, 7]])
    rows = resolved.simple_rows(bundled, ids)
    own = resolved.unit(rows["embedding of the token"])
    assert own.shape[0] == 6 and own[0] @ own[2] > 0.999 > own[0] @ own[1]  # 9 and 9; 9 and 7
    weights = bundled.weights
    np.testing.assert_allclose(
        rows["gradient at the final state"], rows["output error"] @ weights[bundled.shape.unembed].numpy(), atol=1e-4
    )
    chances = rows["output error"].copy()
    chances[np.arange(6), ids[:, 1:].ravel()] += 1
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    expected = chances @ weights[bundled.shape.where.embed].numpy()
    np.testing.assert_allclose(rows["embedding that is expected"], expected, atol=1e-5)


def test_labels_are_shuffled_inside_their_groups():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(-1, 5, 400), rng.integers(0, 7, 400)
    mixed = resolved.shuffled_within(labels, groups, rng)
    assert (mixed != labels).mean() > 0.5
    for group in range(7):
        np.testing.assert_array_equal(np.sort(mixed[groups == group]), np.sort(labels[groups == group]))


def test_rules_of_real_and_of_shuffled_clusters(bundled, bundled_engine):
    """Clusters that are tokens: rules find them, also where equal tokens swap labels, and not where all do."""
    windows = bundled_windows("heldout").take(np.arange(0, 160, 4)).cut(33)
    result = xr.Dataset(
        {"loss": ("token", bundled_engine.losses(windows).numpy().ravel())}, coords=token_coordinates(bundled, windows)
    )
    _, number, counts = np.unique(result["token_id"].values, return_inverse=True, return_counts=True)
    label = np.full(len(counts), -1)
    label[np.argsort(-counts)[:5]] = np.arange(5)
    noise = np.random.default_rng(0).integers(0, 5, len(number))
    rows = resolved.readable(SimpleNamespace(labels=label[number]), result, bundled, {"noise": noise})
    assert len(rows) == 8 and {row["clusters"] for row in rows} == {5}
    share = {(row["speak of"], row["labels"]): row["confident"][0] for row in rows}
    for what in ("text", "text and output"):
        assert share[what, "as found"] == share[what, "shuffled among equal tokens"] >= 0.8
        assert share[what, "shuffled"] == share[what, "noise"] == 0


def test_plans_share_no_randomness_where_they_are_compared_as_independent(bundled, tmp_path):
    plans = resolved.plans(tmp_path, bundled)
    for one, other in (("first", "fresh"), ("draws", "zero")):
        assert plans[one].settings.seed != plans[other].settings.seed
        assert plans[one].probe.hash == plans[other].probe.hash
    assert plans["zero"].settings.nbeta == 0 < plans["draws"].settings.nbeta
    texts = [set(plans[name].sampling.domain) for name in ("prose", "code")]
    assert (
        not texts[0] & texts[1] and plans["prose"].probe.hash == plans["code"].probe.hash == plans["draws"].probe.hash
    )
    assert len({plans[name].model.hash for name in ("first", "shuffled", "initial")}) == 3


def test_a_table_is_made_once(tmp_path):
    said, made = [], []
    for value in (1, 2):
        made.append(resolved.kept(tmp_path / "tables", "some", lambda value=value: [value], said.append))
    assert made == [[1], [1]] and said == ["making the table of some"]


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


def measured(looks: list[np.ndarray], numbers: dict[str, list[np.ndarray]], windows: int) -> xr.Dataset:
    """A measurement whose halves are two looks at the same tokens: 12 tokens to a window, three components."""
    owner = np.repeat(["a", "b", "c"], [17, 17, 16])
    ids = np.random.default_rng(0).integers(0, 9, looks[0].shape[0])
    coords = {
        "sequence": ("token", np.repeat(np.arange(windows), 20)),
        "position": ("token", np.tile(np.arange(1, 21), windows)),
        "token_id": ("token", ids),
        "channel_component": ("channel", owner),
        "component": ["a", "b", "c"],
        "control": ["permuted", "noise"],
        "estimator": list(numbers),
    }
    tables = np.array([[[one] for one in halves] for halves in numbers.values()])
    mean = {name: np.mean(halves, axis=0) for name, halves in numbers.items()}
    variables = {
        "resolved": (("half", "token", "channel"), np.stack(looks)),
        "resolved_scale": (("half", "component"), np.ones((2, 3))),
        "half_susceptibility": (("estimator", "half", "block", "token", "component"), tables),
        "susceptibility": (("token", "component"), mean["two_chain"]),
        "covariance": (("token", "component"), -mean["one_chain"]),
        "control_covariance": (
            ("control", "token", "component"),
            np.random.default_rng(9).normal(size=(2, *mean["one_chain"].shape)),
        ),
    }
    return xr.Dataset(variables, coords=coords)


def test_the_papers_protocol_is_read_half_against_half_and_beside_first_order():
    """Two-chain numbers that repeat, covariances that are noise, and channels that know the groups."""
    rng = np.random.default_rng(2)
    good = rng.normal(size=(240, 3))
    numbers = {
        "two_chain": [good + 0.01 * rng.normal(size=good.shape) for _ in range(2)],
        "one_chain": list(rng.normal(size=(2, 240, 3))),
    }
    own = measured([planted(0), planted(1)], numbers, 12)
    other = rng.normal(size=(8 * 240, 50))
    other.reshape(-1, 8, 20, 50)[:, 0] = planted(2).reshape(12, 20, 50)  # the windows that were sampled, every eighth
    first = measured(
        [other, other], {"two_chain": [np.zeros((1920, 3))] * 2, "one_chain": [np.zeros((1920, 3))] * 2}, 96
    )
    ids = np.random.default_rng(3).integers(0, 9, 1920)
    ids.reshape(-1, 8, 20)[:, 0] = own["token_id"].values.reshape(12, 20)
    first["token_id"] = ("token", ids)
    rows = {row["rows"]: row for row in resolved.protocol(own, first)}
    shared = {name: row["neighbours"][0] for name, row in rows.items()}
    assert shared["the two-chain value"] > 0.8 > 0.15 > shared["the covariance alone"]
    assert shared["all draws"] > 0.3 and shared["all draws, and first order"] > 0.3
    assert (
        max(shared[f"{name}, and first order"] for name in ("the observable permuted", "the covariance alone")) < 0.15
    )
    assert rows["the two-chain value"]["channels"] == 3 and rows["all draws"]["channels"] == 50


@pytest.mark.parametrize("cluster", [resolved.cut, resolved.stable])
def test_what_ctrl_c_cut_short_is_no_table(cluster, monkeypatch):
    monkeypatch.setattr(resolved, "available_cores", lambda: 1)
    for name in ("conductance_clusters", "stable_clusters"):
        whole = getattr(resolved, name)
        monkeypatch.setattr(resolved, name, lambda *a, whole=whole, **b: replace(whole(*a, **b), finished=False))
    with pytest.raises(KeyboardInterrupt):
        cluster(planted(0))
