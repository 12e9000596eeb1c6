"""`spectro near`: a context or a number, the nearest tokens in words and as JSON, its one-line errors."""

import json
import re

import cardmaking
import numpy as np
import pytest
from commands import refused, spectro

from spectrolib import clustering
from spectrolib.reading.neighbours import near_tokens
from spectrolib.run import store
from spectrolib.run.resolved import labelled


def saved(result, folder):
    coordinates = {name: result[name].astype(object) for name in ("component", "estimator") if name in result}
    result.assign_coords(coordinates).to_zarr(folder / "result.zarr", zarr_format=3, consolidated=False)
    return folder


@pytest.fixture
def result():
    """120 tokens, with resolved rows in two halves."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(120, 16))
    halves = [first, first + 0.3 * rng.normal(size=first.shape)]
    found = labelled(cardmaking.COMPONENTS, [np.split(half, 4, axis=1) for half in halves])
    channels = {"channel_component": found.pop("channel_component")}
    return cardmaking.random_result(6, 20, halves=True).assign(found).assign_coords(channels)


@pytest.fixture
def run(result, tmp_path):
    return saved(result, tmp_path)


def flat(out: str) -> str:
    return re.sub(r"\s+", " ", out)


def test_the_table_shows_what_the_function_finds(run, result):
    code, out, error = spectro("near", run, 17, "--count", 4)
    assert (code, error) == (0, "")
    found = near_tokens(result, 17, count=4)
    assert "1 - cosine of resolved rows" in out and "cluster" not in out
    shared = round(found.shared * 4)
    assert f"{shared} of the 4 nearest by one half of the chains are among the 4 nearest by the other" in flat(out)
    for one in found.neighbours:
        halves, ranks = " ".join(f"{d:.3f}" for d in one.halves), " +".join(map(str, one.ranks))
        assert re.search(rf"^ {one.row} +{one.distance:.3f} +{halves} +{ranks} +\w+ +.*>>.*<<", out, re.M)


def test_a_context_stands_for_its_last_token(run, result):
    texts = result["text"].values
    rows = np.flatnonzero(texts == " dog").tolist()
    assert len(rows) > 1
    code, out, _ = spectro("near", run, " dog", "--json")
    found = json.loads(out)
    assert code == 0 and found["token"] == rows[0] and [place["token"] for place in found["places"]] == rows
    assert found["context"][1] == " dog" and found["rows"] == "resolved"
    expected = near_tokens(result, rows[0])
    assert [one["token"] for one in found["neighbours"]] == [one.row for one in expected.neighbours]
    assert found["shared"] == expected.shared
    _, out, _ = spectro("near", run, " dog")
    assert f"{len(rows)}, of which this is the first. Others, by number: {rows[1]}, " in flat(out)


def test_clusters_are_named_and_set_how_the_papers_rows_are_standardised(run, result):
    labels = np.full(120, -1)
    labels[:40], labels[40:65] = 0, 1
    some, why = np.arange(2), np.where(labels < 0, "main body", "cluster")
    made = clustering.Clustering(labels, np.array([0.1, 0.2]), some, np.array([40, 25]), some, why, 2)
    store.save_clusters(made, run, {"settings": {"rows": "zscore", "whiten": True, "estimator": "one_chain"}})
    found = json.loads(spectro("near", run, 3, "--rows", "paper", "--json")[1])
    expected = near_tokens(result, 3, rows="paper", standardisation={"rows": "zscore", "whiten": True})
    assert [one["distance"] for one in found["neighbours"]] == [one.distance for one in expected.neighbours]
    assert [one["cluster"] for one in found["neighbours"]] == [labels[one.row] for one in expected.neighbours]
    assert found["cluster"] == 0
    _, out, _ = spectro("near", run, 3, "--rows", "paper")
    assert "Euclidean, of the paper's rows" in out and " cluster " in out


def test_a_result_without_halves_says_so(tmp_path):
    run = saved(cardmaking.random_result(6, 20), tmp_path)
    code, out, _ = spectro("near", run, 3)
    assert code == 0 and "none: a run of 2 chains or more" in flat(out) and "ranks" not in out
    assert json.loads(spectro("near", run, 3, "--json")[1])["shared"] is None


def test_tokens_are_text_and_never_marks_of_the_terminal(tmp_path):
    words = [["[red]", "\x1b[31m", "[/]", "\n"] * 5] * 2
    code, out, error = spectro("near", saved(cardmaking.result(words), tmp_path), "[red]", "--count", 39)
    assert (code, error) == (0, "")
    assert "\x1b" not in out and ">>[red]<<" in out and ">>[/]<<" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zebra"], "the context 'zebra' stands nowhere in the 6 windows"),
        ([""], "the context is empty"),
        (["120"], "there is no token 120: the result has 120, numbered 0 to 119"),
        (["3", "--rows", "best"], "unknown rows 'best': they must be resolved or paper"),
        (["3", "--count", "0"], "0 neighbours were asked for"),
    ],
)
def test_bad_questions_are_one_line(run, arguments, message):
    assert message in refused("near", run, *arguments)


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    assert str(tmp_path) in refused("near", tmp_path, "x")
