"""Ways of clustering susceptibilities, compared on planted clouds, where the truth is known, and on real vectors.

    OMP_NUM_THREADS=1 python benchmarks/clustering.py            # what is missing; minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/clustering.py --again leiden real
    python benchmarks/clustering.py --show                        # the tables in Markdown, from the file

Every method has the same number of trials to find its best settings, on clouds drawn with the tuning seeds: the first
trial is its usual setting, the others are drawn at random from its space. Then it meets the test seeds. A trial counts
by the mean of the F1 of clusters and the adjusted Rand index over all tokens. All but HDBSCAN may leave out clusters
whose conductance is above a bound, which is one of their settings: without it Leiden, spectral clustering and k-means
would put every token somewhere. For all methods a cluster of fewer than 10 tokens or of more than a quarter of them
counts as none.

Each method runs in a process of its own, one after another. Times are processor time on one thread, the neighbour
graph included, compilation left out; memory is the rise of the process's peak over imports and a small first run. The
file is written after each method, and one that is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from spectrobook import DATA, clouds, shipped
from spectrolib.estimator import standardise

RESULT = DATA / "clustering_benchmark.json"
CLOUDS = clouds.Clouds(tokens=3000, largest=400, hubs=30)
TRIALS, TUNING_SEEDS, TEST_SEEDS = 8, (100, 101), (1001, 1002, 1003, 1004)
"""Test clouds that nobody had drawn before the run that is shipped: defaults were chosen on others."""
SIZES = (2000, 8000, 20000)
SMALL = replace(CLOUDS, tokens=600, clusters=4, largest=80, hubs=10)
"""Clouds for the first run, which compiles."""
LITERAL = ((replace(CLOUDS, tokens=600, clusters=3, smallest=60, largest=140, loosest=0.3), 1e-7, 40),)
LITERAL += ((replace(CLOUDS, tokens=1200, clusters=6, smallest=60, largest=200, loosest=0.3), 1e-5, 200),)
"""Clouds, tolerances and random seeds for the literal algorithm, which at 1e-7 takes about a second a seed."""


# ---- the methods: vectors, a seed and settings in, labels out


def ours(vectors, seed, *, k=45, symmetrise="union", weighted=False, bound=1.0, **options):
    """Repeated minimum-conductance sweeps; all else is the paper's setting, as we complete it."""
    from spectrolib import clustering, graph

    neighbours = graph.knn_graph(vectors, k, symmetrise=symmetrise, weighted=weighted)
    found = clustering.conductance_clusters(neighbours, seed=seed, **options).complete()
    labels = found.labels.copy()
    for cluster in np.flatnonzero(found.conductance > bound):
        labels[found.members(cluster)] = clouds.NONE
    return labels


def hdbscan(vectors, seed, *, min_cluster_size=20, min_samples=20, selection="eom"):
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples, cluster_selection_method=selection, copy=True
    )
    return model.fit_predict(vectors)


def leiden(vectors, seed, *, k=45, symmetrise="union", resolution=1.0, bound=1.0):
    import igraph
    import leidenalg

    neighbours = _graph(vectors, k, symmetrise)
    rows, columns = neighbours.nonzero()
    once = rows < columns
    network = igraph.Graph(len(vectors), np.stack([rows[once], columns[once]], axis=1))
    partition = leidenalg.find_partition(
        network, leidenalg.RBConfigurationVertexPartition, resolution_parameter=resolution, seed=seed
    )
    return _below(bound, np.array(partition.membership), neighbours)


def spectral(vectors, seed, *, k=45, clusters=12, bound=1.0):
    """scikit-learn's: eigenvectors of the normalised Laplacian of the union graph, then k-means."""
    from sklearn.cluster import SpectralClustering

    neighbours = _graph(vectors, k, "union")
    model = SpectralClustering(clusters, affinity="precomputed", assign_labels="kmeans", random_state=seed)
    return _below(bound, model.fit_predict(neighbours), neighbours)


def k_means(vectors, seed, *, clusters=12, bound=1.0):
    """scikit-learn's; the bound on conductance is taken on the union graph of 45 neighbours."""
    from sklearn.cluster import KMeans

    labels = KMeans(clusters, n_init=4, random_state=seed).fit_predict(vectors)
    return _below(bound, labels, _graph(vectors, 45, "union")) if bound < 1 else labels


