"""The control measurements, in small."""

import json

import numpy as np
import pytest

from spectrobook.making import steps
from spectrobook.making.controls import initial
from spectrolib.model.loading import engine_of
from spectrolib.run import store
from spectrolib.text.corpus import bundled_windows


def test_controls(tiny, tmp_path):
    made = steps.make("controls", tmp_path)
    zero, untrained = (store.open_packed(made / f"measurement-{name}.zarr.zip") for name in ("zero", "untrained"))
    manifests = [json.loads(m) if isinstance(m := r.attrs["manifest"], str) else m for r in (zero, untrained)]
    assert [m["settings"]["nbeta"] for m in manifests] == [0.0, 10.0]
    assert manifests[0]["model"]["hash"] != manifests[1]["model"]["hash"]
    assert zero.sizes["token"] == untrained.sizes["token"] == 2 * 16  # every other window


def test_a_model_as_it_might_have_begun(bundled, tmp_path):
    made = initial(bundled, tmp_path / "initial")
    assert made.name == "bundled, weights drawn anew" and made.shape == bundled.shape
    for name, weight in made.weights.items():
        if weight.ndim > 1:
            assert abs(float(weight.std()) / 0.02 - 1) < 0.05 and abs(float(weight.mean())) < 1e-3, name
        else:
            assert (weight == (1.0 if name.endswith("weight") else 0.0)).all(), name
    ids = bundled_windows("heldout").ids[:4, :33]
    assert float(engine_of(made).losses(ids).mean()) == pytest.approx(np.log(4096), abs=0.2)  # it knows nothing
    assert initial(bundled, tmp_path / "initial").hash == made.hash != bundled.hash
