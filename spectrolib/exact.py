r"""Truth to test against: posteriors and chains whose laws are known.

*Quadratic potentials.* On L(w) = bᵀδ + ½ δᵀAδ, δ = w - o, an SGLD chain is a linear recursion driven by Gaussian
noise. Its law is normal after any number of steps, and known in closed form, discretisation bias included.

*An enumerable toy.* A one-unit language model with three weights in two blocks (`Toy`). Its posterior is integrated on
a grid, so its susceptibilities are known to many digits, for both estimators and for the definition itself: the
response of the posterior to a tilt of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
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


# An enumerable toy ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """A language model with one hidden unit and three weights: block ``in`` = (a), block ``out`` = (b, c).

        p(y | x, w) = softmax_y( (x_0 + a x_1) (y_0 + b y_1 + c y_2) ),

    with fixed codes (x_0, x_1) of each context and (y_0, y_1, y_2) of each token. The data are the model's own at
    w* = 0, with context frequencies q(x), so w* minimises the loss.
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

    @property
    def joint(self) -> Float[ndarray, "contexts tokens"]:
        """q(x, y)."""
        at_best = self.losses(torch.zeros(3, dtype=torch.float64)).numpy()
        return self.frequencies[:, None] * np.exp(-at_best)

    def tilted(self, context: int, token: int, h: float) -> Float[ndarray, "contexts tokens"]:
        """q_h = q + h (δ_xy - q)."""
        delta = np.zeros_like(self.joint)
        delta[context, token] = 1
        return self.joint + h * (delta - self.joint)

    def place(self, block: str, moved: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 3"]:
        """All three weights, with those outside the block at w*."""
        w = moved.new_zeros(*moved.shape[:-1], 3)
        return w.index_copy(-1, torch.tensor(self.BLOCKS[block]), moved)

    def potential(self, block: str = "full") -> Potential:
        """L(u*, c) = E_q l_xy as a function of the weights c of the block, for `posterior.sample`."""
        joint = torch.as_tensor(self.joint)
        return lambda c: (self.losses(self.place(block, c)) * joint.to(c)).sum((-2, -1))


class Grid(NamedTuple):
    """A posterior of the toy, integrated by the trapezoid rule, which converges exponentially for such densities."""

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


def integrate(
    toy: Toy, block: str, settings: Settings, *, joint: Float[ndarray, "contexts tokens"] | None = None, side: int = 49
) -> Grid:
    """The localised Gibbs posterior of the toy with the weights outside ``block`` clamped at w*.

    Args:
        joint: the data distribution whose mean loss drives the posterior; q unless it is given.
        side: nodes in each dimension; odd, so that w* is a node.
    """
    reach = 8 / math.sqrt(settings.gamma)  # e^{-32} of the peak at the edge, where L(w) >= L(w*)
    axis = np.linspace(-reach, reach, side)
    d = len(toy.BLOCKS[block])
    points = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)
    losses = toy.losses(toy.place(block, torch.as_tensor(points))).numpy()
    q = toy.joint if joint is None else joint
    rise = ((losses - toy.losses(torch.zeros(3, dtype=torch.float64)).numpy()) * q).sum((1, 2))
    density = np.exp(-settings.nbeta * rise - settings.gamma / 2 * (points**2).sum(1))
    total = density.sum()
    return Grid(points, density / total, float(total * (axis[1] - axis[0]) ** d), losses)


class Susceptibilities(NamedTuple):
    """What the estimators of a block's susceptibility tend to, each (contexts, tokens)."""

    two_chain: Float[ndarray, "contexts tokens"]
    """-( <g d>_C - <g>_C <d> )."""
    one_chain: Float[ndarray, "contexts tokens"]
    """-Cov_C(g, d)."""
    factor: float
    """Z_C / Z: times ``two_chain`` this is the susceptibility of the delta-function observable φ_C = δ(u - u*) g."""


def susceptibilities(toy: Toy, block: str, settings: Settings) -> Susceptibilities:
    """The exact susceptibilities of a block, by quadrature, with g = L(u*, c) - L(w*) and d = l_xy - L."""
    restricted, full = (integrate(toy, name, settings) for name in (block, "full"))
    rise, excess = rise_and_excess(toy, restricted.losses)
    _, full_excess = rise_and_excess(toy, full.losses)
    both = restricted.mean(rise[:, None, None] * excess)
    g, d = restricted.mean(rise), restricted.mean(excess)
    factor = restricted.normaliser / full.normaliser
    return Susceptibilities(-(both - g * full.mean(full_excess)), -(both - g * d), factor)


def rise_and_excess(
    toy: Toy, losses: Float[ndarray, "draws contexts tokens"]
) -> tuple[Float[ndarray, " draws"], Float[ndarray, "draws contexts tokens"]]:
    """g = L(w) - L(w*) and d_xy = l_xy(w) - L(w) of each draw, from its losses."""
    joint = toy.joint
    mean = (losses * joint).sum((1, 2))
    best = -(joint * np.log(joint / toy.frequencies[:, None])).sum()
    return mean - best, losses - mean[:, None, None]


def tilted_response(
    toy: Toy, block: str, settings: Settings, context: int, token: int, *, delta: bool, h: float = 1e-4
) -> float:
    """The paper's definition by a central difference: (1/nβ) d/dh <observable>_h under q_h = q + h (δ_xy - q).

    The observable is φ_C = δ(u - u*) g under the posterior over all weights (``delta``), where
    <φ_C>_h = (Z_C / Z) <g>_C, or g under the posterior over the block's weights alone.
    """

    def mean(h: float) -> float:
        joint = toy.tilted(context, token, h)
        restricted = integrate(toy, block, settings, joint=joint)
        g = float(restricted.mean(rise_and_excess(toy, restricted.losses)[0]))
        if not delta:
            return g
        return g * restricted.normaliser / integrate(toy, "full", settings, joint=joint).normaliser

    return (mean(h) - mean(-h)) / (2 * h * settings.nbeta)
