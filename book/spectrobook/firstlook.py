"""What the first chapter shows: tokens in their contexts one above the other, one row, and one small picture for each
section of the paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib import modes
from spectrolib.clustering import approximate_pagerank, sweep_cut
from spectrolib.exact import toys
from spectrolib.graph import knn_graph
from spectrolib.model.engine import Engine
from spectrolib.reading.marks import BLUE, PALETTE, VERMILION, visible
from spectrolib.text.runningtext import RunningText

from .slider import Curves

Context = tuple[str, str, str]
"""What stands before a token, the token, and what stands after it."""

# Tokens ------------------------------------------------------------------------------------------------------------


def closing(names: Sequence[str]) -> Bool[ndarray, " tokens"]:
    """Which tokens close a bracket and do nothing else, by their names (`RunningText.names`): ``')'``, ``'))'``."""
    bare = [name.strip("'\" ") for name in names]
    return np.array([bool(name) and set(name) <= set(")]}") for name in bare])


def tell_apart(
    inside: Bool[ndarray, " tokens"], others: Bool[ndarray, " tokens"], said: Mapping[str, Bool[ndarray, " tokens"]]
) -> tuple[str, float, float]:
    """Which of some statements tells a set of tokens best from others: its words, and for how many of each it holds."""
    shares = {words: (holds[inside].mean(), holds[others].mean()) for words, holds in said.items()}
    words = max(shares, key=lambda words: shares[words][0] - shares[words][1])
    return (words, *map(float, shares[words]))


@torch.no_grad()
def best_guesses(engine: Engine, ids: Int[ndarray, " context"], count: int = 5) -> list[tuple[int, float]]:
    """What a model holds for likeliest after a context: tokens and their probabilities, the likeliest first."""
    inputs = torch.as_tensor(np.asarray(ids)[None], dtype=torch.long, device=engine.device)
    hidden = engine.hidden(engine.residual(inputs, engine.shape.layers))[-1]
    found = torch.softmax(hidden @ engine.weights[engine.shape.unembed].T, dim=-1).topk(count)
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def squeezed(text: RunningText, row: int, before: int, after: int) -> Context:
    """A token in its context, each run of blanks as one, so that more of the text is seen."""
    left, token, right = text.context(row, 4 * before, 4 * after)
    left, right = (re.sub(" {2,}", " ", part) for part in (left, right))
    return left[-before:], token, right[:after]


class Lines(NamedTuple):
    """Tokens that belong together, in their contexts."""

    heading: str
    colour: str
    contexts: Sequence[Context]


def concordance(groups: Sequence[Lines], *, before: int = 30, after: int = 20) -> Figure:
    """Contexts one above the other with the token in one column, painted by the group; ends are cut off.

    Args:
        before, after: characters that are shown of either side.
    """
    widest = max(len(visible(token)) for group in groups for _, token, _ in group.contexts)
    columns, rows = before + widest + after, sum(len(group.contexts) + 1.6 for group in groups)
    width = 7.0 / columns  # inches; DejaVu Sans Mono is 0.602 em wide, and an em is 72 points to the inch
    size = 72 * width / 0.602
    fig = plt.figure(figsize=(7.0, 1.55 * size * rows / 72))
    fig.set_layout_engine("none")  # as an argument it would be forgotten when the figure is saved
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(rows, 0))
    ax.axis("off")
    mono = dict(family="DejaVu Sans Mono", size=size, va="center_baseline", parse_math=False)
    row = 0.0
    for group in groups:
        ax.text(0, row + 0.85, group.heading, size=size, weight="bold", color=group.colour, va="center_baseline")
        row += 1.4
        for left, token, right in group.contexts:
            left, token, right = (visible(part) for part in (left, token, right))
            ax.add_patch(plt.Rectangle((before - 0.2, row + 0.04), len(token) + 0.4, 0.92, color=group.colour))
            ax.text(before, row + 0.5, left[-before:], ha="right", color="0.25", **mono)
            ax.text(before, row + 0.5, token, color="white", weight="bold", **mono)
            ax.text(before + len(token), row + 0.5, right[: columns - before - len(token)], color="0.45", **mono)
            row += 1
        row += 0.2
    return fig


def binned(x: Float[ndarray, " n"], y: Float[ndarray, " n"], bins: int = 6) -> list[tuple[float, float, float]]:
    """Points in groups of equal number along x: mean x, mean y, standard error of that, for each group."""
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return [(float(x[p].mean()), float(y[p].mean()), float(y[p].std(ddof=1) / np.sqrt(len(p)))) for p in parts]


def row_bars(
    values: Float[ndarray, " components"],
    halves: Float[ndarray, "2 components"],
    components: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """One token's row as bars, blue below zero and vermilion above; dots are the values of either half."""
    ax = plt.subplots(figsize=(4.8, 5.6))[1] if ax is None else ax
    place = np.arange(len(components))
    ax.barh(place, values, color=[BLUE if value < 0 else VERMILION for value in values], alpha=0.75)
    for half in halves:
        ax.plot(half, place, ".", color="k", markersize=4)
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.set_yticks(place, components, fontsize=8)
    ax.set(xlabel="standardised susceptibility")
    ax.margins(y=0.01)
    ax.invert_yaxis()
    return ax


