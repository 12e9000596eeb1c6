r"""Susceptibilities from the draws of SGLD chains: running sums, two estimators, error bars, standardisation.

Write g = L(w) - L(w*) for the loss rise of a draw and d_xy = l_xy(w) - L(w) for the excess loss of token y in context
x, all in nats. mean_C is the mean over the draws of the chain restricted to component C, in which only the weights of C
move; mean_F is the mean over the draws of the unrestricted chain, in which all weights move. The paper's
susceptibility, the derivative of the tilted posterior mean of φ_C = δ(u - u*) [L(w) - L(w*)], is estimated by

    two chains:  χ̂_xy = -( mean_C[g d_xy] - mean_C[g] mean_F[d_xy] )
    one chain:   χ̂_xy = -Ĉov_C(g, d_xy)

up to a factor that depends on C alone, which standardising the columns removes. The two differ by first moments:

    two chains = one chain - mean_C[g] ( mean_C[d_xy] - mean_F[d_xy] ).

All covariances here divide by the number of draws, as in these formulas, so every identity is exact for finite draws.
A constant added to d_xy changes neither estimator; a constant added to g changes the two-chain one. So L(w) and L(w*)
must be taken on the same tokens.

The covariance is the noisy part, because it averages a product of two fluctuations. Where chains run in teams with a
tilt η (`spectrolib.posterior`, "Coupled chains"), it can be measured as a derivative instead,

    Cov_C(g, d_xy) = -( mean_{nβ+η}[d_xy] - mean_{nβ-η}[d_xy] ) / 2η + O(η²),

whose variance is far smaller. Both estimators use it where it was measured (`CovarianceSums.response`).

The two ways take g from different texts. In the derivative, g is the rise of the loss that drives the chains, so L is
the mean over the sampling windows. In the sample covariance, L is the mean over the loss windows. Both stand for the
mean loss of the text, and few windows are a noisy stand-in for it; the book's appendix Noise, cost and settings shows
how far the two differ.

The sample covariance is kept beside the derivative, with two controls: the covariance with g permuted over draws, and
with noise in place of g. Neither control is related to the observable, so whatever a result has in common with them is
not due to the susceptibility.

Resolved rows
-------------
At draw t a token's loss has moved from its value at w* by F_t(xy). Each draw is called a *channel*: one number for
every token. A susceptibility keeps a single weighted sum of a component's channels, with weights given by g. A
*resolved row* (`ResolvedSums`) keeps the channels themselves, one entry a draw:

    r_C(xy) = ( F_t(xy) - mean_t F_t(xy) )_t / √draws,        r_C(xy) · r_C(x'y') = Cov_C( l_xy, l_x'y' ).

The inner product of two rows is the covariance of the two losses over the draws. This goes beyond the paper, which
keeps one number for each component [D].
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .posterior import stable_seed

CONTROLS = ("permuted", "noise")
"""Control observables that take the place of g: g permuted over the draws, and Gaussian noise with the spread of g."""
CONTROL_DRAWS = 64
"""How many draws are collected in memory before the observable is permuted over them."""


class CovarianceSums:
    """Running means and centred second moments of an observable φ and of the losses of many tokens, in float64.

    Memory is O(tokens), whatever the number of draws. Sums over parts of the draws merge into the sums over all (the
    pairwise update of Chan, Golub and LeVeque, stable when the mean is large against the spread). Merging in another
    order changes the result only by rounding.

    Args:
        tokens: number of losses in each draw; taken from the first update if it is not given.

    Attributes:
        count: draws seen.
        mean_phi, var_phi: mean and variance of φ over the draws.
        mean_losses: (tokens,) mean of each loss.
        pairs: pairs of tilted chains seen by `respond`, one for each draw of a pair.
        response: (tokens,) estimate of ∂<losses>/∂(nβ), the mean over these pairs; zero without any.
        controlled: draws seen by `control`.
        controls: (2, tokens) covariance of the losses with each of `CONTROLS`.
    """

    SCALARS = ("count", "mean_phi", "square_phi", "pairs", "controlled")
    VECTORS = ("mean_losses", "cross", "square_losses", "response", "controls")
    ARRAYS = SCALARS + VECTORS

    def __init__(self, tokens: int | None = None):
        self.count = self.pairs = self.controlled = 0
        self.mean_phi = 0.0
        self.square_phi = 0.0
        self._shape(tokens or 0)

    def _shape(self, tokens: int) -> None:
        self.mean_losses, self.cross, self.square_losses, self.response = np.zeros((4, tokens))
        self.controls = np.zeros((len(CONTROLS), tokens))

    def update(self, phi: float, losses: Float[ndarray, " tokens"]) -> CovarianceSums:
        """Add one draw: the value of φ and the loss of every token.

        Raises:
            ValueError: if the number of losses is not that of the other draws.
        """
        losses = np.asarray(losses, dtype=np.float64)
        if self.count == 0 and self.mean_losses.size == 0 and losses.ndim == 1:
            self._shape(len(losses))
        if losses.shape != self.mean_losses.shape:
            raise ValueError(f"expected losses of shape {self.mean_losses.shape}, got {losses.shape}")
        phi = float(phi)
        delta = losses - self.mean_losses
        delta_phi = phi - self.mean_phi
        self.count += 1
        self.mean_phi += delta_phi / self.count
        self.mean_losses += delta / self.count
        rest = losses - self.mean_losses
        self.square_phi += delta_phi * (phi - self.mean_phi)
        self.cross += delta_phi * rest
        self.square_losses += delta * rest
        return self

    def respond(
        self, above: Float[ndarray, " tokens"], below: Float[ndarray, " tokens"], tilt: float
    ) -> CovarianceSums:
        """Add one draw of a pair of tilted chains to ``response``; both draws must also go through `update`.

        Args:
            above, below: losses at the draw of the chain at nβ + tilt, and of the chain at nβ - tilt, which share
                noise.
            tilt: η.

        Raises:
            ValueError: if there was no update yet, or the tilt is not positive.
        """
        self._require_draws()
        if not tilt > 0:
            raise ValueError(f"tilt must be positive, got {tilt!r}")
        self.pairs += 1
        self.response += ((above - below) / (2 * tilt) - self.response) / self.pairs
        return self

    def control(
        self, phi: Float[ndarray, " draws"], losses: Float[ndarray, "draws tokens"], seed: int
    ) -> CovarianceSums:
        """Add a block of draws to the controls, which permute φ over the draws and so need many at once.

        ``controls`` is the mean of the covariances within blocks, weighted by draws, so a block should hold many draws.
        A block of fewer than three is left out, and so is one that comes before any `update`.
        """
        draws = len(phi)
        if draws < 3 or self.count == 0:
            return self
        rng = np.random.default_rng(seed)
        centred = phi - phi.mean()
        noise = rng.standard_normal(draws) * phi.std()
        shuffled = np.stack([centred[rng.permutation(draws)], noise - noise.mean()])
        self.controlled += draws
        self.controls += (shuffled @ losses / draws - self.controls) * (draws / self.controlled)
        return self

    def merge(self, other: CovarianceSums) -> CovarianceSums:
        """The sums over the draws of both, as a new object.

        Raises:
            ValueError: if the two are over different numbers of losses.
        """
        tokens, others = len(self.mean_losses), len(other.mean_losses)
        if tokens != others and tokens and others:  # 0: not known yet
            raise ValueError(f"cannot merge sums over {tokens} and {others} losses")
        if self.count == 0 or other.count == 0:
            return copy.deepcopy(other if self.count == 0 else self)
        merged = CovarianceSums(tokens)
        count = self.count + other.count
        weight = self.count * other.count / count
        step_phi = other.mean_phi - self.mean_phi
        step = other.mean_losses - self.mean_losses
        merged.count = count
        merged.mean_phi = self.mean_phi + step_phi * other.count / count
        merged.mean_losses = self.mean_losses + step * (other.count / count)
        merged.square_phi = self.square_phi + other.square_phi + weight * step_phi**2
        merged.cross = self.cross + other.cross + weight * step_phi * step
        merged.square_losses = self.square_losses + other.square_losses + weight * step**2
        for name, known in (("response", "pairs"), ("controls", "controlled")):
            mine, theirs = getattr(self, known), getattr(other, known)
            setattr(merged, known, mine + theirs)
            part = theirs / max(mine + theirs, 1)
            setattr(merged, name, getattr(self, name) * (1 - part) + getattr(other, name) * part)
        return merged

    @property
    def var_phi(self) -> float:
        """Variance of φ over the draws."""
        self._require_draws()
        return self.square_phi / self.count

    def sample_covariance(self) -> Float[ndarray, " tokens"]:
        """Covariance of φ with each loss over the draws (divided by their number)."""
        self._require_draws()
        return self.cross / self.count

    def covariance(self) -> Float[ndarray, " tokens"]:
        """Covariance of φ with each loss: minus ``response`` if tilted pairs were seen, else the sample covariance."""
        return -self.response if self.pairs else self.sample_covariance()

    def variance(self) -> Float[ndarray, " tokens"]:
        """Variance of each loss over the draws (divided by their number)."""
        self._require_draws()
        return self.square_losses / self.count

    def _require_draws(self) -> None:
        if self.count == 0:
            raise ValueError("no draws yet: update with at least one")

    def to_arrays(self) -> dict[str, ndarray]:
        """A copy of the state as named arrays, from which `from_arrays` restores it exactly."""
        return {name: np.array(getattr(self, name)) for name in self.ARRAYS}

    @classmethod
    def from_arrays(cls, arrays) -> CovarianceSums:
        """Restore from a mapping of named arrays."""
        sums = cls(len(arrays["mean_losses"]))
        for name in cls.SCALARS:
            setattr(sums, name, arrays[name].item())
        for name in cls.VECTORS:
            setattr(sums, name, np.array(arrays[name], dtype=np.float64))
        return sums


def merge_all(parts: Iterable[CovarianceSums]) -> CovarianceSums:
    """Merge at least one part, from left to right. The same parts in the same order give the same bits."""
    first, *rest = parts
    for part in rest:
        first = first.merge(part)
    return first


def joined(parts: Sequence[Sums]) -> Sums:
    """Join sums of neighbouring stretches of tokens, taken over the same draws, into the sums of all these tokens.

    Raises:
        ValueError: if the parts do not hold the same draws.
    """
    arrays = [part.to_arrays() for part in parts]
    whole = [name for name, values in arrays[0].items() if name not in parts[0].VECTORS and values.dtype.kind == "i"]
    for name in whole:  # means may differ in their last bits, where parts come from different machines
        if not all(np.array_equal(arrays[0][name], own[name]) for own in arrays[1:]):
            raise ValueError(f"stretches of tokens join if they saw the same draws: their {name} differ")
    vectors = {name: np.concatenate([own[name] for own in arrays], axis=-1) for name in parts[0].VECTORS}
    return type(parts[0]).from_arrays(arrays[0] | vectors)


class Terms(NamedTuple):
    """What a two-chain susceptibility is made of; ``two_chain = -(covariance + rise * (restricted - full))``."""

    covariance: Float[ndarray, " tokens"]
    """Cov_C(g, d): minus the one-chain value."""
    rise: float
    """mean_C[g], nats."""
    restricted: Float[ndarray, " tokens"]
    """mean_C[d], first moment of the restricted chain, nats."""
    full: Float[ndarray, " tokens"]
    """mean_F[d], first moment of the unrestricted chain, nats."""


def terms(restricted: CovarianceSums, full: CovarianceSums) -> Terms:
    """The terms of the two-chain estimator (module docstring)."""
    full._require_draws()
    return Terms(restricted.covariance(), restricted.mean_phi, restricted.mean_losses, full.mean_losses)


def two_chain(restricted: CovarianceSums, full: CovarianceSums) -> Float[ndarray, " tokens"]:
    """χ̂ of the delta-function observable, from the restricted and the unrestricted chain (module docstring)."""
    t = terms(restricted, full)
    return -(t.covariance + t.rise * (t.restricted - t.full))


def one_chain(restricted: CovarianceSums) -> Float[ndarray, " tokens"]:
    """χ̂ = -Ĉov_C(g, d), from the restricted chain alone."""
    return -restricted.covariance()


ESTIMATORS = ("two_chain", "one_chain")
Estimator = Literal["two_chain", "one_chain"]


def susceptibility(
    estimator: Estimator, restricted: Sequence[CovarianceSums], full: Sequence[CovarianceSums]
) -> Float[ndarray, " tokens"]:
    """The named estimate of χ̂, with the draws of all chains pooled.

    Raises:
        ValueError: for an unknown estimator.
    """
    if estimator == "one_chain":
        return one_chain(merge_all(restricted))
    if estimator == "two_chain":
        return two_chain(merge_all(restricted), merge_all(full))
    raise ValueError(f"unknown estimator {estimator!r}: it must be one of {ESTIMATORS}")


def with_estimator(result, estimator: Estimator):
    """A copy of a result of `measure.measure` whose susceptibilities are those of the other estimator.

    They are computed from the terms that the result stores. A result that already holds the asked estimator is returned
    as it is. Stored standard errors belong to the estimator that was measured, so a change of estimator drops them.

    Raises:
        ValueError: for an unknown estimator, or the two-chain value of a result without the unrestricted chain.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: it must be one of {', '.join(ESTIMATORS)}")
    if result.attrs["estimator"] == estimator:
        return result
    if estimator == "two_chain" and "full_moment" not in result:
        raise ValueError(
            "the two-chain value needs the unrestricted chain, and this measurement of the one-chain value ran none: "
            "measure with --estimator two_chain"
        )
    chi = -result["covariance"]
    if estimator == "two_chain":
        rise = result["rise"].sel(sampled=result["component"].values).rename(sampled="component")
        chi = chi - rise * (result["restricted_moment"] - result["full_moment"])
    chosen = result.assign(susceptibility=chi.transpose("token", "component")).drop_vars(
        "standard_error", errors="ignore"
    )
    return chosen.assign_attrs(result.attrs | {"estimator": estimator})


