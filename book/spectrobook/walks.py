"""The peel in pictures: a cloud small enough to draw, walks on its graph, the sweep of one, and what is taken out.

Figures take the numbers that a chapter computed and draw them; nothing is computed here but the cloud and the steps of
a walk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy import ndarray
from scipy.sparse import csr_array

from spectrolib.clustering import Clustering
from spectrolib.pagerank import SweepCut
from spectrolib.reading.marks import BLUE, PALETTE, VERMILION

HEAT = LinearSegmentedColormap.from_list("heat", ["#FFFFFF", PALETTE[5], BLUE, "#001A33"])
"""From nothing to much, for places where a walker is."""


class SmallCloud(NamedTuple):
    """A main body and two tight groups in it, small enough to draw."""

    points: Float[ndarray, "points axes"]
    """The first two axes are the ones to draw."""
    truth: Int[ndarray, " points"]
    """-1 for the main body, 0 and 1 for the groups."""


def small_cloud(seed: int = 0, sizes: tuple[int, int, int] = (90, 16, 12), axes: int = 8) -> SmallCloud:
    """Points with so many coordinates: a body, and two groups on either side of its middle.

    Args:
        seed: the same seed gives the same cloud.
        sizes: points of the body and of each group.
        axes: coordinates; the groups differ in the first two.
    """
    rng = np.random.default_rng(seed)
    centre = np.zeros(axes)
    centre[:2] = 2.4, 1.8
    body = rng.normal(size=(sizes[0], axes)) * np.where(centre, 1.2, 1)
    groups = [0.2 * rng.normal(size=(n, axes)) + side * centre for n, side in zip(sizes[1:], (1, -1), strict=True)]
    return SmallCloud(np.concatenate([body, *groups]), np.repeat([-1, 0, 1], sizes))


def walk_step(graph: csr_array, p: Float[ndarray, " n"], home: int, alpha: float) -> Float[ndarray, " n"]:
    """One step of the lazy walk that goes home: where the walker is after it, from where it was."""
    degree = graph.sum(axis=1)
    moved = 0.5 * (1 - alpha) * (p + graph @ (p / degree))
    moved[home] += alpha
    return moved


def cluster_colours(labels: Int[ndarray, " n"]) -> list[str]:
    """White for the main body, a colour for each cluster."""
    return ["white" if label < 0 else PALETTE[label % len(PALETTE)] for label in labels]


def draw_graph(
    graph: csr_array,
    points: Float[ndarray, "n axes"],
    colour: Sequence | ndarray,
    ax: Axes,
    *,
    size: int = 26,
    edges: str = "0.8",
    cut: Sequence[int] = (),
    ring: int | None = None,
    **style,
) -> None:
    """A graph at its points' places.

    Args:
        cut: a set; edges that leave it are vermilion.
        ring: a point to put a circle around: the seed.
        style: of `networkx.draw_networkx_nodes`.
    """
    network = nx.from_scipy_sparse_array(graph)
    places = {node: points[node, :2] for node in range(len(points))}
    inside = np.isin(np.arange(len(points)), cut)
    leaving = [edge for edge in network.edges if inside[edge[0]] != inside[edge[1]]]
    staying = [edge for edge in network.edges if inside[edge[0]] == inside[edge[1]]]
    nx.draw_networkx_edges(network, places, staying, ax=ax, edge_color=edges, width=0.6)
    nx.draw_networkx_edges(network, places, leaving, ax=ax, edge_color=VERMILION, width=1.2)
    nx.draw_networkx_nodes(
        network, places, node_color=colour, node_size=size, ax=ax, edgecolors="0.25", linewidths=0.5, **style
    )
    if ring is not None:
        ax.plot(*points[ring, :2], "o", markersize=10, fillstyle="none", color="k")
    ax.set_aspect("equal")
    ax.axis("off")


def graphs_figure(graphs: Mapping[str, csr_array], cloud: SmallCloud) -> Figure:
    """Graphs of one cloud side by side, the planted groups in colour."""
    fig, axes = plt.subplots(1, len(graphs), figsize=(7, 2.9), squeeze=False)
    for ax, (kind, graph) in zip(axes[0], graphs.items(), strict=True):
        draw_graph(graph, cloud.points, cluster_colours(cloud.truth), ax)
        ax.set_title(f"{kind}: {graph.nnz // 2} edges")
    return fig


def walk_figure(
    graph: csr_array, points: Float[ndarray, "n axes"], states: Mapping[str, Float[ndarray, " n"]], home: int
) -> Figure:
    """Where a walker is, divided by the degree of the point, at some moments; the last sets the scale."""
    degree = graph.sum(axis=1)
    deepest = float((list(states.values())[-1] / degree).max()) / 1.5
    fig, axes = plt.subplots(1, len(states), figsize=(7.4, 2.0), squeeze=False)
    for ax, (title, p) in zip(axes[0], states.items(), strict=True):
        heat = dict(cmap=HEAT, vmin=0, vmax=deepest)
        draw_graph(graph, points, p / degree, ax, size=14, edges="0.88", ring=home, **heat)
        ax.set_title(title, fontsize=9)
    return fig


def sweep_figure(
    graph: csr_array, points: Float[ndarray, "n axes"], sweeps: Mapping[str, tuple[int, SweepCut]]
) -> Figure:
    """For each walk, by its title: the conductance of the prefixes of its ranking, and the set that the best cuts off.

    Args:
        sweeps: seed and sweep of each walk.
    """
    fig, axes = plt.subplots(2, len(sweeps), figsize=(7, 5), height_ratios=(1, 1.1), squeeze=False)
    for (top, bottom), (title, (seed, sweep)) in zip(axes.T, sweeps.items(), strict=True):
        top.plot(np.arange(1, len(sweep.profile) + 1), sweep.profile, color=BLUE)
        top.plot(len(sweep.nodes), sweep.conductance, "o", color=VERMILION)
        top.set(title=title, xlabel="points in the prefix", ylabel="conductance", ylim=(0, 1.05))
        said = f"least: {sweep.conductance:.2f} at {len(sweep.nodes)} points"
        top.text(0.5, 0.9, said, transform=top.transAxes, color=VERMILION, ha="center")
        inside = np.isin(np.arange(len(points)), sweep.nodes)
        draw_graph(graph, points, np.where(inside, BLUE, "white"), bottom, cut=sweep.nodes, ring=seed)
    return fig


def peel_figure(graph: csr_array, points: Float[ndarray, "n axes"], peel: Clustering, most: int = 3) -> Figure:
    """One cluster after another, as it was cut from what was left, and what no seed could cut.

    Args:
        most: clusters to show.
    """
    turns = np.argsort(peel.order)[:most]
    fig, axes = plt.subplots(1, len(turns) + 1, figsize=(7.4, 7.2 / (len(turns) + 1)), squeeze=False)
    gone = np.zeros(len(points), dtype=bool)
    for turn, ax in enumerate(axes[0]):
        left = graph.multiply(~gone[:, None]).multiply(~gone[None, :]).tocsr()
        left.eliminate_zeros()
        now = peel.members(turns[turn]) if turn < len(turns) else np.array([], dtype=int)
        colours = np.where(gone, "0.85", "white").astype(object)
        colours[now] = BLUE
        ring = int(peel.seeds[turns[turn]]) if len(now) else None
        draw_graph(left, points, list(colours), ax, size=12, edges="0.75", cut=now, ring=ring)
        ax.set_title(f"cluster {turn + 1}" if len(now) else "what is left", fontsize=9)
        ax.set(xlim=axes[0, 0].get_xlim(), ylim=axes[0, 0].get_ylim())
        gone[now] = True
    return fig