# The paper in four pictures ------------------------------------------------------------------------------------------


def draw_response(ax: Axes, found: Curves, *, nbeta: float = 20, gamma: float = 1) -> dict[str, ndarray]:
    """The mean rise under a tilt, exact, and the tangent that the covariance without the tilt gives.

    Args:
        found: losses along one weight; its first token is shown.

    Returns:
        What is drawn: tilts, means and the line, in nats.
    """
    tilts = np.linspace(0, 0.3, 13)
    means = np.array([found.response(0, tilt, nbeta, gamma).mean for tilt in tilts])
    line = means[0] + nbeta * found.response(0, 0, nbeta, gamma).susceptibility * tilts
    ax.plot(tilts, 1e3 * line, color=BLUE, label="minus covariance")
    ax.plot(tilts, 1e3 * means, "o", color="k", markersize=4, label="response")
    ax.set(xlabel="tilt $h$", ylabel=r"$\langle g\rangle_h$ ($10^{-3}$ nats)")
    ax.legend()
    return {"tilt": tilts, "mean": means, "line": line}


def draw_modes(ax: Axes, seed: int = 0) -> dict[str, ndarray]:
    """The singular values of a table of next tokens with five planted reasons.

    Returns:
        The singular values.
    """
    table = toys.planted_reasons(seed=seed)
    s, reasons = modes.decompose(table.joint).s, len(table.names)
    ax.bar(np.arange(len(s)) + 1, s, color=[VERMILION if i < reasons else "0.6" for i in range(len(s))])
    ax.set(xlabel="mode", ylabel="strength", xticks=[1, reasons, len(s)])
    ax.text(0.95, 0.9, f"{reasons} reasons planted", transform=ax.transAxes, ha="right", color=VERMILION)
    return {"strength": s}


def draw_cut(ax: Axes, seed: int = 0) -> dict[str, object]:
    """A planted group in a small graph, and the cut of least conductance around a point of it.

    Returns:
        The points, which of them are planted and which are cut off, and the conductance.
    """
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(size=(60, 2)), 0.25 * rng.normal(size=(16, 2)) + (2.6, 2.2)])
    planted = np.arange(len(points)) >= 60
    graph = knn_graph(points, k=5)
    found = sweep_cut(graph, *approximate_pagerank(graph, len(points) - 1, alpha=0.02, tol=1e-7))
    inside = np.isin(np.arange(len(points)), found.nodes)
    network, place = nx.from_scipy_sparse_array(graph), dict(enumerate(points))
    leaving = [(a, b) for a, b in network.edges if inside[a] != inside[b]]
    nx.draw_networkx_edges(network, place, ax=ax, edge_color="0.75", width=0.6)
    nx.draw_networkx_edges(network, place, leaving, ax=ax, edge_color=VERMILION, width=2)
    colours = [BLUE if cut else "white" for cut in inside]
    nx.draw_networkx_nodes(network, place, node_color=colours, node_size=26, edgecolors="0.3", linewidths=0.6, ax=ax)
    ax.axis("off")
    return {"points": points, "planted": planted, "cut": inside, "conductance": found.conductance}


def draw_features(ax: Axes, matches: Mapping) -> dict[str, float]:
    """The share of clusters that a feature of some dictionary matches, beside those of shuffled labels.

    Args:
        matches: as `spectro match` writes them, with the row of all dictionaries together.

    Returns:
        The shares by what was matched.
    """
    (row,) = (d for d in matches["dictionaries"] if d["dictionary"] == "all of them" and d["at"] == "predicted")
    rate = row["rates"][0]
    chance = {null: of["rate"] for null, of in rate["chance"].items()}
    shares = {
        "clusters": rate["rate"],
        "shuffled among\nequal tokens": chance["same token"],
        "shuffled": chance["any token"],
    }
    place = np.arange(len(shares))
    ax.barh(place, 100 * np.array(list(shares.values())), color=[VERMILION, PALETTE[5], "0.6"])
    ax.set_yticks(place, list(shares))
    ax.invert_yaxis()
    ax.set(xlabel=f"matched, F1 ≥ {rate['threshold']:g} (%)")
    return shares
