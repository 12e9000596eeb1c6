"""What the members of a cluster share, and a readable rule for it, tested on documents that the rule never saw.

A rule is one condition or two of `conditions`, such as "' the' · after ' of'". The one that is shown is fitted on all
documents. To judge it, a rule is found in the same way on either half of the documents, and picks tokens in the other:
so no document has a say in the rule that is judged on it, and all are judged (cross-fitting). *Precision* is the share
of members among the tokens that are picked, *recall* the share of the members that are. Tokens of one document are
alike, so halves are halves of the documents, and intervals are made wide enough for tokens that come in documents, not
one by one.

The paper reads its clusters by eye and by a language model [S]; these rules, and their scores, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..checks.intervals import NORMAL, Estimate, proportion
from ..text.runningtext import RunningText
from .conditions import GROUPS, Condition, Features

READABLE = (0.5, 0.2)
"""Lower ends of precision and recall from which we call a rule confident."""
LEADING, LISTED, GAIN, FEWEST = 40, 6, 0.03, 5
"""Conditions that pairs are built on; tokens that a condition may list; F1 on the fitted half that a longer rule must
gain; members that each half must hold."""

LISTS = {"token": "", "before": "after ", "expected": "where the model expects "}
"""Groups whose tokens a condition may list, and the words before such a list."""


# Intervals -----------------------------------------------------------------------------------------------------------


def lift(member: Bool[ndarray, " n"], holds: Bool[ndarray, " n"], groups: Int[ndarray, " n"]) -> Estimate:
    """How many times more often a condition holds for members than for the rest.

    Half a token is added to each count, so that the ratio of counts of zero is finite. The interval is that of the log
    ratio, its variance the larger of the one for independent tokens (Katz et al., 1978) and the one that groups show.
    """
    inside, outside = int(member.sum()), int((~member).sum())
    if inside == 0 or outside == 0:
        return Estimate(math.nan, 0.0, math.inf)
    a, b = int(holds[member].sum()), int(holds[~member].sum())
    p, q = (a + 0.5) / (inside + 0.5), (b + 0.5) / (outside + 0.5)
    katz = 1 / (a + 0.5) - 1 / (inside + 0.5) + 1 / (b + 0.5) - 1 / (outside + 0.5)
    influence = np.where(member, (holds - p) / (inside * p), -(holds - q) / (outside * q))
    total, count = np.bincount(groups, weights=influence), int(np.count_nonzero(np.bincount(groups)))
    half = NORMAL * math.sqrt(max(katz, float(total @ total) * count / max(count - 1, 1)))
    centre = math.log(p / q)
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half))


class Shared(NamedTuple):
    """A condition that members meet more often than the rest."""

    condition: str
    group: str
    members: float
    """Share of the members that meet it."""
    rest: float
    lift: Estimate


def shared(features: Features, member: Bool[ndarray, " n"], most: int = 8, least: float = 0.15) -> list[Shared]:
    """Conditions that members meet more often than the rest, with a lift surely above 1; the most telling first.

    Args:
        most: conditions to give.
        least: share of the members that must meet it.

    Telling: the share of the members times the log of the lift's lower end. A condition that says no more than one
    before it (the same members meet both) is left out.
    """
    inside, outside = int(member.sum()), int((~member).sum())
    if inside == 0 or outside == 0:
        return []
    mine = features.matrix[np.flatnonzero(member)].sum(axis=0)
    theirs = features.totals - mine
    share, log_ratio = mine / inside, np.log((mine + 0.5) / (inside + 0.5) / ((theirs + 0.5) / (outside + 0.5)))
    likely = np.flatnonzero((share >= least) & (log_ratio > 0))
    likely = likely[np.argsort(-(share * log_ratio)[likely], kind="stable")][: 4 * most]
    found = []
    for i in likely.tolist():
        ratio = lift(member, features.column(i), features.text.documents)
        if ratio.low > 1:
            found.append((float(share[i]) * math.log(ratio.low), i, ratio))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    kept: list[Shared] = []
    masks: list[Bool[ndarray, " members"]] = []
    for _, i, ratio in found:
        mask = features.column(i)[member]
        if len(kept) < most and not any((mask == other).all() for other in masks):
            condition = features.conditions[i]
            kept.append(Shared(condition.text, condition.group, float(share[i]), float(theirs[i] / outside), ratio))
            masks.append(mask)
    return kept


# Rules ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One or two conditions that pick the members of a cluster, judged on documents that they were not fitted on."""

    conditions: tuple[str, ...]
    """Fitted on all documents."""
    precision: Estimate
    """Share of members among the tokens that the rule of either half picks in the other."""
    recall: Estimate
    """Share of the members that are picked so."""
    fitted: tuple[float, float]
    """Precision and recall of the conditions where they were fitted: too optimistic, for they were chosen there."""
    tested: tuple[int, int]
    """How many tokens are picked for the judgement, and how many members there are."""
    split: str
    """What was dealt to halves: "document", or "window" where too few documents hold members."""
    halves: int = 0
    """How many of the two halves alone lead to these very conditions."""

    @property
    def text(self) -> str:
        """The rule in words."""
        return " · ".join(self.conditions)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if it picks no member."""
        p, r = self.precision.value, self.recall.value
        return 2 * p * r / (p + r) if p + r > 0 else 0.0

    @property
    def confident(self) -> bool:
        """Whether both intervals lie above `READABLE`: more members than others picked, and a fifth of them found."""
        return self.precision.low > READABLE[0] and self.recall.low > READABLE[1]


def rules(features: Features, labels: Int[ndarray, " n"], *, seed: int = 0) -> list[Rule | None]:
    """A rule for each cluster.

    Args:
        features: from `conditions.describe`; `Features.only` limits what rules may speak of.
        labels: cluster of each token, 0 and up; -1 for none.
        seed: of the halves.

    Halves are dealt eight times, so that each domain gives each half as many documents as the other. A cluster takes
    the first deal that gives both halves a third of its members; a cluster that none suits takes a deal of windows, and
    if again none does, as for members that are all in one window, it gets no rule: None.

    The best F1 where a rule is fitted wins, each count of hits lowered by its square root, among conditions, lists of
    up to six tokens ("one of ..."), and pairs of these with a condition; a list, and a pair, must gain 0.03.

    Raises:
        ValueError: for another number of labels than tokens.
    """
    labels = check_labels(labels, len(features.text))
    whole = _Part(features, np.ones(len(labels), dtype=bool))
    dealt = [_Deal(features, unit, fit, whole) for unit, fit in deals(features.text, seed)]
    found: list[Rule | None] = []
    for cluster in range(int(labels.max(initial=-1)) + 1):
        member = labels == cluster
        deal = next((deal for deal in dealt if deal.suits(member)), None)
        found.append(deal.rule(member) if deal and features.conditions else None)
    return found


def check_labels(labels: Int[ndarray, " n"], tokens: int) -> Int[ndarray, " n"]:
    """Labels as an array, refused (ValueError) unless there is an integer for each token."""
    labels = np.asarray(labels)
    if labels.shape != (tokens,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be {tokens} integers, one for each token, got {labels.dtype} {labels.shape}")
    return labels


def deals(text: RunningText, seed: int = 0, times: int = 8) -> Iterator[tuple[str, Bool[ndarray, " n"]]]:
    """Ways to divide documents, and then windows, into halves: which of the two, and the mask of the first half."""
    rng = np.random.default_rng(seed)
    for unit, names in (("document", text.document), ("window", text.sequence)):
        _, first, index = np.unique(names, return_index=True, return_inverse=True)
        domain = text.domain[first]
        for _ in range(times):
            order = rng.permutation(len(first))
            order = order[np.argsort(domain[order], kind="stable")]
            fit = np.zeros(len(first), dtype=bool)
            fit[order[int(rng.integers(2)) :: 2]] = True
            yield unit, fit[index]


def _sure(hits):
    """Hits minus their spread by chance: the best of thousands of conditions is partly lucky, a rare one most."""
    return hits - np.sqrt(hits)


@dataclass(frozen=True)
class _Pick:
    """A candidate: the columns that it lists, as one condition (any of them), or two (one of each)."""

    parts: tuple[tuple[int, ...], ...]
    f1: float


class _Deal:
    """One way to deal tokens to halves, of which each judges what is fitted on the other."""

    def __init__(self, features: Features, unit: str, first: Bool[ndarray, " n"], whole: _Part):
        self.unit, self.whole = unit, whole
        self.halves = _Part(features, first), _Part(features, ~first)

    def suits(self, member: Bool[ndarray, " n"]) -> bool:
        """Whether either half holds enough of the members."""
        least = min(int((member & half.fit).sum()) for half in self.halves)
        return least >= max(FEWEST, int(member.sum()) / 3)

    def rule(self, member: Bool[ndarray, " n"]) -> Rule:
        """The best rule of all tokens, judged by those of the halves."""
        shown, own = self.whole.best(member).parts, [half.best(member).parts for half in self.halves]
        picked = np.zeros(len(member), dtype=bool)
        for half, parts in zip(self.halves, own, strict=True):
            picked |= half.picks(parts) & ~half.fit
        text, fitted = self.whole.features.text, self.whole.picks(shown)
        groups = text.documents if self.unit == "document" else text.windows
        said = self.whole.say(shown)
        return Rule(
            said,
            proportion(member[picked], groups[picked]),
            proportion(picked[member], groups[member]),
            (float(member[fitted].mean()) if fitted.any() else math.nan, float(fitted[member].mean())),
            (int(picked.sum()), int(member.sum())),
            self.unit,
            sum(self.whole.say(parts) == said for parts in own),
        )


class _Part:
    """Tokens to fit rules on, and their counts that do not depend on a cluster."""

    def __init__(self, features: Features, fit: Bool[ndarray, " n"]):
        self.features, self.fit = features, fit

    @cached_property
    def matrix(self):
        return self.features.matrix[np.flatnonzero(self.fit)]

    @cached_property
    def totals(self) -> Int[ndarray, " conditions"]:
        return self.matrix.sum(axis=0)

    @cached_property
    def together(self):
        """How many tokens meet both of two conditions."""
        return (self.matrix.T @ self.matrix).tocsr()

    def picks(self, parts: Sequence[Sequence[int]]) -> Bool[ndarray, " n"]:
        """Where a candidate holds, among all tokens."""
        return np.logical_and.reduce([self._any(part) for part in parts])

    def say(self, parts: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """A candidate in words, its conditions in the order of their groups."""
        return tuple(self._say(part) for part in sorted(parts, key=self._rank))

    def best(self, member: Bool[ndarray, " n"]) -> _Pick:
        """The candidate with the best F1."""
        mine = self.matrix[np.flatnonzero(member[self.fit])]
        size = mine.shape[0]
        hits = np.asarray(mine.sum(axis=0))
        single = self._f1(hits, size, self.totals)
        order = np.argsort(-single, kind="stable")[:LEADING]
        best = _Pick(((int(order[0]),),), float(single[order[0]]))
        lists = [chosen for name in LISTS if len(chosen := self._list(name, hits, size)) > 1]
        first = [(int(i),) for i in order] + lists
        # tokens that meet two conditions, for every first one and every second one: members, and all
        both = np.vstack([(mine[:, order].T @ mine).toarray(), *(self._met_with(mine, part) for part in lists)])
        every = np.vstack([self.together[order].toarray(), *(self._met_with(self.matrix, part) for part in lists)])
        for part in lists:
            f1 = self._f1(self._count(mine, part), size, self._count(self.matrix, part))
            best = max(best, _Pick((part,), float(f1) - GAIN), key=lambda pick: pick.f1)
        pairs = self._f1(both, size, every) - GAIN
        for i, part in enumerate(first):
            pairs[i, list(part)] = 0
        i, j = np.unravel_index(int(pairs.argmax()), pairs.shape)
        return max(best, _Pick((first[i], (int(j),)), float(pairs[i, j])), key=lambda pick: pick.f1)

    def _list(self, group: str, hits: Int[ndarray, " conditions"], size: int) -> tuple[int, ...]:
        """The tokens that together pick the members best: the purest first, as long as F1 rises."""
        columns = self.features.group(group)
        columns = columns[hits[columns] >= 2]
        pure = _sure(hits[columns]) / self.totals[columns]
        columns = columns[np.argsort(-pure, kind="stable")]
        f1 = self._f1(np.cumsum(hits[columns]), size, np.cumsum(self.totals[columns]))
        enough = int(f1[:LISTED].argmax()) + 1 if len(columns) else 0
        return tuple(columns[:enough].tolist())

    @staticmethod
    def _f1(hits, size: int, picked):
        """F1 of so many hits among those picked, for a cluster of this size, of the hits that are sure."""
        return 2 * _sure(hits) / (size + picked)

    @staticmethod
    def _met_with(matrix, part: Sequence[int]) -> Float[ndarray, "1 conditions"]:
        return matrix[np.flatnonzero(matrix[:, list(part)].sum(axis=1))].sum(axis=0)[None]

    @staticmethod
    def _count(matrix, part: Sequence[int]) -> int:
        return int(matrix[:, list(part)].sum())

    def _any(self, part: Sequence[int]) -> Bool[ndarray, " n"]:
        return np.logical_or.reduce([self.features.column(i) for i in part])

    def _rank(self, part: Sequence[int]) -> int:
        return list(GROUPS).index(self.features.conditions[part[0]].group)

    def _say(self, part: Sequence[int]) -> str:
        chosen: list[Condition] = [self.features.conditions[i] for i in part]
        if len(chosen) == 1:
            return chosen[0].text
        return f"{LISTS[chosen[0].group]}one of {', '.join(condition.value for condition in chosen)}"
