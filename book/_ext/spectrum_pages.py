"""The catalogues of clusters and the maps of tokens, made from the shipped measurements when the book is built.

They are pages of their own at the root of the built book: catalogue.html and map.html of the bundled model,
real-catalogue.html and real-map.html of the real one. Sphinx did not write them, so chapters link to them with plain
HTML: ``<a href="../map.html#cluster-3">``.
"""

from pathlib import Path


def write_pages(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    from spectrobook import realmodel, shipped  # here: they are slow to load, and not every builder needs them

    write_pair(
        app.outdir,
        "",
        (shipped.result(), shipped.clusters(), shipped.layout(), shipped.cards()),
        vectors=shipped.vectors(),
        tokenizer=shipped.tokenizer(),
        whose="the bundled model's measurement",
        chapter="the book's chapter on clusters",
    )
    write_pair(
        app.outdir,
        "real-",
        (realmodel.tokens(), realmodel.clusters(), realmodel.arrays()["layout"], realmodel.cards()),
        whose=f"the measurement of {realmodel.NAME}",
        chapter="the book's chapter on a real model",
    )


def write_pair(folder, prefix, measured, *, whose, chapter, vectors=None, tokenizer=None):
    """A catalogue and a map that link to each other."""
    from spectrolib.reading import catalogue, tokenmap

    result, clusters, positions, cards = measured
    about = (
        f"{len(clusters.labels):,} tokens of {whose}, of which {clusters.coverage:.0%} are in a cluster; {chapter}"
        " says how they were found, and what to believe of them."
    )
    names = {kind: f"{prefix}{kind}.html" for kind in ("catalogue", "map")}
    whole = catalogue.catalogue_page(cards, title="Catalogue of clusters", about=about, token_map=names["map"])
    page = tokenmap.map_page(
        result,
        clusters,
        positions,
        vectors=vectors,
        cards=cards,
        tokenizer=tokenizer,
        title="Map of tokens",
        catalogue=names["catalogue"],
        links={"Catalogue of clusters": names["catalogue"], "The book": "index.html"},
    )
    for kind, content in (("catalogue", whole), ("map", page)):
        tokenmap.write_page(content, Path(folder) / names[kind])


def setup(app):
    app.connect("build-finished", write_pages)
    return {"version": "1.0", "parallel_read_safe": True}
