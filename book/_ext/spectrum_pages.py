"""The catalogue of clusters and the map of tokens, made from the shipped measurement when the book is built.

They are pages of their own at the root of the built book, catalogue.html and map.html. Sphinx did not write them, so
chapters link to them with plain HTML: ``<a href="../map.html#cluster-3">``.
"""

from pathlib import Path


def write_pages(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    from spectrobook import shipped
    from spectrolib.reading import catalogue, tokenmap  # here: they are slow to load, and not every builder needs them

    result, clusters, cards = shipped.result(), shipped.clusters(), shipped.cards()
    about = (
        f"{len(clusters.labels):,} tokens of the bundled model's measurement, of which {clusters.coverage:.0%} are in a"
        " cluster; the book's chapter on clusters says how they were found, and what to believe of them."
    )
    page = tokenmap.map_page(
        result,
        clusters,
        shipped.layout(),
        cards=cards,
        tokenizer=shipped.tokenizer(),
        title="Map of tokens",
        links={"Catalogue of clusters": "catalogue.html", "The book": "index.html"},
    )
    catalogue.write_catalogue(cards, app.outdir, title="Catalogue of clusters", about=about, token_map="map.html")
    tokenmap.write_page(page, Path(app.outdir) / "map.html")


def setup(app):
    app.connect("build-finished", write_pages)
    return {"version": "1.0", "parallel_read_safe": True}
