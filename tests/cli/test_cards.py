"""`spectro cards`: from a clustered run to cards and catalogue on disk, its summary, its one-line errors."""

import json
import re

import cardmaking
import numpy as np
import pytest
from typer.testing import CliRunner

from spectrolib import cli, clustering
from spectrolib.cli import runs
from spectrolib.reading import cards, naming
from spectrolib.run import store


@pytest.fixture
def run(tmp_path):
    """A run folder with a result and two clusters: ' the', and noise."""
    result = cardmaking.random_result(count=40)
    result.to_zarr(tmp_path / "result.zarr", zarr_format=3, consolidated=False)
    words = result["text"].values
    labels = np.where(words == " the", 0, -1)
    labels[np.random.default_rng(0).choice(np.flatnonzero(labels < 0), 30, replace=False)] = 1
    sizes, some = np.bincount(labels[labels >= 0]), np.arange(2)
    why = np.where(labels >= 0, "cluster", "main body")
    found = clustering.Clustering(labels, np.array([0.1, 0.2]), some, sizes, some, why, 2)
    store.save_clusters(found, tmp_path, {"settings": {"rows": "zscore", "whiten": True}})
    return tmp_path


def spectro(*arguments, **options) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["cards", *map(str, arguments)], **options)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"SPECTRO_NAME_{name}", raising=False)


def test_cards_and_catalogue(run, monkeypatch):
    monkeypatch.setattr(naming.Endpoint, "ask", lambda *_: pytest.fail("nobody asked for names"))
    code, out, error = spectro(run, "--examples", 3)
    assert (code, error) == (0, "")
    made = cards.open_cards(run)
    expected = cards.cards(runs.clustered_result(run), store.open_clusters(run), rows="zscore", whiten=True, examples=3)
    assert repr(made) == repr(expected)
    assert re.search(r"^clusters +2$", out, re.M)
    assert re.search(r"^rules +1 confident; medians: precision [\d.]+, recall [\d.]+$", out, re.M)
    (sure,) = (card for card in made if card.rule.confident)
    numbers = f"{sure.size} +{sure.rule.precision.value:.2f} +{sure.rule.recall.value:.2f}"
    assert sure.label == "' the'" and re.search(rf"^ *{sure.cluster} +{numbers} +' the' *$", out, re.M)
    assert "cards.json" in out and "catalogue.html" in out
    page = (run / "catalogue.html").read_text()
    assert "2 clusters, 1 with a confident rule" in page and 'id="cluster-1"' in page


def test_the_same_in_json(run):
    code, out, _ = spectro(run, "--json", "--seed", 4)
    printed = json.loads(out)
    assert (code, printed["clusters"], printed["confident"], printed["seed"]) == (0, 2, 1, 4)
    assert printed["named_by"] is None
    assert json.loads((run / "cards.json").read_text())["about"] == printed


def test_names_where_an_endpoint_is_given(run, monkeypatch):
    monkeypatch.setattr(naming.Endpoint, "ask", lambda self, task, question: "the word [1, 2]")
    code, out, _ = spectro(run, "--name-url", "http://localhost:1/v1", "--name-model", "m")
    assert code == 0 and "the word [1, 2]" in out
    assert [card.name.model for card in cards.open_cards(run)] == ["m", "m"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name-url", "localhost", "--name-model", "m"], "starts with http:// or https://"),
        (["--name-url", "http://localhost"], "needs the name of a model"),
        (
            ["--name-url", "http://127.0.0.1:9/v1", "--name-model", "m"],
            "http://127.0.0.1:9/v1/chat/completions cannot be",
        ),
    ],
)
def test_bad_endpoints_are_one_line(run, arguments, message, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    code, out, error = spectro(run, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: ") and message in error
    assert not (run / "cards.json").exists()


def test_without_clusters_it_says_what_to_run(run):
    (run / "clusters.npz").unlink()
    code, out, error = spectro(run)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert f"run `spectro cluster {run}`" in error


def test_without_a_result_it_says_so(tmp_path):
    code, out, error = spectro(tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)


def test_damaged_settings_are_one_line(run):
    (run / "clusters.json").write_text("[1]")
    code, _, error = spectro(run)
    assert code == 2 and error.count("\n") == 1
    assert "clusters.json is damaged" in error and f"run `spectro cluster {run}` again" in error


def test_ctrl_c(run, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cards, "cards", stopped)
    assert spectro(run) == (130, "", "stopped: nothing was written\n")
    assert not (run / "cards.json").exists()
