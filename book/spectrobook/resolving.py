"""A world of many reasons, and what rows of few or many channels make of it (appendix Resolving power)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from spectrolib.estimator import standardise
from spectrolib.exact import enumerable, resolution
from spectrolib.posterior import Settings

from . import purity


@dataclass(frozen=True)
class Crowd(enumerable.Enumerable):
    """Contexts and tokens of many reasons, and components that each have their own codes for them:

        logit(x, y) = log q(y|x) + Σ_C f_C(x)ᵀ W_C g_C(y),        W_C = 0 at w*.

    Half of the time a context is followed by a token of its reason, else by any token at all.
    """

    conditional: Float[ndarray, "contexts tokens"]
    """q(y|x)."""
    reason: Int[ndarray, " contexts"]
    own: Bool[ndarray, "contexts tokens"]
    """Whether a token is one of the context's reason."""
    context_codes: Float[ndarray, "components contexts d"]
    """f_C."""
    token_codes: Float[ndarray, "components tokens d"]
    """g_C."""

    @classmethod
    def of(
        cls, reasons: int, components: int, *, each: int = 3, d: int = 6, spread: float = 0.5, seed: int = 0
    ) -> Crowd:
        """A world with random codes.

        Args:
            each: contexts, and tokens, of a reason.
            d: length of the codes: a component has d² weights.
            spread: how far the codes within a reason lie from their common one, whose length is 1.
        """
        rng = np.random.default_rng(seed)
        reason = np.repeat(np.arange(reasons), each)
        own = reason[:, None] == reason
        likely = own * np.exp(0.3 * rng.normal(size=own.shape))
        conditional = 0.5 * likely / likely.sum(axis=1, keepdims=True) + 0.5 / len(reason)

        def codes() -> ndarray:
            shared = _unit(rng.normal(size=(components, reasons, d)))[:, reason]
            return _unit(shared + spread * _unit(rng.normal(size=shared.shape)))

        return cls(conditional, reason, own, codes(), codes())

    @property
    def frequencies(self) -> Float[ndarray, " contexts"]:
        """q(x): all alike."""
        return np.full(len(self.reason), 1 / len(self.reason))

    @property
    def BLOCKS(self) -> dict[str, tuple[int, ...]]:
        """The weights of each component, which are named by numbers."""
        components, _, d = self.context_codes.shape
        numbers = np.arange(components * d * d).reshape(components, -1)
        return {str(i): tuple(own) for i, own in enumerate(numbers)} | {"full": tuple(numbers.flatten())}

    def only(self, component: int) -> Crowd:
        """The world with one component: as good as clamping the others, and faster."""
        one = slice(component, component + 1)
        return replace(self, context_codes=self.context_codes[one], token_codes=self.token_codes[one])

    def losses(self, w: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch contexts tokens"]:
        """l_xy(w), nats."""
        components, _, d = self.context_codes.shape
        f, g = (torch.as_tensor(codes).to(w) for codes in (self.context_codes, self.token_codes))
        read = torch.einsum("...cij,cxi->...cxj", w.reshape(*w.shape[:-1], components, d, d), f)
        logits = torch.einsum("...cxj,cyj->...xy", read, g)
        return -torch.log_softmax(torch.as_tensor(np.log(self.conditional)).to(w) + logits, dim=-1)

    @property
    def probe(self) -> tuple[Int[ndarray, " probe"], Int[ndarray, " probe"]]:
        """Contexts with the tokens of their own reason."""
        return np.nonzero(self.own)


def _unit(vectors: Float[ndarray, "*n d"]) -> Float[ndarray, "*n d"]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Component:
    """One component's posterior as weighted points, and what it says of the probe.

    What is called exact is exact for these points: they are the posterior that draws come from.
    """

    weights: Float[ndarray, " points"]
    rise: Float[ndarray, " points"]
    """g."""
    excess: Float[ndarray, "points probe"]
    """d_xy."""

    @property
    def susceptibility(self) -> Float[ndarray, " probe"]:
        """-Cov_C(g, d), exactly."""
        return -(self.weights * (self.rise - self.weights @ self.rise)) @ self.excess

    @property
    def kernel(self) -> Float[ndarray, "probe probe"]:
        """Cov_C(d, d'), exactly."""
        return resolution.loss_kernel(enumerable.Grid(self.excess, self.weights, 1.0, self.excess[:, :, None]))

    def on_text(self, tokens: Float[ndarray, " probe"]) -> Component:
        """The same with g the rise of the mean loss of a text, of which ``tokens`` are the frequencies."""
        return replace(self, rise=self.rise + self.excess @ tokens)

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> tuple[Float[ndarray, " draws"], Float[ndarray, "draws probe"]]:
        """g and d_xy at independent draws."""
        taken = rng.choice(len(self.weights), count, p=self.weights)
        return self.rise[taken], self.excess[taken]


def measure(world: Crowd, component: int, settings: Settings, points: int, seed: int) -> Component:
    """The posterior of one component with the others clamped."""
    own = world.only(component)
    found = enumerable.importance(own, "full", settings, draws=points, seed=seed)
    rise, excess = enumerable.rise_and_excess(own, found.losses)
    return Component(found.weights, rise, excess[:, *world.probe])


# ---- rows


def scaled(rows: Float[ndarray, "probe channels"]) -> Float[ndarray, "probe channels"]:
    """Rows of one component less their mean over tokens, with lengths of 1 on average (`estimator.resolve`).

    Zero if they are constant: with two draws, both may be the same point.
    """
    centred = rows - rows.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=1).mean())
    return centred / spread if spread > 0 else centred


