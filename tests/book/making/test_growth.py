"""Clusters of parts of a text, on planted groups of which it is known how many each part can show."""

import numpy as np
import pytest
import xarray as xr

from spectrobook import shipped_table
from spectrobook.making import growth, resolved
from spectrolib.clustering import Clustering

GROUPS, PER_WINDOW, WINDOWS = 9, 36, 48


@pytest.fixture(scope="module")
def result():
    """Every other window has the first six groups, the others all nine; half of the tokens are in no group.

    A group has two token ids.
    """
    rng = np.random.default_rng(0)
    kinds = [6 if window % 2 == 0 else GROUPS for window in range(WINDOWS)]
    group = np.concatenate([rng.permutation(np.arange(PER_WINDOW) % (2 * kind)) for kind in kinds])
    centres = np.vstack([rng.normal(size=(GROUPS, 12)), np.zeros((GROUPS, 12))])
    single = group >= np.repeat(kinds, PER_WINDOW)
    own = np.where(single[:, None], rng.normal(size=(len(group), 12)), centres[group])
    own += 0.2 * rng.normal(size=own.shape)
    rows = own @ rng.normal(size=(12, 240)) + 0.5 * rng.normal(size=(len(group), 240))
    coordinates = {
        "sequence": ("token", np.repeat(np.arange(WINDOWS) * 3 + 5, PER_WINDOW)),  # numbers of windows have gaps
        "token_id": ("token", 2 * group + rng.integers(0, 2, len(group))),
        "channel_component": ("channel", ["a"] * 240),
    }
    return xr.Dataset({"resolved": (("half", "token", "channel"), rows[None])}, coords=coordinates)


def test_a_part_is_whole_windows(result):
    tokens = growth.part(result, 4)
    assert len(tokens) == PER_WINDOW * WINDOWS / 4
    assert set(result["sequence"].values[tokens]) == set(5 + 12 * np.arange(WINDOWS // 4))


def test_parts_show_what_they_hold_and_are_clustered_once(result, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "EVERY", (2, 1))
    monkeypatch.setattr(resolved, "available_cores", lambda: 1)
    said = []
    half, whole = growth.table(tmp_path, result, said.append)
    assert said == ["clusters of 864 tokens", "clusters of 1,728 tokens"]
    assert (half["tokens"], whole["tokens"]) == (864, 1728)
    assert (half["clusters"], whole["clusters"]) == (6, GROUPS)
    assert half["found again"][0] == 1 and half["too few"] == GROUPS - 6
    assert whole["found again"][0] == 1 and whole["too few"] == 0
    assert whole["mixed"] <= whole["clusters"] and 0.4 < whole["coverage"] < 0.7
    assert growth.table(tmp_path, result, said.append) == [half, whole] and len(said) == 2


def test_a_mixed_cluster_has_no_token_in_more_than_half(result):
    labels = np.repeat([0, 1, -1], [10, 12, 5])
    ids = np.array([3] * 5 + [4] * 5 + [3] * 7 + [4] * 5 + [9] * 5)
    found = Clustering(
        labels,
        conductance=np.zeros(2),
        seeds=np.zeros(2, dtype=int),
        sizes=np.array([10, 12]),
        order=np.arange(2),
        why=np.full(27, "cluster"),
        seeds_tried=2,
        share=np.array([1.0, 0.8]),
        support=np.ones(27),
    )
    row = growth.described(found, ids)
    assert (row["mixed"], row["in every repetition"], row["share"]) == (1, 1, pytest.approx(0.9))


def test_what_ships_grows_with_the_text_and_nests():
    parts = shipped_table("growth")["parts"]
    tokens = [part["tokens"] for part in parts]
    assert tokens == [102_400 // step for step in growth.EVERY]
    assert shipped_table("growth")["settings"]["repeats"] == growth.REPEATS
    for part in parts:
        assert 0 < part["mixed"] <= part["clusters"] and part["in every repetition"] <= part["clusters"]
    assert all(0 <= low <= value <= high <= 1 for value, low, high in (part["found again"] for part in parts))
