r"""Truth to test against: posteriors and chains whose laws are known.

*Quadratic potentials.* On L(w) = bᵀδ + ½ δᵀAδ, δ = w - o, an SGLD chain is a linear recursion driven by Gaussian
noise. Its law is normal after any number of steps, and known in closed form, discretisation bias included.

*Enumerable models.* Language models over a few contexts and tokens (`Enumerable`; here a one-unit model with three
weights in two blocks, `Toy`; more of them in `toys.py`). Their posteriors are integrated on a grid, or sampled exactly
with importance weights where they have many weights. So their susceptibilities are known to many digits, for both
estimators and for the definition itself: the response of the posterior to a tilt of the data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import qmc
from torch import Tensor

from .posterior import Settings, sample

# Quadratic potentials ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadratic:
    """The potential (or observable) f(w) = bᵀδ + ½ δᵀAδ with δ = w - o."""

    curvature: Float[ndarray, "d d"]
    """A, symmetric."""
    origin: Float[ndarray, " d"]
    """o."""
    slope: Float[ndarray, " d"]
    """b."""

    @classmethod
    def bowl(cls, curvature: Float[ndarray, "d d"], minimum: Float[ndarray, " d"] | None = None) -> Quadratic:
        """½ (w - m)ᵀ A (w - m), with m = 0 unless it is given."""
        zero = np.zeros(len(curvature))
        return cls(curvature, zero if minimum is None else minimum, zero)

    def __call__(self, w: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """f at each row of ``w``."""
        curvature, origin, slope = (
            torch.as_tensor(x, dtype=w.dtype, device=w.device) for x in (self.curvature, self.origin, self.slope)
        )
        delta = w - origin
        return delta @ slope + 0.5 * (delta @ curvature * delta).sum(-1)

    def slope_at(self, w: Float[ndarray, " d"]) -> Float[ndarray, " d"]:
        """∇f(w) = b + A (w - o)."""
        return self.slope + self.curvature @ (w - self.origin)


class Normal(NamedTuple):
    """A normal law N(μ, Σ), and the moments of quadratic observables under it."""

    mean: Float[ndarray, " d"]
    covariance: Float[ndarray, "d d"]

    def expectation(self, f: Quadratic) -> float:
        """E f = f(μ) + ½ tr(AΣ): the linear term of the expansion around μ averages out."""
        return float(f(torch.as_tensor(self.mean))) + 0.5 * float(np.trace(f.curvature @ self.covariance))

    def covariance_of(self, f: Quadratic, g: Quadratic) -> float:
        """Cov(f, g) = ∇f(μ)ᵀ Σ ∇g(μ) + ½ tr(A_f Σ A_g Σ).

        Expand both around μ. Odd moments of a centred normal vanish, so linear and quadratic parts do not mix, and
        Isserlis' theorem gives Cov(½ δᵀAδ, ½ δᵀBδ) = ½ tr(AΣBΣ).
        """
        linear = f.slope_at(self.mean) @ self.covariance @ g.slope_at(self.mean)
        return float(linear + 0.5 * np.trace(f.curvature @ self.covariance @ g.curvature @ self.covariance))


def precision(potential: Quadratic, settings: Settings) -> Float[ndarray, "d d"]:
    """H = nβA + γI, the Hessian of the exponent of the localised posterior."""
    return settings.nbeta * potential.curvature + settings.gamma * np.eye(len(potential.curvature))


def gibbs(potential: Quadratic, centre: Float[ndarray, " d"], settings: Settings) -> Normal:
    """The localised Gibbs posterior ∝ exp{ -nβ L(w) - (γ/2) |w - w*|² } around w* = ``centre``: N(μ, H⁻¹).

    At its mean the exponent is flat: nβ ∇L(μ) + γ (μ - w*) = 0, so μ = w* - H⁻¹ nβ ∇L(w*).
    """
    inverse = np.linalg.inv(precision(potential, settings))
    return Normal(centre - settings.nbeta * inverse @ potential.slope_at(centre), inverse)


def sgld_variance(eigenvalue, step_size):
    """Stationary variance (1/λ) / (1 - ελ/4) of SGLD along an eigenvector of H with eigenvalue λ.

    The step is the AR(1) recursion δ ← (1 - ελ/2) δ + √ε ξ, so V = (1 - ελ/2)² V + ε. As ε → 0 this is the posterior's
    1/λ; at ε = 4/λ it diverges. For nβ = 0 every λ is γ.
    """
    return 1 / (eigenvalue * (1 - step_size * eigenvalue / 4))


def midpoint_variance(eigenvalue, step_size):
    """Stationary variance of (δ_t + δ_{t+1}) / 2, the mean of two consecutive SGLD positions: 1/λ, with no bias at all.

    With r = 1 - ελ/2 and V = ε / (1 - r²) it is ((1 + r)² V + ε) / 4 = ε / (2 (1 - r)) = 1/λ. On other potentials the
    bias of midpoints is of second order in ε (Leimkuhler and Matthews, 2013), that of positions of first order.
    """
    r = 1 - step_size * eigenvalue / 2
    return ((1 + r) ** 2 * sgld_variance(eigenvalue, step_size) + step_size) / 4


def largest_step(potential: Quadratic, settings: Settings) -> float:
    """4/λ_max: with this step size or a larger one SGLD diverges, for then |1 - ελ/2| >= 1 in some direction."""
    return 4 / float(np.linalg.eigvalsh(precision(potential, settings))[-1])


def sgld_law(
    potential: Quadratic,
    centre: Float[ndarray, " d"],
    settings: Settings,
    *,
    steps: int | None = None,
    gradient_noise: Float[ndarray, "d d"] | None = None,
    scale: Float[ndarray, " d"] | None = None,
) -> Normal:
    """Law of an SGLD chain that starts at w* = ``centre``, after ``steps`` steps, or its stationary law.

    With δ = w - μ, gradient noise s ~ N(0, S) and a constant diagonal G, a step is
    δ ← (I - ½εGH) δ - ½εnβ G s + √(εG) ξ. In the coordinates G^(-½) δ along the eigenvectors of G^½ H G^½ the recursion
    is diagonal with factors r_i = 1 - ½ελ_i; there the noise of one step has covariance
    Q = εI + ¼ε²(nβ)² G^½ S G^½, and summing the noise of t steps gives

        Σ_ij = Q_ij (1 - (r_i r_j)^t) / (1 - r_i r_j).

    Args:
        steps: None for the stationary law, t = ∞.
        gradient_noise: S, the covariance of the noise in the minibatch gradient of the mean loss.
        scale: the diagonal of G, where a preconditioner has settled (`settings.preconditioner` is not looked at).

    Raises:
        ValueError: if there is no stationary law because the step size is too large.
    """
    mean = gibbs(potential, centre, settings).mean
    epsilon, d = settings.step_size, len(mean)
    root = np.sqrt(np.ones(d) if scale is None else scale)
    eigenvalues, axes = np.linalg.eigh(root[:, None] * precision(potential, settings) * root)
    factors = 1 - epsilon * eigenvalues / 2
    if steps is None and (np.abs(factors) >= 1).any():
        limit = 4 / eigenvalues[-1]
        raise ValueError(f"no stationary law: step_size must be below 4/λ_max = {limit:g}, got {epsilon:g}")
    kick = np.zeros((d, d)) if gradient_noise is None else root[:, None] * gradient_noise * root
    noise = epsilon * np.eye(d) + (epsilon * settings.nbeta) ** 2 / 4 * axes.T @ kick @ axes
    products = np.outer(factors, factors)
    covariance = noise * (1 - (0 if steps is None else products**steps)) / (1 - products)
    back = root[:, None] * axes  # from the diagonal coordinates to δ
    memory = np.zeros(d) if steps is None else factors**steps * (axes.T @ ((centre - mean) / root))
    return Normal(mean + back @ memory, back @ covariance @ back.T)


def autocorrelation(eigenvalue, step_size, lag):
    """(1 - ελ/2)^k: correlation of a stationary SGLD coordinate with itself k steps later (AR(1))."""
    return (1 - step_size * eigenvalue / 2) ** lag


def effective_draws(draws, correlation):
    """n (1 - ρ) / (1 + ρ): independent draws that would give the mean of n AR(1) draws with correlation ρ its variance.

    For second moments of a normal chain the correlation between draws is ρ², so call it with that.
    """
    return draws * (1 - correlation) / (1 + correlation)


def memoryless_rmsprop_variance(curvature: float, settings: Settings) -> float:
    """Variance of RMSProp-preconditioned SGLD on ½cw², w* = 0, when v has no memory (a → 0) and ε → 0.

    It is not the posterior's. The diffusion dw = -½ G U' dt + √G dB (Itô, no divergence term Γ) has stationary density
    ∝ e^{-U} / G: its flux -½ G U' p - ½ (G p)' vanishes there. Without memory 1/G = |g| + e = c|w| + e. With
    σ² = 1/(nβc + γ), E|w| = σ√(2/π) and E|w|³ = 2σ³√(2/π), the variance is
    σ² (e + 2cσ√(2/π)) / (e + cσ√(2/π)): between one and two times the posterior's.
    """
    variance = 1 / (settings.nbeta * curvature + settings.gamma)
    slope = curvature * math.sqrt(variance * 2 / math.pi)
    return variance * (settings.rms_epsilon + 2 * slope) / (settings.rms_epsilon + slope)


# Many chains at once ------------------------------------------------------------------------------------------------

Potential = Callable[[Tensor], Tensor]


def replicated(potential: Potential, copies: int) -> Potential:
    """Many independent chains as one: the sum of ``potential`` over ``copies`` of the weights in one flat tensor.

    The gradient for one copy does not depend on the others, and SGLD's noise and preconditioner act element by element.
    """
    return lambda w: potential(w.view(copies, -1)).sum()


def walk(
    potential: Potential, settings: Settings, centre: Float[ndarray, " d"], copies: int, *, name: str = "full"
) -> Float[ndarray, "draws copies d"]:
    """Every draw of many independent chains, all started at w* = ``centre``; another ``name`` brings other noise.

    The sampler sees the sum of the copies' losses, whose rise is no sign of trouble: ``max_rise`` is lifted.
    """
    run = sample(
        replicated(potential, copies),
        replace(settings, max_rise=math.inf),
        start=torch.as_tensor(np.tile(centre, copies)),
        component=name,
    )
    return np.stack([draw.position.view(copies, -1).numpy().copy() for draw in run])


def noisy(potential: Potential, covariance: Float[ndarray, "d d"], seed: int = 0) -> Potential:
    """``potential`` with gradient noise, as minibatches give it: each call adds sᵀw, s ~ N(0, S) fresh per row of w."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.as_tensor(np.linalg.cholesky(covariance))

    def with_noise(w: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        kick = torch.randn(w.shape, generator=generator, dtype=root.dtype) @ root.T
        return potential(w) + (kick.to(w) * w).sum(-1)

    return with_noise


# Enumerable models ---------------------------------------------------------------------------------------------------


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
