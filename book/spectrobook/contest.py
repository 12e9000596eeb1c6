"""Conductance put to the test on planted clouds: one option at a time, the smallest cluster, and other methods.

Trials that take seconds run in the chapter; the comparison of methods is read from what ``benchmarks/clustering.py``
wrote (`clouds.benchmark`). Figures draw one or the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spectrolib.clustering import conductance, conductance_clusters
from spectrolib.graph import knn_graph
from spectrolib.reading.marks import BLUE, VERMILION

from . import clouds, show
from .walks import HEAT

K = 45
"""Neighbours, where nothing else is tried."""
KINDS = {"union": (BLUE, "o"), "mutual": (VERMILION, "s")}
"""Graphs, with their colours and marks."""
KNOBS = {
    "k": "neighbours k",
    "alpha": "α",
    "tol": "tolerance",
    "main_body": "main-body share",
    "min_size": "least size",
    "max_size": "greatest size",
    "barrier": "barrier",
}
"""Options that are tried, and their names in figures."""
SCORES = {
    "rand": "adjusted Rand",
    "rand_planted": "adjusted Rand, planted tokens",
    "precision": "precision",
    "recall": "recall",
    "body_left": "body left alone",
    "over_seeds": "agreement, two seeds",
    "over_subsamples": "agreement, two subsamples",
}
"""Scores of the comparison, and their names in tables."""
DRAWN = ("rand", "precision", "recall", "body_left")
"""Those that `methods_figure` shows."""
OURS = ("paper", "default", "tuned")
"""What names of conductance's own entries begin with."""


def knob_defaults(tokens: int) -> dict[str, float]:
    """What each knob is at when another is turned, for so many tokens."""
    options = inspect.signature(conductance_clusters).parameters
    return {"k": K, "max_size": tokens // 4} | {k: options[k].default for k in KNOBS if k not in ("k", "max_size")}


def knob_values(tokens: int, quick: bool = False) -> dict[str, list[float]]:
    """The values of each knob, its default among them; ``quick``: two of each."""
    tried: dict[str, list[float]] = {
        "k": [8, 15, 45, 70],
        "alpha": [1e-4, 1e-3, 1e-2, 0.1],
        "tol": [1e-7, 1e-5, 1e-4, 1e-3],
        "main_body": [0.5, 0.99],
        "min_size": [5, 20, 40, 80],
        "max_size": [tokens // 16, tokens // 8, tokens // 4, tokens // 2],
        "barrier": [1.0, 1.15, 1.3, 2.0],
    }
    defaults = knob_defaults(tokens)
    return {knob: sorted({*(values[:1] if quick else values), defaults[knob]}) for knob, values in tried.items()}


def knob_trials(setting: clouds.Clouds, values: Mapping[str, Sequence], repeats: int = 1, seed: int = 0):
    """One option at a time on planted clouds, the others at their defaults.

    Returns:
        A data frame with ``graph``, ``knob``, ``value``, ``repeat`` and the scores.
    """
    defaults, trials = knob_defaults(setting.tokens), []
    for repeat in range(repeats):
        sample = clouds.plant(setting, seed + repeat)
        for kind in KINDS:
            scored: dict = {}  # the defaults are a value of every knob
            for knob, value in [(knob, value) for knob, some in values.items() for value in some]:
                changed = (knob, value) if value != defaults[knob] else "none"
                if changed not in scored:
                    graph = knn_graph(sample.vectors, k=int(value) if knob == "k" else K, symmetrise=kind)
                    options = {} if knob == "k" else {knob: value}
                    labels = conductance_clusters(graph, seed=seed, **options).complete().labels
                    scored[changed] = clouds.scores(sample.labels, labels)._asdict()
                trials.append({"graph": kind, "knob": knob, "value": value, "repeat": repeat} | scored[changed])
    return pd.DataFrame(trials)


def knobs_figure(trials: pd.DataFrame, defaults: Mapping[str, float]) -> Figure:
    """F1 and the share of the main body that is left alone, for each value of each knob; grey bands are defaults."""
    fig, axes = plt.subplots(2, 4, figsize=(7.4, 4.2), sharey=True)
    for ax, (knob, own) in zip(axes.flat, trials.groupby("knob", sort=False), strict=False):
        values = sorted(own.value.unique())
        for kind, (colour, marker) in KINDS.items():
            part = own[own.graph == kind].groupby("value")[["f1", "body_left"]].mean()
            style = dict(marker=marker, markersize=4, color=colour)
            ax.plot(range(len(values)), part.f1, label=f"F1, {kind}", **style)
            hollow = dict(linestyle=":", fillstyle="none", label=f"body left, {kind}")
            ax.plot(range(len(values)), part.body_left, **hollow, **style)
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values], fontsize=7)
        ax.set(xlabel=KNOBS[str(knob)], ylim=(-0.05, 1.05))
        ax.xaxis.label.set_fontsize(9)
        ax.axvline(values.index(defaults[str(knob)]), color="0.85", linewidth=5, zorder=0)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 3].axis("off")
    axes[1, 3].legend(handles, labels, loc="center", fontsize=8)
    return fig


# The smallest cluster ------------------------------------------------------------------------------------------------


