"""Pictures of the planted language and of the purities measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy import ndarray

from spectrolib.checks.intervals import Estimate
from spectrolib.text.corpus import Windows

from . import purity
from .exactworld import PAIRS
from .figures import BLUE, PALETTE, VERMILION
from .language import NOISE, REASONS, Language

HUES = (*PALETTE[:6], "0.75", "0.9")
"""A colour for each of `language.REASONS`."""
LINES = {
    "one_chain": (BLUE, "o", "one-chain"),
    "one_chain permuted": (PALETTE[5], "o", "one-chain, g permuted"),
    "two_chain": (VERMILION, "s", "two-chain"),
    "two_chain permuted": (PALETTE[4], "s", "two-chain, g permuted"),
    "loss": ("0.35", "D", "loss alone"),
}
"""Colour, mark and name of rows wherever several are compared."""
TITLES = {"all": "all", "other": "other", "same": "same (shared tokens)"}


def language_windows(language: Language, windows: Windows, labels: Int[ndarray, "windows time"]) -> Figure:
    """Windows of a planted language, each token on the colour of the reason that produced it; half a window a line."""
    half = labels.shape[1] // 2
    words = np.array(language.words)[windows.ids[:, 1:]]
    lines = [(words[i, part], labels[i, part]) for i in range(len(words)) for part in (slice(half), slice(half, None))]
    fig, ax = plt.subplots(figsize=(7, 0.36 * len(lines) + 0.6))
    for i, (tokens, reasons) in enumerate(lines):
        for t, (word, r) in enumerate(zip(tokens, reasons, strict=True)):
            row = i + 0.4 * (i // 2)
            ax.add_patch(plt.Rectangle((t, row + 0.08), 0.94, 0.84, color=HUES[r], alpha=0.45, linewidth=0))
            ax.text(t + 0.47, row + 0.5, word, ha="center", va="center", fontsize=9, family="monospace")
    ax.set(xlim=(0, labels.shape[1] - half), ylim=(1.2 * len(lines), 0))
    ax.axis("off")
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.45, linewidth=0) for colour in HUES]
    fig.legend(patches, REASONS, ncols=8, loc="outside lower center", fontsize=9, columnspacing=1, handlelength=1.2)
    return fig


def training(
    curve: Float[ndarray, " points"], every: int, least: float, losses: Mapping[str, Sequence[float]]
) -> Figure:
    """The loss of a model of a planted language while it was trained, and by reason, in nats per token.

    Args:
        every: steps from one point of the curve to the next.
        least: the least loss that any model can reach.
        losses: of ``model`` and of ``least possible``, for each of `language.REASONS`.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), width_ratios=(1, 1.2))
    left.plot(every * (np.arange(len(curve)) + 0.5), curve, color=BLUE, label="training")
    left.axhline(least, color="0.3", linestyle="--", linewidth=1, label="least possible")
    left.set(xlabel="step", ylabel="loss (nats per token)")
    left.legend()
    place = np.arange(len(REASONS))
    right.barh(place - 0.2, losses["model"], 0.38, color=BLUE, label="model")
    right.barh(place + 0.2, losses["least possible"], 0.38, color="0.7", label="least possible")
    right.set_yticks(place, REASONS)
    right.invert_yaxis()
    right.set(xlabel="loss (nats per token)")
    right.legend(loc="upper right")
    return fig


def purities(
    found: Mapping[str, Mapping[str, Estimate]], chance: Mapping[str, float], colours: Mapping[str, str]
) -> Figure:
    """Purities with their intervals, a panel for each of `purity.KINDS`; dotted: chance.

    Args:
        found: by name, and by kind where the question makes sense.
        colours: by name.
    """
    fig, axes = plt.subplots(1, 3, figsize=(7, 3.4), sharey=True)
    for ax, kind in zip(axes, purity.KINDS, strict=True):
        for i, (name, by_kind) in enumerate(found.items()):
            if kind in by_kind:
                value, low, high = by_kind[kind]
                ax.plot([low, high], [i, i], color=colours[name], linewidth=2)
                ax.plot(value, i, "o", color=colours[name], markersize=5)
        ax.axvline(chance[kind], color="0.5", linestyle=":", linewidth=1.2)
        ax.set(title=TITLES[kind], xlabel="purity", xlim=(0, 1 if kind == "all" else 0.6))
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(found)), list(found))
    axes[0].invert_yaxis()
    return fig