def standard_error(
    estimator: Estimator, restricted: Sequence[CovarianceSums], full: Sequence[CovarianceSums]
) -> Float[ndarray, " tokens"]:
    """Standard error of the pooled estimate, by the jackknife over chains.

    Chain i of the restricted sampler and chain i of the unrestricted one are left out together. Each chain counts as
    one independent observation, so autocorrelation within a chain needs no model. With few chains the error bar is
    itself rough: its relative error is about 1/√(2 (chains - 1)). NaN with fewer than two chains.

    Raises:
        ValueError: if the two-chain estimate is asked for with unequal numbers of chains.
    """
    chains = len(restricted)
    if estimator == "two_chain" and len(full) != chains:
        raise ValueError(f"as many unrestricted as restricted chains are needed, got {len(full)} and {chains}")
    if chains < 2:
        return np.full_like(restricted[0].mean_losses, np.nan)

    def without(sums: Sequence[CovarianceSums], left_out: int) -> list[CovarianceSums]:
        return [part for i, part in enumerate(sums) if i != left_out]

    leave_one_out = np.stack(
        [susceptibility(estimator, without(restricted, i), without(full, i)) for i in range(chains)]
    )
    return np.sqrt((chains - 1) * leave_one_out.var(axis=0))


def standardise(
    chi: Float[ndarray, "tokens components"],
    rows: Literal["center", "zscore"] | None = "center",
    whiten: bool = False,
) -> Float[ndarray, "tokens axes"]:
    """Standardised susceptibilities: each column z-scored over tokens, then each row centred over components.

    The z-score removes the unknown factor of each component; centring the rows removes the direction in which all
    components respond alike. Whether the paper also divides rows by their standard deviation is unknown to us:
    ``rows="zscore"`` does, ``rows=None`` leaves them. ``whiten`` rotates to principal axes and scales each to unit
    variance, dropping directions without variance (the one that centring removes): the group's 1.4B follow-up does,
    this paper is not known to.

    Negative values mean expression (the component supports y after x), positive values suppression.

    Raises:
        ValueError: if a value is not finite, or a column is constant (no chain moved it): the message says which.
    """
    chi = np.asarray(chi, dtype=np.float64)
    if chi.ndim != 2 or 0 in chi.shape:
        raise ValueError(f"susceptibilities must be a (tokens, components) matrix, got shape {chi.shape}")
    if rows not in ("center", "zscore", None):
        raise ValueError(f"rows must be 'center', 'zscore' or None, got {rows!r}")
    if not np.isfinite(chi).all():
        raise ValueError(f"susceptibilities must be finite: columns {_where(~np.isfinite(chi).all(axis=0))} are not")
    spread = chi.std(axis=0)
    if (spread <= 1e-14 * np.abs(chi).max(axis=0)).any():
        constant = spread <= 1e-14 * np.abs(chi).max(axis=0)
        raise ValueError(f"columns {_where(constant)} are constant over tokens and cannot be standardised")
    vectors = (chi - chi.mean(axis=0)) / spread
    if rows is not None:
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
    if rows == "zscore":
        deviation = vectors.std(axis=1, keepdims=True)
        vectors = np.divide(vectors, deviation, out=np.zeros_like(vectors), where=deviation > 0)
    return _whitened(vectors) if whiten else vectors


