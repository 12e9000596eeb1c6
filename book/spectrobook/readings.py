"""Clusters read by hand, and by rule: members in their contexts, a reader's rule judged on documents that it was not
made from, and which clusters are fit to show.

A reader reads members in one half of the documents, writes a rule, and the other half says how good it is
(`reading_halves`, `judge_reading`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib.checks.intervals import Estimate, proportion
from spectrolib.clustering import Clustering
from spectrolib.reading import rules
from spectrolib.reading.marks import BLUE, PALETTE, VERMILION
from spectrolib.text.runningtext import RunningText

from . import show

FIT = {"share": 0.8, "documents": 5, "most": 0.8, "loss": 0.5}
"""What the gallery asks of a cluster: back in so many of the repetitions, members in so many documents, no token with
more of the members, and a median loss above so many nats."""
CATALOGUE = "../catalogue.html"
"""The page of their cards, as chapters see it."""
QUIET = 0.1
"""Median loss, in nats, below which a cluster is called quiet."""


# Reading by hand -----------------------------------------------------------------------------------------------------


def reading_halves(text: RunningText, seed: int = 0) -> Bool[ndarray, " tokens"]:
    """The tokens of one half of the documents, to read; the rest is for judging. Domains are dealt evenly."""
    return next(half for unit, half in rules.deals(text, seed) if unit == "document")


def members_in_context(
    text: RunningText, rows: Iterable[int], most: int = 8, before: int = 48, after: int = 24, seed: int = 0
) -> show.Markup:
    """Some of the rows, each in another document as far as there are so many, token underlined."""
    rows = np.random.default_rng(seed).permutation(np.asarray(list(rows), dtype=np.int64))
    _, first = np.unique(text.documents[rows], return_index=True)
    rows = np.concatenate([rows[np.sort(first)], np.delete(rows, first)])[:most]
    return show.lines(show.in_context(*text.context(int(row), before, after)) for row in rows)


class Judged(NamedTuple):
    """How a reader's rule fares on documents that it was not made from."""

    picked: int
    """Tokens that the rule picks there."""
    members: int
    """Members of the cluster there."""
    both: int
    precision: Estimate
    """Share of members among those picked."""
    recall: Estimate
    """Share of the members that are picked."""


def judge_reading(
    rule: Bool[ndarray, " tokens"],
    member: Bool[ndarray, " tokens"],
    unread: Bool[ndarray, " tokens"],
    text: RunningText,
) -> Judged:
    """A rule on the documents that were not read; intervals know that tokens of one document are alike.

    Raises:
        ValueError: where the rule picks nothing there, or no member is.
    """
    picked, inside = np.flatnonzero(rule & unread), np.flatnonzero(member & unread)
    if not len(picked) or not len(inside):
        raise ValueError(f"on the unread half the rule picks {len(picked)} tokens and {len(inside)} are members")
    precision = proportion(member[picked], text.documents[picked])
    recall = proportion(rule[inside], text.documents[inside])
    return Judged(len(picked), len(inside), int((rule & member & unread).sum()), precision, recall)


def readings_figure(judged: Mapping[str, Judged]) -> Figure:
    """Precision and recall of readers' rules with their intervals, a row for each rule."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 0.9 + 0.55 * len(judged)), sharey=True)
    for ax, what in zip(axes, ("precision", "recall"), strict=True):
        for row, one in enumerate(judged.values()):
            value, low, high = getattr(one, what)
            ax.errorbar(value, row, xerr=[[value - low], [high - value]], color=BLUE, marker="o", markersize=7)
        ax.set(xlim=(-0.03, 1.03), ylim=(len(judged) - 0.5, -0.5))
        ax.set_title({"precision": "of those picked, members", "recall": "of members, picked"}[what], fontsize=10)
        ax.set_xlabel("share, 95 % interval")
    axes[0].set_yticks(range(len(judged)), list(judged))
    return fig


# Choosing ------------------------------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What is said of a cluster before anybody reads it."""

    cluster: int
    size: int
    documents: int
    """How many documents its members are in."""
    tokens: tuple[tuple[str, int], ...]
    """Its different tokens and how many members each has, the most frequent first."""
    loss: float
    """Median over members, nats."""
    share: float
    """Share of the repetitions in which it came back."""


def facts(text: RunningText, found: Clustering, loss: Float[ndarray, " tokens"]) -> list[Facts]:
    """Facts of each cluster, in their order.

    Raises:
        ValueError: for clusters without a share of repetitions.
    """
    if found.share is None:
        raise ValueError("these clusters were found once: take those of clustering.stable_clusters")
    told = []
    for cluster, share in enumerate(found.share.tolist()):
        rows = found.members(cluster)
        tokens = Counter(text.names[i] for i in text.token_id[rows].tolist()).most_common()
        documents = len(np.unique(text.documents[rows]))
        told.append(Facts(cluster, len(rows), documents, tuple(tokens), float(np.median(loss[rows])), share))
    return told


def fit_to_show(told: Iterable[Facts]) -> list[Facts]:
    """The clusters that `FIT` lets through, those in most documents first."""
    kept = [
        one
        for one in told
        if one.share >= FIT["share"]
        and one.documents >= FIT["documents"]
        and one.tokens[0][1] <= FIT["most"] * one.size
        and one.loss > FIT["loss"]
    ]
    return sorted(kept, key=lambda one: (-one.documents, one.cluster))