def dependence(
    panels: Mapping[str, Sequence[float]],
    found: Mapping[tuple[str, str, str], Float[ndarray, "points 3"]],
    chance: Mapping[str, float],
) -> Figure:
    """Purity against several settings, a column of panels for each, a row for each question.

    Args:
        panels: the values of each setting, by its name.
        found: estimates with their intervals by question, setting and rows (`LINES`).
        chance: by question.
    """
    fig, axes = plt.subplots(len(chance), len(panels), figsize=(7, 4.6), sharey="row")
    for line, (kind, level) in zip(axes, chance.items(), strict=True):
        for ax, (setting, points) in zip(line, panels.items(), strict=True):
            names = [name for name in LINES if (kind, setting, name) in found]
            for j, name in enumerate(names):
                value, low, high = found[kind, setting, name].T
                colour, mark, label = LINES[name]
                style = dict(color=colour, marker=mark, markersize=4, elinewidth=1, label=label)
                place = np.arange(len(points)) + 0.06 * (j - len(names) / 2)
                ax.errorbar(
                    place, value, [value - low, high - value], linestyle="--" if "permuted" in name else "-", **style
                )
            ax.axhline(level, color="0.5", linestyle=":", linewidth=1)
            ax.set_xticks(range(len(points)), [f"{x:g}" for x in points])
            ax.set(xlabel=setting)
        line[0].set(ylabel=f"purity, {kind}")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return fig


def by_reason(
    found: Mapping[tuple[str, str], Mapping[int, Estimate]], chance: Mapping[str, Mapping[int, float]]
) -> Figure:
    """Purities by the reason of the token, a panel for each of `purity.KINDS`.

    Args:
        found: by question and rows (`LINES`), then by index into `language.REASONS`.
        chance: by question and reason.
    """
    fig, axes = plt.subplots(1, 3, figsize=(7, 3.8), sharey=True)
    for ax, kind in zip(axes, purity.KINDS, strict=True):
        for shift, (name, (colour, mark, label)) in zip(np.linspace(-0.3, 0.3, len(LINES)), LINES.items(), strict=True):
            for r, (value, low, high) in found[kind, name].items():
                ax.plot([low, high], [r + shift] * 2, color=colour, linewidth=1.5)
                ax.plot(value, r + shift, mark, color=colour, markersize=4, label=label if r == 0 else None)
        for r, level in chance[kind].items():
            ax.plot([level] * 2, [r - 0.42, r + 0.42], color="0.5", linestyle=":", linewidth=1.2)
        ax.set(title=TITLES[kind], xlabel="purity", xlim=(0, 1.02))
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(NOISE - 1), REASONS[: NOISE - 1])
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return fig


def pairs(found: Mapping[str, Mapping[str, Sequence[Float[ndarray, " pairs"]]]]) -> Figure:
    """Distances of pairs in the classes of `exactworld.PAIRS`: median, middle half and middle nine tenths.

    Args:
        found: by world (a panel each), then by rows.
    """
    fig, axes = plt.subplots(1, len(found), figsize=(7, 3.3), sharey=True, squeeze=False)
    names = dict.fromkeys(name for by_rows in found.values() for name in by_rows)
    colours = dict(zip(names, (BLUE, PALETTE[5], VERMILION), strict=False))
    handles = {}
    for ax, (world, by_rows) in zip(axes[0], found.items(), strict=True):
        shifts = np.linspace(-0.22, 0.22, len(by_rows)) if len(by_rows) > 1 else [0.0]
        for (name, classes), shift in zip(by_rows.items(), shifts, strict=True):
            for i, values in enumerate(classes):
                handles[name] = _box(ax, values, i + shift, colours[name])
        ax.set_yticks(range(len(PAIRS)), [name.replace(", ", ",\n") for name in PAIRS])
        ax.set(xlabel="distance (overall median = 1)", title=world, ylim=(len(PAIRS) - 0.5, -0.5))
        ax.tick_params(axis="y", length=0)
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return fig


def _box(ax: Axes, values: Float[ndarray, " pairs"], place: float, colour: str) -> Line2D:
    low, lower, median, upper, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    ax.plot([low, high], [place] * 2, color=colour, linewidth=1)
    (bar,) = ax.plot([lower, upper], [place] * 2, color=colour, linewidth=5, solid_capstyle="butt")
    ax.plot(median, place, "o", color="white", markeredgecolor=colour)
    return bar
