"""``spectro match``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .runs import reader_of
from .terminal import console, duration, number, one_line_errors, print_rows


def match_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    dictionaries: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of sparse autoencoders (of sparsify, or of Marks et al.), bundled/NAME, or a name on the hub; "
            "may be given several times. By default those that ship for the bundled model."
        ),
    ] = None,
    sites: Annotated[str, typer.Option(help='Only these, such as "l3 residual, l4 mlp".')] = "",
    model: Annotated[str, typer.Option(help="Whose activations are read; by default the measured model's.")] = "",
    score: Annotated[str, typer.Option(help="By which the best feature is chosen: f1 or average_precision.")] = "f1",
    permutations: Annotated[int, typer.Option(help="Shuffles of the labels, for each of the two nulls.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the shuffles.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Compare the clusters of a run with features of sparse autoencoders: writes RUN/matches.json, prints a summary."""
    with one_line_errors(stopped="nothing was written"):
        wanted = [site.strip() for site in sites.split(",") if site.strip()]
        settings = {"score": score, "permutations": permutations, "seed": seed}
        summary = _match(run, dictionaries or [], wanted, model, settings)
    print(json.dumps(summary, indent=2)) if as_json else _print_matches(summary, run)


def _match(run: Path, names: list[str], sites: list[str], model: str, settings: dict) -> dict:
    """Activations, features, matches at both positions and against both nulls, written; the summary."""
    import time

    from ..dictionaries import formats as shelf
    from ..dictionaries import matching
    from ..dictionaries.windows import measured_windows, token_rows
    from ..model.loading import engine_of
    from ..run.store import open_clusters, open_result

    begin = time.perf_counter()
    matching.check_comparison(settings["score"], settings["permutations"])
    result, clusters = open_result(run), open_clusters(run)
    if len(clusters.labels) != result.sizes["token"] or not len(clusters.sizes):
        raise ValueError(f"{run} has no clusters of its {result.sizes['token']:,} tokens: run `spectro cluster {run}`")
    reader, measured = reader_of(run, model)
    listed = shelf.listed(names or shelf.shipped_for(reader), sites)
    books = [(name, shelf.load(name, site)) for name, site in listed]
    for _, book in books:
        shelf.check_fits(book, reader)
    windows = measured_windows(result, reader)
    rows = {at: token_rows(result, windows, at) for at in ("predicted", "context")}
    found, engine = [], engine_of(reader)
    with console(stderr=True).status("") as status:
        for number, (name, book) in enumerate(books):
            status.update(f"{escape(name)}, {book.site} ({number + 1} of {len(books)})")
            magnitudes = shelf.features(book, engine, windows)
            about = {"dictionary": name, "site": book.site, "k": book.k, "control": shelf.of_shuffled_weights(book)}
            for at, mine in rows.items():
                compared = matching.compare(clusters, magnitudes[mine], result["token_id"].values, **settings)
                found.append((about | {"at": at}, compared))
    found += _together(found, settings["score"])
    summary = {
        "run": str(run),
        "tokens": len(clusters.labels),
        "clustered": int((clusters.labels >= 0).sum()),
        "clusters": len(clusters.sizes),
        "model": {"name": reader.name, "hash": reader.hash, "measured": measured},
        "settings": settings,
        "nulls": list(matching.NULLS),
        "false_discovery_rate": matching.LEVEL,
        "dictionaries": [about | matching.match_summary(compared) for about, compared in found],
        "seconds": time.perf_counter() - begin,
    }
    matching.save_matches([about | matching.columns(compared) for about, compared in found], run, summary)
    return summary


def _together(found: list, score: str) -> list:
    """The features of all dictionaries side by side, at each position; none for a single one."""
    from ..dictionaries import matching

    own, joined = [(about, compared) for about, compared in found if not about["control"]], []
    site = "side by side" if len(own) == len(found) else "without the control"
    for at in ("predicted", "context"):
        here = [(about["dictionary"], compared) for about, compared in own if about["at"] == at]
        if len(here) > 1:
            about = {"dictionary": "all of them", "site": site, "k": None, "control": False, "at": at}
            of_all = {null: matching.together([m[null] for _, m in here], score) for null in matching.NULLS}
            joined.append((about, of_all))
    return joined


def _print_matches(summary: dict, run: Path) -> None:
    settings, model, rows = summary["settings"], summary["model"], summary["dictionaries"]
    other = "" if model["measured"] else "; not the model that was measured"
    score = "F1" if settings["score"] == "f1" else "average precision"
    level = summary["false_discovery_rate"]
    least = math.ceil(summary["clusters"] / (level * (settings["permutations"] + 1)))
    few = f". With so few shuffles the first count is 0, or {least} and more" if least > 1 else ""
    few = few if least <= summary["clusters"] else ". There are too few shuffles for the first count: it is 0"
    words = {
        "clusters": f"{summary['clusters']}, of {summary['clustered']:,} of {summary['tokens']:,} tokens",
        "activations": f"of {model['name']}{other}; at the token itself (predicted) and before it (context)",
        "chance": f"{settings['permutations']} shuffles of the labels among any tokens, and as many among occurrences "
        f"of the same token; seed {settings['seed']}",
        "score": f"{score} of each cluster's best feature, median; the share of clusters that reach a threshold, in "
        "brackets the same after labels were shuffled among occurrences of the same token",
        "beat": "clusters whose best feature beats those of the shuffles; in brackets clusters with any feature that "
        f"shares more tokens than shuffles would; at most {level:.0%} of either are false, on average{few}",
    }
    print_rows(words)
    reached = (f"≥ {rate['threshold']:g}" for rate in rows[0]["rates"])
    table = Table(box=None)
    table.add_column("dictionary", overflow="fold")
    for head in ("at", "score", *reached, *(f"beat {null.removesuffix(' token')}" for null in summary["nulls"])):
        table.add_column(head, no_wrap=True)
    for pair in _by_dictionary(rows):
        cells = [[escape(pair[0]["dictionary"].removeprefix("bundled/")), pair[0]["site"]]]
        cells += zip(*map(_match_cells, pair), strict=True)
        table.add_row(*map("\n".join, cells))
    console().print(table)
    print_rows({"time": duration(summary["seconds"]), "files": f"{run / 'matches.json'}"})


def _by_dictionary(rows: list[dict]) -> Iterator[list[dict]]:
    """The rows of the two positions of each dictionary."""
    yield from (rows[i : i + 2] for i in range(0, len(rows), 2))


def _match_cells(row: dict) -> list[str]:
    rates = (f"{rate['rate']:.0%} ({rate['chance']['same token']['rate']:.0%})" for rate in row["rates"])
    beat = (f"{counts['best']} ({counts['any']})" for counts in row["beat_chance"].values())
    return [row["at"], number(row["score"], ".2f"), *rates, *beat]
