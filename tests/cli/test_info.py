"""`spectro info`: what it says of a run."""

from commands import refused


def test_info_of_what_is_no_run(tmp_path):
    assert "is not a run folder: it has no manifest.json" in refused("info", tmp_path)
