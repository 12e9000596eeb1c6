"""What commands read in a run folder: settings of the clusters, and how their vectors were standardised."""

import json

import pytest

from spectrolib.cli import runs


def write(folder, content) -> None:
    (folder / "clusters.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_without_clusters_there_are_no_settings_and_the_usual_standardisation(tmp_path):
    assert runs.settings_of_clusters(tmp_path) == {}
    assert runs.standardisation(tmp_path) == {"rows": "center", "whiten": False}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"rows": "center", "whiten": False}),
        ({"rows": "none"}, {"rows": None, "whiten": False}),
        ({"rows": "zscore", "whiten": True, "k": 45}, {"rows": "zscore", "whiten": True}),
    ],
)
def test_vectors_are_standardised_as_they_were_for_the_clusters(tmp_path, settings, expected):
    write(tmp_path, {"settings": settings, "sizes": [3]})
    assert runs.settings_of_clusters(tmp_path) == settings
    assert runs.standardisation(tmp_path) == expected


@pytest.mark.parametrize("content", ["{", "[1]", '{"settings": 3}'])
def test_damaged_settings_say_what_to_run(tmp_path, content):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=r"clusters\.json is damaged .*run `spectro cluster"):
        runs.settings_of_clusters(tmp_path)


def imported(run, **model) -> None:
    """A manifest as `devinterp.save_run` writes it."""
    known = {
        "windows": {"probe": {"shape": [1, 9]}},
        "settings": {"chains": 0},
        "versions": {},
        "estimator": "two_chain",
    }
    known |= {"model": {"name": "unknown", "revision": None, "hash": ""} | model, "components": ["l0h0"]}
    (run / "manifest.json").write_text(json.dumps(known))


def test_imported_tables_ask_for_the_model_and_not_the_hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    imported(tmp_path)
    with pytest.raises(ValueError, match=r"imported from tables that do not name the measured model: .* --model$"):
        runs.reader_of(tmp_path, "")
    assert runs.reader_of(tmp_path, "bundled")[0].name == "bundled"
    assert runs._tokenizer(tmp_path, "") is None


def test_a_model_that_an_earlier_version_called_by_a_relative_name_is_found(tmp_path, monkeypatch):
    from spectrolib.text.corpus import BUNDLED

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(BUNDLED)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    imported(tmp_path / "runs" / "one", name="models/mine")
    assert runs.reader_of(tmp_path / "runs" / "one", "")[0].shape.layers == 6


def test_a_folder_that_is_no_run_has_no_reader(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json"):
        runs.reader_of(tmp_path, "")
