"""Chapters that run: committed bare, steered by two parameters, tied to no place. (`make notebooks` runs them.)"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from spectrolib.run import profiles

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
IDS = [path.stem for path in NOTEBOOKS]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)


def code(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def python(cell) -> ast.Module:
    """A cell without its magics."""
    lines = ("" if line.startswith("%matplotlib inline") else line for line in cell.source.splitlines())
    return ast.parse("\n".join(lines))


def test_chapters_and_contents_agree():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {contents["root"], *(chapter["file"] for part in contents["parts"] for chapter in part["chapters"])}
    written = {
        path.relative_to(ROOT).with_suffix("") for kind in ("*.md", "*.ipynb") for path in (ROOT / "book").glob(kind)
    }
    assert {path.as_posix() for path in written} == listed
    assert NOTEBOOKS


@each
def test_it_is_a_valid_notebook_with_a_title(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"(\(.+\)=\s+)?# \S", first.source), "the first cell begins with the title"


@each
def test_it_is_committed_without_outputs(path):
    for cell in code(path):
        assert not cell.outputs
        assert cell.execution_count is None


@each
def test_its_parameters_are_profile_and_seed(path):
    """The rendered book is the notebook at its defaults; papermill replaces them. One chapter takes a model too."""
    (cell,) = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    assert cell == code(path)[0]
    values = {}
    exec(compile(python(cell), path.name, "exec"), {}, values)
    assert values == {"profile": "book", "seed": 0} | ({"model": "bundled"} if path.stem == "real-model" else {})
    assert profiles.get(values["profile"])


@each
def test_it_runs_in_any_folder_and_installs_nothing(path):
    place = re.compile(r"(\.{1,2}/|~/|/(home|root|tmp|usr|work|mnt|data)\b|[A-Za-z]:\\|file:)")
    for cell in code(path):
        tree = python(cell)  # a line that calls pip or the shell does not parse
        strings = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [string for string in strings if place.match(string)]
        assert not re.search(r"\b(subprocess|os\.system|getoutput|run_line_magic)\b", cell.source)


@each
def test_every_labelled_figure_says_what_it_shows(path):
    for cell in code(path):
        shown = cell.metadata.get("mystnb", {})
        if "figure" in shown:
            assert shown["figure"].get("caption")
            assert shown.get("image", {}).get("alt"), f"{shown['figure'].get('name')}: alt text"
