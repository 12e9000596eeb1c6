"""Rows of points with intervals: the figures of controls, causal tests and matches.

A panel has a line for each name, the first at the top, and a point with its interval on it. Fonts are those that stay
legible where a page is 400 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectrolib.checks.intervals import Estimate


def points(ax: Axes, estimates: Sequence[Sequence[float] | None], *, shift: float = 0.0, **style: Any) -> None:
    """A point with its interval on each line; nothing where the number is not known.

    Args:
        estimates: value, low, high of each line; an unknown end is left out.
        shift: lines further down, for several points on one line.
        style: of `Axes.errorbar`.
    """
    known = [(y, Estimate(*e[:3])) for y, e in enumerate(estimates) if e is not None and not math.isnan(e[0])]
    value = np.array([e.value for _, e in known])
    low = np.array([e.low if math.isfinite(e.low) else e.value for _, e in known])
    high = np.array([e.high if math.isfinite(e.high) else e.value for _, e in known])
    style = {"fmt": "o", "markersize": 6, "linewidth": 1.4} | style
    ax.errorbar(value, [y + shift for y, _ in known], xerr=(value - low, high - value), **style)


def name_lines(ax: Axes, names: Sequence[str], *, zero: bool = True) -> None:
    """Names beside the lines, from the top; a faint upright at zero."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    if zero:
        ax.axvline(0, color="0.8", linewidth=1, zorder=0)


def dot_plot(
    lines: Mapping[str, Mapping[str, Sequence[float] | None]],
    titles: Mapping[str, str],
    *,
    colours: Mapping[str, str],
    size: tuple[float, float],
    limits: tuple[float, float] = (-0.1, 1.02),
) -> Figure:
    """Panels side by side over the same lines.

    Args:
        lines: of each line, its estimates by panel; a panel that a line lacks stays empty there.
        titles: of each panel, under its axis.
        colours: of each line.
        limits: of all axes.
    """
    fig, axes = plt.subplots(1, len(titles), figsize=size, sharey=True, squeeze=False)
    for ax, (what, title) in zip(axes[0], titles.items(), strict=True):
        for y, (name, estimates) in enumerate(lines.items()):
            points(ax, [None] * y + [estimates.get(what)], color=colours[name])
        ax.set(xlabel=title, xlim=limits)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        name_lines(ax, list(lines))
    return fig
