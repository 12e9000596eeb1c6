"""`spectro cluster`: from a run folder to labels on disk, its summary, its one-line errors, Ctrl-C."""

import inspect
import json
import re

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from spectrobook.clouds import Clouds, plant
from spectrolib import cli, clustering, graph, peeling
from spectrolib.cli import runs
from spectrolib.cli.cluster import cluster_command
from spectrolib.estimator import standardise
from spectrolib.run import store


@pytest.fixture(scope="module")
def susceptibilities() -> np.ndarray:
    """800 tokens, 32 components: planted clouds, each column in a unit of its own."""
    clouds = plant(Clouds(tokens=800, clusters=4, largest=120, hubs=8), seed=2)
    return clouds.vectors * np.geomspace(1e-6, 10, 32)


@pytest.fixture
def run(susceptibilities, tmp_path):
    """A run folder with its result alone."""
    dataset = xr.Dataset({"susceptibility": (("token", "component"), susceptibilities)})
    dataset.to_zarr(tmp_path / "result.zarr", zarr_format=3, consolidated=False)
    return tmp_path


@pytest.fixture
def terms(run, susceptibilities):
    """The same folder, with a two-chain value that is noise, and the covariance beside it."""
    noise = np.random.default_rng(0).normal(size=susceptibilities.shape)
    names = [f"c{i}" for i in range(susceptibilities.shape[1])]
    dataset = xr.Dataset(
        {
            "susceptibility": (("token", "component"), noise),
            "covariance": (("token", "component"), -susceptibilities),
            "standard_error": (("token", "component"), noise),
        },
        coords={"component": names},
        attrs={"estimator": "two_chain"},
    )
    dataset.to_zarr(run / "result.zarr", mode="w", zarr_format=3, consolidated=False)
    return run


