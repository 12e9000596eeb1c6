"""What ships of the causal tests (components silenced, clusters steered, text tilted): numbers and figures.

Intervals are over clusters: another draw of clusters would move a number about so far. ``python -m spectrobook causal``
makes the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib.checks import causal
from spectrolib.checks.intervals import Estimate, proportion

from . import panels
from .figures import BLUE, VERMILION

KINDS = {"resolved": BLUE, "paper": VERMILION}
"""The two kinds of clusters, and their colours."""
NAMES = {"resolved": "clusters of resolved rows", "paper": "clusters of the paper's rows"}
MARKS = {"resolved": "o", "paper": "s"}

ROWS = {
    "two chains": "value, two chains",
    "covariance (one chain)": "value, one chain",
    "first order": "value, first order",
    "first moment": "first moment of the chain",
    "gradient size": "size of the gradient",
    "loss": "loss of the token",
    "same token elsewhere": "same token, other windows",
    "two chains, rows shuffled": "two chains, rows shuffled",
}
"""What may predict the cost of silencing; the first four are made of rows."""
SETS = {
    "own": "the cluster",
    "k-means": "a k-means cluster",
    "by_outside": "the cluster, by the same\ntokens outside it",
    "outside": "the same tokens outside,\nby the cluster",
    "random": "a random set",
    "rest": "all other tokens",
}
"""Whose loss falls."""
TOGETHER = {
    "rows": "rows",
    "shared tokens": "shared tokens",
    "row length": "length of the row",
    "loss": "loss",
}


# Silence -------------------------------------------------------------------------------------------------------------


def correlations(measured: Mapping, what: str, name: str) -> Float[ndarray, " components"]:
    """Of a prediction, its rank correlation with what tokens lose, one for each component.

    Args:
        what: ``signed``: who loses; ``size``: who changes, up or down.
    """
    return np.array([value for value, *_ in measured["ablation"][what][name]], dtype=float)


def beyond_chance(part: Mapping, name: str = "agreement") -> Estimate:
    """An agreement that is kept with its level of chance, less that level."""
    chance = part["chance"] if "chance" in part else part[f"{name}_chance"]
    return Estimate(*(float(value) - chance for value in part[name]))


# Steer ---------------------------------------------------------------------------------------------------------------


def falls(measured: Mapping, kind: str, name: str) -> Float[ndarray, " clusters"]:
    """Of each cluster that was steered towards, how far the loss of a set (`SETS`) fell, nats; NaN where not known."""
    found = [row[name] for row in measured["steering"][kind]["clusters"]]
    return np.array([value[0] if isinstance(value, list) else value for value in found], dtype=float)


def mean_fall(measured: Mapping, kind: str, name: str, seed: int = 0) -> Estimate:
    """Its mean over the clusters for which it is known."""
    values = falls(measured, kind, name)
    return causal.mean_of(values[np.isfinite(values)], seed=seed)


def lead(measured: Mapping, kind: str, other: str, seed: int = 0) -> Estimate:
    """By how much further the cluster falls than a set that it is compared with: the mean of paired differences."""
    gap = falls(measured, kind, "own") - falls(measured, kind, other)
    return causal.mean_of(gap[np.isfinite(gap)], seed=seed)


# Tilt ----------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """Responses to tilts beside what susceptibilities had said; all with intervals over clusters."""

    sign: Estimate
    """Share of the pairs whose response has the sign that was said."""
    correlation: Estimate
    """Rank correlation over the pairs."""
    ratio: Estimate
    """Median of response over prediction."""


def line(
    pairs: Sequence[Mapping], *, two: bool = False, factor: Float[ndarray, " pairs"] | float = 1.0, seed: int = 0
) -> Line:
    """How far tilted text did what was said.

    Args:
        pairs: of a cluster and a component, as the file has them.
        two: the two-chain value; else the one-chain value.
        factor: what was said is taken so many times.
    """
    said, seen = _said_and_seen(pairs, two)
    said = said * factor
    clusters = np.unique([f"{pair['kind']} {pair['cluster']}" for pair in pairs], return_inverse=True)[1]
    drawn = np.random.default_rng(seed).integers(clusters.max() + 1, size=(1000, clusters.max() + 1))
    of = [np.flatnonzero(clusters == c) for c in range(clusters.max() + 1)]
    ratios = [np.median((seen / said)[np.concatenate([of[c] for c in some])]) for some in drawn]
    return Line(
        proportion(said * seen > 0, clusters),
        causal.rank_correlation(said, seen, clusters, seed),
        Estimate(float(np.median(seen / said)), *map(float, np.quantile(ratios, [0.025, 0.975]))),
    )


def finite_tilt(measured: Mapping, rise: Mapping[str, float]) -> Float[ndarray, " pairs"]:
    """By how much a two-chain response at the file's tilt h exceeds h times its derivative: sinh(x) / x.

    The tilt changes log (Z_C / Z) by about ±x, x = h nβ χ / <g>, and Z_C / Z itself by the exponential of that. With
    <g> hardly moved the difference between h and -h is 2 <g> sinh(x) where the derivative says 2 <g> x.

    Args:
        rise: <g> of each component, nats.
    """
    settings, pairs = measured["settings"]["tilting"], measured["tilting"]["pairs"]
    slope = np.array([pair["two predicted"] / rise[pair["component"]] for pair in pairs])
    x = settings["h"] * settings["nbeta"] * slope
    return np.sinh(x) / x


def bend(measured: Mapping, kind: str) -> tuple[float, float]:
    """The largest tilt of a pair of this kind, and the slope of its response there, as a share of that at the least."""
    rows = sorted((row for row in measured["tilting"]["bend"] if row["kind"] == kind), key=lambda row: row["h"])
    return rows[-1]["h"], rows[-1]["seen"] / rows[0]["seen"]


def _said_and_seen(pairs: Sequence[Mapping], two: bool) -> tuple[ndarray, ndarray]:
    names = ("two predicted", "two seen") if two else ("predicted", "seen")
    said, seen = (np.array([pair[name] for pair in pairs], dtype=float) for name in names)
    return said, seen


# Figures -------------------------------------------------------------------------------------------------------------


def silenced_figure(measured: Mapping, names: Sequence[str], what: Sequence[str] = ("signed",)) -> Figure:
    """Rank correlations over tokens, a dot for each component; and, last, those over components for clusters.

    Args:
        names: the predictions, from the top.
        what: a panel of dots for each; as in `correlations`.
    """
    titles = {"signed": "which token loses?\n(over tokens)", "size": "which token changes?\n(over tokens)"}
    fig, axes = plt.subplots(1, len(what) + 1, figsize=(2.9 + 1.9 * len(what), 0.42 * len(names) + 1.3), sharey=True)
    for ax, asked in zip(axes, what, strict=False):
        for y, name in enumerate(names):
            values = correlations(measured, asked, name)
            ax.plot(values, np.full(len(values), y), "o", color="0.45", markersize=3.5, alpha=0.5, linewidth=0)
            ax.plot([np.median(values)] * 2, [y - 0.32, y + 0.32], color="black", linewidth=2.2)
        ax.set_xlabel(titles[asked])
    _agreements(axes[-1], {kind: measured["ablation"]["clusters"][kind] for kind in KINDS}, names)
    axes[-1].set_xlabel("which component?\n(clusters)")
    for ax in axes:
        panels.name_lines(ax, [ROWS[name] for name in names])
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def _agreements(ax: Axes, tables: Mapping[str, Mapping], names: Sequence[str]) -> None:
    """Agreements of both kinds of clusters with a tick at the level of chance."""
    for (kind, table), shift in zip(tables.items(), (-0.15, 0.15), strict=True):
        found = [table.get(name) for name in names]
        estimates = [None if part is None else part["agreement"] for part in found]
        panels.points(ax, estimates, shift=shift, color=KINDS[kind], fmt=MARKS[kind], label=NAMES[kind])
        for y, part in enumerate(found):
            if part is not None:
                chance = part["chance"] if "chance" in part else part["agreement_chance"]
                ax.plot([chance] * 2, [y + shift - 0.13, y + shift + 0.13], color="0.4", linewidth=1.8)


def steered_figure(measured: Mapping, seed: int = 0) -> Figure:
    """How far losses fell: a dot for each cluster that was steered towards, a black bar for the mean."""
    fig, ax = plt.subplots(figsize=(5.6, 4.4))
    for kind, shift in (("resolved", -0.17), ("paper", 0.17)):
        for y, name in enumerate(SETS):
            values = falls(measured, kind, name)
            values = values[np.isfinite(values)]
            ax.plot(values, np.full(len(values), y + shift), MARKS[kind], color=KINDS[kind], markersize=4, alpha=0.45)
        means = [mean_fall(measured, kind, name, seed) for name in SETS]
        panels.points(ax, means, shift=shift, color="black", fmt="|", markersize=11, linewidth=1.5)
        ax.plot([], [], MARKS[kind], color=KINDS[kind], label=NAMES[kind])
    ax.set_xscale("symlog", linthresh=0.1)
    ax.set_xticks([-1, -0.1, 0, 0.1, 1], ["−1", "−0.1", "0", "0.1", "1"])
    ax.minorticks_off()
    ax.set_xlabel("fall of the loss on unseen documents, nats")
    panels.name_lines(ax, list(SETS.values()))
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def together_figure(measured: Mapping) -> Figure:
    """Which other clusters fall with the one that is steered towards: rank correlations of four predictions."""
    fig, ax = plt.subplots(figsize=(5.6, 2.7))
    _agreements(ax, {kind: measured["steering"][kind]["together"] for kind in KINDS}, list(TOGETHER))
    ax.set_xlabel("rank correlation over all other clusters")
    panels.name_lines(ax, list(TOGETHER.values()))
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def tilted_figure(measured: Mapping) -> Figure:
    """Sizes of responses and predictions, for both estimators; filled where the sign is the one that was said."""
    fig, axes = plt.subplots(1, 2, figsize=(6.2, 3.5))
    pairs = measured["tilting"]["pairs"]
    for ax, two in zip(axes, (False, True), strict=True):
        said, seen = _said_and_seen(pairs, two)
        for kind, colour in KINDS.items():
            own = np.array([pair["kind"] == kind for pair in pairs])
            for right in (True, False):
                some = own & ((said * seen > 0) == right)
                face = {} if right else {"markerfacecolor": "white"}
                ax.plot(np.abs(said[some]), np.abs(seen[some]), MARKS[kind], color=colour, markersize=5.5, **face)
        every = np.abs(np.concatenate([said, seen]))
        ends = np.array([every[every > 0].min() / 2, every.max() * 2])
        ax.plot(ends, ends, color="0.6", linewidth=1, linestyle=":")
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="susceptibility, size (nats²)")
        ax.set_title("two chains" if two else "one chain")
    axes[0].set_ylabel("response to the tilt, size (nats²)")
    for kind, colour in KINDS.items():
        axes[0].plot([], [], MARKS[kind], color=colour, label=NAMES[kind])
    axes[0].plot([], [], "o", color="0.4", markerfacecolor="white", label="other sign")
    fig.legend(loc="outside lower center", ncols=2)
    return fig
