r"""A component shaken at random: what its g and d do when D of its weights move, each by a normal of variance 1/γ.

That is the component's posterior at nβ = 0, and draws from it are independent, so no sampler stands between. Pairs ±δ
take a loss apart into its odd and its even part in δ. Means come from the even part alone.

The covariance of the mean loss with a token's is small beside the product of their spreads, so a sample covariance
would take very many draws. An interpolation between two independent shakes δ, δ' gives it as a mean of slopes [D]: with
δ_s = s δ + √(1 - s²) δ', and f any function of the weights,

    Cov(L, f) = 1/γ ∫₀¹ E< ∇L(w* + δ), ∇f(w* + δ_s) > ds.

To leading order both gradients are those at w*, and nothing is left to chance. For two quadratic forms the integrand is
linear in s. ∇L at w* is that of all the text; how it changes with δ is taken from a few windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from spectrolib.model.components import weight_count
from spectrolib.model.engine import Engine, Group
from spectrolib.posterior import stable_seed

from .directions import REACH


class Shaken(NamedTuple):
    """What g and d do under shakes; d is a token's loss less the mean of the windows', both counted from w*; nats."""

    rise: float
    """Mean of g, the mean of the windows' losses."""
    rise_spread: float
    """Standard deviation of g over the draws."""
    moment: Float[ndarray, "halves tokens"]
    """Mean of d, from either half of the draws."""
    moment_spread: Float[ndarray, " tokens"]
    """Standard deviation of d over the draws."""
    covariance: Float[ndarray, "halves tokens"]
    """Cov(g, d), nats², from either half."""


def shake(
    engine: Engine,
    windows,
    component: str,
    slope: Float[Tensor, " parameters"],
    *,
    text,
    gamma: float,
    pairs: int = 8,
    weights: int | None = None,
    seed: int = 0,
) -> Shaken:
    """Shake a component, or so many of its weights, taken at random, while the rest stays at w*.

    Args:
        windows: whose tokens are asked; the first of each has no loss.
        slope: ∇L of the component at w* (`directions.mean_gradients`).
        text: a few windows for how that gradient changes.
        pairs: of draws ±δ: a multiple of four.
        weights: how many move; all by default. Fewer, at the same seed, are some of these.

    Raises:
        ValueError: for another number of pairs, or of weights than the component has.
    """
    count = weight_count(component, engine.shape)
    weights = count if weights is None else weights
    if pairs < 4 or pairs % 4:
        raise ValueError(f"pairs must be a multiple of four, two for each half, got {pairs}")
    if not 1 <= weights <= count:
        raise ValueError(f"{component} has {count} weights: from 1 to all of them can move, not {weights}")
    generator = torch.Generator().manual_seed(stable_seed("shake", seed, component))
    moves = torch.zeros(count)
    moves[chosen_weights(count, weights, component, seed)] = gamma**-0.5
    normal = lambda: moves * torch.randn(count, generator=generator)  # noqa: E731

    group = engine.group([component, component])
    probe, some = group.cache(windows), group.cache(text)
    start, rows = group.start[0], np.arange(len(some.ids))
    at = lambda shift: [start + shift, start - shift]  # noqa: E731
    still = group.gradients(at(torch.zeros(count)), some, rows)[1][0]
    here = _losses(group, at(torch.zeros(count)), probe)[0]
    odd, even, along = [], [], []
    for k in range(pairs):
        one, other, s = normal(), normal(), (k // 2 + 0.5) / (pairs // 2)  # both halves see the same s
        above, below = _losses(group, at(one), probe)
        odd.append((above - below) / 2)
        even.append((above + below) / 2 - here)
        force = [(slope + changed - still) * (moves > 0) for changed in group.gradients(at(one), some, rows)[1]]
        between = at(s * one + (1 - s * s) ** 0.5 * other)
        along.append(sum(_slopes(group, between, force, probe)) / 2)
    odd, even, along = (np.stack(parts) for parts in (odd, even, along))
    g, g_odd = even.mean(axis=1), odd.mean(axis=1)
    d, d_odd = even - g[:, None], odd - g_odd[:, None]
    halves = lambda values: np.stack([values[half::2].mean(axis=0) for half in (0, 1)])  # noqa: E731
    return Shaken(
        float(g.mean()),
        float(np.sqrt((g_odd**2).mean() + g.var(ddof=1))),
        halves(d),
        np.sqrt((d_odd**2).mean(axis=0) + d.var(axis=0, ddof=1)),
        halves(along - along.mean(axis=1, keepdims=True)) / gamma,
    )


def chosen_weights(count: int, weights: int, component: str, seed: int = 0) -> Int[Tensor, " weights"]:
    """Which of a component's weights move in `shake`: they depend on its name and the seed alone."""
    generator = torch.Generator().manual_seed(stable_seed("chosen weights", seed, component))
    return torch.randperm(count, generator=generator)[:weights]


def _losses(group: Group, positions: list[Tensor], cached) -> Float[ndarray, "positions tokens"]:
    return group.losses(positions, cached).flatten(1).double().cpu().numpy()


def _slopes(group: Group, positions: list[Tensor], along: list[Tensor], cached) -> Iterator[Float[ndarray, " tokens"]]:
    """<a, ∇l> at each position, by central differences over a length of `directions.REACH`."""
    lengths = [float(a.norm()) for a in along]
    steps = [a * (REACH / length) for a, length in zip(along, lengths, strict=True)]
    above, below = (
        _losses(group, [w + sign * step for w, step in zip(positions, steps, strict=True)], cached) for sign in (1, -1)
    )
    return (length * (a - b) / (2 * REACH) for length, a, b in zip(lengths, above, below, strict=True))


def spread(halves: Float[ndarray, "2 tokens"]) -> float:
    """Standard deviation over tokens of what two measurements of a column have in common, free of their noise; NaN if
    that is negative by chance."""
    one, other = halves - halves.mean(axis=1, keepdims=True)
    return float(np.sqrt(max(float((one * other).mean()), 0.0))) or float("nan")


class Widths(NamedTuple):
    """Spreads over tokens of the two terms of one column of a two-chain value, nats²."""

    covariance: float
    """Of Cov(g, d)."""
    moment: float
    """Of <g><d>."""


def widths_of(shaken: Shaken) -> Widths:
    """Both spreads, free of noise."""
    return Widths(spread(shaken.covariance), abs(shaken.rise) * spread(shaken.moment))


def widths_in_bowls(
    slopes: Float[ndarray, "tokens weights"], curvatures: Float[ndarray, "tokens weights"], gamma: float
) -> Widths:
    """The same in closed form where each token's loss is bᵀδ + ½ Σ a δ², from its b and its a; L is the mean loss.

    <l> = Σ a / 2γ and Cov(L, l) = <b_L, b> / γ + Σ a_L a / 2γ².
    """
    b, a = slopes.mean(axis=0), curvatures.mean(axis=0)
    d, rest = slopes - b, curvatures - a
    covariance = d @ b / gamma + rest @ a / (2 * gamma**2)
    moment = a.sum() / (2 * gamma) * rest.sum(axis=1) / (2 * gamma)
    return Widths(float(covariance.std()), float(moment.std()))
