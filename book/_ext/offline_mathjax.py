"""Mathematics with no network: MathJax comes from an installed package and travels with the book."""

from importlib.metadata import files
from pathlib import Path

from sphinx.util.fileutil import copy_asset_file

SCRIPT = "tex-svg-full.js"  # one file, every TeX extension inside: nothing is fetched later


def copy_script(app):
    if app.builder.format == "html":
        source = next(f for f in files("sphinx-mathjax-offline") if f.name == SCRIPT)
        target = Path(app.outdir) / "_static" / "mathjax"
        target.mkdir(parents=True, exist_ok=True)
        copy_asset_file(str(source.locate()), str(target))


def setup(app):
    app.connect("builder-inited", copy_script)
    app.connect("config-inited", lambda app, config: setattr(config, "mathjax_path", f"mathjax/{SCRIPT}"))
    return {"version": "1.0", "parallel_read_safe": True}