def _graph(vectors, k, symmetrise):
    from spectrolib.graph import knn_graph

    graph = knn_graph(vectors, k, symmetrise=symmetrise)
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)  # for scikit-learn
    return graph


def _below(bound, labels, neighbours):
    """Labels without the clusters whose conductance is above the bound."""
    names, of = np.unique(labels, return_inverse=True)
    rows, columns = neighbours.nonzero()
    volume = np.bincount(of, np.diff(neighbours.indptr), len(names))
    inside = np.bincount(of[rows[of[rows] == of[columns]]], minlength=len(names))
    smaller = np.minimum(volume, volume.sum() - volume)
    high = (volume - inside > bound * smaller) | (smaller == 0)
    return np.where(high[of], clouds.NONE, labels) if bound < 1 else labels


BOUNDS = [1.0, 0.8, 0.6, 0.4]
PEEL = {
    "k": [45, 15, 30, 60],
    "alpha": [0.001, 0.003, 0.01, 0.03],
    "tol": [1e-7, 1e-5],
    "main_body": [0.99, 0.9],
    "min_size": [20, 10],
    "barrier": [1.3, 1.0, 1.6],
    "weighted": [False, True],
    "bound": BOUNDS,
}
METHODS = {
    "paper-union": ("conductance, paper's constants, union", ours, {}, {"symmetrise": "union", "barrier": 1.0}),
    "paper-mutual": ("conductance, paper's constants, mutual", ours, {}, {"symmetrise": "mutual", "barrier": 1.0}),
    "default-union": ("conductance, our defaults, union", ours, {}, {"symmetrise": "union"}),
    "default-mutual": ("conductance, our defaults, mutual", ours, {}, {"symmetrise": "mutual"}),
    "tuned-union": ("conductance, tuned, union", ours, PEEL, {"symmetrise": "union"}),
    "tuned-mutual": ("conductance, tuned, mutual", ours, PEEL, {"symmetrise": "mutual"}),
    "hdbscan": (
        "HDBSCAN",
        hdbscan,
        {"min_cluster_size": [20, 10, 15, 30], "min_samples": [20, 2, 5, 10, 45], "selection": ["eom", "leaf"]},
        {},
    ),
    "leiden": (
        "Leiden",
        leiden,
        {"k": [45, 15, 30, 60], "symmetrise": ["union", "mutual"], "resolution": [1.0, 2.0, 4.0, 8.0], "bound": BOUNDS},
        {},
    ),
    "spectral": ("spectral", spectral, {"k": [45, 15, 30, 60], "clusters": [12, 20, 30, 50], "bound": BOUNDS}, {}),
    "k-means": ("k-means", k_means, {"clusters": [12, 20, 40, 80, 160], "bound": BOUNDS}, {}),
}
"""Name: what the tables call it, the function, the space of settings (the usual value first), fixed settings."""


