r"""Language models over a few contexts and tokens, whose susceptibilities are known to many digits.

Posteriors are integrated on a grid, or sampled exactly with importance weights where a model has many weights. So the
susceptibilities are known for both estimators and for the definition itself: the response of the posterior to a tilt of
the data. `Toy` is a one-unit model with three weights in two blocks; `toys` holds more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import qmc
from torch import Tensor

from ..posterior import Settings
from .quadratic import Potential


class Enumerable(ABC):
    """A language model over a few contexts and tokens. Its data are its own at w* = 0, so w* minimises the loss."""

    frequencies: Float[ndarray, " contexts"]
    """q(x)."""
    BLOCKS: Mapping[str, tuple[int, ...]]
    """The weights of each component, by index; and of ``full``."""

    @abstractmethod
    def losses(self, w: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch contexts tokens"]:
        """l_xy(w) = -log p(y|x, w) of every context and token, nats."""

    @property
    def best(self) -> Float[Tensor, " weights"]:
        """w* = 0."""
        return torch.zeros(len(self.BLOCKS["full"]), dtype=torch.float64)

    @property
    def joint(self) -> Float[ndarray, "contexts tokens"]:
        """q(x, y)."""
        return self.frequencies[:, None] * np.exp(-self.losses(self.best).numpy())

    def tilted(self, context: int, token: int, h: float) -> Float[ndarray, "contexts tokens"]:
        """q_h = q + h (δ_xy - q)."""
        delta = np.zeros_like(self.joint)
        delta[context, token] = 1
        return self.joint + h * (delta - self.joint)

    def place(self, block: str, moved: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch weights"]:
        """All weights, with those outside the block at w*."""
        w = moved.new_zeros(*moved.shape[:-1], len(self.BLOCKS["full"]))
        return w.index_copy(-1, torch.tensor(self.BLOCKS[block]), moved)

    def potential(self, block: str = "full") -> Potential:
        """L(u*, c) = E_q l_xy as a function of the weights c of the block, for `posterior.sample`."""
        joint = torch.as_tensor(self.joint)
        return lambda c: (self.losses(self.place(block, c)) * joint.to(c)).sum((-2, -1))

    def curvature(self, block: str = "full") -> Float[ndarray, "d d"]:
        """The Hessian of the loss at w*, in the weights of the block."""
        zero = torch.zeros(len(self.BLOCKS[block]), dtype=torch.float64)
        return torch.autograd.functional.hessian(self.potential(block), zero).numpy()


@dataclass(frozen=True)
class Toy(Enumerable):
    """A language model with one hidden unit and three weights: block ``in`` = (a), block ``out`` = (b, c).

        p(y | x, w) = softmax_y( (x_0 + a x_1) (y_0 + b y_1 + c y_2) ),

    with fixed codes (x_0, x_1) of each context and (y_0, y_1, y_2) of each token.
    """

    contexts: Float[ndarray, "contexts 2"]
    tokens: Float[ndarray, "tokens 3"]
    frequencies: Float[ndarray, " contexts"]

    BLOCKS = {"in": (0,), "out": (1, 2), "full": (0, 1, 2)}  # noqa: RUF012

    @classmethod
    def random(cls, seed: int = 0, contexts: int = 4, tokens: int = 3) -> Toy:
        """A toy with random codes and frequencies."""
        rng = np.random.default_rng(seed)
        return cls(rng.normal(size=(contexts, 2)), rng.normal(size=(tokens, 3)), rng.dirichlet(np.full(contexts, 4.0)))

    def losses(self, w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch contexts tokens"]:
        """l_xy(w) = -log p(y|x, w) of every context and token, nats."""
        codes, tokens = torch.as_tensor(self.contexts).to(w), torch.as_tensor(self.tokens).to(w)
        hidden = codes[:, 0] + w[..., :1] * codes[:, 1]
        out = tokens[:, 0] + w[..., 1:2] * tokens[:, 1] + w[..., 2:] * tokens[:, 2]
        return -torch.log_softmax(hidden[..., :, None] * out[..., None, :], dim=-1)


class Grid(NamedTuple):
    """A posterior of an enumerable model as points with weights, on which means are sums."""

    points: Float[ndarray, "nodes d"]
    """Weights of the block at each node."""
    weights: Float[ndarray, " nodes"]
    """Probability of each node: they sum to 1."""
    normaliser: float
    """Z = ∫ exp{ -nβ [L_h(w) - L_h(w*)] - (γ/2) |w - w*|² } over the weights of the block."""
    losses: Float[ndarray, "nodes contexts tokens"]

    def mean(self, values: Float[ndarray, "nodes ..."]) -> ndarray:
        """Posterior mean of an observable given at the nodes."""
        return np.tensordot(self.weights, values, axes=1)


def _exponent(
    model: Enumerable, block: str, settings: Settings, points: ndarray, joint: ndarray | None
) -> tuple[Float[ndarray, " nodes"], Float[ndarray, "nodes contexts tokens"]]:
    """-nβ [L_h(w) - L_h(w*)] - (γ/2) |w - w*|² at each point, and the losses there."""
    losses = model.losses(model.place(block, torch.as_tensor(points))).numpy()
    q = model.joint if joint is None else joint
    rise = np.tensordot(losses, q, axes=2) - (model.losses(model.best).numpy() * q).sum()
    return -settings.nbeta * rise - settings.gamma / 2 * (points**2).sum(1), losses


def integrate(
    model: Enumerable,
    block: str,
    settings: Settings,
    *,
    joint: Float[ndarray, "contexts tokens"] | None = None,
    side: int | None = None,
) -> Grid:
    """The localised Gibbs posterior with the weights outside ``block`` clamped at w*, by the trapezoid rule.

    The rule converges exponentially for such densities. The box starts with the localisation alone and shrinks, axis
    by axis, while the posterior leaves most of it empty.

    Args:
        joint: the data distribution whose mean loss drives the posterior; q unless it is given.
        side: nodes in each dimension; odd, so that w* is a node. By default 49, and 41 for three weights.

    Raises:
        ValueError: if the block has more than three weights; `importance` takes those.
    """
    d = len(model.BLOCKS[block])
    if d > 3:
        raise ValueError(f"a grid over the {d} weights of {block!r} is too large: use importance()")
    side = (41 if d == 3 else 49) if side is None else side
    reach = np.full(d, 8 / math.sqrt(settings.gamma))  # e^{-32} of the peak at the edge, where L(w) >= L(w*)
    while True:
        axes = [np.linspace(-r, r, side) for r in reach]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, d)
        exponent, losses = _exponent(model, block, settings, points, joint)
        inside = np.abs(points[exponent > exponent.max() - 36]).max(axis=0) + 2 * reach / (side - 1)
        if (inside > 0.6 * reach).all():
            break
        reach = np.minimum(inside, reach)
    density = np.exp(exponent)
    total = density.sum()
    return Grid(points, density / total, float(total * np.prod(2 * reach / (side - 1))), losses)


def importance(
    model: Enumerable,
    block: str,
    settings: Settings,
    *,
    joint: Float[ndarray, "contexts tokens"] | None = None,
    draws: int = 2**13,
    seed: int = 0,
) -> Grid:
    """The same posterior for a block of many weights: quasi-random points of a normal law, with importance weights.

    The law has the precision nβ∇²L(w*) + γI of the posterior at w*, its variances widened by a fifth. Each point comes
    with its mirror image, so that odd parts nearly cancel. Nothing is approximated but the integral: another ``seed``
    gives an independent estimate, and the spread over seeds its error.

    Args:
        draws: points, a power of two; at least 4.

    Raises:
        ValueError: if the weights are so uneven that fewer than a twentieth of the points count; the posterior is then
            too far from normal for this, and a larger γ brings it nearer.
    """
    d = len(model.BLOCKS[block])
    law = 1.2 * np.linalg.inv(settings.nbeta * model.curvature(block) + settings.gamma * np.eye(d))
    root = np.linalg.cholesky(law)
    half = qmc.MultivariateNormalQMC(np.zeros(d), seed=seed).random(draws // 2)
    z = np.concatenate([half, -half])
    exponent, losses = _exponent(model, block, settings, z @ root.T, joint)
    log_weight = exponent + (z**2).sum(1) / 2
    weight = np.exp(log_weight - log_weight.max())
    effective = weight.sum() ** 2 / (weight**2).sum()
    if effective < draws / 20:
        raise ValueError(f"the posterior of {block!r} is far from normal: only {effective:.0f} of {draws} points count")
    volume = (2 * math.pi) ** (d / 2) * np.prod(np.diag(root))
    normaliser = weight.mean() * math.exp(log_weight.max()) * volume
    return Grid(z @ root.T, weight / weight.sum(), float(normaliser), losses)


def posterior(
    model: Enumerable, block: str, settings: Settings, *, joint: Float[ndarray, "contexts tokens"] | None = None
) -> Grid:
    """`integrate` for blocks of up to three weights, `importance` for larger ones."""
    method = integrate if len(model.BLOCKS[block]) <= 3 else importance
    return method(model, block, settings, joint=joint)


class Susceptibilities(NamedTuple):
    """What the estimators of a block's susceptibility tend to, each (contexts, tokens)."""

    two_chain: Float[ndarray, "contexts tokens"]
    """-( <g d>_C - <g>_C <d> )."""
    one_chain: Float[ndarray, "contexts tokens"]
    """-Cov_C(g, d)."""
    factor: float
    """Z_C / Z: times ``two_chain`` this is the susceptibility of the delta-function observable φ_C = δ(u - u*) g."""
    rise: float
    """<g>_C, nats."""
    restricted: Float[ndarray, "contexts tokens"]
    """<d>_C, nats."""
    full: Float[ndarray, "contexts tokens"]
    """<d>, the mean over the unrestricted posterior, nats."""


