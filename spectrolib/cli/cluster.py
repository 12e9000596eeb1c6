"""``spectro cluster``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

import typer

from .terminal import console, duration, one_line_errors, print_rows


def cluster_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`.")],
    rows: Annotated[
        str,
        typer.Option(
            help="resolved: every channel counts, and clusters must come back. paper: one number a component, z-scored "
            "and centred; zscore or none standardise its rows otherwise.",
            show_default="resolved, where the run has channels",
        ),
    ] = "",
    k: Annotated[
        int | None,
        typer.Option(help="Neighbours of each token; fewer look closer.", show_default="15 for resolved rows, else 45"),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Repetitions that a cluster of resolved rows must come back in.")] = 10,
    quiet: Annotated[
        float, typer.Option(help="Resolved rows shorter than this part of the typical length are left out.")
    ] = 0.02,
    symmetrise: Annotated[str, typer.Option(help="mutual or union: which pairs the graph keeps.")] = "mutual",
    whiten: Annotated[bool, typer.Option("--whiten", help="Scale principal axes to one variance.")] = False,
    estimator: Annotated[
        str, typer.Option(help="two_chain or one_chain: whose rows.", show_default="the measured one")
    ] = "",
    method: Annotated[str, typer.Option(help="fast or literal.")] = "fast",
    seed: Annotated[int, typer.Option(help="Seed of whatever is random.")] = 0,
    min_size: Annotated[
        int | None,
        typer.Option(help="Tokens of the smallest cluster.", show_default="10 for resolved rows, else 20"),
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(help="Tokens of the largest cluster.", show_default="1000, or n/4")
    ] = None,
    barrier: Annotated[float, typer.Option(help="How distinct clusters must be; 1 cuts up the main body too.")] = 1.3,
    certify: Annotated[int, typer.Option(help="Clusters to check against exact solutions.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Cluster the tokens of a finished run: writes RUN/clusters.npz and RUN/clusters.json, prints a summary."""
    from ..clustering import check_options
    from ..estimator import with_estimator
    from ..graph import check_symmetrise
    from ..peeling import Options
    from ..run.store import open_result

    with one_line_errors(stopped="nothing was written"):
        check_symmetrise(symmetrise)
        result = open_result(run)
        rows = {"": "resolved" if "resolved" in result else "center", "paper": "center"}.get(rows, rows)
        resolved = rows == "resolved"
        if rows not in ("resolved", "center", "zscore", "none"):
            raise ValueError(f"unknown rows {rows!r}: they must be resolved, paper, zscore or none")
        if resolved and (whiten or symmetrise != "mutual"):
            raise ValueError(
                "resolved rows are cut from the mutual graph, not whitened: leave both out, or --rows paper"
            )
        k = (15 if resolved else 45) if k is None else k
        min_size = (10 if resolved else 20) if min_size is None else min_size
        check_options(Options(min_size=min_size, max_size=max_size, barrier=barrier), method)
        options = {"method": method, "seed": seed, "min_size": min_size, "max_size": max_size, "barrier": barrier}
        result = with_estimator(result, estimator) if estimator else result
        shape = {"k": k, "symmetrise": symmetrise, "rows": rows, "whiten": whiten}
        settings = {"estimator": result.attrs.get("estimator", ""), **shape, **options}
        if resolved:
            settings |= {"repeats": repeats, "quiet": quiet}
            summary = _resolved(run, result, settings, options)
        else:
            summary = _cluster(run, result["susceptibility"].values, settings, options, max(certify, 0))
        print(json.dumps(summary, indent=2)) if as_json else print_rows(_clusters_in_words(summary, run))
        if not summary["finished"]:
            console(stderr=True).print("stopped: the clusters found so far are written, marked as unfinished")
            raise typer.Exit(130)


