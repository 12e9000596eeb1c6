"""Clusters that come back: nulls for a count of clusters, what more channels do, and whether a share keeps its promise.

Figures draw the tables of data/resolved.json (``python -m spectrobook resolved``) or what a chapter computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib.reading.marks import BLUE, PALETTE, VERMILION

PAPER, RANDOM = "the paper's: covariance with the mean loss", "a random combination of each component's draws"
"""Rungs of the ladder with one number for each component."""
MARKS = {
    "the paper's rows": (BLUE, "s"),
    "a random combination": ("0.35", "X"),
    "draws": (VERMILION, "o"),
    "first order": (PALETTE[2], "^"),
}
"""Kinds of rungs, as the figure has them."""


def null_rows(
    chi: Float[ndarray, "tokens components"], kind: Literal["shuffled", "normal"], seed: int = 0
) -> Float[ndarray, "tokens components"]:
    """A table like a measured one in which no token is like another for a reason.

    Args:
        kind: ``shuffled``: each column keeps its values and deals them to other tokens, so that their law stays, with
            its heavy tails, and all that ties columns goes. ``normal``: a normal sample of the same means and
            covariance, so that what ties columns in pairs stays, and the tails go.

    Raises:
        ValueError: for another kind.
    """
    rng = np.random.default_rng(seed)
    if kind == "shuffled":
        return rng.permuted(chi, axis=0)
    if kind == "normal":
        return rng.multivariate_normal(chi.mean(axis=0), np.cov(chi.T), size=len(chi), method="eigh")
    raise ValueError(f"the kinds of nulls are shuffled and normal, got {kind!r}")


def normal_scores(chi: Float[ndarray, "tokens components"]) -> Float[ndarray, "tokens components"]:
    """Each column with the normal quantiles of its ranks in place of its values: the order stays, the tails go."""
    from scipy.stats import norm, rankdata

    return norm.ppf((rankdata(chi, axis=0) - 0.5) / len(chi))


def counts_figure(counts: Mapping[str, Sequence[int]]) -> Figure:
    """How many clusters each kind of table has: a row of points for each kind, one for each table of it.

    Kinds whose names begin with "as measured" are vermilion squares, the others blue circles.
    """
    fig, ax = plt.subplots(figsize=(6.4, 0.9 + 0.42 * len(counts)))
    for row, (name, values) in enumerate(counts.items()):
        measured = name.startswith("as measured")
        ax.plot(values, [row] * len(values), "os"[measured], color=VERMILION if measured else BLUE, markersize=7)
        low, high = min(values), max(values)
        said = str(low) if low == high else f"{low} to {high}"
        ax.annotate(said, (high, row), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(counts)), list(counts))
    most = max(max(values) for values in counts.values())
    ax.set(xlabel="clusters", xlim=(-0.04 * most - 1, 1.25 * most + 2), ylim=(len(counts) - 0.5, -0.5))
    return fig


def kind_of_rung(name: str) -> str:
    """Which of `MARKS` a rung of the ladder belongs to; nothing for others."""
    if name == PAPER:
        return "the paper's rows"
    if name == RANDOM:
        return "a random combination"
    return "draws" if name.split()[0].isdigit() else "first order" if name.startswith("first order") else ""


def ladder_figure(ladder: Sequence[Mapping]) -> Figure:
    """Neighbours kept and clusters found again by the other half, against the number of channels.

    Args:
        ladder: rungs with ``rows``, ``channels``, and ``neighbours`` and ``come back`` with their intervals.
    """
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.6), sharex=True, sharey=True)
    for label, (colour, mark) in MARKS.items():
        rungs = sorted((r for r in ladder if kind_of_rung(r["rows"]) == label), key=lambda rung: rung["channels"])
        if not rungs:
            continue
        channels = np.array([rung["channels"] for rung in rungs]) * (0.88 if label == "a random combination" else 1)
        for ax, what in zip(axes, ("neighbours", "come back"), strict=True):
            value, low, high = np.array([rung[what] for rung in rungs]).T
            style = dict(color=colour, marker=mark, markersize=6, label=label)
            ax.errorbar(channels, value, (value - low, high - value), **style)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks([32, 128, 512, 2048], ["32", "128", "512", "2,048"])
    for ax, title in zip(axes, ("neighbours kept", "clusters found again"), strict=True):
        ax.set(xlabel="channels of a row", ylim=(0, 1))
        ax.set_title(title)
    axes[0].set_ylabel("share, with 95 % interval")
    axes[0].legend(loc="upper left", fontsize=9)
    return fig


def calibration_figure(levels: Sequence[Mapping]) -> Figure:
    """What cards say against what a fresh measurement found.

    Args:
        levels: of `robustness.promises`, without the first: ``share``, ``clusters``, ``came back``.
    """
    fig, ax = plt.subplots(figsize=(5, 3.8))
    ax.plot([0.4, 1], [0.4, 1], color="0.5", linewidth=1, linestyle=":", label="promise kept")
    for level in levels:
        value, low, high = level["came back"]
        bars = [[value - low], [high - value]]
        ax.errorbar(level["share"], value, bars, color=VERMILION, marker="o", markersize=7)
        below = dict(xytext=(0, -5), textcoords="offset points", ha="center", va="top", fontsize=9)
        ax.annotate(level["clusters"], (level["share"], low), **below)
    ax.set(xlabel="share of repetitions on the card", ylabel="share found by the fresh run")
    ax.set(xlim=(0.44, 1.06), ylim=(0, 1.05))
    ax.legend(loc="upper left")
    return fig


def growth_figure(parts: Sequence[Mapping]) -> Figure:
    """Clusters that come back, and those that did in every repetition, against the number of tokens.

    Args:
        parts: ``tokens``, ``clusters``, ``in every repetition`` (growth.json, by ``python -m spectrobook growth``).
    """
    fig, ax = plt.subplots(figsize=(5.6, 3.6))
    tokens = [part["tokens"] for part in parts]
    for name, label, colour, mark, above in (
        ("clusters", "come back", VERMILION, "o", 8),
        ("in every repetition", "in every repetition", BLUE, "s", -16),
    ):
        counts = [part[name] for part in parts]
        ax.plot(tokens, counts, color=colour, marker=mark, markersize=6, label=label)
        for x, y in zip(tokens, counts, strict=True):
            ax.annotate(f"{y:,}", (x, y), xytext=(0, above), textcoords="offset points", ha="center", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="tokens measured", ylabel="clusters")
    ax.set_xticks(tokens, [f"{count:,}" for count in tokens])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.margins(0.1, 0.16)
    ax.legend(loc="upper left")
    return fig
