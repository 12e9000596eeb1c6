"""What the appendix on noise, cost and settings shows of the benchmark that ships with the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib.reading.marks import BLUE, PALETTE, VERMILION

from . import show

CURVES = {
    "covariance_plain": ("covariance, plain", BLUE, ":"),
    "covariance_quads": ("covariance, teams", BLUE, "-"),
    "covariance_own": ("covariance, teams on the plain one's text", PALETTE[5], "-"),
    "two_chain_plain": ("two-chain, plain", VERMILION, ":"),
    "two_chain_antithetic": ("two-chain, mirrored", VERMILION, "--"),
    "two_chain_quads": ("two-chain, teams", VERMILION, "-"),
}
"""Estimators that are shown: their words, colour and line."""


def document_halves(
    domains: Sequence[str], documents: Sequence[str]
) -> tuple[Int[ndarray, " half"], Int[ndarray, " half"]]:
    """Two halves of some windows that share no document, each with half of the documents of every domain.

    Args:
        domains, documents: of each window.
    """
    names, number = np.unique(list(map("\n".join, zip(domains, documents, strict=True))), return_inverse=True)
    side = np.zeros(len(names), dtype=int)
    domain = np.array([name.partition("\n")[0] for name in names])
    for one in np.unique(domain):
        mine = np.flatnonzero(domain == one)
        side[mine] = np.arange(len(mine)) % 2
    return np.flatnonzero(side[number] == 0), np.flatnonzero(side[number] == 1)


def reliability_curves(rows: Sequence[Mapping]) -> Figure:
    """Reliability of rows against CPU seconds, one line for each estimator of `CURVES`."""
    by_name = {row["estimator"]: row for row in rows}
    fig, ax = plt.subplots(figsize=(6.4, 3.9))
    for name, (word, colour, style) in CURVES.items():
        line = by_name[name]["curve"]
        ax.plot(line["seconds"], line["reliability"], style, color=colour, label=word)
    ax.axhline(0.8, color="0.6", linewidth=0.8)
    ax.set(xscale="log", xlim=(20, 1e6), ylim=(0, 1), xlabel="CPU seconds", ylabel="reliability of rows")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def gain_rows(gains: Sequence[Mapping]) -> list[dict[str, str]]:
    """How many times fewer seconds than the plain one each estimator of `CURVES` takes, in words."""
    short = lambda x: f"{x:,.0f}" if x >= 10 else f"{x:.2g}"  # noqa: E731
    return [
        {
            "estimator": CURVES[row["estimator"]][0],
            "times fewer seconds than plain (90 % interval)": show.interval(
                [row["seconds"], row["seconds_low"], row["seconds_high"]], short
            ),
        }
        for row in gains
        if row["estimator"] in CURVES
    ]


def settings_figure(grid: Sequence[Mapping]) -> Figure:
    """The rise of the loss over nβ at each γ; and how like nβ = 0 the covariance is, with 90 % intervals."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.8))
    gammas = sorted({row["gamma"] for row in grid})
    colours = dict(zip(gammas, (PALETTE[4], BLUE, PALETTE[2], PALETTE[3]), strict=False))
    markers = {"l3h1": "o", "l2 mlp": "s", "full": "^"}
    at = lambda rows: [max(row["nbeta"], 3.0) for row in rows]  # noqa: E731  (zero has no place on a logarithmic axis)
    for component, marker in markers.items():
        for gamma in gammas:
            line = [row for row in grid if row["gamma"] == gamma and row["component"] == component and row["passed"]]
            line.sort(key=lambda row: row["nbeta"])
            style = dict(color=colours[gamma], marker=marker, markersize=4, linewidth=0.8)
            left.plot(at(line), [row["rise"] for row in line], **style)
            known = [row for row in line if row.get("zero")]
            value, low, high = (np.array([row["zero"][end] for row in known]) for end in ("value", "low", "high"))
            bars = np.maximum([value - low, high - value], 0) if known else None
            right.errorbar(at(known), value, bars, **style)
    ticks = sorted({row["nbeta"] for row in grid})
    for ax in (left, right):
        ax.set(xscale="log", xlabel="nβ")
        ax.set_xticks([max(n, 3.0) for n in ticks], [f"{n:g}" for n in ticks], rotation=60, fontsize=8)
        ax.minorticks_off()
    left.set(yscale="log", title="rise of the loss (nats)")
    right.set(ylim=(0.75, 1.05), title="correlation with nβ = 0")
    handles = [plt.Line2D([], [], color=colour, label=f"γ = {gamma:g}") for gamma, colour in colours.items()]
    words = {"full": "all weights"}
    handles += [
        plt.Line2D([], [], color="0.3", marker=marker, linestyle="none", label=words.get(name, name))
        for name, marker in markers.items()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return fig