def labels_of(name, settings, vectors, seed):
    """The labels of a method, after the rule on sizes that all methods share."""
    found = METHODS[name][1](vectors, seed, **settings)
    return clouds.keep_sizes(found, 10, len(vectors) // 4)


def trials_of(name) -> list[dict]:
    """The usual setting, then others drawn at random without repetition."""
    _, _, space, fixed = METHODS[name]
    if not space:
        return [dict(fixed)]
    every = [dict(zip(space, values, strict=True)) | fixed for values in itertools.product(*space.values())]
    drawn = np.random.default_rng(0).choice(np.arange(1, len(every)), TRIALS - 1, replace=False)
    return [every[0], *(every[i] for i in drawn)]


# ---- what is measured


def measure_method(name: str) -> dict:
    """Tune, test, and ask for stability: one method, in this process."""
    planted = {seed: clouds.plant(CLOUDS, seed) for seed in (*TUNING_SEEDS, *TEST_SEEDS)}
    trials = trials_of(name)
    for settings in trials:  # the first use compiles
        labels_of(name, settings, clouds.plant(SMALL, 0).vectors, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = []
    for settings in trials if len(trials) > 1 else ():
        results = [
            clouds.scores(planted[s].labels, labels_of(name, settings, planted[s].vectors, 0)) for s in TUNING_SEEDS
        ]
        tried.append({"settings": settings, "score": statistics.mean((r.f1 + r.rand) / 2 for r in results)})
    best = max(tried, key=lambda trial: trial["score"])["settings"] if tried else trials[0]

    test = []
    for seed in TEST_SEEDS:
        vectors, truth = planted[seed].vectors, planted[seed].labels
        begin = time.process_time()
        found = labels_of(name, best, vectors, 0)
        seconds = time.process_time() - begin
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        test.append(
            clouds.scores(truth, found)._asdict()
            | {"seconds": seconds, "memory_mb": memory}
            | {"over_seeds": clouds.adjusted_rand(found, labels_of(name, best, vectors, 1))}
            | {"over_subsamples": over_subsamples(name, best, vectors, seed)}
            | {"by_cluster": by_cluster(planted[seed], found)}
        )
    return {"title": METHODS[name][0], "space": METHODS[name][2], "trials": tried, "best": best, "test": test}


def over_subsamples(name, settings, vectors, seed, share=0.8) -> float:
    """Agreement of two runs that each see a random part of the tokens, over the tokens that both saw."""
    parts = []
    for draw in range(2):
        rng = np.random.default_rng([seed, draw])
        chosen = np.sort(rng.choice(len(vectors), int(share * len(vectors)), replace=False))
        labels = np.full(len(vectors), -2)
        labels[chosen] = labels_of(name, settings, vectors[chosen], 0)
        parts.append(labels)
    both = (parts[0] > -2) & (parts[1] > -2)
    return clouds.adjusted_rand(parts[0][both], parts[1][both])


def by_cluster(planted, found) -> list[dict]:
    """Of each planted cluster its size, its spread, and whether it was found."""
    hit = {i for i, _ in clouds.matches(planted.labels, found)}
    sizes = planted.settings.sizes
    return [{"size": int(sizes[i]), "spread": float(planted.spreads[i]), "found": i in hit} for i in range(len(sizes))]


def measure_ceiling() -> list[dict]:
    """The scores of whoever knows the law."""
    runs = [clouds.plant(CLOUDS, seed) for seed in TEST_SEEDS]
    return [clouds.scores(run.labels, clouds.bayes_labels(run))._asdict() for run in runs]


def measure_sizes(methods: dict) -> list[dict]:
    """Each method at its best setting, as the number of tokens grows and the mix stays."""
    rows = []
    for tokens in SIZES:
        planted = clouds.plant(replace(CLOUDS, tokens=tokens, clusters=CLOUDS.clusters * tokens // CLOUDS.tokens), 0)
        for name, record in methods.items():
            if name == "spectral" and tokens > 10000:  # its eigenvectors would take longer than all the rest
                continue
            begin = time.process_time()
            found = labels_of(name, record["best"], planted.vectors, 0)
            seconds = time.process_time() - begin
            result = clouds.scores(planted.labels, found)
            rows.append({"tokens": tokens, "method": name, "seconds": seconds, "rand": result.rand, "f1": result.f1})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def measure_literal() -> list[dict]:
    """The literal and the fast algorithm at k = 45 and the paper's alpha, where the literal one can be afforded."""
    rows = []
    for symmetrise, (law, tol, count) in itertools.product(("union", "mutual"), LITERAL):
        planted = clouds.plant(law, 0)
        row, found = {"symmetrise": symmetrise, "tokens": law.tokens, "tol": tol, "seeds": count}, {}
        seeds = np.random.default_rng(0).permutation(law.tokens)[:count]
        for method in ("literal", "fast"):
            ours(planted.vectors, 0, alpha=0.1, tol=1e-3, method=method)  # the first use compiles
            begin = time.process_time()
            choice = {"seed_choice": seeds.tolist()} if method == "literal" else {}
            found[method] = ours(planted.vectors, 0, symmetrise=symmetrise, method=method, tol=tol, **choice)
            row[f"{method}_seconds"] = time.process_time() - begin
            row[f"{method}_found"] = int(found[method].max() + 1)
            row[f"{method}_rand"] = clouds.adjusted_rand(planted.labels, found[method])
        rows.append(row | {"agreement": clouds.adjusted_rand(found["literal"], found["fast"])})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def measure_real(methods: dict) -> dict:
    """On the shipped measurement: clusters, those found again in the other half of the chains, and those of a null.

    The null shuffles each column over tokens, which keeps every column's law and destroys what columns have in common.
    """
    result = shipped.shipped_result()
    whole = standardise(result.susceptibility.values)
    kind = result.attrs["estimator"]
    halves = result.half_susceptibility.sel(estimator=kind).isel(block=-1).values.astype(np.float64)
    halves = [standardise(half) for half in halves]
    null = standardise(shuffled(result.susceptibility.values, 0))
    rows = []
    for name, record in methods.items():
        settings = record["best"]
        found, one, two, by_chance = (labels_of(name, settings, v, 0) for v in (whole, *halves, null))
        common = len(clouds.matches(one, two))
        rows.append(
            {
                "method": name,
                "clusters": int(found.max() + 1),
                "clustered": float((found != clouds.NONE).mean()),
                "clusters_of_halves": [int(one.max() + 1), int(two.max() + 1)],
                "found_again": common / max(1, (one.max() + two.max() + 2) / 2),
                "rand_of_halves": clouds.adjusted_rand(one, two),
                "clusters_shuffled": int(by_chance.max() + 1),
                "clustered_shuffled": float((by_chance != clouds.NONE).mean()),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return {
        "measurement": clouds.fingerprint(result.susceptibility.values),
        "tokens": len(whole),
        "estimator": kind,
        "rows": rows,
    }


def shuffled(values, seed):
    """Each column in an order of its own."""
    return np.random.default_rng(seed).permuted(values, axis=0)


# ---- running and reporting


def settings() -> dict:
    """What the numbers depend on, beside the code."""
    return {
        "clouds": asdict(CLOUDS),
        "trials": TRIALS,
        "tuning_seeds": list(TUNING_SEEDS),
        "test_seeds": list(TEST_SEEDS),
        "literal": [[asdict(law), tol, count] for law, tol, count in LITERAL],
    }


def spawn(part: str, path: Path) -> object:
    """One part of the work in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", part, "--json", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{part} failed")
    return json.loads(done.stdout.strip().splitlines()[-1])


def load(path: Path) -> dict:
    """What is there for these settings, or a fresh start."""
    packages = ("spectrolib", "numpy", "scipy", "scikit-learn", "leidenalg", "numba", "faiss-cpu")
    fresh = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/clustering.py",
        "settings": settings(),
        "versions": {name: version(name) for name in packages},
        "methods": {},
    }
    there = json.loads(path.read_text()) if path.exists() else {}
    return there if there.get("settings") == fresh["settings"] else fresh


def rounded(value):
    """Floats to five significant digits: more would be noise in the file."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def report(result: dict) -> str:
    """The main table in Markdown: mean over the test seeds, and the range."""
    columns = ("rand", "rand_planted", "precision", "recall", "body_left", "over_seeds", "over_subsamples")
    rows = [["method", *columns, "seconds", "memory, MB"]]
    for record in result["methods"].values():
        cells = []
        for key in columns:
            values = [run[key] for run in record["test"]]
            cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})")
        seconds = statistics.median(run["seconds"] for run in record["test"])
        rows.append([record["title"], *cells, f"{seconds:.1f}", f"{max(r['memory_mb'] for r in record['test']):.0f}"])
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = [*METHODS, "ceiling", "literal", "sizes", "real"]
    parser.add_argument("--again", nargs="+", choices=parts, default=[], help="run these parts again")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="these parts, and no others")
    parser.add_argument("--json", type=Path, default=RESULT, help="the file with the numbers")
    parser.add_argument("--show", action="store_true", help="print the table of the file and run nothing")
    parser.add_argument("--one", choices=parts, help=argparse.SUPPRESS)
    options = parser.parse_args()
    result = load(options.json)
    if options.one:
        work = {"ceiling": measure_ceiling, "literal": measure_literal}
        work |= {"sizes": lambda: measure_sizes(result["methods"]), "real": lambda: measure_real(result["methods"])}
        done = measure_method(options.one) if options.one in METHODS else work[options.one]()
        print(json.dumps(rounded(done)))
        return
    for part in () if options.show else options.only:
        place = result["methods"] if part in METHODS else result
        if part not in place or part in options.again:
            print(part, file=sys.stderr, flush=True)
            place[part] = spawn(part, options.json)
            result["methods"] = {name: result["methods"][name] for name in METHODS if name in result["methods"]}
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
