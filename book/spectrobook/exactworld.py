"""A world whose reasons are planted and whose susceptibilities are integrated (chapter Modes and similar reasons)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from spectrolib import modes
from spectrolib.estimator import standardise
from spectrolib.exact import enumerable, toys
from spectrolib.posterior import Settings

from . import purity

ESTIMATORS = ("one_chain", "two_chain")
PAIRS = ("same token, same reason", "same token, other reason", "other token, same reason", "other token, other reason")
"""Classes of pairs of tokens in different contexts."""


def posterior_at(nbeta: float = 30.0, gamma: float = 30.0) -> Settings:
    """A posterior of the exact world. It is integrated, so that only nβ and γ count."""
    return Settings(nbeta=nbeta, gamma=gamma, step_size=0.01, preconditioner="none")


@dataclass(frozen=True)
class ExactWorld:
    """A planted table, and a bilinear model of it with a component for each reason and three that serve none.

    Its *probe* is every context with the tokens that its own reason produces.
    """

    table: toys.Reasons
    model: toys.Bilinear

    @classmethod
    def of(cls, reasons: int = 5, *, seed: int = 0) -> ExactWorld:
        """A world with the first of the five `toys.REASONS`."""
        table = toys.planted_reasons(reasons=reasons, seed=seed)
        return cls(table, toys.Bilinear.of(table, seed=seed))

    @cached_property
    def modes(self) -> modes.Modes:
        """The modes of the table, with plain tokens."""
        return modes.decompose(self.table.joint)

    @cached_property
    def probe(self) -> tuple[Int[ndarray, " probe"], Int[ndarray, " probe"]]:
        """Contexts and tokens of the probe."""
        own = np.array([[token in toys.REASONS[name] for token in self.table.tokens] for name in self.table.names])
        return np.nonzero(own[self.table.reason])

    @property
    def reason(self) -> Int[ndarray, " probe"]:
        """The reason of each token of the probe."""
        return self.table.reason[self.probe[0]]

    @property
    def apart(self) -> Bool[ndarray, "probe probe"]:
        """Which pairs of the probe stand in different contexts."""
        context, _ = self.probe
        return context[:, None] != context

    @cached_property
    def allowed(self) -> list[Bool[ndarray, "probe probe"]]:
        """Who may be whose neighbour, for each of `purity.KINDS`; nobody in the same context."""
        context, token = self.probe
        return [purity.allowed(kind, token, context) & self.apart for kind in purity.KINDS]

    def susceptibilities(self, settings: Settings) -> dict[str, Float[ndarray, "contexts tokens components"]]:
        """Integrated susceptibilities of every component, for both `ESTIMATORS`."""
        full = enumerable.posterior(self.model, "full", settings)
        found = [enumerable.susceptibilities(self.model, c, settings, full=full) for c in self.model.components]
        return {kind: np.stack([getattr(one, kind) for one in found], axis=-1) for kind in ESTIMATORS}

    def rows(self, chi: Float[ndarray, "contexts tokens components"]) -> Float[ndarray, "probe components"]:
        """Standardised rows of the probe; columns are standardised over all contexts and tokens."""
        return standardise(chi.reshape(-1, chi.shape[-1])).reshape(chi.shape)[self.probe]

    def purities(self, rows: Float[ndarray, "probe axes"]) -> Float[ndarray, " kinds"]:
        """Mean purity of the nearest neighbours, for each of `purity.KINDS`."""
        each = [purity.purity(purity.neighbours(rows, purity.K, may), self.reason) for may in self.allowed]
        return np.nanmean(each, axis=1)

    def chance(self) -> Float[ndarray, " kinds"]:
        """The same for neighbours at random."""
        return np.nanmean([purity.chance(self.reason, may, purity.K) for may in self.allowed], axis=1)

    def draw(self, settings: Settings, count: int, seed: int) -> purity.Fluctuations:
        """Independent draws of every component's posterior, as if from one long chain; no unrestricted ones."""
        rng, rises, excesses = np.random.default_rng(seed), [], []
        for name in self.model.components:
            grid = enumerable.posterior(self.model, name, settings)
            taken = rng.choice(len(grid.weights), size=count, p=grid.weights)
            rise, excess = enumerable.rise_and_excess(self.model, grid.losses[taken])
            rises.append(rise[None])
            excesses.append(excess[:, *self.probe].astype(np.float32)[None])
        none = np.zeros_like(excesses[0])
        return purity.Fluctuations(self.model.components, np.stack(rises), np.stack(excesses), none)


def covariance(
    weights: Float[ndarray, " points"], g: Float[ndarray, " points"], values: Float[ndarray, "points ..."]
) -> ndarray:
    """Cov(g, values) over weighted points: a posterior, or a few draws of it with equal weights."""
    return np.tensordot(weights * (g - weights @ g), values, axes=1)


