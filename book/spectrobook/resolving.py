"""A world of many reasons, and what rows of few or many channels make of it (chapter Resolved rows)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

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


def repeated(count: int, seed: int, once: Callable[[np.random.Generator], float]) -> Float[ndarray, " count"]:
    """The same trial with other choices."""
    return np.array([once(np.random.default_rng([seed, i])) for i in range(count)])
