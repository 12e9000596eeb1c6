"""Clusters by conductance: a walk from a seed, the best cut of its sweep, and the peeling of a whole graph.

*Peeling* repeats three steps. A random walk from a seed token spreads over the graph (personalised PageRank). Tokens
are ordered by how much the walk favours them, and the prefix of least conductance is cut (a sweep). If that prefix is a
cluster, it is removed from the graph.

Known of the paper's algorithm [S]: personalised PageRank at alpha = 0.001 and tolerance 1e-7, a main-body threshold of
0.99, clusters of 20 tokens or more, an end when less than 0.1 % of the tokens is left. The score is conductance [V].
How these fit together is our completion [I], and each open choice is an option of `conductance_clusters`. Tags: [V]
verified in a primary source, [S] from a careful secondary source, [I] inferred by us.

There are two methods. ``literal`` is the algorithm as we complete it, with the push of every seed at its full
tolerance. ``fast`` looks at small scales first and stops at the first cut that two scales agree on; it tries fewer
seeds, the most promising first. `certify` compares what was found with exact solutions. `stable_clusters` repeats the
search with parts of the data and keeps the clusters that come back. Walks and sweeps are in `spectrolib.pagerank`.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import coo_array, csr_array

from . import pagerank, peeling
from .graph import knn_graph
from .pagerank import SweepCut, approximate_pagerank, conductance, exact_pagerank, sweep_cut
from .peeling import Options

__all__ = [
    "Clustering",
    "SweepCut",
    "approximate_pagerank",
    "certify",
    "cluster_summary",
    "conductance",
    "conductance_clusters",
    "exact_pagerank",
    "sweep_cut",
]

Method = Literal["fast", "literal"]
CLUSTER, MAIN_BODY, SMALL, ISOLATED, UNVISITED, FLEETING, QUIET = WHY = (
    *("cluster", "main body", "small", "isolated", "unvisited"),
    *("fleeting", "quiet"),
)
"""What can become of a token (`Clustering.why`)."""
OPTIONAL = ("share", "support")
"""Fields of a `Clustering` that only `stable_clusters` fills."""
STOP = 0.001
"""The paper's: a search ends when fewer than this part of the tokens could still be seeds."""
LARGEST = 1000
"""Tokens of the largest cluster, unless another ``max_size`` is asked for."""


@dataclass(frozen=True)
class Clustering:
    """Clusters of tokens, and for every other token why it is in none.

    Clusters are numbered from the largest down; of two that are equally large, the one found first comes first.
    """

    labels: Int[ndarray, " n"]
    """Cluster of each token, -1 for none."""
    conductance: Float[ndarray, " clusters"]
    """Conductance of each cluster in what was left of the graph when it was found; of `stable_clusters` the mean over
    the repetitions in which it came back."""
    seeds: Int[ndarray, " clusters"]
    """The token whose walk found it."""
    sizes: Int[ndarray, " clusters"]
    order: Int[ndarray, " clusters"]
    """How many clusters were found before it."""
    why: ndarray
    """(n,) text, what became of each token:

    - "cluster": it is in a cluster;
    - "main body": it was tried as a seed and its cut was no cluster, or it lies next to such a seed;
    - "small": the same, with a cut of fewer than ``min_size`` tokens;
    - "isolated": it has no neighbour left;
    - "unvisited": none of these, since the search ended before;
    - "fleeting" (`stable_clusters` only): it is most often in a cluster, but in none that comes back;
    - "quiet" (`stable_clusters` only): its row is too short to be compared.
    """
    seeds_tried: int
    """How many walks were run."""
    finished: bool = True
    """False if Ctrl-C ended the search early: the clusters are valid, but others may be missing."""
    share: Float[ndarray, " clusters"] | None = None
    """Share of the repetitions in which each cluster came back (`stable_clusters`); None without repetitions."""
    support: Float[ndarray, " n"] | None = None
    """Share of the repetitions in which each token was in the match of its cluster, 0 outside clusters; None without
    repetitions."""

    @property
    def main_body(self) -> Bool[ndarray, " n"]:
        """Whether a token belongs to the main body."""
        return self.why == MAIN_BODY

    @property
    def coverage(self) -> float:
        """The share of tokens that are in a cluster."""
        return float((self.labels >= 0).mean())

    def complete(self) -> Clustering:
        """Itself, if the search came to its end. For work that must not go on with a part of the clusters.

        Raises:
            KeyboardInterrupt: if Ctrl-C ended the search early.
        """
        if not self.finished:
            raise KeyboardInterrupt
        return self

    def left(self) -> dict[str, int]:
        """How many tokens are in no cluster, by the reason in ``why``."""
        able = WHY[1:] if self.share is not None else [why for why in WHY[1:] if why not in (FLEETING, QUIET)]
        return {why: int((self.why == why).sum()) for why in able}

    def members(self, cluster: int) -> Int[ndarray, " m"]:
        """The tokens of a cluster, by index."""
        return np.flatnonzero(self.labels == cluster)


