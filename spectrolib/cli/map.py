"""``spectro map``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cards import catalogue_of
from .runs import CUT, clustered_result, clustered_vectors, tokenizer_for
from .terminal import console, duration, one_line_errors, print_rows


def map_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer reads the tokens; by default the measured model's.")] = "",
    k: Annotated[int, typer.Option(help="Neighbours that UMAP looks at; itself is one.")] = 45,
    seed: Annotated[int, typer.Option(help="Seed of the layout.")] = 0,
) -> None:
    """Draw a map of the tokens of a run: writes RUN/map.html and RUN/layout.npz. Where there are cards, the map names
    clusters by them, and RUN/catalogue.html is written again with links to the map."""
    with one_line_errors(stopped="no map was written"):
        print_rows(_map(run, model, k, seed))


def _map(run: Path, model: str, k: int, seed: int) -> dict[str, str]:
    """Lay out, write the page; what was done, in words."""
    import time

    from .. import graph
    from ..reading import tokenmap
    from ..reading.cards import open_cards
    from ..run.store import open_clusters

    begin = time.perf_counter()
    result, found = clustered_result(run), open_clusters(run)
    cards = open_cards(run) if (run / "cards.json").exists() else []
    tokenizer, missed = tokenizer_for(run, result, model)
    vectors = clustered_vectors(run, result)
    before = time.perf_counter()
    with console(stderr=True).status(f"laying out {len(vectors):,} tokens"):
        positions = tokenmap.layout(vectors, k=k, seed=seed, cache=run / "layout.npz")
    laid_out = time.perf_counter() - before
    title, catalogue = f"Tokens of {run.resolve().name}", "catalogue.html" if cards else ""
    near = graph.nearest(vectors, tokenmap.NEAREST, seed=seed).indices
    given = {"near": near, "cards": cards, "tokenizer": tokenizer, "title": title, "catalogue": catalogue}
    size = tokenmap.write_page(tokenmap.map_page(result, found, positions, **given), run / "map.html")
    if cards:
        catalogue_of(run, found, cards)  # again, now that its cards can link to the map
    words = {
        "tokens": f"{len(vectors):,}, {found.coverage:.0%} of them in {len(found.sizes)} clusters",
        "cards": f"of {len(cards)} clusters" if cards else f"none: run `spectro cards {run}`, then this again",
    }
    if missed:
        words["note"] = CUT
    catalogued = f", {run / 'catalogue.html'}" if cards else ""
    return words | {
        "time": f"{duration(time.perf_counter() - begin)}, of which layout {duration(laid_out)}",
        "files": f"{run / 'map.html'} ({size / 1e6:.2f} MB), {run / 'layout.npz'}{catalogued}",
    }
