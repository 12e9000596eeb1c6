"""``spectro check``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .runs import clustered_result, reader_of, standardisation, tokenizer_for
from .terminal import console, duration, number, one_line_errors, print_rows


def check_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    clusters: Annotated[
        int, typer.Option(help="Clusters to steer towards, the largest first; 0 for none.", min=0)
    ] = 20,
    h: Annotated[float, typer.Option(help="Weight of a cluster's mean loss when it is steered towards.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Gradient steps.")] = 3,
    fall: Annotated[
        float, typer.Option(help="Nats by which a step without a cluster lowers the text's loss: the step size.")
    ] = 0.01,
    model: Annotated[str, typer.Option(help="Which model; by default the measured one.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the halves of the text, and of the sets to compare with.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Put the clusters of a run to the test: silence components, steer towards clusters. Writes RUN/check.json."""
    from ..model.steering import Steering

    with one_line_errors():
        found, summary = _check(run, clusters, Steering(h, steps, fall), model, seed)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print_effects(found, summary, run)


def _check(run: Path, most: int, settings, model: str, seed: int) -> tuple[list, dict]:
    """Components silenced, clusters steered towards, the table written; and the summary."""
    import shutil
    import time

    from ..dictionaries.windows import measured_windows
    from ..model.ablation import silenceable
    from ..model.engine import one_thread
    from ..model.loading import engine_of
    from ..reading import effects as room
    from ..run.store import open_clusters
    from ..text.runningtext import running_text

    begin = time.perf_counter()
    result, clustering = clustered_result(run), open_clusters(run)
    if len(clustering.labels) != result.sizes["token"] or not len(clustering.sizes):
        raise ValueError(f"{run} has no clusters of its {result.sizes['token']:,} tokens: run `spectro cluster {run}`")
    names = silenceable(result["component"].values.tolist())
    if not names:
        raise ValueError(f"{run} has neither heads nor MLPs among its components, and nothing else can be silenced")
    reader, measured = reader_of(run, model)
    text = running_text(result, tokenizer_for(run, result, model)[0])
    windows = measured_windows(result, reader).ids
    if windows[:, 1:].size != len(clustering.labels):
        raise ValueError(f"{run} holds parts of windows: only whole ones can be read again")
    with console(stderr=True).status("") as status, one_thread():
        checked = room.Checked(engine_of(reader), windows, text, clustering.labels, settings, seed)
        pieces = checked.pieces(run)
        rise = room.rises(checked, names, pieces, status.update)
        falls = dict(room.fallen(checked, checked.steered(most), pieces, status.update))
    found = room.effects(checked, rise, names, falls)
    summary = {
        "run": str(run),
        "tokens": len(clustering.labels),
        "clusters": len(clustering.sizes),
        "model": {"name": reader.name, "hash": reader.hash, "measured": measured},
        "components": len(names),
        "rise": dict(zip(names, rise.mean(axis=0).tolist(), strict=True)),
        **_said(result, run, names, rise, clustering.labels),
        **_steered(falls),
        "settings": {"h": settings.h, "steps": settings.steps, "fall": settings.fall, "seed": seed},
        "seconds": time.perf_counter() - begin,
    }
    room.save_effects(found, run, summary)
    shutil.rmtree(pieces.parent)
    return found, summary


def _said(result, run: Path, names: list[str], rise, labels) -> dict:
    """How far the clusters' rows name the components that they lose most by."""
    from ..checks import causal
    from ..estimator import standardise

    if labels.max() < 1:
        return {"rows": None}
    every = result["component"].values.tolist()
    chi = standardise(result["susceptibility"].values, **standardisation(run) | {"whiten": False})
    expressed = causal.cluster_means(-chi[:, [every.index(name) for name in names]], labels)
    found = causal.profiles(expressed, causal.excess(rise, labels))
    return {
        "rows": {name: list(value) if isinstance(value, tuple) else value for name, value in found._asdict().items()}
    }


def _steered(falls: dict) -> dict:
    """Means over the clusters that were steered towards, each over those where it is known."""
    import numpy as np

    from ..checks.causal import mean_of

    def mean(values: list[float]) -> list[float | None]:
        known = np.array([value for value in values if not math.isnan(value)])
        return [value if math.isfinite(value) else None for value in mean_of(known)]

    if not falls:
        return {"steered": 0}
    every = list(falls.values())
    return {
        "steered": len(every),
        "falls": {
            "own": mean([f.own.value for f in every]),
            "rest": mean([f.rest for f in every]),
            "random": mean([f.random for f in every]),
            "outside": mean([f.outside.value for f in every]),
            "by_outside": mean([f.by_outside.value for f in every]),
        },
    }


def _print_effects(found: list, summary: dict, run: Path) -> None:
    words = {"clusters": f"{summary['clusters']}, {summary['components']} components silenced"}
    if rows := summary["rows"]:
        agree, chance = rows["agreement"], rows["agreement_chance"]
        named = rows["named"]
        words["rows say"] = (
            f"rank correlation with what a cluster loses {agree[0]:.2f} ({agree[1]:.2f} to {agree[2]:.2f}), with "
            f"another cluster's row {chance:.2f}; the worst component is named by {named[0]:.0%} ({named[1]:.0%} to "
            f"{named[2]:.0%}), by another's row {rows['named_chance']:.0%}"
        )
    if summary["steered"]:
        falls = {name: "?" if value[0] is None else f"{value[0]:.3f}" for name, value in summary["falls"].items()}
        words["steering"] = (
            f"towards {summary['steered']} clusters: held-out members fall by {falls['own']} nats, all other tokens by "
            f"{falls['rest']}; a random set of the size by {falls['random']}; the same tokens outside by "
            f"{falls['outside']}, and steering towards those lowers the members by {falls['by_outside']}"
        )
    print_rows(words)
    table = Table("cluster", "removing", "costs it, nats", "others", "steered: falls by", "random set", box=None)
    for effect in found[:12]:
        worst, falls = effect.costs[0], effect.falls
        steered = ("", "") if falls is None else (number(falls.own.value, ".3f"), number(falls.random, ".3f"))
        costs = (f"{worst.own.value:.2f} ({worst.own.low:.2f} to {worst.own.high:.2f})", f"{worst.others:.2f}")
        table.add_row(str(effect.cluster), worst.component, *costs, *steered)
    console().print(table)
    words = {"time": duration(summary["seconds"]), "files": f"{run / 'check.json'}; `spectro cards {run}` shows it"}
    print_rows(words)