def centred_draws(excess: Float[ndarray, "draws probe"]) -> Float[ndarray, "probe draws"]:
    """Each draw as a channel: inner products of rows are the covariances over the draws."""
    return (excess - excess.mean(axis=0)).T / np.sqrt(len(excess))


def permuted(found: Component, rng: np.random.Generator, draws: int = 512) -> Float[ndarray, " probe"]:
    """The sample susceptibility with g permuted over the draws."""
    rise, excess = found.draw(rng, draws)
    return -rng.permutation(rise - rise.mean()) @ excess / draws


def right(rows: Float[ndarray, "probe channels"], world: Crowd) -> float:
    """How often the nearest neighbour in another context has the same reason."""
    context, _ = world.probe
    may = context[:, None] != context
    return float(purity.purity(purity.neighbours(rows, 1, may), world.reason[context]).mean())


@dataclass(frozen=True)
class Way:
    """A way to make rows of a given number of channels."""

    channels: tuple[int, ...]
    """Numbers of channels to try."""
    rows: Callable[[np.random.Generator, int], Float[ndarray, "probe channels"]]
    """Rows of so many channels, from components and draws chosen at random."""


def ways(measured: Sequence[Component], text: Float[ndarray, " probe"]) -> dict[str, Way]:
    """The five that the chapter compares: a component for each channel, or a draw for each.

    Args:
        text: frequencies of the probe's tokens in a short text, whose loss may take the place of the exact mean loss.

    Raises:
        ValueError: for fewer than four components.
    """
    if len(measured) < 4:
        raise ValueError(f"rows of four components need at least four, got {len(measured)}")

    def some(rng: np.random.Generator, count: int) -> list[Component]:
        return [measured[c] for c in rng.choice(len(measured), count, replace=False)]

    def one_each(column: Callable[[Component, np.random.Generator], Float[ndarray, " probe"]]) -> Way:
        def rows(rng: np.random.Generator, channels: int) -> Float[ndarray, "probe channels"]:
            return standardise(np.stack([column(own, rng) for own in some(rng, channels)], axis=1), rows=None)

        return Way(tuple(2**i for i in range(len(measured).bit_length())), rows)

    def draws_of(components: int) -> Way:
        def rows(rng: np.random.Generator, channels: int) -> Float[ndarray, "probe channels"]:
            taken = [own.draw(rng, channels // components + 1)[1] for own in some(rng, components)]
            return np.concatenate([scaled(centred_draws(excess)) for excess in taken], axis=1)

        return Way(tuple(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n >= components), rows)

    return {
        "one number each, exact": one_each(lambda own, rng: own.susceptibility),
        "one number each, loss of a short text": one_each(lambda own, rng: own.on_text(text).susceptibility),
        "one number each, g permuted": one_each(permuted),
        "draws of one component": draws_of(1),
        "draws of four components": draws_of(4),
    }


def accuracy(way: Way, world: Crowd, repetitions: int, seed: int) -> Float[ndarray, "counts repetitions"]:
    """`right`, for each number of channels and each repetition."""
    trials = [repeated(repetitions, seed + n, lambda rng, n=n: right(way.rows(rng, n), world)) for n in way.channels]
    return np.array(trials)


class Growth(NamedTuple):
    """What becomes of nearest neighbours with more channels, in a world of some number of reasons."""

    right: Float[ndarray, " counts"]
    """How often they have the same reason."""
    bound: Float[ndarray, " counts"]
    """The least that it can be for normal channels (`resolution.mistakes`)."""


def grow(reasons: int, settings: Settings, channels: Int[ndarray, " counts"], seed: int, components: int = 4) -> Growth:
    """Accuracy and its bound, in a world of so many reasons at nβ = 0, where the posterior is normal.

    Args:
        channels: numbers of channels to try; each component gets an equal part.

    Raises:
        ValueError: if nβ is not 0.
    """
    if settings.nbeta:
        raise ValueError(f"draws without a sampler need nβ = 0, got {settings.nbeta:g}")
    world = Crowd.of(reasons, components, seed=seed + reasons)
    x, y = world.probe
    at_probe = np.ravel_multi_index((x, y), world.conditional.shape)
    fluctuations, total = [], 0
    for c in range(components):
        own = world.only(c)
        size = (channels[-1] // components + 1, len(own.BLOCKS["full"]))
        moved = torch.as_tensor(np.random.default_rng([seed, reasons, c]).normal(size=size) / np.sqrt(settings.gamma))
        fluctuations.append((own.losses(moved) - own.losses(own.best)).numpy()[:, x, y])
        gradients = scaled(resolution.slopes(own, "full")[at_probe])
        total = total + gradients @ gradients.T

    def once(rng: np.random.Generator, n: int) -> float:
        kept = [excess[rng.choice(len(excess), n // components + 1, replace=False)] for excess in fluctuations]
        return right(np.concatenate([scaled((excess - excess.mean(axis=0)).T) for excess in kept], axis=1), world)

    found = [repeated(4, seed + n, lambda rng, n=n: once(rng, n)).mean() for n in channels.tolist()]
    wrong = resolution.mistakes(total, world.reason[x], x[:, None] != x, channels)
    return Growth(np.array(found), 1 - wrong)


def crossing(at: Float[ndarray, " n"], values: Float[ndarray, " n"], level: float) -> float:
    """Where a rising curve first reaches a level, by linear interpolation.

    Raises:
        ValueError: if it never does, or does so at once.
    """
    i = int(np.argmax(values >= level))
    if values[i] < level or i == 0:
        raise ValueError(f"the curve does not cross {level:g}: it runs from {values[0]:g} to {values[-1]:g}")
    return float(np.interp(level, values[i - 1 : i + 1], at[i - 1 : i + 1]))


def short_text(world: Crowd, tokens: int, seed: int) -> Float[ndarray, " probe"]:
    """Frequencies of the probe's tokens in a text of so many of them."""
    count = len(world.probe[0])
    return np.random.default_rng(seed).multinomial(tokens, np.full(count, 1 / count)) / tokens


def repeated(count: int, seed: int, once: Callable[[np.random.Generator], float]) -> Float[ndarray, " count"]:
    """The same trial with other choices."""
    return np.array([once(np.random.default_rng([seed, i])) for i in range(count)])
