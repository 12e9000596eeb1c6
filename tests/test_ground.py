"""The ground: ranges that agree in two places, exact pins inside them, imports declared, metadata that agree."""

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_NAMES = {"pytorch": "torch"}  # conda-forge's name for it: the rest comes from pip


def ranges(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = map(Requirement, lines)
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements}


CORE = ranges(PROJECT["dependencies"])
EXTRAS = {name: ranges(lines) for name, lines in PROJECT["optional-dependencies"].items()}
EVERYTHING = {name: spec for group in (CORE, *EXTRAS.values()) for name, spec in group.items()}
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = {canonicalize_name(name): version for name, version in (line.split("==") for line in PINS)}


def test_the_environment_has_the_ranges_of_the_project():
    conda = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
    (pip,) = (section["pip"] for section in ENVIRONMENT["dependencies"] if isinstance(section, dict))
    assert conda[:2] == ["python=3.11", "pip"]
    assert pip[0] == "-c constraints.txt"
    found = ranges(pip[1:]) | {CONDA_NAMES[name]: spec for name, spec in ranges(conda[2:]).items()}
    assert found == CORE | EXTRAS["book"]
    assert "3.11" in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize(
    "package",
    "torch transformers jupyter-book matplotlib seaborn numpy scipy papermill networkx".split(),
)
def test_readers_find_the_packages_they_expect(package):
    assert package in CORE | EXTRAS["book"]


def test_pins_are_exact_and_name_no_place():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in PINS)
    assert len(PINNED) == len(PINS)


@pytest.mark.parametrize("package", sorted(EVERYTHING))
def test_every_range_has_a_pin_inside_it(package):
    assert Version(PINNED[package]) in EVERYTHING[package]


def test_these_tests_run_on_the_pinned_versions():
    """A stale environment tests something else than what a reader installs: then `make clean`, and again."""
    installed = {name: Version(version(name)) for name in EVERYTHING}
    assert {name: v.public for name, v in installed.items()} == {name: PINNED[name] for name in EVERYTHING}


def imported(source: str) -> set[str]:
    """Top-level modules that a source file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"spectrolib"}


def test_the_library_imports_what_it_declares():
    providers = packages_distributions()
    modules = set().union(*(imported(path.read_text()) for path in (ROOT / "spectrolib").rglob("*.py")))
    packages = {canonicalize_name(providers[module][0]) for module in modules}
    comes_along = {"fsspec", "pyarrow", "babel"}  # with huggingface-hub, datasets, and jupyter-book (a source of text)
    assert packages - comes_along <= set(CORE) | set().union(*(EXTRAS[name] for name in ("hub", "distributed", "gguf")))
    for_readers = {"networkx"}  # asked for in every environment; the graph chapters compare with it
    assert set(CORE) - packages <= for_readers


def test_nothing_hides_the_environment_from_binder():
    assert not [name for name in ("binder", ".binder", "requirements.txt", "Dockerfile") if (ROOT / name).exists()]
    assert os.access(ROOT / "postBuild", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_citation_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"] == version("spectrolib")
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert citation["references"][0]["url"].endswith("2601.12703")
    assert len(citation["references"][0]["authors"]) == 6


def test_the_readme_names_commands_and_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)`", readme)) | set(re.findall(r"^make ([a-z]+)", readme, re.M))
    assert {"book", "test"} <= named <= targets
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