# ---- energy


class Blocks(NamedTuple):
    """Energy of susceptibilities in the leading k × k block of mode pairs, as a part of the whole."""

    sizes: Int[ndarray, " sizes"]
    """k."""
    measured: Float[ndarray, " sizes"]
    permuted: Float[ndarray, " sizes"]
    """The same after the contexts of the susceptibilities were permuted."""


def blocks(
    world: ExactWorld, chi: Float[ndarray, "contexts tokens components"], largest: int = 10, seed: int = 0
) -> Blocks:
    """How much of the energy lies in blocks of the leading mode pairs."""
    order = np.random.default_rng(seed).permutation(len(chi))
    sizes = np.arange(1, largest + 1)
    pairs = [modes.pair_susceptibilities(values, world.modes) for values in (chi, chi[order])]
    return Blocks(sizes, *(np.array([modes.energy(pair, k).block for k in sizes.tolist()]) for pair in pairs))


# ---- the bound


class Bounded(NamedTuple):
    """Distances of pairs of tokens in different contexts, and the bound on them."""

    coefficients: Float[ndarray, " pairs"]
    """|c - c'|."""
    rows: Float[ndarray, " pairs"]
    """What the mode pairs carry of |η - η'|; with all mode pairs, |η - η'| itself."""
    norm: float
    """|M|: ``rows`` are at most ``norm * coefficients``."""
    alike: Bool[ndarray, " pairs"]
    """Whether a pair has one reason."""


def bounded(
    world: ExactWorld, chi: Float[ndarray, "contexts tokens components"], leading: int | None, pairs: int, seed: int = 0
) -> Bounded:
    """Distances of random pairs of the probe.

    Args:
        leading: modes of each side whose pairs count; all when None.
        pairs: how many are drawn; those of one context are left out.
    """
    context, token = world.probe
    one, other = np.random.default_rng(seed).integers(0, len(context), size=(2, pairs))
    one, other = (side[context[one] != context[other]] for side in (one, other))
    pair = modes.pair_susceptibilities(chi, world.modes)[:leading, :leading]
    response = modes.response_map(pair, chi.reshape(-1, chi.shape[-1]).std(axis=0), rows="center")
    here, there = (modes.pair_coefficients(world.modes, context[i], token[i], leading) for i in (one, other))
    difference = (here - there).reshape(len(one), -1)
    return Bounded(
        np.linalg.norm(difference, axis=1),
        np.linalg.norm(difference @ response.T, axis=1),
        float(np.linalg.norm(response, 2)),
        world.reason[one] == world.reason[other],
    )


# ---- pairs of tokens


def distances(rows: Float[ndarray, "tokens axes"]) -> Float[ndarray, "tokens tokens"]:
    """Distance of each row from each."""
    square = (rows**2).sum(axis=1)
    return np.sqrt(np.maximum(square[:, None] + square - 2 * rows @ rows.T, 0))


def by_pair(
    rows: Float[ndarray, "tokens axes"],
    token: Int[ndarray, " tokens"],
    reason: Int[ndarray, " tokens"],
    may: Bool[ndarray, "tokens tokens"],
) -> list[Float[ndarray, " pairs"]]:
    """Distances of the pairs that ``may`` be compared, in the classes of `PAIRS`; their overall median is 1."""
    same, alike, upper = token[:, None] == token, reason[:, None] == reason, np.triu(may, 1)
    distance = distances(rows)
    distance = distance / np.median(distance[upper])
    return [distance[upper & a & b] for a, b in ((same, alike), (same, ~alike), (~same, alike), (~same, ~alike))]


def told_apart(near: Float[ndarray, " pairs"], far: Float[ndarray, " others"]) -> float:
    """How often a pair of the first class is closer than one of the second; one half says nothing."""
    order = np.sort(far)
    ties = np.searchsorted(order, near, "left"), np.searchsorted(order, near, "right")
    return 1 - float(np.mean(ties) / len(order))


class Groups(NamedTuple):
    """Mean distances between the tokens of a probe, grouped by token and reason."""

    token: Int[ndarray, " groups"]
    reason: Int[ndarray, " groups"]
    distance: Float[ndarray, "groups groups"]
    """Mean over pairs in different contexts, in units of the median of all such pairs."""


def grouped(world: ExactWorld, rows: Float[ndarray, "probe components"]) -> Groups:
    """How far the occurrences of one token under one reason are from those of another, reason by reason."""
    _, token = world.probe
    keys, group = np.unique(np.stack([world.reason, token], axis=1), axis=0, return_inverse=True)
    member = np.eye(len(keys))[group.ravel()]
    distance, apart = distances(rows), world.apart.astype(float)
    mean = (member.T @ (distance * apart) @ member) / (member.T @ apart @ member)
    return Groups(keys[:, 1], keys[:, 0], mean / np.median(distance[world.apart]))
