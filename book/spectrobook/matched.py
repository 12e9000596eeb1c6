"""Features of sparse autoencoders beside clusters (chapter Autoencoder features): rates, their chance, pairs in text.

The autoencoder shown first, and the thresholds of F1 that are quoted, stand here once: chapter and table of results
say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from numpy import ndarray
from scipy.sparse import csr_array

from spectrolib.checks.intervals import Estimate, wilson
from spectrolib.dictionaries.autoencoders import activations, sparsest
from spectrolib.dictionaries.matching import Matches, match_rate
from spectrolib.model.loading import LanguageModel

from . import panels, show
from .figures import BLUE, VERMILION

MAIN = "l3-1024-k16"
"""The autoencoder shown first: of the residual after layer 3, 1,024 features, 16 of them active."""
LOW, HALF = 0.2, 0.5
"""Thresholds of F1 to quote: ours, as the paper's is unknown [U]."""
PERMUTATIONS = 199
LIMITS = (-0.02, 1.02)
"""Of an axis of shares."""


def flat(vectors: Float[ndarray, "windows time width"]) -> Float[ndarray, "positions width"]:
    """One row for each position."""
    return vectors.reshape(-1, vectors.shape[-1])


def baselines(
    model: LanguageModel, windows, *, k: int, features: int, site: str, seed: int = 0
) -> dict[str, csr_array]:
    """Dictionaries that nobody trained, made as sparse as an autoencoder: the k largest positive values of a position.

    Neurons of the MLP; principal directions of the activations and their opposites; random directions; the tokens
    themselves, one feature for each.
    """
    vectors = flat(activations(model, windows, site))
    centred = vectors - vectors.mean(axis=0)
    principal = np.linalg.svd(centred, full_matrices=False)[2]
    random = np.random.default_rng(seed).normal(size=(features, vectors.shape[1]))
    ids = windows.ids.reshape(-1).astype(np.int64)
    return {
        "neurons": sparsest(flat(activations(model, windows, f"{site.split()[0]} neurons")), k),
        "principal directions": sparsest(centred @ np.concatenate([principal, -principal]).T, k),
        "random directions": sparsest(centred @ random.T, k),
        "the tokens themselves": csr_array((np.ones(len(ids)), (np.arange(len(ids)), ids))),
    }


class Rate(NamedTuple):
    """How many clusters have a feature at a threshold, and how many shuffled ones have."""

    share: Estimate
    clusters: int
    """As a count."""
    chance: float
    """The mean share over the shuffles."""
    p: float
    """Part of the shuffles that have as many, the measured labels counted as one of them."""


def rate(found: Matches, threshold: float) -> Rate:
    """The share of clusters whose best feature reaches a threshold, and what shuffled labels reach."""
    own, shuffled = found.score >= threshold, (found.null >= threshold).mean(axis=1)
    p = (1 + (shuffled >= own.mean() - 1e-12).sum()) / (1 + len(shuffled))
    return Rate(wilson(float(own.mean()), len(own)), int(own.sum()), float(shuffled.mean()), float(p))


def beyond(found: Matches) -> Estimate:
    """The share of clusters about which some feature knows more than the shuffle keeps."""
    known = found.beyond()
    return wilson(float(known.mean()), len(known))


def curve_figure(found: Mapping[str, Mapping[str, Matches]], points: int = 101) -> Figure:
    """The share of clusters that match, for each threshold, with one curve of chance for each shuffle.

    Args:
        found: for each panel, what `match` found against ``any token`` and ``same token``.
    """
    grid = np.linspace(0, 1, points)
    fig, axes = plt.subplots(1, len(found), figsize=(6.4, 3.5), sharey=True, squeeze=False)
    for ax, (title, nulls) in zip(axes[0], found.items(), strict=True):
        curve = match_rate(nulls["any token"].score, grid)
        ax.fill_between(grid, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0)
        ax.plot(grid, curve.rate, color=BLUE, label="measured")
        for (name, style), colour in zip(
            {"any token": ":", "same token": "--"}.items(), ("0.4", VERMILION), strict=True
        ):
            reached = (nulls[name].null[:, :, None] >= grid).mean(axis=1)
            low, high = np.quantile(reached, [0.025, 0.975], axis=0)
            ax.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(grid, reached.mean(axis=0), style, color=colour, label=f"labels shuffled: {name}")
        ax.set(xlabel="threshold of F1", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes[0][0].set_ylabel("share of clusters matched")
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def ladder_figure(groups: Mapping[str, Mapping[str, Matches]]) -> Figure:
    """Many comparisons, a line each: the share with a feature at `LOW` with its chance, and the share beyond the token.

    Args:
        groups: for each heading, what `match` found with the token kept.
    """
    names, rates, known = [], [], []
    for heading, found in groups.items():
        names += [heading, *found]
        rates += [None, *(rate(m, LOW) for m in found.values())]
        known += [None, *(beyond(m) for m in found.values())]
    fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 0.3 * len(names) + 1.1), sharey=True)
    panels.points(left, [r and r.share for r in rates], color=BLUE, label="measured, with 95 % interval")
    places = [y for y, r in enumerate(rates) if r]
    left.plot([rates[y].chance for y in places], places, "x", color=VERMILION, label="labels shuffled: same token")
    panels.points(right, known, color=BLUE)
    left.set(xlabel=f"clusters with a\nfeature of F1 ≥ {LOW}", xlim=LIMITS)
    right.set(xlabel="clusters of which some feature\nknows more than the token", xlim=LIMITS)
    for ax in (left, right):
        panels.name_lines(ax, names, zero=False)
    for label in left.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in groups else "normal")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


def side_by_side(
    text, members: Int[ndarray, " n"], active: Int[ndarray, " m"], rng: np.random.Generator, size: int = 5
) -> show.Markup:
    """A cluster and a feature in text: tokens in both, in the cluster alone, and where the feature alone is active.

    Args:
        text: a `RunningText`.
        members, active: rows of the tokens of each.
    """

    def some(rows: Int[ndarray, " k"]) -> str:
        drawn = rng.choice(rows, min(size, len(rows)), replace=False) if len(rows) else []
        return show.lines(show.in_context(*text.context(int(row), before=22, after=6)) for row in drawn) or "none"

    columns = {
        "in both": np.intersect1d(members, active),
        "in the cluster only": np.setdiff1d(members, active),
        "feature only": np.setdiff1d(active, members),
    }
    return show.table([{f"{name}: {len(rows)}": some(rows) for name, rows in columns.items()}])
