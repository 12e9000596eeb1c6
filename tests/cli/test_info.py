"""`spectro info`: what it says of a run."""

import numpy as np
import xarray as xr
from commands import refused, spectro

from spectrolib.run.store import RunFolder


def test_info_of_what_is_no_run(tmp_path):
    assert "is not a run folder: it has no manifest.json" in refused("info", tmp_path)


def test_info_of_a_finished_table_from_elsewhere(tmp_path):
    """It has susceptibilities, and no chains to judge."""
    manifest = {"model": {"name": "m", "hash": ""}, "settings": {"chains": 0}, "versions": {}, "components": ["embed"]}
    manifest |= {"windows": {"probe": {"shape": [1, 3], "source": "theirs"}}, "estimator": "two_chain"}
    table = {"susceptibility": (("token", "component"), np.ones((2, 1)))}
    RunFolder(tmp_path / "run", manifest).save_result(xr.Dataset(table, coords={"component": ["embed"]}))
    code, out, error = spectro("info", tmp_path / "run")
    assert (code, error) == (0, "")
    assert "probe 1 x 3 tokens (theirs)" in out


def test_info_of_a_damaged_manifest(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assert "manifest.json lacks 'model'" in refused("info", tmp_path)
