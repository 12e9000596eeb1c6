"""What ships: measurements that open, and the vectors, clusters and kept layout that all chapters share."""

import json

import numpy as np
import pytest

from spectrobook import shipped


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_measurements_open_and_say_what_they_are(name):
    found = shipped.shipped_result(name)
    assert np.isfinite(found["susceptibility"].values).all()
    settings = json.loads(found.attrs["manifest"])["settings"]
    assert (settings["nbeta"] == 0) == (name == "zero")


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'paper' ships with the library: there are book, zero, untrained"):
        shipped.shipped_result("paper")


def test_vectors_are_standardised_and_made_once():
    vectors = shipped.vectors()
    assert vectors.shape == shipped.result()["susceptibility"].shape
    np.testing.assert_allclose(vectors.mean(axis=1), 0, atol=1e-5)  # rows are centred last
    assert shipped.vectors() is vectors