def _resolved(run: Path, result, settings: dict, options: dict) -> dict:
    """Clusters of resolved rows that come back, written; the summary."""
    import time
    from concurrent.futures.process import BrokenProcessPool

    from .. import clustering
    from ..run.measure import WorkerDied
    from ..run.resolved import rows_of
    from ..run.store import save_clusters
    from ..run.workers import available_cores

    begin, rows = time.perf_counter(), rows_of(result)
    shape = {name: settings[name] for name in ("k", "repeats", "quiet")}
    try:
        found = clustering.stable_clusters(rows, **shape, **options, workers=available_cores(), progress=True)
    except BrokenProcessPool:
        raise WorkerDied("a process of the search was killed from outside, for lack of memory perhaps") from None
    summary = {
        "run": str(run),
        "tokens": len(rows),
        "components": result.sizes["component"],
        "channels": rows.shape[1],
        "settings": settings,
        **clustering.cluster_summary(found),
        "seconds": {"all": time.perf_counter() - begin},
    }
    save_clusters(found, run, summary)
    return summary


def _cluster(run: Path, chi, settings: dict, options: dict, certify: int) -> dict:
    """Standardise, join, cluster, write; the summary."""
    import time

    from .. import clustering, graph
    from ..estimator import standardise
    from ..run.store import save_clusters

    begin = time.perf_counter()
    rows = None if settings["rows"] == "none" else settings["rows"]
    vectors = standardise(chi, rows=rows, whiten=settings["whiten"])
    near = graph.nearest(vectors, settings["k"], seed=settings["seed"])
    joined = graph.join(near, settings["symmetrise"])
    graph_seconds = time.perf_counter() - begin
    found = clustering.conductance_clusters(joined, **options, progress=True)
    exact = clustering.certify(joined, found, sample=certify if found.finished else 0, seed=settings["seed"])
    summary = {
        "run": str(run),
        "tokens": len(vectors),
        "components": chi.shape[1],
        "settings": settings,
        "graph": {"mean_degree": joined.nnz / len(vectors), "recall": graph.recall(vectors, near)},
        **clustering.cluster_summary(found),
        "exact": {"clusters": exact.clusters.tolist(), "overlap": exact.overlap.tolist()},
        "seconds": {"graph": graph_seconds, "all": time.perf_counter() - begin},
    }
    save_clusters(found, run, summary)
    return summary


def _clusters_in_words(summary: dict, run: Path) -> dict[str, str]:
    sizes, cuts, left, settings = summary["sizes"], summary["conductance"], summary["left"], summary["settings"]
    graph, exact, seconds = summary.get("graph"), summary.get("exact", {"clusters": []}), summary["seconds"]
    shown = ", ".join(map(str, sizes[:12])) + (", ..." if len(sizes) > 12 else "")
    words = {
        "tokens": f"{summary['tokens']:,} x {summary['components']} components"
        + (f", {summary['channels']:,} channels" if "channels" in summary else ""),
        "graph": f"{settings['symmetrise']}, k = {settings['k']}"
        + (f": mean degree {graph['mean_degree']:.1f}, recall {graph['recall']:.4f}" if graph else ""),
        "clusters": f"{len(sizes)}, by {settings['method']} peeling from {summary['seeds_tried']:,} seeds",
    }
    if sizes:
        words["sizes"] = f"median {statistics.median(sizes):g}: {shown}"
        words["conductance"] = f"median {statistics.median(cuts):.3f} ({min(cuts):.3f} to {max(cuts):.3f})"
    if sizes and "share" in summary:
        share, repeats = summary["share"], settings["repeats"] if summary["finished"] else "the finished"
        words["come back"] = (
            f"in {statistics.mean(share):.0%} of {repeats} repetitions on average; {sum(s == 1 for s in share)} in all"
        )
    if exact["clusters"]:
        words["exact walk"] = (
            f"cuts the same sets up to a Jaccard overlap of {statistics.median(exact['overlap']):.2f} (median of "
            f"{len(exact['clusters'])} clusters)"
        )
    return words | {
        "coverage": f"{summary['coverage']:.1%}; the rest: " + ", ".join(f"{why} {n:,}" for why, n in left.items()),
        "time": duration(seconds["all"]) + (f", of which graph {duration(seconds['graph'])}" if graph else ""),
        "files": f"{run / 'clusters.npz'}, {run / 'clusters.json'}",
    }
