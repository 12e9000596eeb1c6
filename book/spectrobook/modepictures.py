"""Pictures of a planted table, of modes, and of the rows of the exact world (`exactworld`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from . import purity
from .exactworld import Blocks, Bounded, ExactWorld, Groups
from .figures import BLUE, PALETTE, VERMILION

MONO = "DejaVu Sans Mono"
DARK = (PALETTE[0], PALETTE[1], "#00795A", "#A8527F", "#8A5A00")
"""A colour for each reason, dark enough for small text."""


def table(world: ExactWorld) -> Figure:
    """The planted conditional q(y|x), a row for each context, with the frequencies of the reasons."""
    q, planted = world.table.joint, world.table
    each = len(planted.reason) // len(planted.names)
    fig, ax = plt.subplots(figsize=(7, 4.2))
    image = ax.imshow(q / q.sum(1, keepdims=True), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    shares = [q[planted.reason == i].sum() for i in range(len(planted.names))]
    names = [f"{name} ({share:.0%})" for name, share in zip(planted.names, shares, strict=True)]
    ax.set_yticks((np.arange(len(names)) + 0.5) * each - 0.5, names)
    ax.set_xticks(range(len(planted.tokens)), planted.tokens, family=MONO)
    for edge in range(1, len(names)):
        ax.axhline(edge * each - 0.5, color="0.6", linewidth=0.8)
    ax.set(xlabel="next token $y$", ylabel="context $x$, by its reason")
    ax.tick_params(length=0)
    fig.colorbar(image, ax=ax, label=r"$q(y \mid x)$")
    return fig


def leading_modes(world: ExactWorld) -> Figure:
    """Singular values, and the patterns over contexts and tokens of as many modes as there are reasons."""
    found, planted = world.modes, world.table
    count, each = len(planted.names), len(planted.reason) // len(planted.names)
    fig = plt.figure(figsize=(7, 5))
    grid = fig.add_gridspec(count, 3, width_ratios=[0.8, 0.85, 1.75])
    ax = fig.add_subplot(grid[:, 0])
    ax.plot(range(1, len(found.s) + 1), found.s, "o", color=BLUE, markersize=5)
    ax.axvline(count + 0.5, color="0.4", linestyle=":", linewidth=1.2)
    ax.set(yscale="log", xlabel=r"mode $\alpha$", ylabel=r"strength $s_\alpha$")
    for a in range(count):
        left, right = fig.add_subplot(grid[a, 1]), fig.add_subplot(grid[a, 2])
        for i, colour in zip(range(count), PALETTE, strict=False):
            inside = np.flatnonzero(planted.reason == i)
            left.plot(inside, found.v[inside, a], "o", color=colour, markersize=2.5)
        right.bar(range(len(planted.tokens)), found.u[:, a], color="0.35")
        for side in (left, right):
            side.axhline(0, color="0.7", linewidth=0.8, zorder=0)
            side.set(xticks=[], yticks=[])
        left.set_ylabel(f"mode {a + 1}", rotation=0, ha="right", va="center")
        if a == 0:
            left.set_title(r"contexts, $v_\alpha(x)$", fontsize=10)
            right.set_title(r"tokens, $u_\alpha(y)$", fontsize=10)
    left.set_xticks((np.arange(count) + 0.5) * each - 0.5, planted.names, rotation=90, fontsize=8)
    staggered = [token if i % 2 == 0 else f"\n{token}" for i, token in enumerate(planted.tokens)]
    right.set_xticks(range(len(staggered)), staggered, family=MONO, fontsize=8)
    for side in (left, right):
        side.tick_params(length=0)
    return fig


def energy(pair: Float[ndarray, "a b components"], curves: Mapping[int, Blocks]) -> Figure:
    """Where the energy of susceptibilities lies: pair by pair, and block by block in worlds of several reasons.

    Args:
        pair: mode-pair susceptibilities; the leading ten modes of each side are shown.
        curves: by the number of planted reasons.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.9), width_ratios=[1, 1.25])
    part = (pair[:10, :10] ** 2).sum(-1) / (pair**2).sum()
    image = left.imshow(np.log10(part), cmap="viridis", vmin=-5)
    left.set(xlabel=r"token mode $\beta$", ylabel=r"context mode $\alpha$")
    left.set_xticks([0, 4, 9], ["1", "5", "10"])
    left.set_yticks([0, 4, 9], ["1", "5", "10"])
    fig.colorbar(image, ax=left, location="bottom", label=r"part of the energy, $\log_{10}$", shrink=0.8)
    for (number, found), colour in zip(curves.items(), PALETTE, strict=False):
        right.plot(found.sizes, found.measured, color=colour, label=f"{number} reasons")
        right.plot(number, found.measured[number - 1], "o", color=colour, markersize=7)
        right.plot(found.sizes, found.permuted, color="0.7", linewidth=1)
    right.set(xlabel="size $k$ of the block", ylabel="part of the energy", ylim=(0, 1), xticks=[2, 4, 6, 8, 10])
    right.legend(loc="lower right")
    return fig