def excerpt(one: Facts, text: RunningText, rows: Int[ndarray, " members"], most: int = 4) -> show.Markup:
    """What a cluster holds, and some of its members (`rows`), in different documents as far as there are so many."""
    often = show.escaped(", ".join(token for token, _ in one.tokens[:6]))
    head = (
        f"{cluster_link(one.cluster)}: {one.size} tokens in {show.counted(one.documents, 'document')}; came back in "
        f"{one.share:.0%} of the repetitions; median loss {one.loss:.2f} nats. Most often {often}."
    )
    return show.lines([show.Markup(head), members_in_context(text, rows, most, seed=one.cluster)])


def cluster_link(cluster: int) -> show.Markup:
    """The name of a cluster, leading to its card."""
    return show.Markup(f'<a href="{CATALOGUE}#cluster-{cluster}"><b>Cluster {cluster}</b></a>')


def excerpts(some: Iterable[Facts], text: RunningText, found: Clustering, most: int = 4) -> show.Markup:
    """The excerpts of several clusters, one under the other."""
    parts = (excerpt(one, text, found.members(one.cluster), most) for one in some)
    return show.block(*(show.block(part, style="margin-bottom:1.2em") for part in parts))


def landscape_figure(told: Sequence[Facts], shown: Sequence[Facts]) -> Figure:
    """Every cluster by the median loss of its members and the documents that they are in."""
    fig, ax = plt.subplots(figsize=(6.8, 3.8))
    chosen = {one.cluster for one in shown}
    groups = {
        "others": ([one for one in told if one.cluster not in chosen and one.loss >= QUIET], BLUE, "o"),
        "quiet": ([one for one in told if one.cluster not in chosen and one.loss < QUIET], PALETTE[2], "v"),
        "fit for the gallery": (list(shown), VERMILION, "D"),
    }
    for label, (mine, colour, mark) in groups.items():
        style = dict(alpha=0.75, markersize=5.5, markeredgewidth=0.3, markeredgecolor="w", linestyle="none")
        losses, documents = [one.loss for one in mine], [one.documents for one in mine]
        ax.plot(losses, documents, marker=mark, color=colour, label=f"{label} ({len(mine)})", **style)
    ax.axvline(QUIET, color="0.6", linewidth=1, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel="median loss of the members (nats)", ylabel="documents with members")
    ax.set_xticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
    ax.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    ax.minorticks_off()
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=9, columnspacing=1.2, handletextpad=0.2)
    return fig


# One token in several clusters ---------------------------------------------------------------------------------------


def where_occurrences_go(
    token: int, ids: Int[ndarray, " tokens"], labels: Int[ndarray, " tokens"], least: int = 5
) -> list[tuple[int, int]]:
    """Clusters that hold so many occurrences of a token or more, and how many; most first."""
    names, counts = np.unique(labels[(ids == token) & (labels >= 0)], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(names[i]), int(counts[i])) for i in order if counts[i] >= least]


def occurrences_shown(token: int, text: RunningText, labels: Int[ndarray, " tokens"], most: int = 3) -> show.Markup:
    """Occurrences of a token in their contexts, cluster by cluster (`where_occurrences_go`)."""
    parts = []
    for cluster, number in where_occurrences_go(token, text.token_id, labels):
        head = show.Markup(f"{cluster_link(cluster)}, {number} of them:")
        rows = np.flatnonzero((labels == cluster) & (text.token_id == token))
        parts.append(show.block(show.lines([head, members_in_context(text, rows, most)]), style="margin-bottom:1.2em"))
    return show.block(*parts)


# Rules ---------------------------------------------------------------------------------------------------------------


def rules_figure(table: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Shares of clusters with a rule that holds, with intervals: a group of bars for each set of labels.

    Args:
        table: for each set of labels, for each thing that rules may speak of, value and interval.
    """
    fig, ax = plt.subplots(figsize=(7, 3.4))
    speak = list(next(iter(table.values())))
    width = 0.8 / len(speak)
    for i, (what, colour) in enumerate(zip(speak, (PALETTE[5], BLUE), strict=False)):
        value, low, high = np.array([own[what] for own in table.values()]).T
        place = np.arange(len(table)) + (i - (len(speak) - 1) / 2) * width
        bars = (value - low, high - value)
        ax.bar(place, value, width, yerr=bars, color=colour, label=f"rules speak of {what}", error_kw={"linewidth": 1})
    ax.set_xticks(range(len(table)), list(table))
    ax.set(ylabel="clusters with a rule that holds", ylim=(0, 0.75))
    ax.legend(loc="upper right", fontsize=9)
    return fig


def two_rows_figure(table: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Kinds of rows beside each other: a panel for each share, a point with its interval for each kind.

    Args:
        table: for each kind of rows, for each share, value and interval.
    """
    shares = list(next(iter(table.values())))
    fig, axes = plt.subplots(1, len(shares), figsize=(7.2, 1.0 + 0.45 * len(table)), sharey=True, squeeze=False)
    for ax, share in zip(axes[0], shares, strict=True):
        for row, (own, colour) in enumerate(zip(table.values(), (BLUE, VERMILION), strict=False)):
            value, low, high = own[share]
            ax.errorbar(value, row, xerr=[[value - low], [high - value]], color=colour, marker="o", markersize=7)
        ax.set(xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), ylim=(len(table) - 0.5, -0.5), xlabel="share")
        ax.set_title(share, fontsize=10)
    axes[0, 0].set_yticks(range(len(table)), list(table))
    return fig
