"""``spectro cluster``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated

import typer

from .terminal import console, duration, one_line_errors, print_rows


def cluster(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`.")],
    k: Annotated[int, typer.Option(help="Neighbours of each token; fewer look closer.")] = 45,
    symmetrise: Annotated[str, typer.Option(help="mutual or union: which pairs the graph keeps.")] = "mutual",
    rows: Annotated[str, typer.Option(help="How rows are standardised: center, zscore or none.")] = "center",
    whiten: Annotated[bool, typer.Option("--whiten", help="Scale principal axes to one variance.")] = False,
    estimator: Annotated[
        str, typer.Option(help="two_chain or one_chain: whose rows.", show_default="the measured one")
    ] = "",
    method: Annotated[str, typer.Option(help="fast or literal.")] = "fast",
    seed: Annotated[int, typer.Option(help="Seed of whatever is random.")] = 0,
    min_size: Annotated[int, typer.Option(help="Tokens of the smallest cluster.")] = 20,
    max_size: Annotated[
        int | None, typer.Option(help="Tokens of the largest cluster.", show_default="1000, or n/4")
    ] = None,
    barrier: Annotated[float, typer.Option(help="How distinct clusters must be; 1 cuts up the main body too.")] = 1.3,
    certify: Annotated[int, typer.Option(help="Clusters to check against exact solutions.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Cluster the tokens of a finished run: writes RUN/clusters.npz and RUN/clusters.json, prints a summary."""
    from ..clustering import check
    from ..estimator import with_estimator
    from ..graph import check_symmetrise
    from ..peeling import Options
    from ..run.store import open_result

    with one_line_errors(stopped="nothing was written"):
        check_symmetrise(symmetrise)
        check(Options(min_size=min_size, max_size=max_size, barrier=barrier), method)
        options = {"method": method, "seed": seed, "min_size": min_size, "max_size": max_size, "barrier": barrier}
        result = open_result(run)
        result = with_estimator(result, estimator) if estimator else result
        shape = {"k": k, "symmetrise": symmetrise, "rows": rows, "whiten": whiten}
        settings = {"estimator": result.attrs.get("estimator", ""), **shape, **options}
        summary = _cluster(run, result["susceptibility"].values, settings, options, max(certify, 0))
        print(json.dumps(summary, indent=2)) if as_json else print_rows(_clusters_in_words(summary, run))
        if not summary["finished"]:
            console(stderr=True).print("stopped: the clusters found so far are written, marked as unfinished")
            raise typer.Exit(130)


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
        **clustering.summary(found),
        "exact": {"clusters": exact.clusters.tolist(), "overlap": exact.overlap.tolist()},
        "seconds": {"graph": graph_seconds, "all": time.perf_counter() - begin},
    }
    save_clusters(found, run, summary)
    return summary


def _clusters_in_words(summary: dict, run: Path) -> dict[str, str]:
    sizes, cuts, left, exact = summary["sizes"], summary["conductance"], summary["left"], summary["exact"]
    settings, graph, seconds = summary["settings"], summary["graph"], summary["seconds"]
    shown = ", ".join(map(str, sizes[:12])) + (", ..." if len(sizes) > 12 else "")
    words = {
        "tokens": f"{summary['tokens']:,} x {summary['components']} components",
        "graph": f"{settings['symmetrise']}, k = {settings['k']}: mean degree {graph['mean_degree']:.1f}, recall "
        f"{graph['recall']:.4f}",
        "clusters": f"{len(sizes)}, by {settings['method']} peeling from {summary['seeds_tried']:,} seeds",
    }
    if sizes:
        words["sizes"] = f"median {statistics.median(sizes):g}: {shown}"
        words["conductance"] = f"median {statistics.median(cuts):.3f} ({min(cuts):.3f} to {max(cuts):.3f})"
    if exact["clusters"]:
        words["exact walk"] = (
            f"cuts the same sets up to a Jaccard overlap of {statistics.median(exact['overlap']):.2f} (median of "
            f"{len(exact['clusters'])} clusters)"
        )
    return words | {
        "coverage": f"{summary['coverage']:.1%}; the rest: " + ", ".join(f"{why} {n:,}" for why, n in left.items()),
        "time": f"{duration(seconds['all'])}, of which graph {duration(seconds['graph'])}",
        "files": f"{run / 'clusters.npz'}, {run / 'clusters.json'}",
    }
