"""``spectro near``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .runs import CUT, clustered_result, standardisation, tokenizer_for
from .terminal import console, one_line_errors, print_rows

LISTED = 5
"""Places of a context that are listed."""


def near_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`.")],
    token: Annotated[
        str, typer.Argument(help="Some of the text, whose last token is meant; or a token's number, digits alone.")
    ],
    rows: Annotated[
        str,
        typer.Option(
            help="resolved: 1 - cosine over all channels. paper: Euclidean over one number a component, "
            "standardised as `spectro cluster` did.",
            show_default="resolved, where the run has channels",
        ),
    ] = "",
    count: Annotated[int, typer.Option(help="Tokens to show.")] = 10,
    model: Annotated[str, typer.Option(help="Whose tokenizer reads the tokens; by default the measured model's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show the tokens nearest to one, in their contexts, and whether either half of the chains finds the same."""
    with one_line_errors():
        found = _near(run, token, rows, count, model)
        print(json.dumps(found, indent=2)) if as_json else _print_near(found)


def _near(run: Path, token: str, rows: str, count: int, model: str) -> dict:
    """The token, its neighbours, and how sure they are, as JSON-able values."""
    from dataclasses import asdict

    from ..reading.neighbours import find_tokens, near_tokens
    from ..run.store import open_clusters
    from ..text.runningtext import running_text

    result = clustered_result(run)
    tokenizer, missed = tokenizer_for(run, result, model)
    text = running_text(result, tokenizer)
    places = [int(token)] if token.isdecimal() else find_tokens(text, token).tolist()
    near = near_tokens(result, places[0], count=count, rows=rows or None, standardisation=standardisation(run))
    labels = open_clusters(run).labels if (run / "clusters.npz").exists() else None
    if labels is not None and len(labels) != len(text):
        raise ValueError(f"{len(text)} tokens, but clusters of {len(labels)}: run `spectro cluster {run}` again")

    def said(row: int) -> dict:
        cluster = {} if labels is None else {"cluster": int(labels[row])}
        return {"token": row, **cluster, "domain": str(text.domain[row]), "context": text.context(row, 32, 16)}

    whole = asdict(near)
    neighbours = [said(one.row) | {k: v for k, v in one._asdict().items() if k != "row"} for one in near.neighbours]
    return {
        "run": str(run),
        **said(near.row),
        **{name: whole[name] for name in ("rows", "typical", "length", "chance")},
        "shared": near.shared if near.neighbours[0].halves else None,
        "halves": "sketches" if result.attrs.get("first_order") else "chains",
        "places": [said(row) for row in places],
        "cut_characters": missed,
        "neighbours": neighbours,
    }


def _print_near(found: dict) -> None:
    count, places, halves = len(found["neighbours"]), found["places"], found["halves"]
    kind = "1 - cosine of resolved rows" if found["rows"] == "resolved" else "Euclidean, of the paper's rows"
    words = {"token": f"{found['token']}, {_shown(found['context'])} ({_visible(found['domain'])})"}
    if len(places) > 1:
        others = "; ".join(f"{place['token']}, {_shown(place['context'], 16, 8)}" for place in places[1 : LISTED + 1])
        more = f"; and {len(places) - 1 - LISTED:,} more" if len(places) > 1 + LISTED else ""
        words["places"] = f"{len(places):,}, of which this is the first. Others, by number: {others}{more}"
    words["distance"] = f"{kind}; to a typical token {found['typical']:.3g}"
    if found["shared"] is None:
        words["halves"] = "none: a run of 2 chains or more, or to first order, would tell how sure these are"
    else:
        words["halves"] = (
            f"{round(found['shared'] * count)} of the {count} nearest by one half of the {halves} are among the "
            f"{count} nearest by the other (by chance {found['chance'] * count:.2g}); the table has distance and "
            "rank by either half"
        )
    notes = [f"a short row ({found['length']:.2g} of the usual length): noise rules what is near"]
    notes = (notes if found["length"] < QUIET else []) + ([CUT] if found["cut_characters"] else [])
    if notes:
        words["note"] = "; ".join(notes)
    print_rows(words)
    console().print(_table(found["neighbours"]))


QUIET = 0.02
"""Rows shorter than this part of the usual length get a note; `spectro cluster` leaves them out."""


def _table(neighbours: list[dict]) -> Table:
    halves, clustered = bool(neighbours[0]["halves"]), "cluster" in neighbours[0]
    columns = ["token", "distance", *(["by halves", "ranks"] if halves else []), *(["cluster"] if clustered else [])]
    table = Table(*columns, "domain", box=None)
    table.add_column("context", no_wrap=True)
    for one in neighbours:
        row = [str(one["token"]), f"{one['distance']:.3f}"]
        row += [" ".join(f"{d:.3f}" for d in one["halves"]), " ".join(map(str, one["ranks"]))] if halves else []
        row += ["-" if one["cluster"] < 0 else str(one["cluster"])] if clustered else []
        table.add_row(*row, escape(_visible(one["domain"])), escape(_shown(one["context"])))
    return table


def _shown(context: tuple[str, str, str], before: int = 32, after: int = 16) -> str:
    """A token between marks in its context."""
    left, token, right = context
    return f"{_visible(left[-before:])}>>{_visible(token)}<<{_visible(right[:after])}"


def _visible(text: str) -> str:
    from ..reading.marks import visible

    return visible(text)