def spectro(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["cluster", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_labels_and_summary(run, susceptibilities):
    code, out, error = spectro(run, "--k", 25)
    assert (code, error) == (0, "")
    found = store.open_clusters(run)
    expected = clustering.conductance_clusters(graph.knn_graph(standardise(susceptibilities), 25, "mutual"))
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert len(found.sizes) >= 2
    assert re.search(r"^tokens +800 x 32 components$", out, re.M)
    assert re.search(r"^graph +mutual, k = 25: mean degree \d+\.\d, recall 1\.0000$", out, re.M)
    assert re.search(rf"^clusters +{len(found.sizes)}, by fast peeling from {found.seeds_tried} seeds$", out, re.M)
    assert re.search(rf"^sizes +median [\d.]+: {', '.join(map(str, found.sizes))}$", out, re.M)
    assert re.search(r"^conductance +median 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)$", out, re.M)
    assert re.search(rf"Jaccard overlap of [01]\.\d\d \(median of {len(found.sizes)} clusters\)", out)
    assert re.search(rf"^coverage +{found.coverage:.1%}; the rest: main body {found.main_body.sum()}, ", out, re.M)
    assert re.search(r"^time +\d+ s, of which graph \d+ s$", out, re.M)


def test_the_same_in_json(run):
    options = ("--symmetrise", "union", "--rows", "zscore", "--min-size", 30, "--max-size", 150, "--certify", 1)
    code, out, error = spectro(run, "--k", 20, *options, "--barrier", 1, "--seed", 3, "--json")
    assert (code, error) == (0, "")
    printed = json.loads(out)
    assert printed == json.loads((run / "clusters.json").read_text())
    found = store.open_clusters(run)
    for name in ("sizes", "conductance", "seeds", "order"):
        assert printed[name] == getattr(found, name).tolist()
    assert printed["clusters"] == len(found.sizes) > 0
    assert 30 <= min(printed["sizes"]) <= max(printed["sizes"]) <= 150
    assert printed["left"] == found.left()
    assert sum(printed["left"].values()) + sum(printed["sizes"]) == printed["tokens"] == 800
    assert len(printed["exact"]["overlap"]) == 1
    assert printed["settings"] == {
        "estimator": "",
        "k": 20,
        "symmetrise": "union",
        "rows": "zscore",
        "whiten": False,
        "method": "fast",
        "seed": 3,
        "min_size": 30,
        "max_size": 150,
        "barrier": 1.0,
    }
    assert printed["seconds"]["all"] > printed["seconds"]["graph"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", 800], "fewer than the 800 vectors"),
        (["--symmetrise", "both"], "'union' or 'mutual'"),
        (["--method", "slow"], "'fast' or 'literal'"),
        (["--rows", "all"], "unknown rows 'all': they must be resolved, paper, zscore or none"),
        (["--min-size", 0], "min_size must be at least 1"),
        (["--max-size", 5], "max_size must be at least min_size"),
        (["--barrier", 0], "barrier must be a number of at least 1"),
    ],
)
def test_bad_options_are_one_line(run, options, message):
    code, out, error = spectro(run, *options)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (run / "clusters.json").exists()


def test_a_folder_without_a_result_is_one_line(tmp_path):
    code, _, error = spectro(tmp_path)
    assert code == 2
    assert "holds no finished measurement" in error
    assert error.count("\n") == 1


def test_ctrl_c(run, monkeypatch):
    calls, fast = [], peeling.fast

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return fast(*arguments)

    monkeypatch.setattr(peeling, "fast", stopped)
    code, out, error = spectro(run, "--k", 25)
    assert code == 130
    assert error == "stopped: the clusters found so far are written, marked as unfinished\n"
    assert not store.open_clusters(run).finished
    assert json.loads((run / "clusters.json").read_text())["finished"] is False

    def at_once(*arguments, **options):
        raise KeyboardInterrupt

    (run / "clusters.json").unlink()
    monkeypatch.setattr(graph, "nearest", at_once)
    code, out, error = spectro(run)
    assert (code, out, error) == (130, "", "stopped: nothing was written\n")
    assert not (run / "clusters.json").exists()


def test_the_rows_of_another_estimator(terms, susceptibilities):
    code, out, _ = spectro(terms, "--k", 25, "--estimator", "one_chain", "--json")
    assert code == 0
    expected = clustering.conductance_clusters(graph.knn_graph(standardise(susceptibilities), 25, "mutual"))
    np.testing.assert_array_equal(store.open_clusters(terms).labels, expected.labels)
    assert json.loads(out)["settings"]["estimator"] == "one_chain"
    np.testing.assert_allclose(runs.clustered_result(terms)["susceptibility"], susceptibilities)
    code, out, error = spectro(terms, "--estimator", "three_chain")
    assert (code, out) == (2, "") and "unknown estimator 'three_chain'" in error and error.count("\n") == 1


def test_the_defaults_are_those_of_the_library():
    """The command repeats them, for its help must not wait for what compiles."""
    offered = inspect.signature(cluster_command).parameters
    for name in ("max_size", "barrier"):
        assert offered[name].default == getattr(peeling.Options, name)
    assert offered["min_size"].default is None and peeling.Options.min_size == 20  # its own for each kind of rows


def test_resolved_rows_are_the_default_where_there_are_channels(tmp_path):
    """From gradients to clusters that come back, cards and a map, by the commands alone."""
    from typer.testing import CliRunner

    from spectrolib import cli

    def command(*arguments) -> str:
        done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        return " ".join(done.stdout.split())

    out = tmp_path / "run"
    measured = command(
        "measure", "--profile", "smoke", "--first-order", "--channels", 512, "--out", out, "--workers", 1
    )
    assert "a gradient of every token, no chains" in measured and "1,024 channels" in measured
    words = command("cluster", out, "--repeats", 3)
    assert "come back" in words and "1,024 channels" in words
    found, summary = store.open_clusters(out), json.loads((out / "clusters.json").read_text())
    assert summary["settings"]["rows"] == "resolved" and summary["share"] == found.share.tolist()
    assert len(found.share) == len(found.sizes) > 0 and (found.share >= 0.5).all()
    assert "not at hand" not in command("cards", out)
    result = store.open_result(out)
    expected, names = runs.guesses_for(out, result, "")
    np.testing.assert_array_equal(expected.rank == 1, expected.token == result["token_id"].values)
    right = expected.rank == 1
    np.testing.assert_allclose(np.exp(-result["loss"].values[right]), expected.probability[right], rtol=1e-4)
    assert set(expected.token.tolist()) == set(names)
    cards = json.loads((out / "cards.json").read_text())["cards"]
    assert [card["share"] for card in cards] == found.share.tolist()
    assert all(card["loss"] >= 0 and card["length"] > 0 for card in cards)
    assert "came back in" in (out / "catalogue.html").read_text()
    assert "gradients" in command("info", out) or "1 of 1 tasks are done" in command("info", out)
    paper = command("cluster", out, "--rows", "paper", "--k", 15, "--min-size", 10)
    assert "channels" not in paper and store.open_clusters(out).share is None


def test_resolved_rows_refuse_what_has_no_meaning_for_them(run):
    assert "no resolved rows: measure with --channels" in spectro(run, "--rows", "resolved")[2]
    assert "not whitened" in spectro(run, "--rows", "resolved", "--whiten")[2]
