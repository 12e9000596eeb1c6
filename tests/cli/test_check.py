"""`spectro check`: the table of a run, which cards show; interrupted; its one-line errors."""

import json
import re
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from spectrolib import cli, clustering
from spectrolib.model.ablation import silenced_losses
from spectrolib.model.loading import engine_of
from spectrolib.reading import cards, effects
from spectrolib.run import store


def spectro(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


def save_labels(run, labels: np.ndarray) -> None:
    sizes, some = np.bincount(labels[labels >= 0]), np.arange(labels.max() + 1)
    why = np.where(labels >= 0, "cluster", "main body")
    found = clustering.Clustering(labels, np.full(len(sizes), 0.1), some, sizes, some, why, 2)
    store.save_clusters(found, run, {"settings": {"rows": "none", "whiten": False}})


@pytest.fixture
def run(narrow_run, tmp_path):
    """40 windows of 8 tokens, one component; every third token in a cluster, four others in another."""
    shutil.copytree(narrow_run, tmp_path / "run")
    labels = np.full(320, -1)
    labels[::3], labels[[1, 4, 7, 10]] = 0, 1
    save_labels(tmp_path / "run", labels)
    return tmp_path / "run"


def test_a_table_that_cards_show(run, narrow_plan):
    code, out, error = spectro("check", run, "--steps", 1)
    assert code == 0, error
    first, second = effects.open_effects(run)
    engine, probe = engine_of(narrow_plan.model), narrow_plan.probe
    rise = (silenced_losses(engine, ["l0h0"], probe)[0] - engine.losses(probe)).flatten().numpy()
    labels = store.open_clusters(run).labels
    (cost,) = first.costs
    assert cost.component == "l0h0" and cost.own.value == pytest.approx(rise[labels == 0].mean(), rel=1e-4)
    assert cost.others == pytest.approx(rise[labels != 0].mean(), rel=1e-4)
    assert first.falls.fit + first.falls.test == (labels == 0).sum()
    assert second.falls is None  # too small to be steered towards
    assert re.search(r"^clusters +2, 1 components silenced$", out, re.M) and "steering" in out
    assert not (run / "check").exists()

    assert spectro("cards", run)[0] == 0
    made = cards.open_cards(run)
    assert repr(made[0].costs) == repr(first.costs) and repr(made[0].falls) == repr(first.falls)
    assert "Removing <bdi>l0h0</bdi> costs this cluster" in (run / "catalogue.html").read_text()
    save_labels(run, np.where(labels == 0, 1, 0) * (labels >= 0) - (labels < 0))  # clustered again: no longer of these
    assert spectro("cards", run)[0] == 0 and cards.open_cards(run)[0].costs == ()


def test_json_and_no_steering(run):
    code, out, _ = spectro("check", run, "--clusters", 0, "--json")
    found = json.loads(out)
    assert code == 0 and found["steered"] == 0 and found["rise"].keys() == {"l0h0"}
    assert 0 <= found["rows"]["named"][0] <= 1
    assert all(effect.falls is None for effect in effects.open_effects(run))


def test_stopped_it_keeps_what_it_has(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(effects.causal, "steer", stop)
    code, _, error = spectro("check", run)
    assert code == 130 and "the same command goes on" in error
    assert not (run / "check.json").exists() and list((run / "check").rglob("layer0.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--h", "2"], "h must lie above 0 and be at most 1"), (["--steps", "0"], "steps must be at least 1")],
)
def test_bad_options_are_one_line(run, arguments, message):
    code, _, error = spectro("check", run, *arguments)
    assert code == 2 and message in error and "Traceback" not in error


def test_a_run_without_clusters(narrow_run):
    code, _, error = spectro("check", narrow_run)
    assert code == 2 and "run `spectro cluster" in error