def susceptibilities(
    model: Enumerable, block: str, settings: Settings, *, full: Grid | None = None
) -> Susceptibilities:
    """The exact susceptibilities of a block, with g = L(u*, c) - L(w*) and d = l_xy - L.

    Args:
        full: the posterior over all weights, if it is at hand; it is the same for every block.
    """
    restricted = posterior(model, block, settings)
    full = posterior(model, "full", settings) if full is None else full
    rise, excess = rise_and_excess(model, restricted.losses)
    g, d = float(restricted.mean(rise)), restricted.mean(excess)
    full_excess = rise_and_excess(model, full.mean(full.losses)[None])[1][0]  # of the mean: d is linear in the losses
    both = restricted.mean(rise[:, None, None] * excess)
    return Susceptibilities(
        -(both - g * full_excess), -(both - g * d), restricted.normaliser / full.normaliser, g, d, full_excess
    )


def rise_and_excess(
    model: Enumerable, losses: Float[ndarray, "draws contexts tokens"]
) -> tuple[Float[ndarray, " draws"], Float[ndarray, "draws contexts tokens"]]:
    """g = L(w) - L(w*) and d_xy = l_xy(w) - L(w) of each draw, from its losses."""
    mean = (losses * model.joint).sum((1, 2))
    best = (model.losses(model.best).numpy() * model.joint).sum()
    return mean - best, losses - mean[:, None, None]


def tilted_mean(
    model: Enumerable, block: str, settings: Settings, context: int, token: int, h: float, *, delta: bool
) -> float:
    """Mean of the block's observable under the posterior that q_h = q + h (δ_xy - q) drives.

    The observable is φ_C = δ(u - u*) g under the posterior over all weights (``delta``), where
    <φ_C>_h = (Z_C / Z) <g>_C, or g under the posterior over the block's weights alone.
    """
    joint = model.tilted(context, token, h)
    restricted = posterior(model, block, settings, joint=joint)
    g = float(restricted.mean(rise_and_excess(model, restricted.losses)[0]))
    if not delta:
        return g
    return g * restricted.normaliser / posterior(model, "full", settings, joint=joint).normaliser


def tilted_response(
    model: Enumerable, block: str, settings: Settings, context: int, token: int, *, delta: bool, h: float = 1e-4
) -> float:
    """The paper's definition by a central difference: (1/nβ) d/dh <observable>_h, with `tilted_mean`."""
    above, below = (tilted_mean(model, block, settings, context, token, x, delta=delta) for x in (h, -h))
    return (above - below) / (2 * h * settings.nbeta)
