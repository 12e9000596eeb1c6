"""`spectro map`: from a clustered run to a page on disk, its summary, its one-line errors."""

import json
import os
import re

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from spectrobook.clouds import Clouds, plant
from spectrolib import cli, clustering
from spectrolib.cli import runs
from spectrolib.reading import cards, tokenmap
from spectrolib.run import store


@pytest.fixture
def run(tmp_path):
    """A run folder with its result and clusters: 300 tokens in planted clouds."""
    clouds = plant(Clouds(tokens=300, clusters=3, largest=60, hubs=0), seed=2)
    dataset = xr.Dataset(
        {"susceptibility": (("token", "component"), clouds.vectors)},
        coords={
            "component": np.array([f"l0h{i}" for i in range(clouds.vectors.shape[1])], dtype=object),
            "sequence": ("token", np.repeat(np.arange(10), 30)),
            "position": ("token", np.tile(np.arange(1, 31), 10)),
            "token_id": ("token", np.arange(300) % 7),
            "text": ("token", np.array([f" t{i % 7}" for i in range(300)], dtype=object)),
            "domain": ("token", np.array(["prose"] * 300, dtype=object)),
            "document": ("token", np.array(["a.txt"] * 300, dtype=object)),
        },
    )
    dataset.to_zarr(tmp_path / "result.zarr", zarr_format=3, consolidated=False)
    labels = np.full(300, -1)
    labels[:40], labels[40:65] = 0, 1
    some, why = np.arange(2), np.where(labels < 0, "main body", "cluster")
    found = clustering.Clustering(labels, np.array([0.1, 0.2]), some, np.array([40, 25]), some, why, 2)
    store.save_clusters(found, tmp_path, {"settings": {"rows": "zscore", "whiten": True}})
    return tmp_path


def spectro(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["map", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def laid_out(monkeypatch) -> list:
    """UMAP replaced by two columns; what it was asked for."""
    calls = []
    monkeypatch.setattr(tokenmap, "_umap", lambda rows, k, seed: calls.append((rows, k, seed)) or rows[:, :2])
    return calls


def test_page_and_layout(run, laid_out):
    code, out, error = spectro(run, "--k", 20, "--seed", 4)
    assert (code, error) == (0, "")
    assert re.search(r"^tokens +300, 22% of them in 2 clusters$", out, re.M)
    assert re.search(r"^cards +none: run `spectro cards ", out, re.M)
    assert re.search(r"^time +\d+ s, of which layout \d+ s$", out, re.M)
    assert "map.html (0.0" in out and "layout.npz" in out
    ((rows, k, seed),) = laid_out
    assert (k, seed) == (20, 4)
    expected = runs.standardisation(run)
    assert expected == {"rows": "zscore", "whiten": True}
    from spectrolib.estimator import standardise
    from spectrolib.run.store import open_result

    np.testing.assert_array_equal(rows, standardise(open_result(run)["susceptibility"].values, **expected))
    page = (run / "map.html").read_text()
    assert '"tokens":300' in page and '"catalogue":""' in page
    spectro(run, "--k", 20, "--seed", 4)
    assert len(laid_out) == 1  # kept


def test_cards_are_shown_where_there_are_some(run, laid_out):
    result = CliRunner().invoke(cli.app, ["cards", str(run)])
    assert result.exit_code == 0, result.output
    code, out, _ = spectro(run)
    assert code == 0
    assert re.search(r"^cards +of 2 clusters$", out, re.M)
    page = (run / "map.html").read_text()
    assert json.dumps(cards.open_cards(run)[0].title).replace("<", "\\u003c") in page
    assert '"catalogue":"catalogue.html"' in page
    for link in ('<a href="map.html">Map of tokens</a>', '<a href="map.html#cluster-1">'):  # the catalogue leads here
        assert link in (run / "catalogue.html").read_text()
    CliRunner().invoke(cli.app, ["cards", str(run)])
    assert 'href="map.html' in (run / "catalogue.html").read_text()
    os.utime(run / "map.html", (0, 0))  # of older clusters
    CliRunner().invoke(cli.app, ["cards", str(run)])
    assert 'href="map.html' not in (run / "catalogue.html").read_text()


def test_without_clusters_it_says_what_to_run(run):
    (run / "clusters.npz").unlink()
    code, out, error = spectro(run)
    assert (code, out) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"run `spectro cluster {run}`" in error


def test_bad_neighbours_are_one_line(run):
    code, _, error = spectro(run, "--k", 300)
    assert code == 2 and error.count("\n") == 1
    assert "from 2 to 299" in error


def test_ctrl_c(run, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenmap, "_umap", stopped)
    assert spectro(run) == (130, "", "stopped: no map was written\n")
    assert not (run / "map.html").exists()
