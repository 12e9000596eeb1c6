"""The button that opens a chapter on Binder: there with an address in _config.yml, and else no trace of it."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_book.config import get_final_config
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = yaml.safe_load((ROOT / "_config.yml").read_text())


def page(folder: Path, url: str, monkeypatch) -> str:
    """A book of one chapter with the theme and the buttons of this one, its address changed to ``url``."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "book" / "_ext"), *sys.path])
    own = WITHOUT | {"repository": WITHOUT["repository"] | {"url": url}}
    (folder / "_config.yml").write_text(yaml.safe_dump(own))
    told, _ = get_final_config(
        user_yaml=folder / "_config.yml", sourcedir=folder, cli_config={"latex_individualpages": False}
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "book").mkdir()
    nbformat.write(notebook, folder / "book" / "chapter.ipynb")
    settings = {
        "extensions": ["myst_nb", "sphinx_book_theme", "binder"],
        "html_theme": "sphinx_book_theme",
        "html_theme_options": told["html_theme_options"],
        "nb_execution_mode": "off",
        "root_doc": "book/chapter",
        "exclude_patterns": ["out"],
    }
    out = folder / "out"
    app = Sphinx(folder, None, out, out / "trees", "html", confoverrides=settings, status=None, freshenv=True)
    app.build()
    return (out / "book" / "chapter.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("url", "place"),
    [("https://github.com/someone/a-book", "gh/someone/a-book"), ("https://gitlab.com/some/book", "gl/some%2Fbook")],
)
def test_an_address_brings_the_button(tmp_path, monkeypatch, url, place):
    links = re.findall(r'href="(https://mybinder[^"]*)"', page(tmp_path, url, monkeypatch))
    assert links == [f"https://mybinder.org/v2/{place}/HEAD?urlpath=lab/tree/book/chapter.ipynb"]


def test_no_address_no_button(tmp_path, monkeypatch):
    assert "mybinder" not in page(tmp_path, "", monkeypatch)


def test_the_book_loads_the_extension():
    assert "binder" in WITHOUT["sphinx"]["local_extensions"]
    assert "binder" in WITHOUT["sphinx"]["config"]["extensions"]