def _whitened(vectors: Float[ndarray, "tokens components"]) -> Float[ndarray, "tokens axes"]:
    centred = vectors - vectors.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    keep = scale > scale[0] * 1e-10
    return centred @ axes[keep].T / scale[keep] * np.sqrt(len(vectors))


def _where(mask: ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


# Resolved rows -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _turn(turn: int, width: int, seed: int) -> tuple[Int[ndarray, " width"], Int[ndarray, " width"]]:
    """Channels and signs of the ``width`` draws from ``turn * width`` on. In turn 0, draw i has channel i, sign +1."""
    if turn == 0:
        return np.arange(width), np.ones(width, dtype=np.int64)
    rng = np.random.default_rng(stable_seed("channels", seed, width, turn))
    return rng.permutation(width), 2 * rng.integers(0, 2, width) - 1


def channel(draw: int, width: int, seed: int) -> tuple[int, int]:
    """The channel that a draw is added to, and its sign there (`ResolvedSums`)."""
    turn, place = divmod(draw, width)
    channels, signs = _turn(turn, width, seed)
    return int(channels[place]), int(signs[place])


def untilted(losses: Float[ndarray, "members tokens"], tilt: float) -> Float[ndarray, "draws tokens"]:
    """One draw for each pair of tilted chains of a team: the mean of the two, a draw at nβ up to O(tilt²).

    The two chains of a pair share their noise and hardly differ, so as two channels they would repeat each other.

    Args:
        losses: of the team's members, in the order of `posterior.Settings.members`: the two of a pair side by side.
        tilt: η of the settings. With 0 there are no pairs, and the losses come back as they are.
    """
    return (losses[::2] + losses[1::2]) / 2 if tilt else losses


class ResolvedSums:
    """Sums from which the resolved rows of one component are made, with at most ``width`` channels (module docstring).

    Many draws are folded into few channels (CountSketch: Charikar, Chen and Farach-Colton 2002). The first ``width``
    draws keep a channel each. Every further ``width`` draws are added to the channels in a random order, each with a
    random sign, so that all channels hold equally many draws. Inner products of rows are then right on average over
    seeds; draws that share a channel add noise. Rows can be centred only after the last draw, so each channel also
    stores the sum of the signs of its draws.

    Sums over parts of the draws (blocks, chains) merge into the sums over all. Sums over stretches of tokens join into
    those of all tokens (`joined`). Tokens never mix, so the result does not depend, to the last bit, on where the text
    was cut. Only channels that hold a draw are stored, in float32: each added draw rounds an entry by at most 2^-24 of
    its size. Merging in another order changes the result by such rounding alone.

    Args:
        tokens: number of losses in each draw.
        width: largest number of channels.
        seed: decides the channels and signs of draws beyond ``width``. Give each component its own seed, so that the
            noise of their sketches is independent.

    Attributes:
        count: draws seen.
        channels: (channels,) numbers of the channels that hold a draw, ascending.
        signs: (channels,) sum of the signs of the draws in each channel.
        sums: (channels, tokens) signed sum of the draws in each channel.
        total: (tokens,) sum of all draws, without signs, in float64.
    """

    SCALARS = ("width", "seed", "count")
    LISTS = ("channels", "signs")
    """Arrays without an axis of tokens."""
    VECTORS = ("sums", "total")

    def __init__(self, tokens: int, width: int, seed: int = 0):
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width, self.seed, self.count = width, seed, 0
        self.channels, self.signs = np.zeros((2, 0), dtype=np.int64)
        self.sums, self.total = np.zeros((0, tokens), dtype=np.float32), np.zeros(tokens)

    def update(self, draw: int, losses: Float[ndarray, " tokens"]) -> ResolvedSums:
        """Add one draw.

        Args:
            draw: its number among all draws of the component, not of this part alone; it decides the channel.
            losses: loss of each token minus its loss at w*. Any constant near the mean serves; one must be subtracted,
                since float32 keeps only seven digits.

        Raises:
            ValueError: if the number of losses is not the one given at the start, or the draw's number is negative.
        """
        losses = np.asarray(losses, dtype=np.float64)
        if losses.shape != self.total.shape:
            raise ValueError(f"expected losses of shape {self.total.shape}, got {losses.shape}")
        if draw < 0:
            raise ValueError(f"draws are numbered from 0 on, got {draw}")
        number, sign = channel(draw, self.width, self.seed)
        place = self._place(number)
        self.count += 1
        self.signs[place] += sign
        self.sums[place] += (sign * losses).astype(np.float32)
        self.total += losses
        return self

    def _place(self, number: int) -> int:
        """Index of a channel in ``channels``; a channel that is not there yet is inserted."""
        place = int(np.searchsorted(self.channels, number))
        if place == len(self.channels) or self.channels[place] != number:
            self.channels = np.insert(self.channels, place, number)
            self.signs = np.insert(self.signs, place, 0)
            self.sums = np.insert(self.sums, place, 0, axis=0)
        return place

    def merge(self, other: ResolvedSums) -> ResolvedSums:
        """The sums over the draws of both, as a new object.

        Raises:
            ValueError: if the two are sketches of another width, seed or number of tokens.
        """
        for name, mine, theirs in (
            ("width", self.width, other.width),
            ("seed", self.seed, other.seed),
            ("number of losses", len(self.total), len(other.total)),
        ):
            if mine != theirs:
                raise ValueError(f"cannot merge sketches whose {name} differs: {mine} and {theirs}")
        merged = ResolvedSums(len(self.total), self.width, self.seed)
        merged.count, merged.total = self.count + other.count, self.total + other.total
        merged.channels = np.union1d(self.channels, other.channels)
        merged.signs = np.zeros(len(merged.channels), dtype=np.int64)
        merged.sums = np.zeros((len(merged.channels), len(self.total)), dtype=np.float32)
        for part in (self, other):
            places = np.searchsorted(merged.channels, part.channels)
            merged.signs[places] += part.signs
            merged.sums[places] += part.sums
        return merged

    def rows(self) -> Float[ndarray, "tokens channels"]:
        """The resolved row of each token, with one float32 column for each channel that holds a draw.

        The inner product of two rows is the covariance of the two losses over the draws (divided by their number). This
        is exact up to ``width`` draws; beyond, it holds on average over seeds.

        Raises:
            ValueError: if there was no draw yet.
        """
        if self.count == 0:
            raise ValueError("no draws yet: update with at least one")
        centred = self.sums - self.signs[:, None] * (self.total / self.count)
        return (centred / np.sqrt(self.count)).T.astype(np.float32)

    def to_arrays(self) -> dict[str, ndarray]:
        """A copy of the state as named arrays, from which `from_arrays` restores it exactly."""
        return {name: np.array(getattr(self, name)) for name in self.SCALARS + self.LISTS + self.VECTORS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> ResolvedSums:
        """Restore from a mapping of named arrays."""
        sums = cls(len(arrays["total"]), arrays["width"].item(), arrays["seed"].item())
        sums.count = arrays["count"].item()
        for name in cls.LISTS + cls.VECTORS:
            setattr(sums, name, np.array(arrays[name]))
        return sums


def resolve(
    rows: Mapping[str, Float[ndarray, "tokens channels"]], centre: bool = False
) -> Float[ndarray, "tokens all_channels"]:
    """The resolved rows of every token: the channels of all components side by side.

    Each component's rows are divided by their root mean square length over tokens, so that each component has the same
    weight. The inner product of two tokens' rows is Σ_C Cov_C(l, l') / σ_C², with σ_C² the mean over tokens of the
    variance of l. Tokens whose losses fluctuate more keep longer rows.

    Args:
        rows: the rows of each component, by its name. Components may have different numbers of channels. Columns of the
            result follow the order of this mapping.
        centre: whether to subtract the mean row over tokens first, so that a row says how its token differs from the
            average token.

    Raises:
        ValueError: if there are no components, they have different numbers of tokens, a number is not finite, or all
            rows of a component are zero (with ``centre``, all alike). The message says which.
    """
    if not rows:
        raise ValueError("there are no components to resolve")
    tokens = {len(own) for own in rows.values()}
    if len(tokens) > 1:
        raise ValueError(f"rows of all components are of the same tokens, but there are {sorted(tokens)} of them")
    ends = np.cumsum([0, *(own.shape[1] for own in rows.values())])
    out = np.empty((tokens.pop(), ends[-1]), dtype=np.float32)
    for (name, own), first, end in zip(rows.items(), ends, ends[1:], strict=False):
        out[:, first:end] = unit_length(name, own, centre)[0]
    return out


def unit_length(
    name: str, rows: Float[ndarray, "tokens channels"], centre: bool = False
) -> tuple[Float[ndarray, "tokens channels"], float]:
    """The rows of one component scaled to a root mean square length of 1 over tokens, and that length before scaling.

    With ``centre`` the mean row over tokens is subtracted before the length is taken.

    Raises:
        ValueError: as `resolve`; ``name`` is the component's.
    """
    rows = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(f"rows must be finite: those of {name!r} are not")
    moved = rows - rows.mean(axis=0) if centre else rows
    length = np.sqrt((moved**2).sum(axis=1).mean())
    if length <= 1e-7 * np.abs(rows).max(initial=0):  # float32 of a constant
        what = "moved one token's loss and not another's" if centre else "moved a token's loss"
        raise ValueError(f"no draw of {name!r} {what}: its rows have no length")
    return moved / length, float(length)


Sums = TypeVar("Sums", CovarianceSums, ResolvedSums)
