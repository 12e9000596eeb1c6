"""Pictures of how far rows of few or many channels resolve (`resolving`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from .figures import BLUE, PALETTE, VERMILION


def channels(found: Mapping[str, tuple[Sequence[int], Float[ndarray, "counts repetitions"]]], chance: float) -> Figure:
    """How often the nearest neighbour has the same reason, against channels: means and ranges over repetitions."""
    fig, ax = plt.subplots(figsize=(7, 4))
    most = max(max(counts) for counts, _ in found.values())
    for (name, (counts, values)), colour, mark in zip(
        found.items(), (BLUE, PALETTE[5], VERMILION, PALETTE[2], PALETTE[3]), "ovs^D", strict=False
    ):
        ax.plot(counts, values.mean(axis=1), color=colour, marker=mark, markersize=5, label=name)
        ax.fill_between(counts, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    ax.axhline(chance, color="0.5", linestyle=":", linewidth=1)
    ax.text(most, chance + 0.015, "chance", ha="right", color="0.35", fontsize=9)
    _doubling(ax, [2**i for i in range(most.bit_length())])
    ax.set(xlabel="channels", ylabel="right nearest neighbours", ylim=(0, 1.03))
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def kernels(
    spectra: Mapping[str, Float[ndarray, " directions"]],
    draws: Sequence[int],
    errors: Mapping[str, Float[ndarray, " draws"]],
    law: Float[ndarray, " draws"],
    level: float,
) -> Figure:
    """How the squared length of rows is spread over directions; and the error of a kernel against draws.

    Args:
        law: the error for normal fluctuations with all draws kept.
        level: the same for draws that were folded.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5))
    looks = ((BLUE, "o"), (PALETTE[3], "D"), ("0.25", ""))
    for (name, values), (colour, mark) in zip(spectra.items(), looks, strict=True):
        left.plot(np.arange(1, len(values) + 1), values, marker=mark, markersize=3.5, color=colour, label=name)
    left.set(xscale="log", yscale="log", xlabel="direction", ylabel="share of the squared length", ylim=(1e-6, 1))
    left.set_title("four components")
    left.legend(loc="lower left", fontsize=8)
    for (name, values), colour, mark in zip(errors.items(), (PALETTE[3], VERMILION), "Ds", strict=True):
        right.plot(draws, values, mark, color=colour, markersize=4.5, label=name)
    right.plot(draws, law, color="0.25", linewidth=1, label="law, all draws kept")
    right.axhline(level, color="0.25", linewidth=1, linestyle="--", label="law, folded")
    _doubling(right, draws)
    right.set(yscale="log", xlabel="draws", ylabel=r"error of the kernel, $|\hat K - K|/|K|$")
    right.set(title="one component")
    right.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    right.minorticks_off()
    right.legend(loc="lower left", fontsize=8)
    return fig


def growth(
    counts: Sequence[int],
    measured: Mapping[int, Float[ndarray, " counts"]],
    needed: Mapping[str, Sequence[float]],
    level: float,
) -> Figure:
    """Right nearest neighbours against channels in worlds of more and more reasons; and the channels that are needed.

    Args:
        measured: by number of reasons.
        needed: channels at which the level is passed, ``measured`` and by the ``bound``, for each number of reasons.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    for (number, values), colour, mark in zip(measured.items(), PALETTE, "os^Dv", strict=False):
        left.plot(counts, values, color=colour, marker=mark, markersize=4, label=f"{number} reasons")
    left.axhline(level, color="0.5", linewidth=1, linestyle=":")
    left.set(xlabel="channels", ylabel="right nearest neighbours", ylim=(0, 1.03))
    left.legend(loc="lower right")
    numbers = list(measured)
    for (name, values), colour, mark in zip(needed.items(), (PALETTE[3], "0.25"), "Ds", strict=True):
        right.plot(numbers, values, color=colour, marker=mark, label=name)
    _doubling(right, numbers)
    right.set(xlabel="reasons", ylabel="channels for nine in ten", ylim=(0, None))
    right.legend(loc="upper left")
    return fig


def first_order(
    gammas: Float[ndarray, " n"],
    errors: Mapping[str, Float[ndarray, " n"]],
    curvatures: Float[ndarray, " c"],
    variance: Float[ndarray, " c"],
    ridge: Float[ndarray, " c"],
    turn: float,
) -> Figure:
    """Errors of first-order kernels against γ; and the variance of a loss against the curvature of its direction.

    Args:
        variance: measured, in units of 1/γ; ``ridge`` is the formula.
        turn: γ/nβ, the curvature at which directions begin to be turned down.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5))
    looks = ((BLUE, "o"), (PALETTE[2], "^"), (VERMILION, "s"))
    for (name, values), (colour, mark) in zip(errors.items(), looks, strict=True):
        left.plot(gammas, values, mark, color=colour, markersize=5, label=name)
    falling = next(iter(errors.values()))[-1] * gammas[-1] / gammas
    left.plot(gammas, falling, color="0.25", linewidth=1, label=r"$\propto 1/\gamma$")
    left.set(xscale="log", yscale="log", xlabel=r"$\gamma$", ylabel="relative error of the first order")
    left.set_ylim(None, 1e4)
    left.legend(loc="upper right", fontsize=8)
    right.plot(curvatures, variance, "o", color=BLUE, markersize=5, label="10,000 chains")
    right.plot(curvatures, ridge, color="0.25", linewidth=1, label=r"$\gamma / (n\beta\, a + \gamma)$")
    right.axvline(turn, color="0.5", linewidth=1, linestyle=":")
    right.text(turn * 1.15, 1.02, r"$\gamma / n\beta$", fontsize=9)
    right.set(xscale="log", xlabel="curvature $a$ (nats per squared weight)", ylim=(0, 1.15))
    right.set_ylabel(r"variance of the loss $\times\ \gamma$")
    right.legend(loc="lower left", fontsize=8)
    return fig


def _doubling(ax: Axes, numbers: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(numbers, [str(number) for number in numbers])
    ax.minorticks_off()
