"""The catalogues of clusters and the maps of tokens, made from the shipped measurements when the book is built.

They are pages of their own at the root of the built book: catalogue.html and map.html of the bundled model's clusters
that come back, real-catalogue.html and real-map.html of the real model's. Sphinx did not write them, so chapters link
to them with plain HTML: ``<a href="../map.html#cluster-3">``. An address says more, on the map
``#token-7&search=return&colour=loss``, in the catalogue ``#search=return&family=names&order=loss&group=2``; `tokenmap`
and `catalogue` say what.
"""

from dataclasses import replace
from pathlib import Path


def write_pages(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    from spectrobook import realmodel, shipped, stable  # here: they are slow to load, and not every builder needs them

    write_pair(
        app.outdir,
        "",
        (shipped.result(), stable.clusters(), stable.layout(), described(stable.cards(), stable.clusters().labels)),
        near=stable.nearest(),
        tokenizer=shipped.tokenizer(),
        whose="the bundled model's measurement",
        chapter=("Chapter: Reading clusters", "book/clusters.html"),
        note=" Clusters and nearest tokens were found on rows of many channels, made from gradients, which are too "
        "large to ship. Pictures of rows, colours by component and groups of clusters are of the rows that do: one "
        "number for each component.",
    )
    write_pair(
        app.outdir,
        "real-",
        (realmodel.tokens(), realmodel.clusters(), realmodel.arrays()["layout"], by_responses(realmodel.cards())),
        near=realmodel.nearest(),
        whose=f"the measurement of {realmodel.NAME}",
        of=realmodel.NAME,
        chapter=("Chapter: A real model", "book/real-model.html"),
        note=" Groups go by the strongest responses that each card names: the rows of this model do not ship.",
    )


def described(cards, labels):
    """Cards with what is known of them from elsewhere: groups, by the mean rows of the shipped measurement; what
    removing a component costs them (causal.json, without intervals)."""
    import json

    import numpy as np

    from spectrobook import DATA, shipped
    from spectrolib.checks.intervals import Estimate
    from spectrolib.reading.cards import paths
    from spectrolib.reading.effects import RemovalCost

    rows = shipped.vectors()
    path = paths(np.array([rows[labels == card.cluster].mean(axis=0) for card in cards]))
    table = json.loads((DATA / "causal.json").read_text())
    names, costs = table["components"], table["ablation"]["costs"]["resolved"]
    if len(costs) != len(cards):
        raise ValueError(f"causal.json is of {len(costs)} clusters, not of these {len(cards)}: make it anew")
    unknown = float("nan")
    cost = [RemovalCost(names[c["worst"]], Estimate(c["own"], unknown, unknown), c["others"]) for c in costs]
    return [replace(card, path=path[card.cluster], costs=(cost[card.cluster],)) for card in cards]


def by_responses(cards):
    """Cards in groups by the strongest responses that they name, where they were made without groups: the rows of
    the real model do not ship."""
    import numpy as np

    from spectrolib.reading.cards import paths

    if any(card.path for card in cards):
        return cards
    names = sorted({response.component for card in cards for response in card.responses})
    means = np.zeros((len(cards), len(names)))
    for card in cards:
        for response in card.responses:
            means[card.cluster, names.index(response.component)] = response.mean
    return [replace(card, path=path) for card, path in zip(cards, paths(means), strict=True)]


def write_pair(folder, prefix, measured, *, whose, chapter, of="", note="", near=None, tokenizer=None):
    """A catalogue and a map that link to each other; their titles end with ``of``, a model's name."""
    from spectrolib.reading import catalogue, tokenmap

    result, clusters, positions, cards = measured
    about = (
        f"{len(clusters.labels):,} tokens of {whose}, of which {clusters.coverage:.0%} are in a cluster. The chapter "
        f"says how they were found, and what to believe of them.{note}"
    )
    names = {kind: f"{prefix}{kind}.html" for kind in ("catalogue", "map")}
    book = dict([chapter, ("The book", "index.html")])
    ending = f": {of}" if of else ""
    given = {"title": f"Catalogue of clusters{ending}", "about": about, "token_map": names["map"], "links": book}
    whole = catalogue.catalogue_page(cards, **given)
    page = tokenmap.map_page(
        result,
        clusters,
        positions,
        near=near,
        cards=cards,
        tokenizer=tokenizer,
        title=f"Map of tokens{ending}",
        about=note.strip(),
        catalogue=names["catalogue"],
        links={"Catalogue of clusters": names["catalogue"]} | book,
    )
    for kind, content in (("catalogue", whole), ("map", page)):
        tokenmap.write_page(content, Path(folder) / names[kind])


def setup(app):
    app.connect("build-finished", write_pages)
    return {"version": "1.0", "parallel_read_safe": True}
