"""The control measurements, in small."""

import json

from spectrobook.making import steps
from spectrolib.run import store


def test_controls(tiny, tmp_path):
    made = steps.make("controls", tmp_path)
    zero, untrained = (store.open_packed(made / f"measurement-{name}.zarr.zip") for name in ("zero", "untrained"))
    manifests = [json.loads(m) if isinstance(m := r.attrs["manifest"], str) else m for r in (zero, untrained)]
    assert [m["settings"]["nbeta"] for m in manifests] == [0.0, 10.0]
    assert manifests[0]["model"]["hash"] != manifests[1]["model"]["hash"]
    assert zero.sizes["token"] == untrained.sizes["token"] == 2 * 16  # every other window
