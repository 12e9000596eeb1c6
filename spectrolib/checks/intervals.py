"""Shares and their intervals, also of trials that come in groups, such as tokens in documents."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

NORMAL = 1.959964
"""Half width of a 95 % interval, in standard deviations."""


class Estimate(NamedTuple):
    """A number with its 95 % interval. Where nothing is known: NaN, and the interval of all possible values."""

    value: float
    low: float
    high: float


def wilson(share: float, n: float) -> Estimate:
    """A share of n independent trials, with the interval of Wilson (1927)."""
    if n <= 0:
        return Estimate(math.nan, 0.0, 1.0)
    z2 = NORMAL**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = NORMAL / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def proportion(hits: Bool[ndarray, " n"], groups: Int[ndarray, " n"]) -> Estimate:
    """A share of trials that come in groups, such as tokens in documents; ``groups`` numbers them.

    Wilson's interval for as many independent trials as are worth these (Kish, 1965): n / (1 + ρ (m - 1)), where m is
    the size of the group that a trial is in, on average over trials, and ρ how alike trials of a group are (the
    intraclass correlation, by analysis of variance). Where all trials agree, or all are of one group, nothing is known
    of ρ: then it is 1.
    """
    n = len(hits)
    if n == 0:
        return wilson(math.nan, 0)
    share, sizes = float(hits.mean()), np.bincount(groups)
    some = sizes > 0
    sizes, means = sizes[some], np.bincount(groups, weights=hits)[some] / sizes[some]
    typical = float(sizes @ sizes) / n
    return wilson(share, n / (1 + _alike(share, sizes, means) * (typical - 1)))


def _alike(share: float, sizes: Int[ndarray, " groups"], means: Float[ndarray, " groups"]) -> float:
    """The intraclass correlation of zeros and ones, from 0 to 1."""
    n, count = int(sizes.sum()), len(sizes)
    if count == 1 or count == n or share in (0.0, 1.0):
        return 1.0
    between = float(sizes @ (means - share) ** 2) / (count - 1)
    within = float(sizes @ (means * (1 - means))) / (n - count)
    typical = (n - float(sizes @ sizes) / n) / (count - 1)
    return min(max(0.0, (between - within) / (between + (typical - 1) * within)), 1.0)