def conductance_clusters(
    graph: csr_array,
    *,
    alpha: float = Options.alpha,
    tol: float = Options.tol,
    main_body: float = Options.main_body,
    min_size: int = Options.min_size,
    stop: float = STOP,
    seed: int = 0,
    method: Method = "fast",
    seed_choice: Literal["neighbourhood", "random"] | Sequence[int] | None = None,
    half_volume: bool = Options.half_volume,
    max_size: int | None = Options.max_size,
    barrier: float = Options.barrier,
    progress: bool = False,
) -> Clustering:
    """Peel a graph: find the best cut around one seed after another, and remove it from the graph if it is a cluster.

    Args:
        graph: (n, n) symmetric weights, as from `spectrolib.graph.knn_graph`.
        alpha: teleport probability of the lazy walk; 0.001 [S], read as lazy [I].
        tol: a push ends when its residual is below tol x degree; 1e-7 [S]. For ``fast``, the smallest tolerance that it
            may use.
        main_body: a cut that holds this part of the tokens that are left, or of the longest prefix that counts, is no
            cluster: its seed belongs to the main body. 0.99 [S]; what the 0.99 refers to is our choice [I], see
            `spectrolib.peeling.judge`.
        min_size: a cut of fewer tokens is small, not a cluster; 20 [S].
        stop: end when fewer than this part of all tokens could still be seeds; 0.001 [S].
        seed: of the random order of seeds.
        method: "literal" or "fast"; see below.
        seed_choice: "random" tries tokens in random order [I]. "neighbourhood" tries tokens by rising conductance of
            their neighbourhood (these are good seeds: Gleich and Seshadhri, 2012). Or a list of tokens to try. None:
            "neighbourhood" for "fast", "random" for "literal".
        half_volume: only prefixes with at most half of the volume that is left count [I].
        max_size: the longest prefix, in tokens, that counts [I]. None: 1000, but at most a quarter of all tokens, and
            at least ``min_size``. The number of tokens itself sets no limit.
        barrier: beyond the best cut, the conductance of some longer prefix must be this many times that of the cut, or
            the cut is no cluster [I]. Where no set stands out, conductance keeps falling along the sweep, and its least
            value only marks where the sweep ended. 1 demands nothing, like the paper's rule as far as we know it; then
            the main body is cut up as well.
        progress: show a bar on a terminal.

    *literal*: each seed is pushed to ``tol``, swept and judged. If its cut is no cluster, only the seed itself is
    marked as tried. At alpha = 0.001 and tol = 1e-7 a walk covers any graph with fewer than ten million edges, so every
    seed costs seconds.

    *fast*: `spectrolib.peeling.fast` looks at small scales first, and takes the first cut that two scales agree on.
    After a failed seed the tokens next to it are not tried either. The literal method takes the best cut of any size up
    to ``max_size``; the fast one may find several small clusters inside it.

    The bare reading of the paper's constants is ``method="literal", half_volume=False, max_size=n, barrier=1``. On the
    tables that we tried, its best cut nearly always holds half of all tokens or more. ``max_size`` limits how coarse
    clusters may be, and ``barrier`` demands that they stand out.

    Returns:
        The clusters, and for every other token why it is in none. Ctrl-C ends the search early: ``finished`` is then
        False. The result is the same for any number of threads.

    Raises:
        ValueError: for a graph that is not square, symmetric and non-negative, or an option out of range.
    """
    options = Options(alpha, tol, main_body, min_size, half_volume, max_size, barrier)
    check_options(options, method, stop)
    graph = pagerank.checked(graph)
    if max_size is None:
        options = replace(options, max_size=max(min(LARGEST, graph.shape[0] // 4), min_size))
    choice = seed_choice if seed_choice is not None else {"fast": "neighbourhood", "literal": "random"}[method]
    search = _Search(graph, options, peeling.fast if method == "fast" else peeling.literal, stop)
    finished = True
    with _bar(graph.shape[0], "{} clusters", progress) as advance:
        try:
            search.run(_seed_order(choice, graph.shape[0], seed), advance)
        except KeyboardInterrupt:
            finished = False
    return search.result(finished)


class _Search:
    """The state of one peeling."""

    def __init__(self, graph: csr_array, options: Options, find, stop: float):
        n = graph.shape[0]
        self.rest, self.options, self.find, self.stop = peeling.Rest(graph), options, find, stop
        self.why = np.full(n, UNVISITED, dtype=f"<U{max(map(len, WHY))}")
        self.closed = np.zeros(n, dtype=np.bool_)
        """Tokens that will not be seeds: in a cluster, tried, or next to a seed that failed."""
        self.why[self.rest.degree == 0] = ISOLATED
        self.closed[self.rest.degree == 0] = True
        self.found: list[tuple[Int[ndarray, " m"], float, int]] = []
        self.tried = 0

    def run(self, order: Int[ndarray, " seeds"] | None, advance) -> None:
        """Try seeds in this order; None: by rising conductance of their neighbourhoods."""
        order = peeling.by_score(self.rest.scores()) if order is None else order
        enough = max(self.stop * len(self.closed), 1)
        settled = int(np.count_nonzero(self.closed))
        for seed in order:
            if len(self.closed) - settled < enough:
                return
            if not self.closed[seed]:
                self.try_one(int(seed))
                settled = int(np.count_nonzero(self.closed))
                advance(settled, len(self.found))

    def try_one(self, seed: int) -> None:
        rest, place = self.rest, self.rest.place(seed)
        self.closed[seed] = True
        if rest.degree[place] == 0:
            self.why[seed] = ISOLATED
            return
        self.tried += 1
        cut = self.find(rest, place, self.options)
        members, spoken_for = np.sort(rest.names[cut.nodes]), rest.names[cut.spoken_for]
        if cut.kind == CLUSTER:
            self.found.append((members, cut.conductance, seed))
            rest.remove(cut.nodes)
            self.closed[members] = True
        else:
            self.closed[spoken_for] = True
            self.why[spoken_for] = self.why[seed] = cut.kind

    def result(self, finished: bool) -> Clustering:
        n, found = len(self.closed), self.found
        by_size = sorted(range(len(found)), key=lambda i: (-len(found[i][0]), i))
        labels, why = np.full(n, -1, dtype=np.int64), self.why
        for label, i in enumerate(by_size):
            labels[found[i][0]] = label
        why[labels >= 0] = CLUSTER
        return Clustering(
            labels,
            conductance=np.array([found[i][1] for i in by_size]),
            seeds=np.array([found[i][2] for i in by_size], dtype=np.int64),
            sizes=np.array([len(found[i][0]) for i in by_size], dtype=np.int64),
            order=np.array(by_size, dtype=np.int64),
            why=why,
            seeds_tried=self.tried,
            finished=finished,
        )


def _seed_order(choice, n: int, seed: int) -> Int[ndarray, " seeds"] | None:
    if isinstance(choice, str):
        if choice not in ("neighbourhood", "random"):
            raise ValueError(f"seed_choice must be 'neighbourhood', 'random' or a list of tokens, got {choice!r}")
        return np.random.default_rng(seed).permutation(n) if choice == "random" else None
    return pagerank.node_list(choice, n)


def check_options(options: Options, method: str, stop: float = STOP) -> None:
    """Refuse (ValueError) options that are out of range."""
    if method not in ("fast", "literal"):
        raise ValueError(f"method must be 'fast' or 'literal', got {method!r}")
    pagerank.check_rates(options.alpha, options.tol)
    if not 0 < options.main_body <= 1:
        raise ValueError(f"main_body must lie above 0 and be at most 1, got {options.main_body}")
    if options.min_size < 1:
        raise ValueError(f"min_size must be at least 1, got {options.min_size}")
    if options.max_size is not None and options.max_size < options.min_size:
        raise ValueError(f"max_size must be at least min_size = {options.min_size}, got {options.max_size}")
    if not 1 <= options.barrier < math.inf:
        raise ValueError(f"barrier must be a number of at least 1 (1 asks for nothing), got {options.barrier}")
    if not 0 <= stop < 1:
        raise ValueError(f"stop must lie from 0 to 1, got {stop}")


@contextmanager
def _bar(n: int, words: str, visible: bool, steady: bool = False) -> Iterator:
    """A progress bar in a terminal, over ``n`` tokens or repetitions; ``words`` has a gap for how many were found.

    ``steady``: all steps take about as long, so the bar can say how long is left.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(
        stderr=True, force_jupyter=False, force_terminal=sys.stderr.isatty()
    )  # whatever a kernel asks for
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")]
    columns += [TimeElapsedColumn(), *((TextColumn("left"), TimeRemainingColumn()) if steady else ())]
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden, speed_estimate_period=600) as bar:
        task = bar.add_task(words.format(0), total=n)
        yield lambda done, found: bar.update(task, completed=done, description=words.format(found))


class Certificate(NamedTuple):
    """How the clusters of a search compare with cuts of exact PageRank vectors."""

    clusters: Int[ndarray, " some"]
    """The clusters that were checked."""
    overlap: Float[ndarray, " some"]
    """Jaccard overlap of each cluster with the best exact cut: that of the exact vector of its seed, at its scale."""
    conductance: Float[ndarray, " some"]
    """Conductance of the best exact cut, in what was left of the graph when the cluster was found."""


def certify(
    graph: csr_array,
    clustering: Clustering,
    *,
    alpha: float = Options.alpha,
    sample: int | None = None,
    half_volume: bool = Options.half_volume,
    seed: int = 0,
) -> Certificate:
    """Check clusters against the exact PageRank vector of their seeds, on the graph that they were cut from.

    A cluster of m tokens is compared with the prefix of least conductance among those of m/2 to 2m tokens, in the sweep
    of the exact vector. The clusters must come from `conductance_clusters` on this graph; those of `stable_clusters`
    come from no single graph.

    Args:
        graph, alpha, half_volume: those of the search.
        sample: how many clusters to check, drawn at random; all by default. One takes about 1 s at 100 000 tokens.
        seed: of the sample.
    """
    graph = pagerank.checked(graph)
    count = len(clustering.sizes)
    chosen = np.random.default_rng(seed).permutation(count)[:sample]
    overlap, least = np.zeros(count), np.zeros(count)
    rest = peeling.Rest(graph)
    for cluster in np.argsort(clustering.order):
        members = clustering.members(cluster)
        if cluster in chosen:
            options = Options(alpha, half_volume=half_volume, max_size=2 * len(members))
            overlap[cluster], least[cluster] = _exactly(rest, members, int(clustering.seeds[cluster]), options)
        rest.remove(np.array([rest.place(node) for node in members]))
    chosen = np.sort(chosen)
    return Certificate(chosen, overlap[chosen], least[chosen])


def _exactly(rest: peeling.Rest, members: ndarray, seed: int, options: Options) -> tuple[float, float]:
    values = rest.exact(rest.place(seed), options.alpha, rtol=1e-12)
    order, profile = rest.sweep(np.flatnonzero(values > 0), values[values > 0], options)
    shortest = (len(members) + 1) // 2
    best = shortest + int(profile[shortest - 1 :].argmin())
    return peeling.overlap(members, rest.names[order[:best]]), float(profile[best - 1])


# Clusters that come back ---------------------------------------------------------------------------------------------


def stable_clusters(
    rows: Float[ndarray, "n d"],
    *,
    repeats: int = 10,
    share: float = 1 / 3,
    least: float = 0.5,
    k: int = 15,
    min_size: int = 10,
    quiet: float = 0.02,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
    **options,
) -> Clustering:
    """Clusters that come back when the clustering is repeated with a random part of the channels.

    Each repetition takes some of the columns at random, scales rows to unit length, joins each to its nearest (the
    mutual graph), and cuts that graph by conductance. A cluster *comes back* in a repetition if that has a cluster
    whose Jaccard overlap with it is above 1/2, its *match*. Among the clusters of all repetitions, the one that comes
    back most often is taken first, then the best of those left, and so on. The published cluster is what its matches
    agree on: the tokens that more than half of them hold.

    Why a repetition takes a third of the channels: channels are independent measurements of the same inner products.
    The mean over m of K channels differs from the mean over all K by a variance proportional to 1/m - 1/K; the mean
    over K fresh channels differs from it by 2/K. The two are equal at m = K/3. So a repetition differs from the whole
    about as much as a fresh measurement would. Being made of fewer channels it is also noisier by itself, so ``share``
    errs on the low side.

    Args:
        rows: resolved rows of any length, channels as columns (`run.resolved.rows_of`).
        repeats: number of repetitions.
        share: part of the channels that a repetition takes.
        least: a cluster that comes back in a smaller part of the repetitions is left out.
        k: neighbours of each row in the graph.
        min_size: tokens of the smallest cluster.
        quiet: rows shorter than this part of the root mean square length are left out. A token that no draw moves has
            no direction to compare, and all such tokens would be neighbours.
        seed: of the choice of channels, and of the search.
        workers: number of processes; the result is the same for any number. Ctrl-C ends them within seconds. If at
            least two repetitions were finished, their agreement is returned.
        progress: show a bar on a terminal.
        options: further options of `conductance_clusters`.

    Returns:
        A `Clustering` with the share of repetitions in which each cluster came back (``share``), and in which each
        token was in the match of its cluster (``support``). ``conductance`` is the mean over matches. ``seeds`` are
        those of the cluster that was taken, ``order`` is the order in which clusters were taken.

    Raises:
        ValueError: for rows that are not a finite table, fewer than two repeats, an option out of range, or so few rows
            above ``quiet`` that they have no k others.
    """
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"rows must be a finite (tokens, channels) table, got shape {rows.shape}")
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2, got {repeats}")
    for name, value in (("share", share), ("least", least)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must lie above 0 and be at most 1, got {value}")
    if not 0 <= quiet < math.inf:
        raise ValueError(f"quiet must be a number of at least 0, got {quiet}")
    length = np.concatenate([np.sqrt((part.astype(np.float64) ** 2).sum(axis=1)) for part in _stretches(rows)])
    loud = np.flatnonzero(length > quiet * np.sqrt((length**2).mean()))
    if len(loud) <= k:
        raise ValueError(f"{len(loud)} rows are long enough to be compared, and each needs {k} others")
    unit = rows[loud] / length[loud, None].astype(np.float32)
    count = max(1, round(share * unit.shape[1]))
    rngs = [np.random.default_rng([seed, repeat]) for repeat in range(repeats)]
    chosen = [np.sort(rng.choice(unit.shape[1], count, replace=False)) for rng in rngs]
    run = functools.partial(_repetition, k=k, options={"min_size": min_size, "seed": seed, **options})
    found: list[Clustering] = []
    bar, searches = _bar(repeats, "{} repetitions", progress, steady=True), _each(run, unit, chosen, workers)
    with bar as advance, closing(searches):
        try:
            for one in searches:
                found.append(one.complete())
                advance(len(found), len(found))
        except KeyboardInterrupt:
            if len(found) < 2:
                raise
    agreed = _agreement([one.labels for one in found], least, min_size)
    return replace(_published(agreed, found, loud, len(rows)), finished=len(found) == repeats)


def _stretches(rows: Float[ndarray, "n d"], most: int = 4096) -> Iterator[Float[ndarray, "m d"]]:
    """The rows, some at a time: float64 copies of all would take four times their memory."""
    return (rows[begin : begin + most] for begin in range(0, max(1, len(rows)), most))


def _repetition(rows: Float[ndarray, "n d"], k: int, options: Mapping) -> Clustering:
    length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return conductance_clusters(knn_graph(unit, k=k, symmetrise="mutual"), **options)


def _each(run, rows: Float[ndarray, "n d"], chosen: Sequence[ndarray], workers: int) -> Generator[Clustering]:
    """The clustering for each choice of channels, in order. Several processes read the rows from one file."""
    if workers == 1:
        yield from (run(rows[:, some]) for some in chosen)
        return
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    count = min(workers, len(chosen))
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(count, spawn, _one_of_many) as pool:
        file = Path(folder) / "rows.npy"
        np.save(file, rows)
        try:
            with _ctrl_c_held():
                found = pool.map(functools.partial(_from_file, run, file), chosen)
            yield from found
        except BaseException:  # Ctrl-C above all: nobody waits for what is begun
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Block Ctrl-C while child processes start, so that they never see it; this process receives it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # first, since it unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _one_of_many() -> None:
    """Set up a worker process: it uses one core and ignores Ctrl-C, which its parent handles."""
    import faiss
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)


def _from_file(run, file: Path, some: Int[ndarray, " channels"]) -> Clustering:
    return run(np.load(file, mmap_mode="r")[:, some])


class _Agreed(NamedTuple):
    """What repetitions agree on, cluster by cluster."""

    members: list[Int[ndarray, " m"]]
    share: list[float]
    support: Float[ndarray, " n"]
    source: list[tuple[int, int]]
    """For each, the cluster that was taken: its repetition and its number there."""
    matches: list[list[tuple[int, int]]]
    """For each, the clusters that it comes back as: their repetition and number."""


def overlaps(
    first: Int[ndarray, " n"], second: Int[ndarray, " n"]
) -> Float[csr_array, "first_clusters second_clusters"]:
    """Jaccard overlap of each cluster of one labelling with each of another; a label of -1 means no cluster."""
    both = (first >= 0) & (second >= 0)
    shape = (int(first.max(initial=-1)) + 1, int(second.max(initial=-1)) + 1)
    common = coo_array((np.ones(both.sum()), (first[both], second[both])), shape=shape).tocsr().tocoo()
    sizes = [np.bincount(labels[labels >= 0], minlength=n) for labels, n in zip((first, second), shape, strict=True)]
    union = sizes[0][common.row] + sizes[1][common.col] - common.data
    return coo_array((common.data / union, (common.row, common.col)), shape=shape).tocsr()


def _matches(labels: Sequence[Int[ndarray, " n"]]) -> list[list[list[tuple[int, int]]]]:
    """For each cluster of each repetition the clusters that it comes back as, itself included."""
    found: list[list[list[tuple[int, int]]]] = [[[] for _ in range(int(own.max(initial=-1)) + 1)] for own in labels]
    for i, first in enumerate(labels):
        for j, second in enumerate(labels):
            table = overlaps(first, second).tocoo()
            for a, b in zip(*(part[table.data > 0.5] for part in (table.row, table.col)), strict=True):
                found[i][int(a)].append((j, int(b)))  # one at most: two sets cannot both share most of a third
    return found


def _agreement(labels: Sequence[Int[ndarray, " n"]], least: float, min_size: int) -> _Agreed:
    repeats, n = len(labels), len(labels[0])
    matches = _matches(labels)
    candidates = [(i, c) for i, own in enumerate(matches) for c in range(len(own))]
    candidates.sort(key=lambda ic: (-len(matches[ic[0]][ic[1]]), ic))
    agreed, used, taken = _Agreed([], [], np.zeros(n), [], []), set(), np.zeros(n, dtype=bool)
    for i, c in candidates:
        own = matches[i][c]
        if (i, c) in used or len(own) < least * repeats:
            continue
        votes = sum((labels[j] == b).astype(np.int64) for j, b in own)
        members = np.flatnonzero((2 * votes > len(own)) & ~taken)
        used.update(own)
        if len(members) < min_size:
            continue
        mine = np.full(n, -1)
        mine[members] = 0
        back = [(j, int(row.indices[0])) for j, row in ((j, _best(mine, labels[j])) for j in range(repeats)) if row.nnz]
        if len(back) < least * repeats:
            continue
        used.update(back)
        taken[members] = True
        agreed.members.append(members)
        agreed.share.append(len(back) / repeats)
        agreed.support[members] = sum((labels[j][members] == b) for j, b in back) / repeats
        agreed.source.append((i, c))
        agreed.matches.append(back)
    return agreed


def _best(mine: Int[ndarray, " n"], labels: Int[ndarray, " n"]) -> csr_array:
    """The Jaccard overlaps above 1/2 of the one cluster in ``mine`` with those in ``labels``: at most one entry."""
    table = overlaps(mine, labels)
    table.data[table.data <= 0.5] = 0
    table.eliminate_zeros()
    return table


def _published(agreed: _Agreed, found: Sequence[Clustering], loud: Int[ndarray, " m"], n: int) -> Clustering:
    order = sorted(range(len(agreed.members)), key=lambda i: (-len(agreed.members[i]), i))
    labels, support, why = np.full(n, -1), np.zeros(n), np.full(n, QUIET, dtype=f"<U{max(map(len, WHY))}")
    reasons = np.stack([one.why for one in found])
    why[loud] = [max(WHY, key=lambda reason: (own == reason).sum()) for own in reasons.T]
    why[why == CLUSTER] = FLEETING
    for label, i in enumerate(order):
        labels[loud[agreed.members[i]]] = label
        support[loud[agreed.members[i]]] = agreed.support[agreed.members[i]]
    why[labels >= 0] = CLUSTER
    sources = [agreed.source[i] for i in order]
    return Clustering(
        labels,
        conductance=np.array([np.mean([found[j].conductance[b] for j, b in agreed.matches[i]]) for i in order]),
        seeds=np.array([loud[found[j].seeds[b]] for j, b in sources], dtype=np.int64),
        sizes=np.array([len(agreed.members[i]) for i in order], dtype=np.int64),
        order=np.array(order, dtype=np.int64),
        why=why,
        seeds_tried=sum(one.seeds_tried for one in found),
        share=np.array([agreed.share[i] for i in order]),
        support=support,
    )


# On disk -------------------------------------------------------------------------------------------------------------


def cluster_summary(clustering: Clustering) -> dict:
    """A clustering as a dictionary that JSON can hold, without the labels of single tokens."""
    return {
        "clusters": len(clustering.sizes),
        "sizes": clustering.sizes.tolist(),
        "conductance": clustering.conductance.tolist(),
        "seeds": clustering.seeds.tolist(),
        "order": clustering.order.tolist(),
        "coverage": clustering.coverage,
        "left": clustering.left(),
        "seeds_tried": clustering.seeds_tried,
        "finished": clustering.finished,
        **({} if clustering.share is None else {"share": clustering.share.tolist()}),
    }
