"""Pictures of a susceptibility table, and of the components that are its columns.

All take columns in the order of the network (`spectrobook.halves.network_order`) and mark them by their layer, since
the names of thirty components are not legible on a phone. Blue is negative, vermilion positive, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib.model.components import layer_of
from spectrolib.reading.marks import BLUE, PALETTE, VERMILION

from .figures import DIVERGING

COLOURS = (BLUE, VERMILION, PALETTE[2], PALETTE[3])
MARKERS = "os^D"


def component_boxes(sizes: Mapping[str, int], layers: int, heads: int) -> Figure:
    """The components of a model as boxes, the embedding below, with the number of weights of each.

    Args:
        sizes: weights by component: ``embed``, ``unembed``, and for each layer its heads and its MLP.
    """
    fig, ax = plt.subplots(figsize=(6, 0.42 * (layers + 2) + 0.1))
    ends = {"embed": 0, "unembed": layers + 1}
    for name, size in sizes.items():
        layer = layer_of(name)
        if layer is None:
            x, y, width, colour = 0, ends[name], heads + 2, PALETTE[2]
        elif name.endswith("mlp"):
            x, y, width, colour = heads, layer + 1, 2, PALETTE[4]
        else:
            x, y, width, colour = int(name.split("h")[1]), layer + 1, 1, PALETTE[5]
        box = plt.Rectangle((x + 0.04, y + 0.08), width - 0.08, 0.84, color=colour, alpha=0.45, linewidth=0)
        ax.add_patch(box)
        ax.text(x + width / 2, y + 0.5, f"{name}  {size / 1e3:,.0f}k", ha="center", va="center", fontsize=9)
    ax.set(xlim=(0, heads + 2), ylim=(0, layers + 2))
    ax.axis("off")
    return fig


def mark_layers(ax: Axes, components: Sequence[str], *, axis: str = "x", name: str = "layer") -> None:
    """Name the layers on an axis that has a place for each component; the two ends by their own names."""
    runs = [
        (key, len(list(run)))
        for key, run in groupby(components, key=lambda c: c if layer_of(c) is None else layer_of(c))
    ]
    edges = np.cumsum([0, *(length for _, length in runs)]) - 0.5
    middles, keys = (edges[:-1] + edges[1:]) / 2, [str(key) for key, _ in runs]
    (ax.set_xticks if axis == "x" else ax.set_yticks)(middles, keys)
    ax.tick_params(axis=axis, length=0, pad=8 if axis == "x" else 4)  # clear of the other axis's last number
    if axis == "x" and (labels := ax.get_xticklabels()):  # an axis that shares its labels with one below has none
        labels[0].set_horizontalalignment("right")  # the names of the ends are long, and their places narrow
        labels[-1].set_horizontalalignment("left")
    line = ax.axvline if axis == "x" else ax.axhline
    for edge in edges[1:-1]:
        line(edge, color="0.75", linewidth=0.5)
    ax.set(**{f"{axis}label": name})


def grouped_rows(
    vectors: Float[ndarray, "tokens components"],
    components: Sequence[str],
    groups: Mapping[str, Int[ndarray, " members"]],
    *,
    limit: float,
    label: str = "standardised susceptibility",
) -> Figure:
    """Rows of a table as lines of colour, one group of tokens under the other.

    Args:
        groups: the tokens of each group, under its name.
        limit: the absolute value painted deepest.

    Raises:
        ValueError: if there is no group.
    """
    if not groups:
        raise ValueError("there are no groups of rows to show")
    edges = np.cumsum([0, *map(len, groups.values())])
    fig, ax = plt.subplots(figsize=(6.4, 6))
    drawn = dict(cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
    image = ax.imshow(vectors[np.concatenate(list(groups.values()))], **drawn)
    mark_layers(ax, components)
    ax.set_yticks((edges[:-1] + edges[1:]) / 2 - 0.5, list(groups))
    ax.tick_params(axis="y", length=0)
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color="0.2", linewidth=0.8)
    fig.colorbar(image, ax=ax, shrink=0.6, extend="both", label=label)
    return fig


def spectra(panels: Mapping[str, Mapping[str, Float[ndarray, " directions"]]], *, shown: int = 16) -> Figure:
    """Shares of the variance along principal directions: a panel for each treatment, a curve for each table."""
    fig, axes = plt.subplots(1, len(panels), figsize=(6.4, 3), sharey=True, squeeze=False)
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for (name, shares), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            count = min(shown, len(shares))
            ax.plot(np.arange(1, count + 1), shares[:count], marker=marker, markersize=4, color=colour, label=name)
        ax.set(yscale="log", ylim=(1e-5, 1.5), xlabel="principal direction", title=title)
        ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("share of the variance")
    axes[0, -1].legend(loc="upper right")
    return fig


def by_component(
    panels: Mapping[str, Mapping[str, Float[ndarray, " components"]]], components: Sequence[str], *, logarithmic: set
) -> Figure:
    """Numbers of each column as dots: a panel, one under the other, for each quantity; a colour for each kind.

    Args:
        logarithmic: the panels, by their names, whose axis is logarithmic.
    """
    fig, axes = plt.subplots(len(panels), 1, figsize=(6.4, 0.4 + 2.4 * len(panels)), sharex=True, squeeze=False)
    for ax, (label, kinds) in zip(axes[:, 0], panels.items(), strict=True):
        for (name, values), colour, marker in zip(kinds.items(), COLOURS, MARKERS, strict=False):
            ax.plot(values, marker, color=colour, markersize=4.5, label=name)
        ax.set(ylabel=label, xlim=(-0.6, len(components) - 0.4), yscale="log" if label in logarithmic else "linear")
    mark_layers(axes[-1, 0], components, name="layer (heads, then the MLP)")
    for ax in axes[:-1, 0]:
        mark_layers(ax, components, name="")
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(next(iter(panels.values())))
    )
    return fig


def loadings(
    tables: Mapping[str, Float[ndarray, "directions components"]],
    components: Sequence[str],
    labels: Mapping[str, Sequence[str]],
) -> Figure:
    """Principal directions as strips of colour, those of one table under those of the other.

    Args:
        labels: what stands beside each direction of each table.
    """
    rows = sum(len(axes) for axes in tables.values())
    fig, panels = plt.subplots(len(tables), 1, figsize=(6.4, 1.4 + 0.3 * rows), sharex=True, squeeze=False)
    for ax, (name, axes) in zip(panels[:, 0], tables.items(), strict=True):
        image = ax.imshow(axes, cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
        mark_layers(ax, components, name="")
        ax.set_yticks(range(len(axes)), labels[name])
        ax.tick_params(axis="y", length=0)
        ax.set_title(name)
    panels[-1, 0].set_xlabel("layer (heads, then the MLP)")
    fig.colorbar(image, ax=panels[:, 0], shrink=0.8, label="loading")
    return fig


def correlation_squares(
    tables: Mapping[str, Float[ndarray, "components components"]], components: Sequence[str], *, label: str
) -> Figure:
    """Correlations between columns as squares of colour, one for each table."""
    fig, panels = plt.subplots(1, len(tables), figsize=(6.4, 4.6), sharey=True, squeeze=False)
    for ax, (name, correlations) in zip(panels[0], tables.items(), strict=True):
        image = ax.imshow(correlations, cmap=DIVERGING, vmin=-1, vmax=1)
        mark_layers(ax, components, name="")
        mark_layers(ax, components, axis="y", name="layer" if ax is panels[0, 0] else "")
        for tick in ax.get_xticklabels():
            tick.set(rotation=90, horizontalalignment="center")
        ax.set_title(name)
    fig.colorbar(image, ax=panels[0], location="bottom", shrink=0.6, aspect=40, label=label)
    return fig


def first_steps(
    rises: Mapping[str, Float[ndarray, "chains steps"]], burn_in: int, *, notes: Mapping[str, str] | None = None
) -> Figure:
    """How far chains raise the loss, from their first step on: a panel for each; the burn-in is shaded.

    Args:
        rises: L(w) - L(w*) in nats, by what moves.
        burn_in: steps that no estimate uses.
        notes: what a panel's title says besides the name.
    """
    columns = 2 if len(rises) > 1 else 1
    fig, axes = plt.subplots(-(-len(rises) // columns), columns, figsize=(6.4, 4.4), sharex=True, squeeze=False)
    for ax, (name, chains) in zip(axes.flat, rises.items(), strict=False):
        ax.axvspan(0, burn_in, color="0.9", zorder=0, linewidth=0)
        for i, chain in enumerate(chains):
            steps = np.arange(len(chain) + 1)
            ax.plot(steps, np.concatenate([[0.0], chain]), color=PALETTE[i % len(PALETTE)], linewidth=1.1)
        ax.axhline(0, color="0.3", linestyle="--", linewidth=1)
        ax.set(title=name + (notes or {}).get(name, ""), xlim=(0, chains.shape[1]))
    for ax in axes.flat[len(rises) :]:
        ax.axis("off")
    fig.supxlabel("step")
    fig.supylabel("loss above $L(w^*)$ (nats)")
    return fig