def token_distances(world: ExactWorld, found: Mapping[str, Groups]) -> Figure:
    """Mean distances between tokens under reasons, a panel for each estimator; tokens have the colour of the reason."""
    fig, axes = plt.subplots(1, len(found), figsize=(7, 4.4), squeeze=False)
    deepest = max(groups.distance.max() for groups in found.values())
    for ax, (name, groups) in zip(axes[0], found.items(), strict=True):
        image = ax.imshow(groups.distance, cmap="Blues_r", vmin=0, vmax=deepest)
        words = [world.table.tokens[y] for y in groups.token]
        ax.set_xticks(range(len(words)), words, family=MONO, fontsize=8, rotation=90)
        ax.set_yticks(range(len(words)), words, family=MONO, fontsize=8)
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            for label, reason in zip(labels, groups.reason, strict=True):
                label.set_color(DARK[reason])
        for edge in np.flatnonzero(np.diff(groups.reason)) + 0.5:
            ax.axhline(edge, color="white", linewidth=1.2)
            ax.axvline(edge, color="white", linewidth=1.2)
        ax.set_title(name)
        ax.tick_params(length=0)
    fig.colorbar(
        image, ax=axes, label="mean distance (median pair = 1)", orientation="horizontal", shrink=0.5, aspect=30
    )
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in DARK]
    fig.legend(patches[: len(world.table.names)], world.table.names, loc="outside lower center", ncols=5, fontsize=9)
    return fig


def bound(all_pairs: Bounded, leading: Bounded, count: int) -> Figure:
    """Distance of rows against distance of coefficients, pair by pair, under the bound.

    Args:
        count: modes on each side of the leading pairs.
    """
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4))
    titles = ("all mode pairs", f"leading {count} × {count} pairs")
    for ax, found, title, label in zip(axes, (all_pairs, leading), titles, ("rows", "their leading part"), strict=True):
        x, y = found.coefficients, found.rows
        for same, colour, mark, name in ((False, "0.6", ".", "other reason"), (True, VERMILION, "x", "same reason")):
            here = found.alike == same
            ax.plot(x[here], y[here], mark, color=colour, markersize=3.5, alpha=0.6, label=name)
        end = min(x.max(), 1.15 * y.max() / found.norm)
        ax.plot([0, end], [0, found.norm * end], color="black", label="the bound")
        ax.set(xlabel=r"distance of coefficients, $|c - c'|$", ylabel=f"distance of {label}", title=title)
        ax.set(xlim=(0, None), ylim=(0, None))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def temperature(
    nbetas: Float[ndarray, " n"], strength: Float[ndarray, "n modes"], curvatures: Float[ndarray, " c"], gamma: float
) -> Figure:
    """Response of leading context modes against nβ, each beside its own at the first nβ, which is zero; and shares.

    Args:
        curvatures: those of the components, nats per squared weight; their range is shaded.
        gamma: the localisation at which all was integrated.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    for a, colour in zip(range(strength.shape[1]), PALETTE, strict=False):
        part = strength[1:, a] / strength[1:].sum(1)
        left.plot(nbetas[1:], strength[1:, a] / strength[0, a], "o-", color=colour, markersize=3, label=f"mode {a + 1}")
        right.plot(nbetas[1:], part, "o-", color=colour, markersize=3)
    for side in (left, right):
        side.axvspan(gamma / curvatures.max(), gamma / curvatures.min(), color="0.92", zorder=0)
    for curvature in (curvatures.min(), curvatures.max()):
        law = (gamma / (nbetas[1:] * curvature + gamma)) ** 2
        left.plot(nbetas[1:], law, color="0.4", linestyle=":", linewidth=1.2)
    left.set(xscale="log", yscale="log", xlabel=r"$n\beta$", ylabel=r"response / response at $n\beta = 0$")
    right.set(xscale="log", xlabel=r"$n\beta$", ylabel="share of the five", ylim=(0, None))
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncol=5)
    return fig


def draws(
    counts: Sequence[int],
    curves: Mapping[str, Float[ndarray, "repeats counts kinds"]],
    exact: Float[ndarray, " kinds"],
    chance: Float[ndarray, " kinds"],
) -> Figure:
    """Purity against the number of draws, for each of `purity.KINDS`: means and ranges over repetitions."""
    fig, axes = plt.subplots(1, 3, figsize=(7, 2.9), sharey=True)
    for j, (ax, kind) in enumerate(zip(axes, purity.KINDS, strict=True)):
        for (name, values), colour, mark in zip(curves.items(), (BLUE, VERMILION), "os", strict=True):
            low, middle, high = values[:, :, j].min(axis=0), values[:, :, j].mean(axis=0), values[:, :, j].max(axis=0)
            ax.plot(counts, middle, color=colour, marker=mark, markersize=4, label=name)
            ax.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.axhline(exact[j], color=BLUE, linestyle="--", linewidth=1, label="exact")
        ax.axhline(chance[j], color="0.5", linestyle=":", linewidth=1, label="chance")
        ax.set(xscale="log", xlabel="draws", title=kind, ylim=(0, 1.03))
    axes[0].set(ylabel="purity")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def corpus(found: Mapping[str, Float[ndarray, " modes"]], shuffled: Mapping[str, Float[ndarray, " modes"]]) -> Figure:
    """Singular values of tables counted from a text, and of the same tables with the next tokens shuffled."""
    fig, axes = plt.subplots(1, len(found), figsize=(7, 3), sharex=True, squeeze=False)
    for ax, (name, strengths) in zip(axes[0], found.items(), strict=True):
        numbers = np.arange(1, len(strengths) + 1)
        ax.plot(numbers, strengths, "o", color=BLUE, markersize=3.5, label="the text")
        ax.plot(numbers, shuffled[name], "x", color=VERMILION, markersize=4, label="shuffled")
        ax.set(title=name, xlabel="mode", ylim=(0, None))
    axes[0, 0].set_ylabel("strength")
    axes[0, 0].legend()
    return fig
