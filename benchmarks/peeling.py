"""How long clustering takes, from vectors to labels, and how far the fast method agrees with the literal one.

    python benchmarks/peeling.py                          # 20 000, 100 000 and 500 000 tokens; a table in Markdown
    python benchmarks/peeling.py --tokens 20000 --symmetrise union --json book/spectrobook/data/peeling_benchmark.json
    python benchmarks/peeling.py --agreement              # fast against literal on small tables, and exact walks

Vectors are planted clouds of 32 components (`spectrobook.clouds`), a cluster of 20 to 500 tokens for every 500. Each
run is a process of its own that starts with an empty cache of compiled code, so the times hold compilation; imports and
the making of the vectors they leave out. CPU seconds stand beside the time on the clock, for machines that are busy.

Agreement is the adjusted Rand index of the two labellings. The literal method takes hours on more than a few thousand
tokens, for every token of the main body is a seed of its own, whose walk covers the whole graph: there only sampled
clusters of the fast method are compared, with the best cut that the exact vector of their seed has at their scale.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKENS = (20_000, 100_000, 500_000)
SMALL = ((500, 1), (500, 2), (500, 3), (800, 4))
"""Tokens and seed of the tables on which the literal method runs whole."""


def planted(tokens: int, seed: int = 0):
    from spectrobook.clouds import Clouds, plant

    return plant(Clouds(tokens=tokens, clusters=max(tokens // 500, 4), largest=min(500, tokens // 8)), seed=seed)


def one(tokens: int, symmetrise: str, check: int) -> None:
    """One run, in this process: prints times, memory and scores as JSON."""
    vectors = planted(tokens)
    from spectrolib import clustering, graph

    begin, begin_cpu = time.perf_counter(), time.process_time()
    near = graph.nearest(vectors.vectors)
    joined = graph.join(near, symmetrise)
    graph_seconds = time.perf_counter() - begin
    found = clustering.conductance_clusters(joined).complete()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    from sklearn.metrics import adjusted_rand_score

    exact = clustering.certify(joined, found, sample=check)
    body = vectors.labels < 0
    print(
        json.dumps(
            {
                "tokens": tokens,
                "symmetrise": symmetrise,
                "mean_degree": joined.nnz / tokens,
                "recall": graph.recall(vectors.vectors, near, sample=200),
                "graph_seconds": graph_seconds,
                "peel_seconds": seconds - graph_seconds,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "load": os.getloadavg()[1],
                "memory_mb": memory,
                "planted": len(vectors.settings.sizes),
                "clusters": len(found.sizes),
                "seeds": found.seeds_tried,
                "ari": adjusted_rand_score(vectors.labels, found.labels),
                "body_left_alone": float((found.labels[body] < 0).mean()),
                "exact_overlap": exact.overlap.tolist(),
            }
        )
    )


def spawn(tokens: int, symmetrise: str, check: int, threads: int) -> dict:
    """One run, in a process of its own, without compiled code from earlier ones."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache, "OMP_NUM_THREADS": str(threads)}
        arguments = ["--one", str(tokens), "--symmetrise", symmetrise, "--check", str(check)]
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def agree(tokens: int, seed: int, symmetrise: str, tol: float) -> dict:
    """Fast against literal, at the same limits, on a table small enough for the literal method."""
    from sklearn.metrics import adjusted_rand_score

    from spectrolib import graph
    from spectrolib.clustering import conductance_clusters

    vectors = planted(tokens, seed)
    joined = graph.knn_graph(vectors.vectors, symmetrise=symmetrise)
    begin = time.perf_counter()
    fast = conductance_clusters(joined).complete()
    between = time.perf_counter()
    literal = conductance_clusters(joined, method="literal", tol=tol).complete()
    end = time.perf_counter()
    return {
        "tokens": tokens,
        "seed": seed,
        "symmetrise": symmetrise,
        "tol": tol,
        "agreement": adjusted_rand_score(literal.labels, fast.labels),
        "ari": {
            "fast": adjusted_rand_score(vectors.labels, fast.labels),
            "literal": adjusted_rand_score(vectors.labels, literal.labels),
        },
        "clusters": {"fast": len(fast.sizes), "literal": len(literal.sizes)},
        "seconds": {"fast": between - begin, "literal": end - between},
    }


def time_row(row: dict) -> str:
    overlap = sorted(row["exact_overlap"])
    middle = f"{overlap[len(overlap) // 2]:.2f}" if overlap else "-"
    return (
        f"| {row['tokens']:,} | {row['symmetrise']} | {row['recall']:.4f} | {row['graph_seconds']:.1f} "
        f"| {row['peel_seconds']:.1f} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['memory_mb']:,.0f} "
        f"| {row['seeds']:,} "
        f"| {row['clusters']} / {row['planted']} | {row['ari']:.2f} | {row['body_left_alone']:.2f} | {middle} |"
    )


def agreement_row(row: dict) -> str:
    return (
        f"| {row['tokens']:,} | {row['symmetrise']} | {row['agreement']:.2f} | {row['ari']['fast']:.2f} "
        f"| {row['ari']['literal']:.2f} | {row['clusters']['fast']} | {row['clusters']['literal']} "
        f"| {row['seconds']['fast']:.1f} | {row['seconds']['literal']:.0f} |"
    )


def write(file: Path, rows: list[dict], threads: int) -> None:
    """Add rows to a file; they replace those of the same table that are there."""
    from importlib.metadata import version

    table = lambda row: (row["tokens"], row["symmetrise"], row.get("seed"))  # noqa: E731
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    kept = {table(row): row for row in [*before, *rows]}
    versions = {name: version(name) for name in ("faiss-cpu", "numba", "numpy", "scipy")}
    found = {"command": "python benchmarks/peeling.py", "threads": threads, "versions": versions}
    found["rows"] = [kept[key] for key in sorted(kept, key=lambda key: (key[0], *map(str, key[1:])))]
    file.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, action="append", help="how many; 20 000, 100 000 and 500 000 by default")
    parser.add_argument("--symmetrise", choices=("mutual", "union"), action="append", help="both by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", type=int, default=5, help="clusters to compare with exact walks")
    parser.add_argument("--agreement", action="store_true", help="fast against literal instead of times")
    parser.add_argument("--tol", type=float, default=1e-6, help="tolerance of the literal method")
    parser.add_argument("--json", type=Path, help="also write the numbers here, beside what is there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    graphs = options.symmetrise or ["mutual", "union"]
    if options.one:
        one(options.one, graphs[0], options.check)
        return
    rows = []
    if options.agreement:
        print("| tokens | graph | ARI fast, literal | fast, truth | literal, truth | clusters fast | literal | s | s |")
        print("|" + "---|" * 9)
        for tokens, seed in SMALL:
            for symmetrise in graphs:
                rows.append(agree(tokens, seed, symmetrise, options.tol))
                print(agreement_row(rows[-1]), flush=True)
    else:
        print(
            "| tokens | graph | recall | graph, s | peel, s | all | CPU | MB | seeds | clusters | ARI | body | exact |"
        )
        print("|" + "---|" * 13)
        for tokens in options.tokens or TOKENS:
            for symmetrise in graphs:
                rows.append(spawn(tokens, symmetrise, options.check, options.threads))
                print(time_row(rows[-1]), flush=True)
    if options.json:
        write(options.json, rows, options.threads)


if __name__ == "__main__":
    main()
