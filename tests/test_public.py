"""The names that notebooks and other people's code rely on."""

import subprocess
import sys

import pytest

import spectrolib

NAMES = """
load_model components standardise measure Plan
posterior.Settings posterior.sample estimator.CovarianceSums estimator.two_chain estimator.one_chain
modes.decompose modes.coefficients modes.pair_susceptibilities modes.reconstruct
graph.knn_graph clustering.approximate_pagerank clustering.sweep_cut clustering.conductance
clustering.conductance_clusters
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there_after_import_spectrolib(name):
    found = spectrolib
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)


def test_modules_are_imported_when_they_are_named():
    code = "import sys, spectrolib; assert 'numba' not in sys.modules; "
    code += "spectrolib.clustering; assert 'numba' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'spectrolib' has no attribute 'spectra'"):
        _ = spectrolib.spectra