def smallest_trials(tokens: int, sizes: Sequence[int], repeats: int = 3, seed: int = 0) -> pd.DataFrame:
    """One tight planted cluster of each size: its conductance, and whether the peel finds it from its members.

    Returns:
        A data frame with ``size``, ``graph``, ``conductance`` and ``found``.
    """
    rows = []
    for size in sizes:
        tight = clouds.Clouds(tokens=tokens, clusters=1, smallest=size, largest=size, tightest=0.2, loosest=0.2)
        for repeat in range(repeats):
            sample = clouds.plant(tight, seed + repeat)
            members = np.flatnonzero(sample.labels == 0)
            for kind in KINDS:
                graph = knn_graph(sample.vectors, k=K, symmetrise=kind)
                found = conductance_clusters(graph, seed=seed, min_size=10, seed_choice=members[:5].tolist()).complete()
                hit = bool(clouds.matches(sample.labels, found.labels))
                rows.append({"size": size, "graph": kind, "conductance": conductance(graph, members), "found": hit})
    return pd.DataFrame(rows)


def least_conductance(size, k: int = K):
    """The bound for a set of so many tokens in the union graph: (k + 1 - size) / k, and no less than 0."""
    return np.maximum(0.0, (k + 1 - np.asarray(size)) / k)


def smallest_figure(trials: pd.DataFrame) -> Figure:
    """Conductance of the true cluster beside its bound, and how often it is found, by its size."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9))
    span = np.arange(trials["size"].min(), trials["size"].max() + 1)
    axes[0].plot(span, least_conductance(span), color="0.3", linestyle="--", label="bound, union graph")
    for kind, (colour, marker) in KINDS.items():
        part = trials[trials.graph == kind]
        style = dict(marker=marker, color=colour, markersize=4, label=kind)
        axes[0].plot(part["size"], part.conductance, linestyle="none", **style)
        share = part.groupby("size").found.mean()
        axes[1].plot(share.index, share.values, **style)
    axes[0].set(ylabel="its conductance", ylim=(0, 1.02))
    axes[1].set(ylabel="share found", ylim=(-0.05, 1.05))
    for ax in axes:
        ax.set_xlabel("members of the planted cluster")
        ax.axvline(K, color="0.8", linewidth=0.8, zorder=0)
    axes[0].legend()
    return fig


# Against other methods -----------------------------------------------------------------------------------------------


def over_seeds(runs: Sequence[Mapping], score: str) -> str:
    """Mean of a score over test seeds, and its range, in words; nothing where it was not taken."""
    values = [run[score] for run in runs if score in run]
    return show.interval((float(np.mean(values)), min(values), max(values))) if values else ""


def short_names(methods: Mapping[str, Mapping]) -> list[str]:
    """What methods are called in figures."""
    return [str(record["title"]).replace("conductance, ", "") for record in methods.values()]


def methods_figure(benchmark: Mapping) -> Figure:
    """Mean and range of `DRAWN` scores over the test seeds, a row for each method; dotted: whoever knows the law."""
    methods = benchmark["methods"]
    fig, axes = plt.subplots(1, 4, figsize=(7.6, 3.1), sharey=True)
    for ax, score in zip(axes, DRAWN, strict=True):
        for row, (name, record) in enumerate(methods.items()):
            values = [run[score] for run in record["test"]]
            colour, mark = (BLUE, "o") if name.startswith(OURS) else (VERMILION, "s")
            ax.plot([min(values), max(values)], [row, row], color=colour, alpha=0.4)
            ax.plot(np.mean(values), row, mark, color=colour)
        ax.axvline(np.mean([run[score] for run in benchmark["ceiling"]]), color="0.5", linestyle=":", linewidth=1)
        ax.set_title(SCORES[score], fontsize=9)
        ax.set_xlim(-0.04, 1.04)
    axes[0].set_yticks(range(len(methods)), short_names(methods), fontsize=8)
    axes[0].invert_yaxis()
    return fig


def found_shares(methods: Mapping[str, Mapping]) -> tuple[list[int], np.ndarray]:
    """Sizes of the planted clusters, and the share of test seeds in which each method finds each."""
    runs = [record["test"] for record in methods.values()]
    sizes = [cluster["size"] for cluster in runs[0][0]["by_cluster"]]
    return sizes, np.array(
        [np.mean([[c["found"] for c in one["by_cluster"]] for one in some], axis=0) for some in runs]
    )


def found_figure(methods: Mapping[str, Mapping]) -> Figure:
    """How often each method finds the planted cluster of each size, percent of the test seeds."""
    sizes, share = found_shares(methods)
    fig, ax = plt.subplots(figsize=(7, 3.2))
    ax.imshow(share, cmap=HEAT, vmin=0, vmax=1.4, aspect="auto")
    for (row, column), value in np.ndenumerate(share):
        style = dict(ha="center", va="center", fontsize=7, color="k" if value < 0.7 else "w")
        ax.text(column, row, f"{100 * value:.0f}", **style)
    ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    ax.set_yticks(range(len(methods)), short_names(methods), fontsize=8)
    ax.set(xlabel="members of the planted cluster")
    ax.tick_params(length=0)
    ax.set_title("found, % of the test seeds", fontsize=9)
    return fig
