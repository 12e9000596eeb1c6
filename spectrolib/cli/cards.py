"""``spectro cards``."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .runs import CUT, UNKNOWN, clustered_result, guesses_for, standardisation, tokenizer_for
from .terminal import console, number, one_line_errors, print_rows


def cards_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    model: Annotated[
        str, typer.Option(help="The measured model, where it is not found by itself: rules speak of its output.")
    ] = "",
    examples: Annotated[int, typer.Option(help="Members to show of each cluster.", min=0)] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the examples and of the halves that rules are fitted on.")] = 0,
    name_url: Annotated[
        str,
        typer.Option(
            envvar="SPECTRO_NAME_URL",
            help="Let a language model name the clusters: an address that speaks OpenAI's protocol, such as "
            "http://localhost:8000/v1. Excerpts are sent there.",
        ),
    ] = "",
    name_model: Annotated[str, typer.Option(envvar="SPECTRO_NAME_MODEL", help="Which model to ask there.")] = "",
    name_key: Annotated[
        str, typer.Option(envvar="SPECTRO_NAME_KEY", help="Its key; better in the variable.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Describe the clusters of a run: writes RUN/cards.json and RUN/catalogue.html, prints a summary."""
    with one_line_errors(stopped="nothing was written"):
        found, summary = _cards(run, model, examples, seed, (name_url, name_model, name_key))
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print_cards(found, summary, run)


def _cards(run: Path, model: str, examples: int, seed: int, name: tuple[str, str, str]) -> tuple[list, dict]:
    """Cards and catalogue, written; the summary."""
    from ..reading import cards as room
    from ..reading import naming
    from ..reading.conditions import describe
    from ..run.store import open_clusters
    from ..text.runningtext import running_text

    url, asked, key = name
    endpoint = naming.Endpoint(url, asked, key) if url or asked else None
    result, found = clustered_result(run), open_clusters(run)
    tokenizer, missed = tokenizer_for(run, result, model)
    text = running_text(result, tokenizer)
    expected = guesses_for(run, result, model)
    output = {} if expected is None else {"guesses": expected[0], "names": expected[1]}
    features = describe(text, loss=result["loss"].values if "loss" in result else None, **output)
    shape = {"examples": examples, "seed": seed, "effects": _effects(run, len(found.sizes))}
    described = room.cards(result, found, features=features, **standardisation(run), **shape)
    if endpoint is not None:
        described = naming.name_cards(described, text, found.labels, endpoint, seed=seed)
    rules = [card.rule for card in described if card.rule is not None]
    summary = {
        "run": str(run),
        "clusters": len(described),
        "confident": sum(rule.confident for rule in rules),
        "without_rule": len(described) - len(rules),
        "precision": _median(rule.precision.value for rule in rules),
        "recall": _median(rule.recall.value for rule in rules),
        "families": dict(Counter(card.family for card in described).most_common()),
        "seed": seed,
        "cut_characters": missed,
        "guesses": expected is not None,
        "named_by": endpoint.model if endpoint else None,
    }
    room.save_cards(described, run, summary)
    catalogue_of(run, found, described)
    return described, summary


def catalogue_of(run: Path, clustering, described: list) -> None:
    """Write RUN/catalogue.html; its cards link to RUN/map.html where there is one of these clusters."""
    from ..reading import catalogue

    tokens, name = len(clustering.labels), run.resolve().name
    about = f"{tokens:,} tokens of {name}, of which {clustering.coverage:.0%} are in a cluster."
    token_map = "map.html" if _of_these_clusters(run / "map.html") else ""
    catalogue.write_catalogue(described, run, title=f"Clusters of {name}", about=about, token_map=token_map)


def _of_these_clusters(file: Path) -> bool:
    """Whether a file of a run is there, and not older than its clusters."""
    return file.exists() and file.stat().st_mtime >= (file.parent / "clusters.npz").stat().st_mtime


def _effects(run: Path, clusters: int) -> list:
    """What `spectro check` found out, if it was run on these clusters."""
    from ..reading.effects import open_effects

    if not _of_these_clusters(run / "check.json"):
        return []
    found = open_effects(run)
    return found if len(found) == clusters else []


def _median(values) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None


def _print_cards(found: list, summary: dict, run: Path) -> None:
    rules = f"{summary['confident']} confident"
    if summary["precision"] is not None:
        rules += f"; medians: precision {summary['precision']:.2f}, recall {summary['recall']:.2f}"
    if summary["without_rule"]:
        rules += f"; none for {summary['without_rule']} clusters, which are in too few windows"
    words = {
        "clusters": f"{summary['clusters']}",
        "rules": rules,
        "families": ", ".join(f"{family} {number}" for family, number in summary["families"].items()),
    }
    notes = {CUT: summary["cut_characters"], UNKNOWN: not summary["guesses"]}
    if any(notes.values()):
        words["note"] = "; ".join(note for note, holds in notes.items() if holds)
    print_rows(words)
    table = Table("cluster", "tokens", "precision", "recall", "label", box=None)
    for card in found[:12]:
        rule = (card.rule.precision.value, card.rule.recall.value) if card.rule else (math.nan, math.nan)
        label = card.name.label if card.name else card.label
        table.add_row(str(card.cluster), str(card.size), *(number(v, ".2f") for v in rule), escape(_visible(label)))
    console().print(table)
    print_rows({"files": f"{run / 'cards.json'}, {run / 'catalogue.html'}"})


def _visible(text: str) -> str:
    from ..reading.marks import visible

    return visible(text)
