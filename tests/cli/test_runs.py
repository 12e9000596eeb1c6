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


def test_a_folder_that_is_no_run_has_no_reader(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json"):
        runs.reader_of(tmp_path, "")
