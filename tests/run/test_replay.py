"""A run's recipe, from its manifest alone."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from measuring import SETTINGS, plan

from spectrolib.run.profiles import LAPTOP
from spectrolib.run.replay import PastRun, located, profile_of_source
from spectrolib.run.store import RunFolder


@pytest.fixture
def run(folder, tmp_path):
    made = plan(folder, replace(SETTINGS, seed=7), components=("l0h1",), channels=6, estimator="one_chain")
    return RunFolder(tmp_path / "runs" / "one", made.manifest()).path, made


def change(run, **fields) -> None:
    file = run / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_manifest_tells_the_plan(run):
    path, made = run
    recipe = PastRun(path)
    assert recipe.profile.settings == made.settings
    assert (recipe.profile.length, recipe.profile.sampling_windows) == (9, 20)
    assert (recipe.profile.loss_windows, recipe.profile.probe_windows) == (4, 6)
    assert recipe.changes == {"components": ("l0h1",), "channels": 6, "estimator": "one_chain", "blocks": 2}
    assert not recipe.profile.first_order
    recipe.check_model(made.model)
    recipe.check_windows(made, ("sampling", "loss", "probe"))


def test_other_inputs_are_refused_by_name(run):
    path, made = run
    recipe = PastRun(path)
    with pytest.raises(ValueError, match="model 'x' is another one now"):
        recipe.check_model(SimpleNamespace(name="x", hash="0" * 64))
    with pytest.raises(ValueError, match=r"the loss windows cut from .* are others now"):
        recipe.check_windows(replace(made, loss=made.loss.take(slice(0, 2))), ("sampling", "loss"))
    recipe.check_windows(replace(made, loss=made.loss.take(slice(0, 2))), ("sampling",))
    with pytest.raises(ValueError, match=r"does not say which text its sampling windows were cut from: .*--text"):
        _ = recipe.sources


@pytest.mark.parametrize("settings", [{"chains": 0}, {"nbeta": 1.0}])
def test_imported_runs_and_other_settings_are_refused(run, settings):
    change(run[0], settings={"chains": 2} | settings)
    with pytest.raises(ValueError, match="can't be measured again: its settings are not those of this version"):
        PastRun(run[0])


def test_names_of_earlier_versions_are_found_from_anywhere(run, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = str(tmp_path / "texts")
    assert located("texts", run[0]) == found
    assert located(found, run[0]) == found
    assert located("EleutherAI/pythia-14m", run[0]) == "EleutherAI/pythia-14m"
    monkeypatch.chdir(tmp_path)
    assert located("texts", run[0]) == found


def test_the_profile_of_a_data_set():
    assert profile_of_source(LAPTOP.source) == LAPTOP
    assert profile_of_source("someone/else") is None
