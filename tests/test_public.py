"""The names that notebooks and other people's code rely on."""

import ast
import inspect
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import spectrolib

NAMES = """
load_model components standardise measure Plan
posterior.Settings posterior.sample estimator.CovarianceSums estimator.two_chain estimator.one_chain
modes.decompose modes.coefficients modes.pair_susceptibilities modes.reconstruct
graph.knn_graph clustering.approximate_pagerank clustering.sweep_cut clustering.conductance
clustering.conductance_clusters autoencoders.match tokenmap.write_html
""".split()
SIGNATURES = {
    "load_model": "name_or_path revision device dtype",
    "components": "model",
    "measure": "plan out executor",
    "standardise": "chi rows whiten",
    "posterior.sample": "settings",
    "estimator.two_chain": "restricted full",
    "estimator.one_chain": "restricted",
    "modes.decompose": "joint",
    "modes.pair_susceptibilities": "chi modes",
    "modes.reconstruct": "pair modes",
    "graph.knn_graph": "vectors k symmetrise metric",
    "clustering.conductance_clusters": "graph seed",
    "tokenmap.write_html": "path xy labels contexts names",
}
DEFAULTS = {
    "load_model": {"name_or_path": "bundled", "revision": None, "device": "auto", "dtype": "float32"},
    "measure": {"executor": "local"},
    "standardise": {"rows": "center", "whiten": False},
    "graph.knn_graph": {"k": 45, "symmetrise": "union", "metric": "euclidean"},
    "clustering.conductance_clusters": {"seed": 0},
}


def named(name: str):
    found = spectrolib
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there_after_import_spectrolib(name):
    assert callable(named(name))


@pytest.mark.parametrize("name", SIGNATURES)
def test_its_arguments_have_the_agreed_names_order_and_defaults(name):
    parameters = inspect.signature(named(name)).parameters
    agreed = SIGNATURES[name].split()
    assert [argument for argument in parameters if argument in agreed] == agreed
    defaults = {argument: parameters[argument].default for argument in DEFAULTS.get(name, {})}
    assert defaults == DEFAULTS.get(name, {})


@pytest.mark.parametrize("name", spectrolib.__all__)
def test_every_public_name_is_imported(name):
    assert getattr(spectrolib, name) is not None
    assert name in dir(spectrolib)


def test_a_profile_makes_a_plan_and_modules_have_short_names():
    assert next(iter(inspect.signature(spectrolib.Plan.from_profile).parameters)) == "profile"
    assert {"model", "seed"} <= set(inspect.signature(spectrolib.Plan.from_profile).parameters)
    from spectrolib import tokenmap

    assert tokenmap is sys.modules["spectrolib.reading.tokenmap"]


def test_no_public_function_or_class_has_the_name_of_another():
    homes, folder = defaultdict(set), Path(spectrolib.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(file.relative_to(folder).as_posix())
    assert {name: sorted(files) for name, files in homes.items() if len(files) > 1} == {}


def test_modules_are_imported_when_they_are_named():
    code = "import sys, spectrolib; assert 'numba' not in sys.modules; "
    code += "spectrolib.clustering; assert 'numba' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'spectrolib' has no attribute 'spectra'"):
        _ = spectrolib.spectra
